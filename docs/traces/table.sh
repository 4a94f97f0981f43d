#!/usr/bin/env bash
# All rows of the table in docs/simulator.md: table.sh TRACE_DIR, with servegen_40models.csv and
# mooncake_azure_24models.csv in TRACE_DIR. Takes seconds, with a release build of berth on PATH or in $BERTH.
set -euo pipefail

traces="${1:?usage: $0 TRACE_DIR (a folder with servegen_40models.csv and mooncake_azure_24models.csv)}"
berth="${BERTH:-berth}"

# cell NAME OPTION...: one cell under every policy, then Berth with what only Berth has.
cell() {
  local name="$1"; shift
  printf '\n## %s\n\n' "$name"
  "$berth" simulate "$@" --policy fifo,ollama,llama-swap,pooled,berth,clairvoyant,bound
  printf '\nberth with half of the jobs announced 20 s ahead:\n'
  "$berth" simulate "$@" --hints 20s --hint-share 0.5 | tail -n 1
  printf 'berth with four engines asleep for each accelerator, awake within 3 s:\n'
  "$berth" simulate "$@" --sleep-tier 4 --wake 3s | tail -n 1
}

cell D1 --trace "$traces/servegen_40models.csv" --model-ranks 9-16 --accelerators 1
cell D2 --trace "$traces/servegen_40models.csv" --session-share 0.5 --accelerators 4
cell D3 --trace "$traces/servegen_40models.csv" --speed 2.5 --accelerators 16
cell D4 --trace "$traces/mooncake_azure_24models.csv" --session-share 0.5 --accelerators 16
