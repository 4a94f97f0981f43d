//! `berth replay`: the decisions of a recorded scheduler, taken once more at a desk.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};
use std::path::PathBuf;

use berth_placement::log::{BEGINNING, LogError, Replay, Replayed};
use berth_placement::{Effect, Event};
use berth_wire::{EventBody, JobId, ModelId, Timestamp};
use clap::Args;

use crate::exit::{Exit, Failure};
use crate::input;

const EXAMPLES: &str = "\
A scheduler writes the log with `record = \"scheduler.jsonl\"` under [scheduler] in its configuration. It holds no
prompts, answers or secrets. Exit status 1: something is decided otherwise now, as after a change of the policy.

Examples:
  berth replay scheduler.jsonl                       every decision, with its reason
  berth replay scheduler.jsonl --model qwen2.5-7b    those about one model
  berth replay scheduler.jsonl --job 019ab3...       one job's way, and at the end why it waits
  berth replay scheduler.jsonl --json                one JSON object an event: at, event, effects, same; --model
                                                     and --job leave out events that do not name them
  ssh gpu-1 cat scheduler.jsonl | berth replay -     a log from elsewhere";

/// Options of `replay`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReplayArgs {
    /// The log; `-` reads standard input.
    #[arg(value_name = "LOG")]
    file: PathBuf,
    /// Only what concerns this model.
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Only what concerns this job.
    #[arg(long, value_name = "JOB")]
    job: Option<JobId>,
    /// JSON lines for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Default)]
struct Count {
    events: u64,
    decisions: u64,
    other: u64,
    cut: u64,
}

/// Whom the log tells of.
#[derive(Default)]
struct Known {
    models: BTreeSet<ModelId>,
    jobs: BTreeSet<JobId>,
    /// The models of jobs, by their written ids.
    model_of: BTreeMap<String, ModelId>,
}

impl Known {
    fn take(&mut self, event: &Event) {
        match event {
            Event::Catalog(models) => self.models.extend(models.iter().map(|needs| needs.id.clone())),
            // The second: a host took it by itself.
            Event::JobSubmitted(job) | Event::JobStarted { job, .. } => {
                self.jobs.insert(job.id);
                self.model_of.insert(job.id.to_string(), job.model.clone());
            }
            Event::HostSnapshot { running, .. } => self.jobs.extend(running.iter().map(|(job, ..)| *job)),
            _ => {}
        }
    }

    /// What was asked for must be there: a story of nothing would read as if nothing had happened.
    fn missing(&self, args: &ReplayArgs, name: &str) -> Result<(), Failure> {
        if let Some(model) = &args.model
            && !self.models.contains(model.as_str())
        {
            let known: Vec<&str> = self.models.iter().map(ModelId::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Failure::Input(format!(
                "no model `{model}` is in {name}; there are: {known} (aliases are not written down)"
            )));
        }
        match args.job.filter(|job| !self.jobs.contains(job)) {
            None => Ok(()),
            Some(job) => Err(Failure::Input(format!(
                "no job {job} is in {name}; it has {} jobs, which `berth replay` without --job shows",
                self.jobs.len()
            ))),
        }
    }
}

/// Replays the log and prints what was decided.
pub(crate) fn run(args: &ReplayArgs) -> Result<Exit, Failure> {
    let unusable = |source| Failure::File { path: args.file.clone(), source };
    let (reader, name) = input::open(&args.file).map_err(unusable)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let (mut replay, mut count, mut from, mut last) =
        (Replay::default(), Count::default(), None, Timestamp(0));
    let mut known = Known::default();
    let mut lines = reader.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let line = line.map_err(unusable)?;
        if line.is_empty() {
            continue;
        }
        let step = match replay.take(&line) {
            Ok(step) => step,
            // Its scheduler was killed in the middle of its last line.
            Err(LogError::Form(_)) if count.events > 0 && ends_a_term(lines.peek()) => {
                count.cut += 1;
                continue;
            }
            Err(error) => {
                return Err(Failure::Input(format!("{name}, line {}: {error}", number + 1)));
            }
        };
        let Some(step) = step else { continue };
        count.events += 1;
        known.take(&step.event);
        let from = *from.get_or_insert(step.at);
        last = step.at;
        let shown = match args.json {
            true if concerns(&step, args, &known) => json(&step)?,
            true => String::new(),
            false => story(&step, from, args, &mut count),
        };
        if !step.same {
            count.other += 1;
        }
        if let Err(error) = out.write_all(shown.as_bytes()) {
            // Whoever read along has read enough.
            return if error.kind() == std::io::ErrorKind::BrokenPipe {
                Ok(Exit::Done)
            } else {
                Err(unusable(error))
            };
        }
    }
    if count.events == 0 {
        return Err(Failure::Input(format!("{name} holds no events")));
    }
    known.missing(args, &name)?;
    if !args.json {
        let _ = out.write_all(ending(&replay, args, &count, last).as_bytes());
    }
    let _ = out.flush();
    Ok(if count.other == 0 { Exit::Done } else { Exit::Failed })
}

