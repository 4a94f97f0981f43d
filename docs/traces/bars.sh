#!/usr/bin/env bash
# What Berth is meant to reach against the other rules, and whether it does, on the four cells of docs/simulator.md and
# on windows of both development traces: bars.sh TRACE_DIR [checked|all], with servegen_40models.csv and
# mooncake_azure_24models.csv in TRACE_DIR. Half of the windows took part in the choice of the policy's numbers and are
# run by default; `checked` runs the others, which only confirm it, `all` runs both. Some minutes on two cores, with a
# release build of berth on PATH or in $BERTH; needs python3.
set -euo pipefail

traces="${1:?usage: $0 TRACE_DIR [checked|all] (a folder with servegen_40models.csv and mooncake_azure_24models.csv)}"
export BERTH="${BERTH:-berth}"
command -v "$BERTH" >/dev/null || { echo "no $BERTH here: build it, and name it by BERTH=target/release/berth" >&2; exit 1; }
export TRACES="$traces" HALF="${2:-chosen}" SAMPLE="$(dirname "$0")/sample.csv"

exec python3 - <<'PYTHON'
import concurrent.futures, json, os, subprocess

SERVEGEN = os.path.join(os.environ["TRACES"], "servegen_40models.csv")
MOONCAKE = os.path.join(os.environ["TRACES"], "mooncake_azure_24models.csv")
SAMPLE = os.environ["SAMPLE"]

# Name, half, trace, accelerators, other options.
WINDOWS = [(name, half, trace, int(accelerators), options.split()) for name, half, trace, accelerators, options in [
    ("D1", "chosen", SERVEGEN, 1, "--model-ranks 9-16"),
    ("D2", "chosen", SERVEGEN, 4, "--session-share 0.5"),
    ("D3", "chosen", SERVEGEN, 16, "--speed 2.5"),
    ("D4", "chosen", MOONCAKE, 16, "--session-share 0.5"),
    ("D1 0-4h", "chosen", SERVEGEN, 1, "--model-ranks 9-16 --to 4h"),
    ("D1 4-8h", "checked", SERVEGEN, 1, "--model-ranks 9-16 --from 4h --to 8h"),
    ("D1 8-12h", "checked", SERVEGEN, 1, "--model-ranks 9-16 --from 8h"),
    ("D2 0-4h", "checked", SERVEGEN, 4, "--session-share 0.5 --to 4h"),
    ("D2 4-8h", "chosen", SERVEGEN, 4, "--session-share 0.5 --from 4h --to 8h"),
    ("D2 8-12h", "checked", SERVEGEN, 4, "--session-share 0.5 --from 8h"),
    ("D2 3-6h", "chosen", SERVEGEN, 4, "--session-share 0.5 --from 3h --to 6h"),
    ("D2 6-9h", "chosen", SERVEGEN, 4, "--session-share 0.5 --from 6h --to 9h"),
    ("D3 0-4h", "checked", SERVEGEN, 16, "--speed 2.5 --to 4h"),
    ("D3 4-8h", "chosen", SERVEGEN, 16, "--speed 2.5 --from 4h --to 8h"),
    ("D3 8-12h", "checked", SERVEGEN, 16, "--speed 2.5 --from 8h"),
    ("D4 0-400s", "chosen", MOONCAKE, 16, "--session-share 0.5 --to 400s"),
    ("D4 400-800s", "checked", MOONCAKE, 16, "--session-share 0.5 --from 400s --to 800s"),
    ("D4 800s-", "checked", MOONCAKE, 16, "--session-share 0.5 --from 800s"),
    ("ranks 1-8 on 2", "chosen", SERVEGEN, 2, "--model-ranks 1-8"),
    ("ranks 17-24 on 1", "checked", SERVEGEN, 1, "--model-ranks 17-24"),
    ("ranks 17-32 on 2", "chosen", SERVEGEN, 2, "--model-ranks 17-32"),
    ("ranks 9-16 on 2", "checked", SERVEGEN, 2, "--model-ranks 9-16"),
    ("all on 8", "chosen", SERVEGEN, 8, ""),
    ("all on 12", "checked", SERVEGEN, 12, ""),
    ("quarter on 2", "checked", SERVEGEN, 2, "--session-share 0.25"),
    ("quarter on 3", "chosen", SERVEGEN, 3, "--session-share 0.25"),
    ("half on 6", "checked", SERVEGEN, 6, "--session-share 0.5"),
    ("half twice as fast on 8", "chosen", SERVEGEN, 8, "--session-share 0.5 --speed 2"),
    ("twice as fast on 16", "checked", SERVEGEN, 16, "--speed 2"),
    ("4 times as fast on 20", "chosen", SERVEGEN, 20, "--speed 4"),
    ("3 times as fast on 24", "checked", SERVEGEN, 24, "--speed 3"),
    ("2-6h twice as fast on 8", "checked", SERVEGEN, 8, "--speed 2 --from 2h --to 6h"),
    ("Mooncake on 24", "chosen", MOONCAKE, 24, ""),
    ("Mooncake on 20", "checked", MOONCAKE, 20, ""),
    ("Mooncake, quarter on 8", "chosen", MOONCAKE, 8, "--session-share 0.25"),
    ("Mooncake, quarter on 4", "checked", MOONCAKE, 4, "--session-share 0.25"),
    ("Mooncake, 0.3 on 12", "checked", MOONCAKE, 12, "--session-share 0.3"),
    ("Mooncake, 0.7 on 16", "chosen", MOONCAKE, 16, "--session-share 0.7"),
    ("sample on 8", "chosen", SAMPLE, 8, ""),
    ("sample on 12", "checked", SAMPLE, 12, ""),
    ("sample on 16", "chosen", SAMPLE, 16, ""),
    ("sample on 4", "checked", SAMPLE, 4, ""),
    ("40 models on 1", "chosen", SERVEGEN, 1, ""),
    ("40 models on 3", "checked", SERVEGEN, 3, ""),
    ("Mooncake on 8", "chosen", MOONCAKE, 8, ""),
    ("Mooncake on 4", "checked", MOONCAKE, 4, ""),
    ("ranks 1-8 on 1", "chosen", SERVEGEN, 1, "--model-ranks 1-8"),
    ("Mooncake, quarter on 2", "checked", MOONCAKE, 2, "--session-share 0.25"),
    ("half on 1", "checked", SERVEGEN, 1, "--session-share 0.5"),
    ("5 times as fast on 4", "chosen", SERVEGEN, 4, "--speed 5"),
]]
# Where a twentieth of the jobs waits for so many seconds though no start costs anything, the fleet is overloaded.
OVERLOADED = 20.0


