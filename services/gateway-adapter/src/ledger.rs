//! What is done once for each `Idempotency-Key`: a repeat joins the job that runs, or gets the answer again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue};
use berth_telemetry::metric;
use berth_wire::{ApiError, ErrorKind, KeyId};

use crate::course::Order;
use crate::error::{self, Refusal};
use crate::pursuit::{Answered, Outcome, Pursuit, Room, Waiter, collect};
use crate::send;
use crate::shelf::Fingerprint;
use crate::worker::Worker;

/// How long an answer is kept.
const AGE: Duration = Duration::from_secs(600);
/// Bytes of answers that are kept, all together, and how many.
const BYTES: usize = 64 << 20;
const MOST: usize = 4096;
/// Bytes of answers that are read or kept, all together.
const ROOM: u64 = 256 << 20;

/// A key, and whose it is.
type Name = (Option<KeyId>, String);

struct Entry {
    number: u64,
    request: Fingerprint,
    state: State,
}

enum State {
    Live(Pursuit),
    Done(Arc<Answered>, Instant),
}

#[derive(Default)]
struct Entries {
    by_name: HashMap<Name, Entry>,
    /// Answers that are kept, the oldest first.
    done: VecDeque<(Name, u64)>,
    bytes: usize,
    number: u64,
}

/// What a request finds.
enum Found {
    Waiter(Waiter),
    Answered(Arc<Answered>),
    Other,
}

/// The keys that were used lately.
pub(crate) struct Ledger {
    entries: Mutex<Entries>,
    room: Arc<Room>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { entries: Mutex::default(), room: Room::new(ROOM) }
    }
}

impl Entries {
    fn drop_oldest(&mut self) {
        let Some((name, number)) = self.done.pop_front() else { return };
        if self.by_name.get(&name).is_some_and(|entry| entry.number == number)
            && let Some(Entry { state: State::Done(answered, _), .. }) = self.by_name.remove(&name)
        {
            self.bytes = self.bytes.saturating_sub(answered.body.len());
        }
    }

    fn sweep(&mut self) {
        while let Some((name, _)) = self.done.front() {
            let old = match self.by_name.get(name) {
                Some(Entry { state: State::Done(_, at), .. }) => at.elapsed() >= AGE,
                _ => true,
            };
            if !old && self.bytes <= BYTES && self.done.len() <= MOST {
                return;
            }
            self.drop_oldest();
        }
    }
}

impl Ledger {
    fn with<T>(&self, act: impl FnOnce(&mut Entries) -> T) -> T {
        act(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What there is for a request, or what `start` makes for it.
    fn find(&self, name: &Name, request: Fingerprint, start: impl FnOnce(u64) -> (Pursuit, Waiter)) -> Found {
        self.with(|entries| {
            entries.sweep();
            if let Some(entry) = entries.by_name.get(name) {
                if entry.request != request {
                    return Found::Other;
                }
                match &entry.state {
                    State::Done(answered, _) => return Found::Answered(Arc::clone(answered)),
                    State::Live(pursuit) => {
                        if let Some(waiter) = pursuit.join() {
                            metrics::counter!(metric::REATTACHED).increment(1);
                            return Found::Waiter(waiter);
                        }
                    }
                }
            }
            entries.number += 1;
            let number = entries.number;
            let (pursuit, waiter) = start(number);
            let entry = Entry { number, request, state: State::Live(pursuit) };
            entries.by_name.insert(name.clone(), entry);
            Found::Waiter(waiter)
        })
    }

    /// Keeps what may be given again; the request may be made anew after anything else.
    fn settle(&self, name: &Name, number: u64, outcome: &Outcome) {
        self.with(|entries| {
            let Some(entry) = entries.by_name.get_mut(name).filter(|entry| entry.number == number) else {
                return;
            };
            match outcome {
                Ok(answered) if answered.head.status < 500 => {
                    entry.state = State::Done(Arc::clone(answered), Instant::now());
                    entries.bytes += answered.body.len();
                    entries.done.push_back((name.clone(), number));
                    entries.sweep();
                }
                _ => {
                    entries.by_name.remove(name);
                }
            }
        });
    }
}

/// Answers a request that is to be done once for its `key`.
pub(crate) async fn answer(worker: &Arc<Worker>, order: Order, key: String) -> Result<HttpResponse, Refusal> {
    let Order { job, body, start, terms, .. } = order;
    let (name, request) = ((job.key.clone(), key), Fingerprint::of(&job, &body));
    let fleet = worker.fleet();
    let found = fleet.ledger.find(&name, request, |number| {
        let (sender, keeper, name) = (Arc::clone(worker), Arc::clone(fleet), name.clone());
        let room = Arc::clone(&fleet.ledger.room);
        let course = async move {
            let client = send::send(&sender, job, body, start).await?;
            collect(client, false, room).await
        };
        Pursuit::start(course, move |outcome| keeper.ledger.settle(&name, number, outcome))
    });
    let waiter = match found {
        Found::Other => return Err(reused()),
        Found::Answered(answered) => {
            metrics::counter!(metric::REATTACHED).increment(1);
            let mut response = answered.response();
            let name = HeaderName::from_static("idempotent-replayed");
            response.headers_mut().insert(name, HeaderValue::from_static("true"));
            return Ok(response);
        }
        Found::Waiter(waiter) => waiter,
    };
    let patience = terms.patience;
    match tokio::time::timeout(patience.wait, waiter.outcome()).await {
        Ok(outcome) => Ok(outcome?.response()),
        Err(_) if patience.is_final() => Err(patience.over().into()),
        Err(_) => {
            let grace = fleet.shelf.grace;
            waiter.leave_for(grace);
            Err(error::kept(patience.wait, grace).into())
        }
    }
}

fn reused() -> Refusal {
    let message = "this `Idempotency-Key` was used for another request; use a new key for each request";
    let error = ApiError::new(ErrorKind::InvalidRequest, "idempotency_key_reused", message);
    Refusal { status: StatusCode::UNPROCESSABLE_ENTITY, ..error.param("Idempotency-Key").into() }
}
