//! `berth status`: hosts, engines and the queue, as the fleet itself publishes them.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use berth_bus::{Bus, BusOptions, Entries, View};
use berth_config::{BusConfig, env, show_bytes};
use berth_wire::{
    Accelerator, DrainStatus, EngineRecord, HostBeat, LeaderRecord, LeaseShown, LeaseStatus, Message,
    ModelId, ModelSpec, OperateReply, OperateRequest, Timestamp,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::bar::bar;
use crate::cli::{FleetArgs, StatusArgs};
use crate::exit::{Exit, Failure};
use crate::up::BusFile;
use crate::{ask, drain, lease, queue, setup, table};

const PATIENCE: Duration = Duration::from_secs(3);

/// Asks and prints.
pub(crate) fn run(args: &StatusArgs) -> Result<Exit, Failure> {
    let options = options(&args.fleet)?;
    actix_rt::System::new().block_on(Box::pin(async {
        let bus = Bus::connect(&options, "berth-status").await?;
        // Says that there is no fleet, rather than wait for one.
        bus.bucket("hosts").await?;
        let views = Views::follow(&bus).await?;
        let shown = async || {
            let picture = views.look(&bus).await;
            Ok(match args.json {
                true => format!("{}\n", picture.json()),
                false => picture.text(Timestamp::from(SystemTime::now())),
            })
        };
        let done = match args.watch {
            true => ask::watch(!args.json, shown).await,
            false => shown().await.map(|text| out!("{text}")),
        };
        bus.close().await;
        done.map(|()| Exit::Done)
    }))
}

/// `berth top`: the same with the jobs, again and again.
pub(crate) fn top(args: &FleetArgs) -> Result<Exit, Failure> {
    lease::at_fleet(args, async |bus| {
        bus.bucket("hosts").await?;
        let views = Views::follow(bus).await?;
        ask::watch(true, async || {
            let mut text = views.look(bus).await.text(Timestamp::from(SystemTime::now()));
            let request = OperateRequest::Jobs { waiting: false, limit: TOP_JOBS, key: None };
            if let Ok(OperateReply::Jobs { jobs, total }) = ask::leader(bus, &request).await {
                text.push('\n');
                text.push_str(&if jobs.is_empty() { "JOBS: none\n".into() } else { queue::all(&jobs) });
                let more = total.saturating_sub(jobs.len() as u64);
                if more > 0 {
                    let _ = writeln!(text, "and {more} more");
                }
            }
            Ok(text)
        })
        .await?;
        Ok(Exit::Done)
    })
}

/// Jobs that `berth top` shows.
const TOP_JOBS: u32 = 20;

/// The NATS that was named, else that of a running `berth up`, else the configured one.
pub(crate) fn options(args: &FleetArgs) -> Result<BusOptions, Failure> {
    let (config, _) = setup::config(args.config.as_deref(), &args.nats_url)?;
    // A file of the environment counts if it says where NATS is; else it may be what `berth up` runs with.
    let elsewhere = || env::config_file().is_some() && config.bus.urls != BusConfig::default().urls;
    let named =
        !args.nats_url.is_empty() || env::nats_urls().is_some() || args.config.is_some() || elsewhere();
    let of_up = match named && args.data_dir.is_none() {
        true => None,
        false => BusFile::read(&args.data_dir.clone().unwrap_or_else(env::data_dir))?,
    };
    if let (None, Some(dir)) = (&of_up, &args.data_dir) {
        let dir = dir.display();
        return Err(Failure::Option(format!("no `berth up` with a nats-server of its own runs on {dir}")));
    }
    let mut options = of_up.unwrap_or_else(|| BusOptions::from_config(&config.bus));
    options.patience = Duration::ZERO;
    Ok(options)
}

/// What was found out.
struct Picture {
    leader: Option<Arc<LeaderRecord>>,
    hosts: Entries<HostBeat>,
    engines: Entries<EngineRecord>,
    catalog: Entries<ModelSpec>,
    /// The leader's own answer; null where none leads.
    scheduler: Value,
}

/// The buckets that it is told from.
struct Views {
    leader: View<LeaderRecord>,
    hosts: View<HostBeat>,
    engines: View<EngineRecord>,
    catalog: View<ModelSpec>,
}

impl Views {
    async fn follow(bus: &Bus) -> Result<Self, Failure> {
        Ok(Self {
            leader: view(bus, "leader").await?,
            hosts: view(bus, "hosts").await?,
            engines: view(bus, "engines").await?,
            catalog: view(bus, "catalog").await?,
        })
    }

    async fn look(&self, bus: &Bus) -> Picture {
        Picture {
            leader: self.leader.entries().values().next().cloned(),
            hosts: self.hosts.entries(),
            engines: self.engines.entries(),
            catalog: self.catalog.entries(),
            scheduler: ask(bus).await,
        }
    }
}

async fn view<M: Message + Send + Sync + 'static>(bus: &Bus, bucket: &str) -> Result<View<M>, Failure> {
    let mut view = View::<M>::follow(bus, bucket);
    match timeout(PATIENCE, view.synced()).await {
        Ok(()) => Ok(view),
        Err(_) => {
            Err(Failure::Input(format!("NATS does not give the bucket {}", bus.subjects.bucket(bucket))))
        }
    }
}