def simulate(window, *options):
    _, _, trace, accelerators, of_window = window
    command = [os.environ["BERTH"], "simulate", "--json", "--trace", trace]
    command += ["--accelerators", str(accelerators), *of_window, *options]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def measure(window):
    rivals = "berth,ollama,llama-swap,pooled,clairvoyant,bound"
    rows = dict(zip(rivals.split(","), simulate(window, "--policy", rivals)))
    rows["sleep"], = simulate(window, "--sleep-tier", "4", "--wake", "3s")
    rows["hints"], = simulate(window, "--hints", "20s", "--hint-share", "0.5")
    return window, rows


def bars(window, rows):
    """(bar, what is reached, what was asked, met), of those that are for such a window."""
    name, _, _, accelerators, _ = window
    berth, sleep, hints = rows["berth"], rows["sleep"], rows["hints"]
    pooled, clairvoyant, swap, bound = (rows[p] for p in ("pooled", "clairvoyant", "llama-swap", "bound"))

    # A hundredth of a second beside nothing is nothing.
    def ratio(a, b):
        return (a + 0.01) / (b + 0.01)

    def least(bar, reached, asked):
        return bar, reached, f">= {asked:g}", reached >= asked

    def most(bar, reached, asked):
        return bar, reached, f"<= {asked:g}", reached <= asked

    overloaded = bound["p95_s"] >= OVERLOADED
    if overloaded:
        yield most("overload: p95 of the bound's", ratio(berth["p95_s"], bound["p95_s"]), 1.4)
        yield most("overload: longest wait of pooled's", ratio(berth["max_s"], pooled["max_s"]), 1.0)
    if accelerators >= 4:
        yield least("Ollama: p95 lower by", ratio(rows["ollama"]["p95_s"], berth["p95_s"]), 3.0)
    if name.startswith(("D2", "D3", "D4")):
        asked = 5.0 if name.startswith("D3") else 2.0
        yield least("llama-swap: p95 lower by", ratio(swap["p95_s"], berth["p95_s"]), asked)
    asked = 3.0 if accelerators > 1 else 1.7
    yield least("llama-swap, sleep: p95 lower by", ratio(swap["p95_s"], sleep["p95_s"]), asked)
    asked = 0.8 if name in ("D2", "D3", "D4") else 1.0
    yield most("pooled: mean of its", ratio(berth["mean_s"], pooled["mean_s"]), asked)
    yield most("pooled: p95 of its", ratio(berth["p95_s"], pooled["p95_s"]), 1.05)
    yield most("clairvoyant: mean of its", ratio(berth["mean_s"], clairvoyant["mean_s"]), 1.5)
    yield most("clairvoyant, hints: mean of its", ratio(hints["mean_s"], clairvoyant["mean_s"]), 1.25)
    yield most("clairvoyant: p95 of its", ratio(berth["p95_s"], clairvoyant["p95_s"]), 1.2)


half = os.environ["HALF"]
windows = [window for window in WINDOWS if half in ("all", window[1])]
met, count = {}, {}
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for window, rows in pool.map(measure, windows):
        berth = rows["berth"]
        print(f"\n{window[0]}: mean {berth['mean_s']:.1f} s, p95 {berth['p95_s']:.1f} s, longest {berth['max_s']:.1f} s")
        for bar, reached, asked, ok in bars(window, rows):
            print(f"  {bar:36} {reached:10.2f}  {asked:8}  {'met' if ok else 'MISSED'}", flush=True)
            met[bar] = met.get(bar, 0) + ok
            count[bar] = count.get(bar, 0) + 1
print("\nwindows in which each is met:")
for bar, of in count.items():
    print(f"  {bar:36} {met[bar]:3} of {of}")
PYTHON
