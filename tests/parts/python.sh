#!/usr/bin/env bash
# A virtual environment with the openai and anthropic clients, and gguf and numpy for the tiny model; prints its Python.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/python-openai-$OPENAI_VERSION-anthropic-$ANTHROPIC_VERSION-gguf-$GGUF_VERSION"
alone python
# A virtual environment breaks when the Python below it is replaced, so it is tried.
if ! PYTHONSAFEPATH=1 "$dir/bin/python" -c 'import anthropic, gguf, numpy, openai' 2>/dev/null; then
  say "openai $OPENAI_VERSION, anthropic $ANTHROPIC_VERSION and gguf $GGUF_VERSION (PyPI, 15 s)"
  # Made where it stays: its scripts name their place.
  venv "$dir" "openai==$OPENAI_VERSION" "anthropic==$ANTHROPIC_VERSION" "gguf==$GGUF_VERSION" "numpy$NUMPY_VERSION"
fi
echo "$dir/bin/python"