pub(crate) async fn entries<M: Message + Send + Sync + 'static>(
    bus: &Bus,
    bucket: &str,
) -> Result<Entries<M>, Failure> {
    Ok(view::<M>(bus, bucket).await?.entries())
}

async fn ask(bus: &Bus) -> Value {
    let request = bus.client.request(bus.subjects.scheduler_status(), Default::default());
    match timeout(PATIENCE, request).await {
        Ok(Ok(answer)) => serde_json::from_slice(&answer.payload).unwrap_or_default(),
        _ => Value::Null,
    }
}

impl Picture {
    fn json(&self) -> Value {
        json!({
            "leader": self.leader,
            "hosts": self.hosts.values().collect::<Vec<_>>(),
            "engines": self.engines.values().map(|engine| engine.told(self.is_here(engine))).collect::<Vec<_>>(),
            "models": self.catalog.values().map(|model| &model.id).collect::<Vec<_>>(),
            "scheduler": self.scheduler_shown(),
        })
    }

    /// The leader's answer, with leases as `GET /leases` has them.
    fn scheduler_shown(&self) -> Value {
        let mut shown = self.scheduler.clone();
        if let Some(known) = shown.get_mut("leases") {
            let leases: Vec<LeaseShown> = self.leases().into_iter().map(LeaseShown::from).collect();
            *known = json!(leases);
        }
        shown
    }

    fn text(&self, now: Timestamp) -> String {
        let mut text = match &self.leader {
            Some(leader) => format!("{} leads; elected {}\n", leader.instance, ago(leader.since, now)),
            None => "no scheduler leads: requests wait until one does\n".into(),
        };
        text.push('\n');
        text.push_str(&section(
            "HOST",
            "no host has joined",
            &self.hosts(now),
            &[
                "HOST",
                "ACCELERATOR",
                "SET ASIDE",
                "",
                "OF",
                "HELD",
                "OTHERS",
                "FREE NOW",
                "DRIVERS",
                "RUNNING",
                "SEEN",
            ],
        ));
        text.push('\n');
        text.push_str(&section(
            "ENGINE",
            "no engine runs",
            &self.engines(now),
            &["ENGINE", "MODEL", "HOST", "RUNS AS", "STATE", "SLOTS", "TOKENS/S", "MEMORY", "SINCE", ""],
        ));
        text.push('\n');
        text.push_str(&section(
            "MODEL",
            "the catalog is empty",
            &self.models(),
            &["MODEL", "ENGINE", "WAITING", "RUNNING", "TOKENS/S", "WAIT NOW", "LEASES", ""],
        ));
        let leases = self.leases();
        if !leases.is_empty() {
            text.push('\n');
            text.push_str(&lease::table(&leases));
        }
        text
    }

