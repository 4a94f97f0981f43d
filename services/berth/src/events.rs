//! `berth events`: the story of the fleet, as it was recorded and as it goes on.

use std::time::{Duration, SystemTime};

use berth_bus::Since;
use berth_wire::{Event, EventBody, rfc3339};
use clap::Args;

use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::{ask, lease, table};

pub(crate) const EXAMPLES: &str = "\
What is kept is 72 hours old at most. Prompts and answers are never in it.

Examples:
  berth events                       the last hour
  berth events --since 2d            two days
  berth events -f                    and on, until Ctrl-C
  berth events -f --since 0s         only what happens from here on
  berth events --kind engine         only engines; others are job, host, leader, catalog and alert
  berth events --json | jq -r .why   one JSON object a line";

/// Options of `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on as things happen, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
    /// How far back.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = berth_config::parse_duration)]
    since: Duration,
    /// Only of this kind: engine, job, host, leader, catalog or alert.
    #[arg(long, value_name = "KIND", value_parser = ["engine", "job", "host", "leader", "catalog", "alert"])]
    kind: Option<String>,
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// `berth events`
pub(crate) fn run(args: &EventsArgs) -> Result<Exit, Failure> {
    lease::at_fleet(&args.fleet, async |bus| {
        let subject = match &args.kind {
            Some(kind) => bus.subjects.event(kind, "*"),
            None => bus.subjects.event_all(),
        };
        let then = SystemTime::now().checked_sub(args.since);
        let since = then.filter(|_| !args.since.is_zero()).map_or(Since::Now, Since::Time);
        let mut story = bus.story(since, [subject]).await?;
        let mut told = false;
        loop {
            let event = if args.follow { story.next().await? } else { story.past().await? };
            let Some(event) = event else { break };
            told = true;
            if args.json {
                outln!("{}", ask::json(&event)?);
            } else {
                outln!("{}", line(&event));
            }
        }
        if !told && !args.json && !args.follow {
            outln!("nothing happened; --since looks further back");
        }
        Ok(Exit::Done)
    })
}

/// An event in a line.
pub(crate) fn line(event: &Event) -> String {
    // To the second.
    let at: String = rfc3339(event.at).chars().take(19).map(|c| if c == 'T' { ' ' } else { c }).collect();
    format!("{at}  {}", table::plain(&sentence(&event.body)))
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}

/// What happened, in a sentence.
fn sentence(body: &EventBody) -> String {
    use EventBody as E;
    match body {
        E::LeaderElected { instance, epoch } => format!("{instance} leads, in epoch {epoch}"),
        E::HostJoined { host, accelerators, memory } => {
            format!(
                "host {host} joined: {accelerators} accelerator(s), {}",
                berth_config::show_bytes(*memory)
            )
        }
        E::HostLost { host, reason } => format!("host {host} is lost: {reason}"),
        E::HostLeft { host } => format!("host {host} left"),
        E::HostDraining { host } => format!("host {host} is drained: it takes nothing new"),
        E::HostUndrained { host } => format!("host {host} takes work again"),
        E::EngineStarting { engine, host, model, why } => {
            format!("engine {engine} of {model} starts on {host}: {why}")
        }
        E::EngineReady { engine, host, model, took_ms } => {
            let took = took_ms.map(|ms| format!(" after {}", seconds(ms))).unwrap_or_default();
            format!("engine {engine} of {model} is ready on {host}{took}")
        }
        E::EngineSleeping { engine, host, model, why } => {
            format!("engine {engine} of {model} is put to sleep on {host}: {why}")
        }
        E::EngineWaking { engine, host, model, why } => {
            format!("engine {engine} of {model} is woken on {host}: {why}")
        }
        E::EngineStopping { engine, host, model, why } => {
            format!("engine {engine} of {model} is stopped on {host}: {why}")
        }
        E::EngineStopped { engine, host, model } => format!("engine {engine} of {model} is gone from {host}"),
        E::EngineFailed { engine, host, model, message } => {
            format!("engine {engine} of {model} failed on {host}: {message}")
        }
        E::JobQueued { job, model, why } => format!("job {job} waits for {model}: {why}"),
        E::JobDispatched { job, engine, host, queue_ms, attempt: _ } => {
            format!("job {job} goes to engine {engine} on {host}, after {} in the queue", seconds(*queue_ms))
        }
        E::JobRetried { job, why } => format!("job {job} is tried again: {why}"),
        E::JobEnded { job, model, outcome } => format!("job {job} for {model} ended: {outcome}"),
        E::CatalogApplied { models } => format!("a catalog of {models} models was applied"),
        E::ModelPinned { model, pin: true } => format!("{model} was pinned"),
        E::ModelPinned { model, pin: false } => format!("{model} was unpinned"),
        E::ModelsFound { host, models } => format!("host {host} found {}", names(models)),
        E::ModelsGone { host, models } => format!("host {host} has no more {}", names(models)),
        E::AlertRaised { alert, about, message } => format!("ALERT {alert} of {about}: {message}"),
        E::AlertResolved { alert, about, message, after_s } => {
            let after = berth_config::show_duration(std::time::Duration::from_secs(*after_s));
            format!("resolved {alert} of {about} after {after}: {message}")
        }
        E::ModelRefused { host, model, why } => format!("{model} of host {host} is left out: {why}"),
    }
}

fn names(models: &[berth_wire::ModelId]) -> String {
    models.iter().map(|model| model.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use berth_wire::{EngineId, Epoch, Timestamp};

    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_its_names() {
        let body = EventBody::EngineFailed {
            engine: EngineId::new(Epoch(7), 3),
            host: "h".into(),
            model: "a\u{1b}[2J".into(),
            message: "first\nsecond".into(),
        };
        let told = line(&Event { at: Timestamp(1_795_238_762_250), body });
        assert_eq!(told, "2026-11-21 05:26:02  engine 7-3 of a\\u{1b}[2J failed on h: first\\nsecond");
    }
}
