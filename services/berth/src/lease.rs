//! `berth lease`, `release` and `leases`: what a session asks of the scheduler, over NATS.

use std::time::Duration;

use berth_bus::{Bus, BusError};
use berth_wire::{
    LeaseReply, LeaseRequest, LeaseShown, LeaseState, LeaseStatus, LeasesShown, ModelId, ModelSpec,
    ReleasedShown, SESSION_MAX, SessionId,
};
use clap::Args;
use serde::Serialize;

use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::{status, table};

/// A new leader needs a moment to take over.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) const LEASE_EXAMPLES: &str = "\
A request with the same session key (header x-berth-session, or `user` in its body) renews the lease.

Examples:
  berth lease my-session demo             for two minutes
  berth lease my-session demo --ttl 30m   for half an hour; the same command renews it
  berth lease my-session demo --keep-context
  berth release my-session                give it back";

pub(crate) const RELEASE_EXAMPLES: &str = "\
Examples:
  berth release my-session demo   its lease on one model
  berth release my-session        all of its leases";

pub(crate) const LEASES_EXAMPLES: &str = "\
Examples:
  berth leases
  berth leases --session my-session
  berth leases --json | jq '.leases[].model'";

/// Options of `lease`.
#[derive(Debug, Args)]
pub(crate) struct LeaseArgs {
    /// The session's key: any text of up to 256 bytes.
    #[arg(value_parser = session)]
    session: SessionId,
    /// The model, or an alias of it.
    model: String,
    /// For how long; 1s at least, and [scheduler] lease_ceiling at most [default: 120s, or the ceiling].
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    ttl: Option<Duration>,
    /// What the engine has read of the session is saved when the engine is stopped (llama.cpp).
    #[arg(long)]
    keep_context: bool,
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of a table, as HTTP has it.
    #[arg(long)]
    json: bool,
}

/// Options of `release`.
#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The session's key.
    #[arg(value_parser = session)]
    session: SessionId,
    /// The model, or an alias of it; left out: all that the session has leases on.
    model: Option<String>,
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of a sentence, as HTTP has it.
    #[arg(long)]
    json: bool,
}

/// Options of `leases`.
#[derive(Debug, Args)]
pub(crate) struct LeasesArgs {
    /// Only this session's.
    #[arg(long, value_name = "SESSION", value_parser = session)]
    session: Option<SessionId>,
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of a table, as HTTP has it.
    #[arg(long)]
    json: bool,
}

