#!/usr/bin/env bash
# The README's two commands in a clean Debian, with its own Python: trixie has 3.13, sid what comes next.
#     scripts/test_in_debian.sh FOLDER [trixie | sid | bookworm]
# Needs root and debootstrap, 9 GB of disk in FOLDER (PyPI's torch brings CUDA) and half an hour. Ends with the tests' code.
set -euo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then echo "usage: $0 FOLDER [trixie | sid | bookworm]" >&2; exit 2; fi
if [ "$(id -u)" != 0 ]; then echo "error: $0 needs root, for chroot" >&2; exit 2; fi
project=$(cd "$(dirname "$0")/.." && pwd)
root=$1 suite=${2:-trixie}
if [ ! -x "$root/usr/bin/python3" ]; then
  debootstrap --variant=minbase --include=python3,python3-venv,gcc,libc6-dev,git,ca-certificates "$suite" "$root"
fi
# The machine's own way to the package registries; the environment says the rest of it.
for file in /etc/resolv.conf /etc/hosts /etc/pip.conf "$HOME/.config/pip/pip.conf" "${PIP_CERT:-}"; do
  if [ -f "$file" ]; then mkdir -p "$root$(dirname "$file")" && cp "$file" "$root$file"; fi
done
there=$root/root/llama3_scratch
mkdir -p "$there"
git -C "$project" ls-files -z --cached --others --exclude-standard | tar -C "$project" --null -T - -c | tar -C "$there" -x
export HOME=/root PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin LANG=C.UTF-8
exec unshare --mount --fork bash -euo pipefail -c '
  mkdir -p "$1/dev/pts"
  mount -t proc proc "$1/proc" && mount -t tmpfs shm "$1/dev/shm" && mount -t devpts devpts "$1/dev/pts"
  exec chroot "$1" bash -euo pipefail -c "
    cd /root/llama3_scratch && python3 --version
    python3 -m venv .venv && . .venv/bin/activate && pip install --quiet -c constraints.txt -e . &&
    python -m llama3_scratch.generate \"What is the capital of France?\"
    pip install --quiet -c constraints.txt -e \".[dev]\" && python -m pytest"' - "$root"
