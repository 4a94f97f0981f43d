#!/usr/bin/env bash
# Ollama, built from its Go module; prints the path of the binary. Module archives leave out folders named `vendor`,
# so the headers that it keeps in one come from llama.cpp's own source.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/ollama-$OLLAMA_VERSION"
alone ollama
if [ ! -x "$dir/ollama" ]; then
  say "Ollama $OLLAMA_VERSION (Go module, 4 to 10 min on two cores)"
  command -v c++ >/dev/null || apt_install g++ libc6-dev
  tmp="$dir.tmp"
  rm -rf "$tmp"; mkdir -p "$tmp"
  venv "$tmp/pip" 'cmake<4' ninja scikit-build-core
  llama_source "$tmp" "$tmp/pip"
  headers="$tmp/llama/vendor/llama.cpp/vendor"
  export CGO_CFLAGS="-O2 -I$headers -I$headers/miniaudio -I$headers/stb" CGO_CXXFLAGS="-O2 -I$headers -I$headers/miniaudio -I$headers/stb"
  need_go "$tmp"
  go_build "$tmp" "$tmp/ollama" "github.com/ollama/ollama@v$OLLAMA_VERSION" github.com/ollama/ollama
  rm -rf "$tmp/src" "$tmp/llama" "$tmp/pip" "$tmp/venv" "$tmp/gopath" "$tmp/gocache"
  finish "$tmp" "$dir"
fi
echo "$dir/ollama"