    /// As the leader tells them; at most the first hundred.
    fn leases(&self) -> Vec<LeaseStatus> {
        let known = self.scheduler.get("leases").cloned().unwrap_or_default();
        serde_json::from_value(known).unwrap_or_default()
    }

    fn hosts(&self, now: Timestamp) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        for beat in self.hosts.values() {
            for (n, accelerator) in beat.accelerators.iter().enumerate() {
                // What holds for the whole host stands once.
                let once = |text: String| if n == 0 { text } else { String::new() };
                let set_aside = self.set_aside(beat, accelerator);
                let drivers: Vec<&str> = beat.drivers.iter().map(|driver| driver.as_str()).collect();
                rows.push(vec![
                    once(format!("{}{}", beat.host, self.drained(beat))),
                    accelerator.name.clone(),
                    show_bytes(set_aside),
                    bar(set_aside, accelerator.memory),
                    show_bytes(accelerator.memory),
                    accelerator.held.map_or_else(|| "-".into(), show_bytes),
                    accelerator.unexplained.map_or_else(|| "-".into(), show_bytes),
                    accelerator.free.map_or_else(|| "-".into(), show_bytes),
                    once(drivers.join(", ")),
                    once(beat.running.to_string()),
                    once(ago(beat.at, now)),
                ]);
            }
        }
        rows
    }

    /// That a host takes nothing new: its agent ends, or a person has it drained.
    fn drained(&self, beat: &HostBeat) -> String {
        let known = self.scheduler.get("drains").cloned().unwrap_or_default();
        let known: Vec<DrainStatus> = serde_json::from_value(known).unwrap_or_default();
        match known.iter().find(|drain| drain.host == beat.host) {
            Some(drain) => format!(" (drained: {})", drain::left(drain)),
            None if beat.draining => " (draining)".into(),
            None => String::new(),
        }
    }

    fn set_aside(&self, beat: &HostBeat, accelerator: &Accelerator) -> u64 {
        self.engines
            .values()
            .filter(|engine| engine.host == beat.host && !engine.state.is_gone())
            .flat_map(|engine| &engine.reservations)
            .filter(|reservation| reservation.accelerator == accelerator.id)
            .map(|reservation| reservation.bytes)
            .sum()
    }

    /// Whether an engine's host is.
    fn is_here(&self, engine: &EngineRecord) -> bool {
        self.hosts.contains_key(engine.host.as_str())
    }

    fn engines(&self, now: Timestamp) -> Vec<Vec<String>> {
        self.engines
            .values()
            .map(|engine| {
                let memory: u64 = engine.reservations.iter().map(|reservation| reservation.bytes).sum();
                vec![
                    engine.engine.to_string(),
                    engine.model.to_string(),
                    engine.host.to_string(),
                    format!("{}, {}", engine.kind.as_str(), engine.driver.as_str()),
                    if self.is_here(engine) { engine.state.as_str() } else { "host away" }.into(),
                    format!("{}/{}", engine.running, engine.concurrency),
                    pace(engine.tokens_per_second),
                    show_bytes(memory),
                    ago(engine.since, now),
                    first_line(Some(&notes(engine).join("; "))),
                ]
            })
            .collect()
    }

    /// Of all engines of a model.
    fn pace_of(&self, model: &ModelId) -> f64 {
        let engines = self.engines.values().filter(|engine| engine.model == *model);
        engines.map(|engine| engine.tokens_per_second).sum()
    }

    fn models(&self) -> Vec<Vec<String>> {
        let known = self.scheduler.get("models").and_then(Value::as_array);
        self.catalog
            .values()
            .map(|model| {
                let view = known.and_then(|views| {
                    views
                        .iter()
                        .find(|view| view.get("model").and_then(Value::as_str) == Some(model.id.as_str()))
                });
                let count = |key: &str| {
                    let number = view.and_then(|view| view.get(key)?.as_u64());
                    number.map_or_else(|| "?".into(), |number| number.to_string())
                };
                vec![
                    model.id.to_string(),
                    format!("{}{}", model.engine.kind.as_str(), if model.pin { " (pinned)" } else { "" }),
                    count("queued"),
                    count("running"),
                    pace(self.pace_of(&model.id)),
                    view.and_then(|view| view.get("wait_estimate_s")?.as_f64())
                        .map_or_else(|| "?".into(), |seconds| format!("{seconds:.1}s")),
                    count("leases"),
                    first_line(view.and_then(|view| view.get("error")?.as_str())),
                ]
            })
            .collect()
    }
}

