//! Gives up an engine that sends nothing of a stream any more.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use berth_wire::ApiError;

use crate::attempt::{Task, engine_failed};

/// How soon it is looked again whether an engine is silent.
const LOOK: Duration = Duration::from_millis(10);

/// What an attempt waits for, and since when.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Awaits {
    /// The first of the engine's answer.
    First(Instant),
    /// More of it.
    More(Instant),
    /// That the client takes what it has.
    Client,
}

/// Waits until the engine has been silent for too long in a stream. Of an answer that comes whole nothing can be expected
/// before its end, which its client's patience bounds.
pub(crate) async fn silence(task: &Task, awaits: Rc<Cell<Awaits>>) -> ApiError {
    if !task.job.stream {
        std::future::pending::<()>().await;
    }
    let limits = task.cell.model().silence;
    loop {
        let (left, setting) = match awaits.get() {
            Awaits::First(since) => (limits.first_token.checked_sub(since.elapsed()), "first_token_timeout"),
            Awaits::More(since) => (limits.token.checked_sub(since.elapsed()), "token_timeout"),
            Awaits::Client => (Some(limits.token), ""),
        };
        match left {
            // What it waits for may change meanwhile, and with it the limit.
            Some(left) => tokio::time::sleep(left.min(limits.token).max(LOOK)).await,
            None => {
                let limit = if setting == "token_timeout" { limits.token } else { limits.first_token };
                let limit = berth_config::show_duration(limit);
                let message = format!("the engine sent nothing for {limit} ({setting})");
                return ApiError { code: "engine_silent".into(), ..engine_failed(&task.job, &message) };
            }
        }
    }
}
