#!/usr/bin/env bash
# llama.cpp's llama-server, built from the source that the llama-cpp-python sdist carries; prints its path.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/llama-server-$LLAMA_CPP_PYTHON_VERSION"
alone llama-server
if [ ! -x "$dir/llama-server" ]; then
  say "llama-server from llama-cpp-python $LLAMA_CPP_PYTHON_VERSION (6 to 10 min on two cores)"
  command -v c++ >/dev/null || apt_install g++ libc6-dev
  tmp="$dir.tmp"
  mkdir -p "$tmp"
  venv "$tmp/venv" 'cmake<4' ninja scikit-build-core
  llama_source "$tmp" "$tmp/venv"
  export PATH="$tmp/venv/bin:$PATH"
  cmake -G Ninja -S "$tmp/llama/vendor/llama.cpp" -B "$tmp/build" -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF >"$tmp/cmake.log" 2>&1 \
    || { tail -n 30 "$tmp/cmake.log" >&2; die "configuring llama.cpp failed"; }
  cmake --build "$tmp/build" --target llama-server >"$tmp/build.log" 2>&1 \
    || { tail -n 30 "$tmp/build.log" >&2; die "building llama-server failed"; }
  install -m 755 "$tmp/build/bin/llama-server" "$tmp/llama-server"
  rm -rf "$tmp/llama" "$tmp/build" "$tmp/venv"
  finish "$tmp" "$dir"
fi
echo "$dir/llama-server"
