//! `berth simulate`: a trace in virtual time, one row for each policy.

use std::io::{IsTerminal, Write};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use berth_simulator::{
    Hints, Outcome, Policy, Selection, ServiceCost, Setup, SleepTier, Workload, read_trace, simulate,
};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use crate::exit::{Exit, Failure};
use crate::input;

/// What `--help` ends with.
pub(crate) const EXAMPLES: &str = "\
A trace is CSV with the columns arrival_s,session,model,prompt_tokens,output_tokens. Each
accelerator holds one model at a time. Once it has a slot, a job takes overhead + prompt/prefill +
output/decode; its wait is from its arrival to that slot. The same trace, options and seed give the
same numbers on every machine. No engine is started and no NATS is needed.

Policies:
  berth        the scheduling core of this program, as it would decide in service
  fifo         one queue, strictly in order of arrival
  ollama       Ollama's rule: a job whose model is loaded is served, one that needs a load holds up
               all that come after it
  llama-swap   llama-swap's rule: each model has its accelerator, which serves a model until
               nothing of it waits
  pooled       the same, but any idle accelerator takes the model that has waited longest
  clairvoyant  a rule that knows all arrivals to come
  bound        no start costs anything: what remains is the wait for a free slot

Examples:
  berth simulate --trace docs/traces/sample.csv --accelerators 12
  berth simulate --trace requests.csv --accelerators 4 --policy berth,ollama,llama-swap
  berth simulate --trace requests.csv --accelerators 4 --load 45s --sleep-tier 4 --wake 3s
  berth simulate --trace requests.csv --accelerators 4 --hints 20s --hint-share 0.5 --seed 7
  berth simulate --trace requests.csv --accelerators 16 --from 8h --to 10h --speed 2.5
  berth simulate --trace requests.csv --accelerators 1 --model-ranks 9-16 --json
  zcat requests.csv.gz | berth simulate --trace - --accelerators 4";

/// A policy by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Named(Policy);

impl ValueEnum for Named {
    fn value_variants<'a>() -> &'a [Self] {
        const { &all_named() }
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

const fn all_named() -> [Named; 7] {
    let [a, b, c, d, e, f, g] = Policy::ALL;
    [Named(a), Named(b), Named(c), Named(d), Named(e), Named(f), Named(g)]
}

/// Options of `simulate`.
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// The trace: a CSV file of requests; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Who decides; several give several rows.
    #[arg(long, value_name = "POLICY", value_enum, value_delimiter = ',', default_value = "berth")]
    policy: Vec<Named>,
    /// Accelerators of the fleet.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    accelerators: u32,
    /// Accelerators of one host.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    per_host: u32,
    /// Jobs that one engine serves at once.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    slots: u32,
    /// From the start of an engine until it serves.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = berth_config::parse_duration)]
    load: Duration,
    /// So many engines may sleep in host RAM, for each accelerator (berth only).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    sleep_tier: Option<u32>,
    /// From the wake of a sleeping engine until it serves.
    #[arg(long, value_name = "TIME", default_value = "3s", requires = "sleep_tier",
        value_parser = berth_config::parse_duration)]
    wake: Duration,
    /// Jobs are announced so long before they arrive (berth only).
    #[arg(long, value_name = "TIME", value_parser = berth_config::parse_duration)]
    hints: Option<Duration>,
    /// The part of the jobs that is announced, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, requires = "hints", value_parser = share)]
    hint_share: f64,
    /// Draws the jobs that are announced.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Leave out what arrives before this.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = berth_config::parse_duration)]
    from: Duration,
    /// Leave out what arrives at this time or later.
    #[arg(long, value_name = "TIME", value_parser = berth_config::parse_duration)]
    to: Option<Duration>,
    /// Keep this part of the sessions, from 0 to 1, drawn by a hash of their names.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    session_share: f64,
    /// Keep the models of these ranks by number of jobs, as in 9-16.
    #[arg(long, value_name = "FIRST-LAST", value_parser = ranks)]
    model_ranks: Option<RangeInclusive<usize>>,
    /// Arrivals come so many times as fast.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = positive)]
    speed: f64,
    /// What every job takes, whatever its length.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = berth_config::parse_duration)]
    overhead: Duration,
    /// Prompt tokens a second of one job.
    #[arg(long, value_name = "TOKENS", default_value_t = 4000.0, value_parser = positive)]
    prefill: f64,
    /// Output tokens a second of one job.
    #[arg(long, value_name = "TOKENS", default_value_t = 45.0, value_parser = positive)]
    decode: f64,
    /// One JSON object for each policy, a line each, instead of a table.
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| format!("`{text}` is not a share; write a number from 0 to 1, as in 0.5"))
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (1e-6..=1e9).contains(number));
    number.ok_or_else(|| format!("`{text}` is not a number from 0.000001 to 1000000000, as in 2.5"))
}

fn ranks(text: &str) -> Result<RangeInclusive<usize>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if (1..=last).contains(&first) => Ok(first..=last),
        _ => Err(format!("`{text}` are not ranks; write the first and the last, from 1, as in 9-16")),
    }
}

