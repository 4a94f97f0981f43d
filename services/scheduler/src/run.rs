//! Terms of leadership: won, served, lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use berth_actors::{Vitals, supervise};
use berth_bus::{Bus, BusOptions, Election, Leadership, register};
use berth_config::Config;
use berth_probes::{Component, Probes};
use berth_telemetry::Chain;
use berth_telemetry::trace;
use berth_wire::{Epoch, EventBody};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::catalog;
use crate::effects::{Carrier, record};
use crate::error::SchedulerError;
use crate::intake;
use crate::leader::{Leader, Shared};
use crate::recorder::Recorder;

/// Messages that may wait for the core before readers of the bus are held back.
const MAILBOX: usize = 4096;
/// How long leases and profiles may take to be written down at a term's end.
const LAST_WRITES: Duration = Duration::from_secs(2);
/// How long before it is tried again to campaign.
const REJOIN: Duration = Duration::from_secs(1);
/// How often it is looked whether streams and buckets are there.
const REPAIR: Duration = Duration::from_secs(3);

/// Runs a scheduler on this thread's actix system until `shutdown`: declares streams and buckets, publishes the
/// configured catalog, and leads whenever it is elected.
///
/// # Errors
/// When the bus cannot be reached or set up at the start; later faults are retried.
pub async fn run(
    config: Arc<Config>,
    options: BusOptions,
    shutdown: CancellationToken,
) -> Result<(), SchedulerError> {
    let instance = format!("scheduler-{}", uuid::Uuid::now_v7().simple());
    let recorder = match &config.scheduler.record {
        None => None,
        Some(path) => Some(
            Recorder::open(path).map_err(|source| SchedulerError::Record { path: path.clone(), source })?,
        ),
    };
    let bus = Bus::connect(&options, &instance).await?;
    berth_bus::provision(&bus).await?;
    catalog::publish(&bus, &config).await?;
    let vitals = Vitals::default();
    let (tracer, traces) = trace::start(&config.telemetry, "scheduler", &instance)?;
    let shared = Shared::new(recorder, tracer);
    let probes = {
        let (bus, shared) = (bus.clone(), shared.clone());
        Probes::new("scheduler", vitals.clone(), move || {
            let role = if shared.leads() { "leads" } else { "stands by" };
            vec![bus_part(&bus), Component::new("scheduler", true, role, "")]
        })
        .listen(config.scheduler.metrics_listen, "[scheduler] metrics_listen")?
    };
    let _registered = {
        let (vitals, shared) = (vitals.clone(), shared.clone());
        register(
            &bus,
            "berth-scheduler",
            "decides which job runs where",
            bus.subjects.status("scheduler", &instance),
            HashMap::new(),
            move || serde_json::json!({ "service": "scheduler", "actors": vitals.signs(), "leads": shared.leads() }),
        )
        .await?
    };
    let repairs = actix_rt::spawn(keep_repaired(bus.clone(), Arc::clone(&config)));
    while !shutdown.is_cancelled() {
        if let Some(epoch) = shared.outrun.take()
            && let Err(error) = berth_bus::outrun(&bus, epoch).await
        {
            warn!(error = %Chain(&error), "cannot campaign for a later epoch yet");
            shared.outrun.by(epoch);
            tokio::time::sleep(REJOIN).await;
            continue;
        }
        let candidacy = shutdown.child_token();
        let (election, campaign) = match Election::join(&bus, instance.clone(), candidacy.clone()).await {
            Ok(joined) => joined,
            Err(error) => {
                // NATS is away, or was wiped: it comes back, or the bucket is made anew.
                warn!(error = %Chain(&error), "cannot campaign; trying again");
                tokio::select! {
                    () = tokio::time::sleep(REJOIN) => {}
                    () = shutdown.cancelled() => {}
                }
                continue;
            }
        };
        let campaign = actix_rt::spawn(campaign);
        serve(&config, &bus, election.state, &vitals, &shared, &instance, &shutdown).await;
        // Also after a term that broke down: a new one begins with a new epoch and empty books.
        candidacy.cancel();
        let _ = campaign.await;
    }
    repairs.abort();
    if let Some(probes) = probes {
        probes.stop().await;
    }
    traces.stop().await;
    bus.close().await;
    Ok(())
}

fn bus_part(bus: &Bus) -> Component {
    Component::new("bus", bus.is_connected(), "connected", "not connected to NATS")
}

/// Streams and buckets may go away with a server; whoever needs them waits until they are there again.
async fn keep_repaired(bus: Bus, config: Arc<Config>) {
    let mut ticks = tokio::time::interval(REPAIR);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let repaired = async {
            if berth_bus::repair(&bus).await? {
                catalog::publish(&bus, &config).await?;
            }
            Ok::<(), berth_bus::BusError>(())
        };
        if let Err(error) = repaired.await {
            warn!(error = %Chain(&error), "cannot see to the streams and buckets");
        }
    }
}

/// Waits for leadership and serves one term.
async fn serve(
    config: &Config,
    bus: &Bus,
    mut leadership: watch::Receiver<Leadership>,
    vitals: &Vitals,
    shared: &Shared,
    instance: &str,
    shutdown: &CancellationToken,
) {
    loop {
        let state = *leadership.borrow_and_update();
        if let Leadership::Leader(epoch) = state {
            let lost = async {
                let _ = leadership.wait_for(|now| *now != state).await;
            };
            term(config, bus, epoch, vitals, shared, instance, lost, shutdown).await;
            return;
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "one caller; a struct would only rename them")]
async fn term(
    config: &Config,
    bus: &Bus,
    epoch: Epoch,
    vitals: &Vitals,
    shared: &Shared,
    instance: &str,
    lost: impl Future<Output = ()>,
    shutdown: &CancellationToken,
) {
    let over = CancellationToken::new();
    let policy = crate::translate::policy(&catalog::followed(bus, &config.scheduler).await);
    let carrier = Carrier::new(bus.clone(), epoch, shared.outrun.clone());
    let keeper = carrier.keeper.clone();
    let host_timeout = config.scheduler.host_timeout;
    let mut first = true;
    let leader = {
        let (over, shared) = (over.clone(), shared.clone());
        supervise(vitals, "leader", MAILBOX, move |life| {
            if !std::mem::take(&mut first) {
                // The books went with the actor; only a new term can rebuild them.
                over.cancel();
            }
            Leader::new(life, carrier.clone(), policy.clone(), host_timeout, &shared, over.clone())
        })
    };
    record(bus, EventBody::LeaderElected { instance: instance.to_owned(), epoch }).await;
    let writer = actix_rt::spawn({
        let (keeper, bus) = (keeper.clone(), bus.clone());
        async move { keeper.run(&bus).await }
    });
    let feeds = intake::start(bus, epoch, &leader, &keeper, &over);
    let mut deposed = false;
    tokio::select! {
        () = lost => {
            warn!(%epoch, "leadership lost");
            deposed = true;
        }
        () = over.cancelled() => warn!(%epoch, "this term broke down; campaigning anew"),
        () = shutdown.cancelled() => info!(%epoch, "handing leadership back"),
        () = feeds => warn!(%epoch, "the job stream cannot be read; campaigning anew"),
    }
    over.cancel();
    leader.drain(Duration::from_secs(5)).await;
    // While the leader's key is still held: what is written later might overwrite the next leader's.
    if !deposed && tokio::time::timeout(LAST_WRITES, keeper.idle()).await.is_err() {
        warn!(%epoch, "not every lease and profile could be written down");
    }
    writer.abort();
    shared.clear();
}
