#!/usr/bin/env bash
# The gateways that `tests/bench` measures Berth against; prints a shell's assignments of where they are. One that cannot
# be had is left out and said so: the measurement goes on without it.
. "$(dirname "$0")/common.sh"
SGLANG_ROUTER_VERSION=0.3.2
LITELLM_VERSION=1.105.0
alone peers

# peer NAME PROGRAM REQUIREMENT...: a virtual environment of its own, since their requirements fight each other.
peer() {
  local name="$1" program="$2" variable; shift 2
  local dir="$BERTH_TEST_CACHE/$name"
  if ! "$dir/bin/python" -c '' 2>/dev/null || [ ! -e "$dir/made" ]; then
    say "$name (PyPI, 1 to 2 min)"
    (venv "$dir" "$@" && touch "$dir/made") || { say "$name cannot be had; going on without it"; return 0; }
  fi
  variable="BERTH_BENCH_$(printf '%s' "${program##*/}" | tr 'a-z-' 'A-Z_')"
  printf 'export %s=%q\n' "${variable}" "$dir/bin/python"
}
peer "sglang-router-$SGLANG_ROUTER_VERSION" sglang-router "sglang-router==$SGLANG_ROUTER_VERSION"
peer "litellm-$LITELLM_VERSION" litellm "litellm[proxy]==$LITELLM_VERSION"
if command -v llama-swap >/dev/null; then
  printf 'export BERTH_BENCH_LLAMA_SWAP=%q\n' "$(command -v llama-swap)"
fi
