//! Asking whoever leads.

use std::time::{Duration, Instant};

use berth_bus::BusError;
use berth_wire::{ApiError, ErrorKind, Message};

use crate::error;
use crate::worker::Worker;

/// A scheduler that dies is replaced within its term of 10 s; nobody waits for all of it.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(250);

/// The leader's answer; while nobody leads it is asked again and again for a while.
pub(crate) async fn ask<Q: Message, A: Message>(
    worker: &Worker,
    subject: String,
    question: &Q,
) -> Result<A, ApiError> {
    let began = Instant::now();
    loop {
        let left = PATIENCE.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(nobody_leads());
        }
        match worker.bus().request(subject.clone(), question, left).await {
            Ok(answer) => return Ok(answer),
            Err(BusError::NoResponders { .. }) => tokio::time::sleep(AGAIN.min(left)).await,
            Err(BusError::TimedOut { .. }) => return Err(nobody_leads()),
            Err(failed) => return Err(error::not_submitted(&failed)),
        }
    }
}

fn nobody_leads() -> ApiError {
    let message = "no scheduler leads right now; leases that were granted are kept; try again in a moment";
    ApiError::new(ErrorKind::Unavailable, "no_scheduler", message).retry_after(Duration::from_secs(5))
}
