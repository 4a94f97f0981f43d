//! An answer that is read to its end for whoever wants it: several clients, one that comes back later, or, for a while,
//! nobody.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header::{HeaderName, HeaderValue};
use berth_wire::{ApiError, ErrorKind, Head};
use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::anthropic::RequestId;
use crate::client::{Client, Held, Next};
use crate::events::Edit;
use crate::{engine_errors, error, respond, stream};

/// An answer larger than this is not read whole.
const LARGEST: u64 = 32 << 20;

/// A bound on what several answers may take up together.
#[derive(Debug)]
pub(crate) struct Room {
    used: AtomicU64,
    most: u64,
}

impl Room {
    /// For `most` bytes.
    pub(crate) fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), most })
    }
}

/// What one answer takes up; given back when it is dropped.
#[derive(Debug)]
struct Share {
    room: Arc<Room>,
    bytes: u64,
}

impl Share {
    fn grow(&mut self, bytes: u64) -> bool {
        let used = self.room.used.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
        self.bytes += bytes;
        used <= self.room.most && self.bytes <= LARGEST
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) head: Head,
    pub(crate) body: Bytes,
    /// What is known of the job, as headers.
    stamps: Vec<(HeaderName, HeaderValue)>,
    _share: Share,
}

impl Answered {
    /// As an HTTP answer.
    pub(crate) fn response(&self) -> HttpResponse {
        let mut response = respond::answer(&self.head);
        for stamp in &self.stamps {
            response.insert_header(stamp.clone());
        }
        response.body(self.body.clone())
    }
}

/// A whole answer, or why there is none.
pub(crate) type Outcome = Result<Arc<Answered>, ApiError>;

/// Reads a job's answer to its end. Dropped before, it cancels the job.
pub(crate) async fn collect(mut client: Box<Client>, without_usage: bool, room: Arc<Room>) -> Outcome {
    let (mut head, mut held) = (None, Held::default());
    let mut share = Share { room, bytes: 0 };
    loop {
        match client.next().await {
            Next::End(ending) => {
                ending?;
                break;
            }
            Next::Piece(piece) => {
                head = head.or(piece.head);
                let data = piece.data.unwrap_or_default();
                if !share.grow(data.len() as u64) {
                    return Err(too_large());
                }
                client.took(data.len());
                held.push(data);
            }
        }
    }
    let head = head.ok_or_else(error::lost)?;
    client.answered(head.status);
    let mut body = held.join();
    if stream::is_event_stream(&head) {
        stream::check_complete(client.route(), &body)?;
        body = Edit::of(&client, without_usage).apply(body);
    }
    let request = client.request().map(RequestId::as_str);
    let (head, body) = engine_errors::in_words(client.route(), head, body, request);
    Ok(Arc::new(Answered { head, body, stamps: respond::stamps(&client), _share: share }))
}

fn too_large() -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        "answer_too_large",
        format!(
            "the answer is larger than the {} MiB that are kept for it, or too many answers are kept; ask for it without \
             `Idempotency-Key` and `Prefer: respond-async`",
            LARGEST >> 20
        ),
    )
}

#[derive(Debug)]
struct Interest {
    waiters: usize,
    /// When the job is given up if nobody has come by then.
    until: Instant,
    /// It was given up.
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    interest: Mutex<Interest>,
    changed: Notify,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Shared {
    fn with<T>(&self, act: impl FnOnce(&mut Interest) -> T) -> T {
        act(&mut self.interest.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An answer that several may wait for. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Pursuit(Arc<Shared>);

/// One who waits. When the last is dropped, the job is cancelled.
#[derive(Debug)]
pub(crate) struct Waiter {
    shared: Arc<Shared>,
    grace: Duration,
}

impl Pursuit {
    /// Follows `course` for one waiter; `done` hears how it ends before any waiter does.
    pub(crate) fn start(
        course: impl Future<Output = Outcome> + 'static,
        done: impl FnOnce(&Outcome) + 'static,
    ) -> (Self, Waiter) {
        let (publish, outcome) = watch::channel(None);
        let interest = Interest { waiters: 1, until: Instant::now(), closed: false };
        let shared = Arc::new(Shared { interest: Mutex::new(interest), changed: Notify::new(), outcome });
        let followed = Arc::clone(&shared);
        actix_rt::spawn(async move {
            let outcome = follow(&followed, course).await;
            done(&outcome);
            publish.send_replace(Some(outcome));
        });
        (Self(Arc::clone(&shared)), Waiter { shared, grace: Duration::ZERO })
    }

    /// Waits too; none: it has just been given up.
    pub(crate) fn join(&self) -> Option<Waiter> {
        self.0.with(|interest| {
            if interest.closed {
                return None;
            }
            interest.waiters += 1;
            Some(Waiter { shared: Arc::clone(&self.0), grace: Duration::ZERO })
        })
    }
}

/// Follows the course until its end, or until nobody has wanted it for the time that was asked for.
async fn follow(shared: &Shared, course: impl Future<Output = Outcome>) -> Outcome {
    let mut course = pin!(course);
    loop {
        let until = shared.with(|interest| (interest.waiters == 0).then_some(interest.until));
        let given_up = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            outcome = &mut course => return outcome,
            () = shared.changed.notified() => {}
            () = given_up => {
                let closed = shared.with(|interest| {
                    interest.closed = interest.waiters == 0 && interest.until <= Instant::now();
                    interest.closed
                });
                if closed {
                    return Err(error::cancelled());
                }
            }
        }
    }
}

impl Waiter {
    /// The answer, once it is whole.
    pub(crate) async fn outcome(&self) -> Outcome {
        let mut outcome = self.shared.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(error::lost())),
            Err(_) => Err(error::lost()),
        }
    }

    /// Leaves, and will be back within `grace`.
    pub(crate) fn leave_for(mut self, grace: Duration) {
        self.grace = grace;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let until = Instant::now() + self.grace;
        self.shared.with(|interest| {
            interest.waiters = interest.waiters.saturating_sub(1);
            interest.until = interest.until.max(until);
        });
        self.shared.changed.notify_one();
    }
}
