#!/usr/bin/env bash
# llama.cpp's own llama-bench and llama-server, compiled for this machine's processor; about 10 minutes on two cores:
#     scripts/native_llama_bench.sh FOLDER
# It prints where the first is, for `bench --against llama.cpp --llama-bench FILE`; the other, for `bench --serve
# --against llama.cpp --llama-server FILE`, stands beside it. The sources are those that the package
# llama-cpp-python carries; needs pip, a C++ compiler, CMake ≥ 3.14, and 400 MB of disk in FOLDER.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
version=0.3.36
mkdir -p "$1" && cd "$1"
{
  [ -e llama_cpp_python-$version.tar.gz ] ||
    python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python==$version
  tar -xzf llama_cpp_python-$version.tar.gz
  cmake -S llama_cpp_python-$version/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_BUILD_NUMBER=0 -DLLAMA_BUILD_COMMIT="llama-cpp-python-$version, native" \
    -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF
  cmake --build build --target llama-bench llama-server --parallel "$(nproc)"
  mkdir -p bin && cp build/bin/llama-bench build/bin/llama-server bin/
  bin/llama-bench --version
} >&2
echo "$PWD/bin/llama-bench"
