//! `berth logs`: what an engine logs, read from its host over the bus.

use std::io::Write;
use std::time::Duration;

use berth_bus::{Bus, BusError, read};
use berth_wire::{EngineId, EngineRecord, HostBeat, HostId, LogAck, LogPiece, ReadLog, Reply, Verb};
use clap::Args;
use futures::StreamExt;

use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::{lease, status};

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A host lets a reader know every 5 s that it is there.
const SILENCE: Duration = Duration::from_secs(20);

pub(crate) const EXAMPLES: &str = "\
An engine's log may hold what clients asked. It goes to who reads it here, and to nobody else; values of the engine's
`env`, and what looks like a token or a password, are shown as ***. Lines are cut after 500 characters.

Examples:
  berth logs demo              the last 100 lines of the engine of a model
  berth logs 7-3 -f            of one engine, as `berth status` names it, and on until it ends
  berth logs demo --tail 1000";

/// Options of `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The engine, as in `7-3`, or a model that has one engine.
    engine: String,
    /// Go on with what it logs, until it ends or Ctrl-C.
    #[arg(long, short)]
    follow: bool,
    /// Lines of the past.
    #[arg(long, value_name = "N", default_value_t = 100)]
    tail: u32,
    #[command(flatten)]
    fleet: FleetArgs,
}

/// Reads and prints.
pub(crate) fn run(args: &LogsArgs) -> Result<Exit, Failure> {
    lease::at_fleet(&args.fleet, async |bus| {
        let (host, engine) = find(bus, &args.engine).await?;
        print(bus, &host, engine, args).await
    })
}

/// The engine of that name.
async fn find(bus: &Bus, name: &str) -> Result<(HostId, EngineId), Failure> {
    let engines = status::entries::<EngineRecord>(bus, "engines").await?;
    let hosts = status::entries::<HostBeat>(bus, "hosts").await?;
    // What a lost host ran can tell nothing.
    let here = engines.values().filter(|record| hosts.contains_key(record.host.as_str()));
    let all: Vec<&EngineRecord> = here.map(AsRef::as_ref).collect();
    let mut found: Vec<&EngineRecord> =
        all.iter().copied().filter(|record| record.engine.to_string() == name).collect();
    if found.is_empty() {
        let running = || {
            let mut names: Vec<String> = all.iter().map(|r| format!("{} ({})", r.engine, r.model)).collect();
            names.sort();
            if names.is_empty() { "none runs".to_owned() } else { format!("there are {}", names.join(", ")) }
        };
        if name.parse::<EngineId>().is_ok() {
            return Err(Failure::Input(format!("no engine {name} runs; {}", running())));
        }
        let model = lease::resolve(bus, name).await?;
        found = all.iter().copied().filter(|record| record.model == model).collect();
        if found.is_empty() {
            return Err(Failure::Input(format!("no engine of `{model}` runs; {}", running())));
        }
    }
    match found.as_slice() {
        [one] => Ok((one.host.clone(), one.engine)),
        several => {
            let names: Vec<String> = several.iter().map(|r| format!("{} on {}", r.engine, r.host)).collect();
            Err(Failure::Input(format!("`{name}` has several engines; name one: {}", names.join(", "))))
        }
    }
}

async fn print(bus: &Bus, host: &HostId, engine: EngineId, args: &LogsArgs) -> Result<Exit, Failure> {
    // Not an inbox: agents may speak at those of nobody.
    let inbox = bus.client.new_inbox();
    let to = bus.subjects.tail(host, inbox.rsplit('.').next().unwrap_or_default());
    let mut pieces = bus.subscribe(to.clone()).await?;
    let ask = ReadLog { engine, tail: args.tail, follow: args.follow, to };
    match bus.request(bus.subjects.ctl(host, Verb::Logs), &ask, PATIENCE).await {
        Ok(Reply::Ok) => {}
        Ok(Reply::Refused { message }) => return Err(Failure::Input(message)),
        Ok(_) => return Err(Failure::Input(format!("the agent of {host} is of another version"))),
        Err(BusError::NoResponders { .. }) => {
            return Err(Failure::Input(format!("the agent of {host} is not there")));
        }
        Err(error) => return Err(error.into()),
    }
    let mut expected = 0;
    loop {
        let Ok(Some(message)) = tokio::time::timeout(SILENCE, pieces.next()).await else {
            return Err(Failure::Input(format!("the agent of {host} does not answer any more")));
        };
        let Some(piece) = read::<LogPiece>(&message) else { continue };
        if piece.seq != expected {
            return Err(Failure::Input("lines were lost on their way: NATS was away; ask again".into()));
        }
        expected += 1;
        if piece.skipped > 0 {
            eprintln!("({} lines came faster than they were read)", piece.skipped);
        }
        let mut out = std::io::stdout().lock();
        // Whoever reads us may have read enough.
        let wanted = out.write_all(&piece.lines).and_then(|()| out.flush()).is_ok();
        drop(out);
        let more = wanted && piece.end.is_none();
        bus.reply(message.reply, &LogAck { more }).await?;
        if !more {
            // The acknowledgement is on its way before the connection closes.
            let _ = bus.client.flush().await;
            if let Some(end) = piece.end.filter(|_| args.follow) {
                eprintln!("{end}");
            }
            return Ok(Exit::Done);
        }
    }
}