fn section(name: &str, none: &str, rows: &[Vec<String>], headings: &[&str]) -> String {
    if rows.is_empty() {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}S: {none}");
        return text;
    }
    table::render(headings, rows)
}

fn pace(tokens_per_second: f64) -> String {
    if tokens_per_second > 0.0 { format!("{tokens_per_second:.1}") } else { "-".into() }
}

/// What else is to be said of an engine.
fn notes(engine: &EngineRecord) -> Vec<String> {
    let adapters: Vec<&str> = engine.adapters.iter().map(|adapter| adapter.as_str()).collect();
    let adapters = (!adapters.is_empty()).then(|| format!("with {}", adapters.join(", ")));
    let first = |text: &String| text.lines().next().unwrap_or_default().to_owned();
    let detail = engine.detail.as_ref().map(first).or_else(|| digest(engine));
    adapters.into_iter().chain(detail).collect()
}

/// The image that runs, as short as people compare digests.
fn digest(engine: &EngineRecord) -> Option<String> {
    let (_, digest) = engine.image.as_deref()?.rsplit_once("sha256:")?;
    Some(format!("sha256:{}", digest.get(..12).unwrap_or(digest)))
}

fn first_line(text: Option<&str>) -> String {
    let line = text.and_then(|text| text.lines().next()).unwrap_or_default();
    if line.chars().count() > 80 { line.chars().take(79).chain(['…']).collect() } else { line.into() }
}

fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.since(then).as_secs();
    match seconds {
        0..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..172_800 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_one_unit() {
        let at = |seconds: u64| ago(Timestamp(0), Timestamp(seconds * 1000));
        assert_eq!([at(5), at(300), at(7300), at(200_000)], ["5s ago", "5m ago", "2h ago", "2d ago"]);
    }

    #[test]
    fn leases_have_the_form_that_http_gives_them() {
        let lease = json!({"session": "s", "model": "m", "since": 0, "ttl_ms": 120_000, "expires": 120_000});
        let status =
            json!({"lease": lease, "state": "queued", "position": 2, "eta_ms": 4100, "left_ms": 60_000});
        let picture = Picture {
            leader: None,
            hosts: Entries::default(),
            engines: Entries::default(),
            catalog: Entries::default(),
            scheduler: json!({"epoch": 1, "leases": [status]}),
        };
        let shown = &picture.json()["scheduler"]["leases"];
        let http = json!([{
            "sessionKey": "s", "model": "m", "state": "queued", "position": 2, "etaSeconds": 4.1,
            "expiresAt": "1970-01-01T00:02:00.000Z", "expiresInSeconds": 60.0, "keepContext": false,
        }]);
        assert_eq!(*shown, http);
        assert_eq!(picture.leases().len(), 1, "the table has them as well");
    }

    #[test]
    fn a_fleet_without_anything_says_so() {
        let picture = Picture {
            leader: None,
            hosts: Entries::default(),
            engines: Entries::default(),
            catalog: Entries::default(),
            scheduler: Value::Null,
        };
        let text = picture.text(Timestamp(0));
        for part in ["no scheduler leads", "no host has joined", "no engine runs", "the catalog is empty"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
