//! `berth load`, `unload`, `pin` and `unpin`: what an operator wants of a model's engines.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_bus::{Bus, View};
use berth_wire::{EngineId, EngineRecord, EngineState, HostId, ModelId, OperateReply, OperateRequest};
use clap::Args;
use serde_json::json;

use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::{ask, lease, table};

pub(crate) const LOAD_EXAMPLES: &str = "\
It takes the room of engines that are idle; what serves is left to serve, and what is pinned stays. It waits until the
model is ready, and tells of downloads and of loading; Ctrl-C ends the waiting, not the loading.

Examples:
  berth load demo
  berth load demo --host gpu-2      there, though another host has it
  berth load demo --no-wait         have it done, and be gone
  berth lease my-session demo       keep it warm for a session, which a load does not";

pub(crate) const UNLOAD_EXAMPLES: &str = "\
It is refused while the model is pinned, a lease keeps it, or jobs wait for it or run on it. With --force the pin and
the leases are taken off, and jobs that run are broken off: those that have sent nothing yet are tried again, which
loads the model again.

Examples:
  berth unload demo
  berth unload demo --host gpu-2
  berth unload demo --force";

pub(crate) const PIN_EXAMPLES: &str = "\
A pinned model has one engine ready always, which is never evicted. The pin is written into the fleet's catalog; it
stays until `berth unpin`, or until a configuration is applied that says otherwise.

Examples:
  berth pin demo
  berth unpin demo";

/// Options of `load` and `unload`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The model, or an alias of it.
    model: String,
    /// Only there [default: wherever it is best; for unload everywhere].
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Do not wait until it is done.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of a sentence.
    #[arg(long)]
    json: bool,
}

/// Options of `unload`.
#[derive(Debug, Args)]
pub(crate) struct UnloadArgs {
    #[command(flatten)]
    what: LoadArgs,
    /// Also where it is pinned, leases keep it, or jobs wait for it or run on it.
    #[arg(long)]
    force: bool,
}

/// Options of `pin` and `unpin`.
#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    /// The model, or an alias of it.
    model: String,
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of a sentence.
    #[arg(long)]
    json: bool,
}

async fn done(bus: &Bus, request: &OperateRequest) -> Result<(Vec<EngineId>, bool), Failure> {
    match ask::leader(bus, request).await? {
        OperateReply::Done { engines, already } => Ok((engines, already)),
        _ => Err(ask::unexpected()),
    }
}

/// `berth load`
pub(crate) fn load(args: &LoadArgs) -> Result<Exit, Failure> {
    lease::at_fleet(&args.fleet, async |bus| {
        let model = lease::resolve(bus, &args.model).await?;
        let host = args.host.as_deref().map(HostId::from);
        let (_, already) =
            done(bus, &OperateRequest::Load { model: model.clone(), host: host.clone() }).await?;
        if args.no_wait && !already {
            return told(
                args.json,
                &json!({"model": model, "state": "loading"}),
                &format!("{model} is being loaded"),
            );
        }
        let ready = until_ready(bus, &model, host.as_ref()).await?;
        let shown = json!({"model": model, "state": "ready", "host": ready.host, "engine": ready.engine, "already": already});
        let was = if already { "was ready already" } else { "is ready" };
        told(args.json, &shown, &format!("{model} {was} on {} (engine {})", ready.host, ready.engine))
    })
}

/// `berth unload`
pub(crate) fn unload(UnloadArgs { what: args, force }: &UnloadArgs) -> Result<Exit, Failure> {
    lease::at_fleet(&args.fleet, async |bus| {
        let model = lease::resolve(bus, &args.model).await?;
        let host = args.host.as_deref().map(HostId::from);
        let (engines, already) =
            done(bus, &OperateRequest::Unload { model: model.clone(), host, force: *force }).await?;
        if already {
            return told(
                args.json,
                &json!({"model": model, "stopped": []}),
                &format!("no engine of {model} was there"),
            );
        }
        if !args.no_wait {
            until_gone(bus, &engines).await?;
        }
        let names: Vec<String> = engines.iter().map(ToString::to_string).collect();
        let verb = if args.no_wait { "is being unloaded" } else { "is unloaded" };
        let text = format!("{model} {verb} (engine {})", names.join(", "));
        told(args.json, &json!({"model": model, "stopped": engines}), &text)
    })
}

