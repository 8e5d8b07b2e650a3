#!/usr/bin/env bash
# The README's tables of speeds, measured on this machine in about an hour:
#     scripts/bench_peers.sh [smollm2 | 1b | startup | serve]…
# Without a name all four. Needs pip install -e ".[parity,gguf]" xllamacpp, 10 GB of memory and 8 GB of disk in $TMPDIR.
# The package xllamacpp is built for AVX2; llama.cpp built for this machine is measured in its place by
#     LLAMA_BENCH=$(scripts/native_llama_bench.sh FOLDER) scripts/bench_peers.sh
# and its llama-server, which stands beside it unless LLAMA_SERVER says where, beside ours.
set -euo pipefail
against=(--against hf,llama.cpp ${LLAMA_BENCH:+--llama-bench "$LLAMA_BENCH"})
server=${LLAMA_SERVER:-${LLAMA_BENCH:+$(dirname "$LLAMA_BENCH")/llama-server}}
bench() { python -m llama3_scratch.bench "$@"; }
for table in "${@:-smollm2 1b startup serve}"; do
  for name in $table; do
    case $name in
      smollm2) bench smollm2-135m --forms f32,int8,int4,int4-sym "${against[@]}" --tg 96 ;;
      1b) bench --shape llama3.2-1b --forms bf16,int8,int4,int4-sym "${against[@]}" --repeats 3 --pp 256 --tg 32 ;;
      startup) bench smollm2-135m --startup ;;
      serve) bench smollm2-135m --serve --forms int8 ${server:+--against llama.cpp --llama-server "$server"} ;;
      *) echo "error: no table $name; expected smollm2, 1b, startup or serve" >&2 && exit 2 ;;
    esac
    echo
  done
done