pub(crate) fn session(text: &str) -> Result<SessionId, String> {
    match text.len() {
        1..=SESSION_MAX => Ok(text.into()),
        len => Err(format!("a session's key has 1 to {SESSION_MAX} bytes, and this one {len}")),
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = berth_config::parse_duration(text)?;
    if ttl < Duration::from_secs(1) {
        return Err("a lease lasts for 1s at least, as in --ttl 120s".into());
    }
    Ok(ttl)
}

/// `berth lease`
pub(crate) fn grant(args: &LeaseArgs) -> Result<Exit, Failure> {
    let reply = at_fleet(&args.fleet, async |bus| {
        let model = resolve(bus, &args.model).await?;
        let keep_context = args.keep_context.then_some(true);
        let session = args.session.clone();
        ask(bus, &LeaseRequest::Lease { session, model, key: None, ttl: args.ttl, keep_context }).await
    })?;
    let LeaseReply::Held(status) = reply else { return Err(unexpected()) };
    if args.json {
        outln!("{}", json(&LeaseShown::from(status))?);
    } else {
        out!("{}", table(&[status]));
    }
    Ok(Exit::Done)
}

/// `berth release`
pub(crate) fn release(args: &ReleaseArgs) -> Result<Exit, Failure> {
    let reply = at_fleet(&args.fleet, async |bus| {
        let model = match &args.model {
            Some(name) => Some(resolve(bus, name).await?),
            None => None,
        };
        ask(bus, &LeaseRequest::Release { session: args.session.clone(), model, key: None }).await
    })?;
    let LeaseReply::Released { models } = reply else { return Err(unexpected()) };
    if args.json {
        let shown = ReleasedShown { session_key: args.session.clone(), released: models };
        outln!("{}", json(&shown)?);
    } else if models.is_empty() {
        outln!("nothing to release: the session holds no such lease");
    } else {
        let models: Vec<&str> = models.iter().map(ModelId::as_str).collect();
        outln!("released {}", models.join(", "));
    }
    Ok(Exit::Done)
}

/// `berth leases`
pub(crate) fn list(args: &LeasesArgs) -> Result<Exit, Failure> {
    let session = args.session.clone();
    let reply =
        at_fleet(&args.fleet, async |bus| ask(bus, &LeaseRequest::List { session, key: None }).await)?;
    let LeaseReply::Leases { leases, total } = reply else { return Err(unexpected()) };
    if args.json {
        outln!("{}", json(&LeasesShown::new(leases, total))?);
    } else if leases.is_empty() {
        outln!("no session holds a lease; `berth lease SESSION MODEL` asks for one");
    } else {
        out!("{}", table(&leases));
        let more = total.saturating_sub(leases.len() as u64);
        if more > 0 {
            outln!("and {more} more; --session shows those of one session");
        }
    }
    Ok(Exit::Done)
}

pub(crate) fn at_fleet<T>(
    args: &FleetArgs,
    run: impl AsyncFnOnce(&Bus) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let options = status::options(args)?;
    actix_rt::System::new().block_on(Box::pin(async {
        let bus = Bus::connect(&options, "berth-command").await?;
        let done = run(&bus).await;
        bus.close().await;
        done
    }))
}

/// The model of that name or alias.
pub(crate) async fn resolve(bus: &Bus, name: &str) -> Result<ModelId, Failure> {
    let catalog = status::entries::<ModelSpec>(bus, "catalog").await?;
    // An adapter's lease is one on its base, whose engine serves it.
    let by_alias = |spec: &ModelSpec| spec.names().any(|other| other == name);
    let found = catalog
        .values()
        .find(|spec| spec.id.as_str() == name)
        .or_else(|| catalog.values().find(|spec| by_alias(spec)));
    found.map(|spec| spec.id.clone()).ok_or_else(|| {
        let known: Vec<&str> = catalog.values().map(|spec| spec.id.as_str()).collect();
        let known = match known.as_slice() {
            [] => "the catalog is empty".to_owned(),
            known => format!("there are {}", known.join(", ")),
        };
        Failure::Input(format!("no model is called `{name}`; {known}"))
    })
}

pub(crate) async fn ask(bus: &Bus, request: &LeaseRequest) -> Result<LeaseReply, Failure> {
    match bus.request(bus.subjects.lease(), request, PATIENCE).await {
        Ok(LeaseReply::Refused(error)) => Err(Failure::Input(error.message)),
        Ok(reply) => Ok(reply),
        Err(BusError::NoResponders { .. } | BusError::TimedOut { .. }) => Err(Failure::Input(
            "no scheduler leads there: start one (`berth scheduler`, or `berth up`), or wait a moment".into(),
        )),
        Err(error) => Err(error.into()),
    }
}

fn unexpected() -> Failure {
    Failure::Input("the scheduler is of another version: its answer does not fit the question".into())
}

/// As over HTTP.
fn json(shown: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(shown).map_err(|error| Failure::Input(error.to_string()))
}

/// Leases for people.
pub(crate) fn table(leases: &[LeaseStatus]) -> String {
    let rows: Vec<Vec<String>> = leases.iter().map(row).collect();
    table::render(&["SESSION", "MODEL", "STATE", "READY IN", "WAITING", "ENDS IN", "CONTEXT"], &rows)
}

fn row(status: &LeaseStatus) -> Vec<String> {
    let ready = match (status.state, status.eta) {
        (LeaseState::Ready, _) => "-".into(),
        (_, Some(eta)) => format!("{:.1}s", eta.as_secs_f64()),
        (_, None) => "?".into(),
    };
    vec![
        status.lease.session.to_string(),
        status.lease.model.to_string(),
        status.state.as_str().into(),
        ready,
        status.position.to_string(),
        span(status.left),
        if status.lease.keep_context { "kept" } else { "-" }.into(),
    ]
}

fn span(left: Duration) -> String {
    let seconds = left.as_secs();
    match seconds {
        0..100 => format!("{seconds}s"),
        100..6000 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use berth_wire::{Lease, Timestamp};

    use super::*;

    fn status(state: LeaseState, eta: Option<u64>) -> LeaseStatus {
        let lease = Lease {
            session: "chat-1".into(),
            model: "demo".into(),
            key: None,
            since: Timestamp(5),
            ttl: Duration::from_secs(120),
            expires: Timestamp(120_005),
            keep_context: state == LeaseState::Ready,
        };
        let left = Duration::from_secs(119);
        LeaseStatus { lease, state, position: 2, eta: eta.map(Duration::from_secs), left }
    }

    #[test]
    fn a_lease_is_one_line() {
        let rows = [status(LeaseState::Loading, Some(4)), status(LeaseState::Ready, Some(0))];
        assert_eq!(
            table(&rows),
            "SESSION  MODEL  STATE    READY IN  WAITING  ENDS IN  CONTEXT\n\
             chat-1   demo   loading  4.0s      2        1m 59s   -\n\
             chat-1   demo   ready    -         2        1m 59s   kept\n"
        );
        assert_eq!(row(&status(LeaseState::Queued, None))[3], "?");
    }

    #[test]
    fn a_session_and_a_time_that_cannot_be_are_refused() {
        assert!(session("").is_err() && session(&"x".repeat(257)).is_err() && session("a b").is_ok());
        assert!(ttl("0s").unwrap_err().contains("--ttl 120s"));
        assert_eq!(ttl("30m").unwrap().as_secs(), 1800);
        assert_eq!([span(Duration::from_secs(59)), span(Duration::from_secs(7260))], ["59s", "2h 1m"]);
    }
}
