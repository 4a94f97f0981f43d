//! Empties the outbox to whoever leads, in order, and again until it is acknowledged.

use std::rc::Rc;
use std::time::Duration;

use berth_actors::{Backoff, Supervised, Vitals};
use berth_bus::BusError;
use berth_telemetry::Chain;
use berth_wire::{Report, ReportAck};
use futures::FutureExt;
use tracing::{debug, error, warn};

use crate::actor::Worker;
use crate::shared::Shared;

/// How long a leader may take to acknowledge.
const ANSWER: Duration = Duration::from_secs(5);

pub(crate) fn supervise(vitals: &Vitals, shared: &Rc<Shared>) -> Supervised<Worker> {
    let (work, observe) = (Rc::clone(shared), Rc::clone(shared));
    Worker::supervise(
        vitals,
        "agent.reporter",
        Rc::new(move || report(Rc::clone(&work)).boxed_local()),
        Rc::new(move || serde_json::json!({ "unacknowledged": observe.outbox.borrow().len() })),
    )
}

/// How long news that nobody waits for may be held back.
const GATHER: Duration = Duration::from_millis(5);

async fn report(shared: Rc<Shared>) {
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(2));
    loop {
        gather(&shared).await;
        // Made before the look, so that no change between the two is missed.
        let changed = shared.outbox_changed.notified();
        let batch = shared.outbox.borrow_mut().batch(|ended| shared.snapshot(ended));
        let Some(batch) = batch else {
            changed.await;
            continue;
        };
        let report = Report {
            host: shared.host.clone(),
            boot: shared.boot.clone(),
            first: batch.first,
            entries: batch.entries,
        };
        let answer: Result<ReportAck, BusError> =
            shared.bus.request(shared.bus.subjects.report(&shared.host), &report, ANSWER).await;
        match answer {
            Ok(ack) => {
                backoff.reset();
                // A leader that we hear of here fences older ones, too.
                let _ = shared.books.borrow_mut().fence(ack.epoch);
                shared.outbox.borrow_mut().acknowledge(&ack);
                shared.outbox_changed.notify_waiters();
                continue;
            }
            Err(BusError::NoResponders { .. }) => shared.outbox.borrow_mut().undelivered(),
            Err(BusError::TooLarge { size, .. }) => {
                let mut outbox = shared.outbox.borrow_mut();
                if !outbox.shrink() {
                    error!(size, "dropped a report entry that fits into no message");
                    outbox.drop_first();
                }
                continue;
            }
            Err(problem) => {
                shared.outbox.borrow_mut().unanswered();
                match problem {
                    BusError::TimedOut { .. } => debug!("no leader answered a report; trying again"),
                    other => warn!(error = %Chain(&other), "cannot report to the leader; trying again"),
                }
            }
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Lets news of the express lane come together: a report for each job would cost more than the job.
async fn gather(shared: &Shared) {
    let until = tokio::time::Instant::now() + GATHER;
    loop {
        let changed = shared.outbox_changed.notified();
        if !shared.outbox.borrow().may_wait() {
            return;
        }
        if tokio::time::timeout_at(until, changed).await.is_err() {
            return;
        }
    }
}

/// Waits until a leader has acknowledged everything.
pub(crate) async fn flushed(shared: &Shared) {
    loop {
        let changed = shared.outbox_changed.notified();
        if shared.outbox.borrow().is_empty() {
            return;
        }
        changed.await;
    }
}