/// Runs the trace and prints a row for each policy.
pub(crate) fn run(args: &SimulateArgs) -> Result<Exit, Failure> {
    for Named(policy) in &args.policy {
        for (option, given) in
            [("--sleep-tier", args.sleep_tier.is_some()), ("--hints", args.hints.is_some())]
        {
            if given && *policy != Policy::Berth {
                return Err(Failure::Option(format!(
                    "{option} is for the policy berth only, {name} knows nothing of it; leave out \
                     {option}, or run {name} by a command of its own",
                    name = policy.name()
                )));
            }
        }
    }
    let workload = workload(args)?;
    let setup = Setup {
        accelerators: args.accelerators,
        slots: args.slots,
        load: args.load,
        per_host: args.per_host,
        sleep: args.sleep_tier.map(|engines| SleepTier { engines, wake: args.wake }),
        hints: args.hints.map(|lead| Hints { lead, share: args.hint_share, seed: args.seed }),
        ..Setup::default()
    };
    if !args.json {
        outln!("{}", heading(args, &workload));
        outln!("{HEADINGS}");
    }
    for Named(policy) in &args.policy {
        let mut progress = Progress::new(policy.name(), workload.jobs.len());
        let outcome = simulate(*policy, &workload, &setup, &mut |started| progress.show(started));
        progress.clear();
        let outcome = outcome.map_err(|error| Failure::Input(error.to_string()))?;
        outln!("{}", if args.json { json(&outcome)? } else { row(&outcome) });
    }
    Ok(Exit::Done)
}

fn workload(args: &SimulateArgs) -> Result<Workload, Failure> {
    let (file, name) = input::open(&args.trace).map_err(|source| {
        let path = args.trace.display();
        Failure::Input(format!("cannot open {path}: {source}; --trace names a CSV file of requests"))
    })?;
    let wrong = |error: &dyn std::error::Error| Failure::Input(format!("{name}: {error}"));
    let trace = read_trace(file).map_err(|error| wrong(&error))?;
    let selection = Selection {
        from: args.from,
        to: args.to,
        session_share: args.session_share,
        model_ranks: args.model_ranks.clone(),
        speed: args.speed,
        cost: ServiceCost { overhead: args.overhead, prefill: args.prefill, decode: args.decode },
    };
    selection.apply(&trace).map_err(|error| wrong(&error))
}

fn heading(args: &SimulateArgs, workload: &Workload) -> String {
    let s = |count: usize| if count == 1 { "" } else { "s" };
    format!(
        "{} job{} for {} model{}; {} accelerator{}, {} slot{} each, load {} s",
        workload.jobs.len(),
        s(workload.jobs.len()),
        workload.models.len(),
        s(workload.models.len()),
        args.accelerators,
        s(args.accelerators as usize),
        args.slots,
        s(args.slots as usize),
        args.load.as_secs_f64(),
    )
}

const HEADINGS: &str = "policy         mean s     p50 s     p95 s     p99 s     max s   swaps  within 10 s";

fn row(outcome: &Outcome) -> String {
    format!(
        "{:11} {:9.1} {:9.1} {:9.1} {:9.1} {:9.1} {:7} {:12.3}",
        outcome.policy,
        outcome.mean_s,
        outcome.p50_s,
        outcome.p95_s,
        outcome.p99_s,
        outcome.max_s,
        outcome.swaps,
        outcome.within_10s,
    )
}

fn json(outcome: &Outcome) -> Result<String, Failure> {
    serde_json::to_string(outcome).map_err(|error| Failure::Input(error.to_string()))
}

/// How far a run is, on a terminal; nothing elsewhere.
struct Progress {
    policy: &'static str,
    jobs: usize,
    shown: Option<usize>,
}

impl Progress {
    fn new(policy: &'static str, jobs: usize) -> Self {
        Self { policy, jobs: jobs.max(1), shown: std::io::stderr().is_terminal().then_some(usize::MAX) }
    }

    fn show(&mut self, started: usize) {
        let percent = started * 100 / self.jobs;
        if self.shown.is_some_and(|shown| shown != percent) {
            self.shown = Some(percent);
            let mut terminal = std::io::stderr();
            // Nothing is lost where the terminal is gone.
            let _ = write!(terminal, "\r{}: {percent} % of {} jobs started", self.policy, self.jobs);
            let _ = terminal.flush();
        }
    }

    fn clear(&self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_ranks_and_factors_say_how_they_are_written() {
        assert_eq!(ranks("9-16").unwrap(), 9..=16);
        assert_eq!(ranks("3").unwrap(), 3..=3);
        for text in ["0-3", "5-4", "a-b", "", "-", "1-2-3"] {
            assert!(ranks(text).unwrap_err().contains("9-16"), "{text}");
        }
        assert_eq!(share("0.5").unwrap(), 0.5);
        for text in ["-0.1", "1.1", "NaN", "half"] {
            assert!(share(text).unwrap_err().contains("0.5"), "{text}");
        }
        for text in ["0", "-1", "inf", "NaN", "fast", "1e18", "1e-9"] {
            assert!(positive(text).unwrap_err().contains("from 0.000001 to 1000000000, as in 2.5"), "{text}");
        }
    }

    #[test]
    fn a_row_stands_under_its_headings() {
        let outcome = Outcome {
            policy: "clairvoyant",
            jobs: 1,
            models: 1,
            mean_s: 54937.6,
            p50_s: 0.0,
            p95_s: 0.0,
            p99_s: 0.0,
            max_s: 92092.0,
            swaps: 4118,
            within_10s: 0.0,
        };
        assert_eq!(row(&outcome).len(), HEADINGS.len());
        let keys = json(&outcome).unwrap();
        let expected = "{\"policy\":\"clairvoyant\",\"jobs\":1,\"models\":1,\"mean_s\":54937.6,\"p50_s\":0.0,\
            \"p95_s\":0.0,\"p99_s\":0.0,\"max_s\":92092.0,\"swaps\":4118,\"within_10s\":0.0}";
        assert_eq!(keys, expected);
    }
}