/// `berth pin` and `berth unpin`
pub(crate) fn pin(args: &PinArgs, pin: bool) -> Result<Exit, Failure> {
    lease::at_fleet(&args.fleet, async |bus| {
        let model = lease::resolve(bus, &args.model).await?;
        let (_, already) = done(bus, &OperateRequest::Pin { model: model.clone(), pin }).await?;
        let text = match (pin, already) {
            (true, false) => format!(
                "{model} is pinned: one engine of it is kept ready, as soon as there is room for one (`berth models`)"
            ),
            (true, true) => format!("{model} was pinned already"),
            (false, false) => {
                format!("{model} is pinned no longer; its engine stays until its room is needed")
            }
            (false, true) => format!("{model} was not pinned"),
        };
        told(args.json, &json!({"model": model, "pinned": pin, "already": already}), &text)
    })
}

fn told(as_json: bool, json: &serde_json::Value, text: &str) -> Result<Exit, Failure> {
    if as_json {
        outln!("{json}");
    } else {
        outln!("{}", table::plain(text));
    }
    Ok(Exit::Done)
}

/// How often it is asked whether the model was given up.
const ASK: Duration = Duration::from_secs(1);

/// Waits for an engine that serves, and tells of what it does until then.
async fn until_ready(
    bus: &Bus,
    model: &ModelId,
    host: Option<&HostId>,
) -> Result<Arc<EngineRecord>, Failure> {
    let mut engines = View::<EngineRecord>::follow(bus, "engines");
    engines.synced().await;
    let mut progress = Progress::default();
    let mut asked = Instant::now();
    loop {
        let records = engines.entries();
        let ours = || {
            let of = |record: &&Arc<EngineRecord>| {
                record.model == *model
                    && host.is_none_or(|host| record.host == *host)
                    && !record.state.is_gone()
            };
            records.values().filter(of)
        };
        if let Some(ready) = ours().find(|record| record.state == EngineState::Ready) {
            return Ok(Arc::clone(ready));
        }
        for record in ours() {
            progress.tell(record);
        }
        if asked.elapsed() >= ASK {
            asked = Instant::now();
            if let OperateReply::Models(models) = ask::leader(bus, &OperateRequest::Models).await? {
                let view = models.into_iter().find(|view| view.model == *model);
                let view =
                    view.ok_or_else(|| Failure::Input(format!("{model} was taken out of the catalog")))?;
                if let Some(error) = view.error {
                    return Err(Failure::Input(error));
                }
                if !view.asked_for && view.engines.is_empty() {
                    return Err(Failure::Input(format!("{model} was unloaded by somebody else")));
                }
                if view.engines.is_empty() {
                    progress.say("there is no room yet; `berth status` shows what holds it");
                }
            }
        }
        let _ = tokio::time::timeout(ASK, engines.changed()).await;
    }
}

async fn until_gone(bus: &Bus, engines: &[EngineId]) -> Result<(), Failure> {
    let mut view = View::<EngineRecord>::follow(bus, "engines");
    view.synced().await;
    let mut progress = Progress::default();
    loop {
        let records = view.entries();
        let left: Vec<_> = records
            .values()
            .filter(|record| engines.contains(&record.engine) && !record.state.is_gone())
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        for record in left {
            progress.tell(record);
        }
        let _ = tokio::time::timeout(ASK, view.changed()).await;
    }
}

/// Says on standard error what is new.
#[derive(Default)]
struct Progress {
    last: BTreeMap<EngineId, String>,
    said: String,
}

impl Progress {
    fn tell(&mut self, record: &EngineRecord) {
        let detail = record.detail.as_deref().and_then(|text| text.lines().next()).unwrap_or_default();
        let what = format!(
            "{} on {}{}{detail}",
            record.state.as_str(),
            record.host,
            if detail.is_empty() { "" } else { ": " }
        );
        if self.last.get(&record.engine) != Some(&what) {
            eprintln!("{}", table::plain(&what));
            self.last.insert(record.engine, what);
        }
    }

    fn say(&mut self, what: &str) {
        if self.said != what {
            eprintln!("{what}");
            what.clone_into(&mut self.said);
        }
    }
}