fn ends_a_term(next: Option<&(usize, std::io::Result<String>)>) -> bool {
    next.is_none_or(|(_, line)| {
        line.as_ref().is_ok_and(|line| line.is_empty() || line.starts_with(BEGINNING))
    })
}

/// Whether an event, or what was done upon it, is about what was asked for. What is decided otherwise is always told.
fn concerns(step: &Replayed, args: &ReplayArgs, known: &Known) -> bool {
    if !step.same || (args.model.is_none() && args.job.is_none()) {
        return true;
    }
    let written = [serde_json::to_value(&step.event), serde_json::to_value(&step.effects)];
    let names = |wanted: &dyn Fn(&str) -> bool| written.iter().flatten().any(|value| holds(value, wanted));
    // An attempt's end names its job alone.
    let of_model = |text: &str| {
        let own = || known.model_of.get(text).map(ModelId::as_str) == args.model.as_deref();
        Some(text) == args.model.as_deref() || own()
    };
    let job = args.job.map(|job| job.to_string());
    (args.model.is_none() || names(&of_model)) && job.is_none_or(|job| names(&|text: &str| text == job))
}

/// Whether a value has such a text in it, or as a key.
fn holds(value: &serde_json::Value, wanted: &dyn Fn(&str) -> bool) -> bool {
    use serde_json::Value;
    match value {
        Value::String(text) => wanted(text),
        Value::Array(values) => values.iter().any(|value| holds(value, wanted)),
        Value::Object(fields) => fields.iter().any(|(key, value)| wanted(key) || holds(value, wanted)),
        _ => false,
    }
}

fn json(step: &Replayed) -> Result<String, Failure> {
    let object = serde_json::json!({
        "at": step.at, "event": step.event, "effects": step.effects, "same": step.same,
    });
    let text = serde_json::to_string(&object).map_err(|error| Failure::Input(error.to_string()))?;
    Ok(text + "\n")
}

fn story(step: &Replayed, from: Timestamp, args: &ReplayArgs, count: &mut Count) -> String {
    let mut text = String::new();
    let at = step.at.since(from).as_secs_f64();
    for effect in &step.effects {
        let Effect::Record(body) = effect else { continue };
        count.decisions += 1;
        let (line, model, job) = told(body);
        let of_model = args.model.as_deref().is_none_or(|wanted| model.is_some_and(|m| m.as_str() == wanted));
        let of_job = args.job.is_none_or(|wanted| job == Some(wanted));
        if of_model && of_job {
            text.push_str(&format!("{at:>11.3}  {line}\n"));
        }
    }
    if !step.same {
        text.push_str(&format!("{at:>11.3}  DECIDED OTHERWISE THEN, after {:?}\n", step.event));
    }
    text
}

