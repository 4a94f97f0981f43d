#!/usr/bin/env bash
# The tiny model; prints the path of the file. Its folder is named after the script that writes it.
. "$(dirname "$0")/common.sh"
sum=$(sha256sum "$PARTS/tiny_gguf.py" | cut -c 1-12)
dir="$BERTH_TEST_CACHE/tiny-gguf-$GGUF_VERSION-$sum"
python=$(bash "$PARTS/python.sh")
alone gguf
if [ ! -f "$dir/tiny.gguf" ]; then
  say "a tiny model with random weights"
  mkdir -p "$dir"
  "$python" "$PARTS/tiny_gguf.py" "$dir/tiny.gguf" >&2
fi
echo "$dir/tiny.gguf"
