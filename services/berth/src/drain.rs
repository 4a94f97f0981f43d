//! `berth drain` and `undrain`: a host that is to take nothing new, asked of the scheduler over NATS.

use std::time::{Duration, Instant};

use berth_bus::{Bus, BusError};
use berth_wire::{DrainReply, DrainRequest, DrainStatus, HostId};
use clap::Args;

use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::lease::at_fleet;

/// A new leader needs a moment to take over.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked how far a host is.
const LOOK: Duration = Duration::from_millis(250);
/// A host that is away for so long has nothing left: its agent has ended, and a new leader has heard of all that are there.
const GONE: Duration = Duration::from_secs(20);

pub(crate) const DRAIN_EXAMPLES: &str = "\
What runs on the host finishes and nothing new is sent there. Models that sessions hold leases on are loaded elsewhere,
where there is room, before their engines on the host stop. It holds until `berth undrain HOST`, also when the host's
agent or the scheduler is started anew.

Examples:
  berth drain gpu-1                       from now on; `berth status` shows how far it is
  berth drain gpu-1 --wait                and wait until nothing is left there
  berth drain gpu-1 --wait --timeout 10m  for ten minutes at most; exit status 1 if something is left then
  berth undrain gpu-1";

/// Options of `drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The host, as `berth status` names it.
    host: HostId,
    /// Wait until the host is empty, and tell how far it is.
    #[arg(long)]
    wait: bool,
    /// Wait for so long at most.
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = berth_config::parse_duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    fleet: FleetArgs,
    /// JSON instead of sentences; with --wait one object a line for each change, the last one with `empty`.
    #[arg(long)]
    json: bool,
}

/// Options of `undrain`.
#[derive(Debug, Args)]
pub(crate) struct UndrainArgs {
    /// The host.
    host: HostId,
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of a sentence.
    #[arg(long)]
    json: bool,
}

/// `berth drain`
pub(crate) fn drain(args: &DrainArgs) -> Result<Exit, Failure> {
    at_fleet(&args.fleet, async |bus| {
        let began = Instant::now();
        let mut status = ask(bus, &DrainRequest::Drain { host: args.host.clone() }).await?;
        let mut told = None;
        let mut away_since = None;
        loop {
            if told.as_ref() != Some(&status) {
                tell(&status, args.json)?;
                told = Some(status.clone());
            }
            let away = (!status.present).then(|| *away_since.get_or_insert_with(Instant::now));
            if away.is_none() {
                away_since = None;
            }
            let empty =
                if status.present { status.empty } else { away.is_some_and(|at| at.elapsed() >= GONE) };
            if !args.wait || empty {
                return Ok(Exit::Done);
            }
            if let Some(limit) = args.timeout.filter(|limit| began.elapsed() >= *limit) {
                return Err(Failure::Input(format!(
                    "{} is not empty after {} s: {}; it goes on draining",
                    args.host,
                    limit.as_secs(),
                    left(&status),
                )));
            }
            tokio::time::sleep(LOOK).await;
            match ask(bus, &DrainRequest::Look { host: args.host.clone() }).await {
                Ok(now) if now.draining => status = now,
                Ok(_) => return Err(Failure::Input(format!("{} was undrained meanwhile", args.host))),
                // Another scheduler takes over; it is told of the drain by what is written down.
                Err(Asked::Nobody) => {}
                Err(Asked::Failed(failure)) => return Err(failure),
            }
        }
    })
}

/// `berth undrain`
pub(crate) fn undrain(args: &UndrainArgs) -> Result<Exit, Failure> {
    let status = at_fleet(&args.fleet, async |bus| {
        Ok(ask(bus, &DrainRequest::Undrain { host: args.host.clone() }).await?)
    })?;
    tell(&status, args.json)?;
    Ok(Exit::Done)
}

/// Why there is no answer.
enum Asked {
    /// Nobody leads.
    Nobody,
    Failed(Failure),
}

impl From<Asked> for Failure {
    fn from(asked: Asked) -> Self {
        match asked {
            Asked::Nobody => Self::Input(
                "no scheduler leads there: start one (`berth scheduler`, or `berth up`), or wait a moment"
                    .into(),
            ),
            Asked::Failed(failure) => failure,
        }
    }
}

async fn ask(bus: &Bus, request: &DrainRequest) -> Result<DrainStatus, Asked> {
    match bus.request(bus.subjects.drain(), request, PATIENCE).await {
        Ok(DrainReply::Host(status)) => Ok(status),
        Ok(DrainReply::Refused(error)) => Err(Asked::Failed(Failure::Input(error.message))),
        Err(BusError::NoResponders { .. } | BusError::TimedOut { .. }) => Err(Asked::Nobody),
        Err(error) => Err(Asked::Failed(error.into())),
    }
}

fn tell(status: &DrainStatus, json: bool) -> Result<(), Failure> {
    if json {
        let text = serde_json::to_string(status).map_err(|error| Failure::Input(error.to_string()))?;
        outln!("{text}");
    } else if status.draining {
        outln!("{} is drained: {}", status.host, left(status));
    } else {
        outln!("{} takes work again", status.host);
    }
    Ok(())
}

/// What is left on a drained host.
pub(crate) fn left(status: &DrainStatus) -> String {
    if !status.present {
        return "its agent is away".into();
    }
    if status.empty {
        return "empty".into();
    }
    let count = |n: u64, one: &str, more: &str| format!("{n} {}", if n == 1 { one } else { more });
    let mut text = format!(
        "{}, {}",
        count(status.running, "job runs", "jobs run"),
        count(status.engines, "engine is left", "engines are left")
    );
    if status.staying > 0 {
        text.push_str(&format!(", {} until another is ready elsewhere", status.staying));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_in_words() {
        let mut status = DrainStatus {
            host: "gpu-1".into(),
            draining: true,
            since: None,
            present: true,
            running: 1,
            engines: 2,
            staying: 1,
            empty: false,
        };
        assert_eq!(left(&status), "1 job runs, 2 engines are left, 1 until another is ready elsewhere");
        status.empty = true;
        assert_eq!(left(&status), "empty");
        status.present = false;
        assert_eq!(left(&status), "its agent is away");
    }
}
