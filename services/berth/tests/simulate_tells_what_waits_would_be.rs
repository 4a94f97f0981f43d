//! `berth simulate` as it is typed.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn sample() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/traces/sample.csv");
    path.to_str().unwrap().to_owned()
}

fn simulate(options: &str) -> Output {
    let options = options.replace("SAMPLE", &sample());
    let mut berth = Command::new(env!("CARGO_BIN_EXE_berth"));
    berth.arg("simulate").args(options.split(' ')).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_policy_has_a_row_and_nothing_is_said_beside_the_table() {
    let all = "berth,fifo,ollama,llama-swap,pooled,clairvoyant,bound";
    let output = simulate(&format!("--trace SAMPLE --accelerators 12 --policy {all}"));
    let table = text(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let first: Vec<&str> = table.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(first[0], "1495", "{table}");
    assert_eq!(first[1..].join(","), format!("policy,{all}"), "{table}");
}

#[test]
fn a_trace_is_read_from_standard_input_too() {
    let options = "--accelerators 12 --json";
    let piped = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["simulate", "--trace", "-"])
        .args(options.split(' '))
        .stdin(File::open(sample()).unwrap())
        .output()
        .unwrap();
    assert!(piped.status.success(), "{piped:?}");
    assert_eq!(piped.stdout, simulate(&format!("--trace SAMPLE {options}")).stdout);
}

#[test]
fn policies_may_be_named_one_by_one_and_each_is_an_object_in_json() {
    let output = simulate("--trace SAMPLE --accelerators 12 --policy pooled --policy bound --json");
    let rows: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    let keys = "policy,jobs,models,mean_s,p50_s,p95_s,p99_s,max_s,swaps,within_10s";
    for row in &rows {
        let mut expected: Vec<&str> = keys.split(',').collect();
        expected.sort_unstable();
        let mut keys: Vec<&String> = row.as_object().unwrap().keys().collect();
        keys.sort_unstable();
        assert_eq!(keys, expected);
        assert_eq!(row["jobs"], 1495);
    }
    assert_eq!((&rows[0]["policy"], &rows[0]["swaps"]), (&"pooled".into(), &397.into()));
}

#[test]
fn berth_with_hints_and_sleep_is_the_same_each_time() {
    let options =
        "--trace SAMPLE --accelerators 12 --per-host 4 --sleep-tier 2 --hints 20s --hint-share 0.5 --json";
    let first = simulate(options);
    assert!(first.status.success(), "{first:?}");
    assert_eq!(first.stdout, simulate(options).stdout);
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    for (options, status, parts) in [
        ("--trace no-such.csv --accelerators 2", 1, ["no-such.csv", "--trace names a CSV file"]),
        ("--trace Cargo.toml --accelerators 2", 1, ["line 1", "arrival_s,session,model"]),
        ("--trace SAMPLE --accelerators 2 --from 2h", 1, ["no request is left of 1495", "window"]),
        ("--trace SAMPLE --accelerators 2 --session-share 0", 1, ["no request is left", "larger share"]),
        ("--trace SAMPLE --accelerators 2 --model-ranks 40-99", 1, ["40-99", "ranks are 1 to 50"]),
        ("--trace SAMPLE --accelerators 2 --model-ranks 9", 0, ["", ""]),
        ("--trace SAMPLE --accelerators 2 --model-ranks nine", 2, ["`nine`", "as in 9-16"]),
        ("--trace SAMPLE --accelerators 0", 2, ["'0' for '--accelerators", "1..="]),
        ("--trace SAMPLE", 2, ["--accelerators <N>", "required"]),
        ("--trace SAMPLE --accelerators 2 --load 30", 2, ["`30`", "90s"]),
        ("--trace SAMPLE --accelerators 2 --speed 0", 2, ["`0`", "2.5"]),
        ("--trace SAMPLE --accelerators 2 --speed 1e18", 2, ["`1e18`", "from 0.000001 to 1000000000"]),
        ("--trace - --accelerators 2", 1, ["standard input: line 1", "arrival_s,session,model"]),
        ("--trace /tmp --accelerators 2", 1, ["/tmp", "it is a folder"]),
        ("--trace SAMPLE --accelerators 2 --policy lru", 2, ["'lru'", "llama-swap"]),
        ("--trace SAMPLE --accelerators 2 --policy berth,fifo --sleep-tier 4", 2, ["--sleep-tier", "fifo"]),
        ("--trace SAMPLE --accelerators 2 --policy ollama --hints 20s", 2, ["--hints", "ollama"]),
        ("--trace SAMPLE --accelerators 2 --hint-share 0.5", 2, ["--hints", "required"]),
        ("--trace SAMPLE --accelerators 2 --wake 3s", 2, ["--sleep-tier", "required"]),
    ] {
        let output = simulate(options);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{options}: {said}");
        for part in parts {
            assert!(said.contains(part), "`{part}` for {options}: {said}");
        }
    }
}

#[test]
fn who_stops_reading_is_no_failure() {
    let mut berth = Command::new(env!("CARGO_BIN_EXE_berth"));
    let policies = "bound,fifo,bound,fifo";
    berth.args(["simulate", "--trace", &sample(), "--accelerators", "12", "--policy", policies]);
    let mut running = berth.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(running.stdout.take());
    let output = running.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
