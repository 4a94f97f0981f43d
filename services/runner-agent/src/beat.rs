//! The heartbeat: an actor of its own, which nothing else of the agent delays.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv::Store;
use berth_actors::{Supervised, Vitals};
use berth_bus::put_json;
use berth_telemetry::Chain;
use berth_wire::Accelerator;
use futures::FutureExt;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use crate::actor::Worker;
use crate::shared::Shared;

/// The key expires after 15 s: two beats may be lost.
const EVERY: Duration = Duration::from_secs(5);
/// Slots in use change too often to be written each time.
const SLOTS: Duration = Duration::from_millis(250);
/// Neither a write nor a measurement may hold up the next beat.
const LIMIT: Duration = Duration::from_secs(4);

pub(crate) fn supervise(vitals: &Vitals, shared: &Rc<Shared>, store: Store) -> Supervised<Worker> {
    let (work, observe) = (Rc::clone(shared), Rc::clone(shared));
    Worker::supervise(
        vitals,
        "agent.heartbeat",
        Rc::new(move || beat(Rc::clone(&work), store.clone()).boxed_local()),
        Rc::new(move || serde_json::json!({ "boot": observe.boot })),
    )
}

async fn beat(shared: Rc<Shared>, store: Store) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut slots = tokio::time::interval(SLOTS);
    slots.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.beat_now.notified() => {}
            _ = slots.tick() => {
                refresh_records(&shared);
                continue;
            }
        }
        measure(&shared).await;
        let beat = shared.beat();
        match tokio::time::timeout(LIMIT, put_json(&store, shared.host.as_str(), &beat)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(error = %Chain(&error), "cannot write the heartbeat"),
            Err(_) => warn!("writing the heartbeat takes longer than {} s", LIMIT.as_secs()),
        }
    }
}

/// Measures what is free and who holds the rest. Drivers may block, so not on this thread.
pub(crate) async fn measure(shared: &Shared) {
    let (devices, claims) = (Arc::clone(&shared.devices), shared.claims());
    let before = shared.measured.borrow().clone();
    let last = before.clone();
    let measured = tokio::task::spawn_blocking(move || devices.measure(&claims, &last));
    let Ok(Ok(now)) = tokio::time::timeout(LIMIT, measured).await else {
        warn!("measuring the accelerators takes long; the last measurement stands");
        return;
    };
    let budgets = |of: &[Accelerator]| of.iter().map(|device| device.memory).collect::<Vec<_>>();
    let changed = budgets(&before) != budgets(&now.accelerators);
    *shared.measured.borrow_mut() = now.accelerators;
    if changed {
        // A leader reads budgets from snapshots.
        shared.want_snapshot();
    }
    for engine in shared.books.borrow().engines.values() {
        let cell = &engine.cell;
        if now.engines.get(&cell.id()).is_some_and(|bytes| cell.measured(*bytes)) {
            shared.tell_engine(cell);
        }
    }
}

/// Writes the records of engines that are used otherwise than before.
fn refresh_records(shared: &Shared) {
    for engine in shared.books.borrow().engines.values() {
        let cell = &engine.cell;
        if cell.use_changed() {
            shared.records.put(shared.record_key(cell.id()), Some(cell.record(&shared.host)));
        }
    }
}