/// A decision in words, and what it is about.
fn told(body: &EventBody) -> (String, Option<&ModelId>, Option<JobId>) {
    match body {
        EventBody::ModelPinned { model, pin } => {
            (format!("{model} is pinned{}", if *pin { "" } else { " no longer" }), Some(model), None)
        }
        EventBody::LeaderElected { epoch, .. } => (format!("leader of epoch {epoch}"), None, None),
        EventBody::HostJoined { host, accelerators, .. } => {
            (format!("host {host} joined with {accelerators} accelerator(s)"), None, None)
        }
        EventBody::HostLost { host, reason } => (format!("host {host} lost: {reason}"), None, None),
        EventBody::HostLeft { host } => (format!("host {host} left"), None, None),
        EventBody::HostDraining { host } => (format!("host {host} is drained"), None, None),
        EventBody::HostUndrained { host } => (format!("host {host} takes work again"), None, None),
        EventBody::EngineStarting { engine, host, model, why } => {
            (format!("start {engine} of {model} on {host}: {why}"), Some(model), None)
        }
        EventBody::EngineReady { engine, model, .. } => {
            (format!("{engine} of {model} is ready"), Some(model), None)
        }
        EventBody::EngineSleeping { engine, model, why, .. } => {
            (format!("put {engine} of {model} to sleep: {why}"), Some(model), None)
        }
        EventBody::EngineWaking { engine, model, why, .. } => {
            (format!("wake {engine} of {model}: {why}"), Some(model), None)
        }
        EventBody::EngineStopping { engine, model, why, .. } => {
            (format!("stop {engine} of {model}: {why}"), Some(model), None)
        }
        EventBody::EngineStopped { engine, model, .. } => {
            (format!("{engine} of {model} is gone"), Some(model), None)
        }
        EventBody::EngineFailed { engine, model, message, .. } => {
            (format!("{engine} of {model} failed: {message}"), Some(model), None)
        }
        EventBody::JobQueued { job, model, why } => {
            (format!("job {job} waits for {model}: {why}"), Some(model), Some(*job))
        }
        EventBody::JobDispatched { job, engine, queue_ms, .. } => {
            (format!("job {job} goes to {engine} after {queue_ms} ms"), None, Some(*job))
        }
        EventBody::JobRetried { job, why } => (format!("job {job} is tried again: {why}"), None, Some(*job)),
        EventBody::JobEnded { job, model, outcome } => {
            (format!("job {job} of {model}: {outcome}"), Some(model), Some(*job))
        }
        EventBody::CatalogApplied { models } => (format!("catalog of {models} models"), None, None),
        EventBody::ModelsFound { host, models } => {
            (format!("host {host} found {} models of other servers", models.len()), None, None)
        }
        EventBody::ModelsGone { host, models } => {
            (format!("host {host} has {} models of other servers no more", models.len()), None, None)
        }
        EventBody::AlertRaised { alert, message, .. } => (format!("alert {alert}: {message}"), None, None),
        EventBody::AlertResolved { alert, about, .. } => {
            (format!("alert {alert} of {about} is resolved"), None, None)
        }
        EventBody::ModelRefused { host, model, why } => {
            (format!("{model} of host {host} is left out: {why}"), Some(model), None)
        }
    }
}

fn ending(replay: &Replay, args: &ReplayArgs, count: &Count, last: Timestamp) -> String {
    let mut text = String::new();
    if let Some(why) = args.job.and_then(|job| replay.state()?.explain(job, last)) {
        text.push_str(&format!(
            "\nat the end of the log job {} has waited {:.1} s: {}\n",
            why.job, why.waited_s, why.why
        ));
        for place in &why.places {
            let victims: Vec<String> = place.victims.iter().map(|(_, model)| model.to_string()).collect();
            let instead = if victims.is_empty() {
                String::new()
            } else {
                format!(" instead of {}", victims.join(" and "))
            };
            text.push_str(&format!(
                "  a place on {}{instead}: costs {:.1} s (loss {:.1}, drain {:.1}, start {:.1})\n",
                place.host, place.cost_s, place.loss_s, place.drain_s, place.start_s
            ));
        }
    }
    let same = match count.other {
        0 => "all as they were then".to_owned(),
        n => format!("{n} of them lead to something else now"),
    };
    let cut = match count.cut {
        0 => String::new(),
        n => format!("; {n} unfinished last line(s), of a scheduler that was killed, left out"),
    };
    text.push_str(&format!("\n{} events, {} decisions told: {same}{cut}\n", count.events, count.decisions));
    text
}
