#!/usr/bin/env bash
# A virtual environment with the openai client, and gguf and numpy for the tiny model; prints its Python.
. "$(dirname "$0")/common.sh"
dir="$BERTH_TEST_CACHE/python-openai-$OPENAI_VERSION-gguf-$GGUF_VERSION"
alone python
# A virtual environment breaks when the Python below it is replaced, so it is tried.
if ! PYTHONSAFEPATH=1 "$dir/bin/python" -c 'import gguf, numpy, openai' 2>/dev/null; then
  say "openai $OPENAI_VERSION and gguf $GGUF_VERSION (PyPI, 10 s)"
  # Made where it stays: its scripts name their place.
  venv "$dir" "openai==$OPENAI_VERSION" "gguf==$GGUF_VERSION" "numpy$NUMPY_VERSION"
fi
echo "$dir/bin/python"
