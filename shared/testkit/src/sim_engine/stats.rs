//! Slots, and what became of every request.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::http::header::HeaderMap;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counts of all requests and the slots they wait for.
#[derive(Debug)]
pub(super) struct Books {
    slots: Arc<Semaphore>,
    waiting: AtomicU64,
    running: AtomicU64,
    max_running: AtomicU64,
    started: AtomicU64,
    completed: AtomicU64,
    aborted: AtomicU64,
    aborted_at: AtomicU64,
    headers: RwLock<BTreeSet<String>>,
}

/// `/sim/stats`.
#[derive(Debug, Serialize)]
pub(super) struct Stats {
    /// Requests that wait for a slot.
    waiting: u64,
    /// Requests that hold one.
    running: u64,
    /// The most that ever held one at the same time.
    max_running: u64,
    /// Requests that were given a slot.
    started: u64,
    /// Requests answered to the end.
    completed: u64,
    /// Requests whose client left before the end, waiting or running.
    aborted: u64,
    /// When that happened last, in Unix milliseconds by this process's clock.
    aborted_at: u64,
    /// Names of all headers that ever came with a request below `/v1`.
    headers: BTreeSet<String>,
}

impl Books {
    pub(super) fn new(concurrency: u32) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(usize::try_from(concurrency.max(1)).unwrap_or(1))),
            waiting: AtomicU64::new(0),
            running: AtomicU64::new(0),
            max_running: AtomicU64::new(0),
            started: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            aborted: AtomicU64::new(0),
            aborted_at: AtomicU64::new(0),
            headers: RwLock::default(),
        })
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            waiting: self.waiting.load(Relaxed),
            running: self.running.load(Relaxed),
            max_running: self.max_running.load(Relaxed),
            started: self.started.load(Relaxed),
            completed: self.completed.load(Relaxed),
            aborted: self.aborted.load(Relaxed),
            aborted_at: self.aborted_at.load(Relaxed),
            headers: self.headers.read().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Remembers the names of a request's headers.
    pub(super) fn see(&self, headers: &HeaderMap) {
        let known = self.headers.read().unwrap_or_else(PoisonError::into_inner);
        if headers.keys().all(|name| known.contains(name.as_str())) {
            return;
        }
        drop(known);
        let mut known = self.headers.write().unwrap_or_else(PoisonError::into_inner);
        known.extend(headers.keys().map(|name| name.as_str().to_owned()));
    }

    fn abort(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.aborted_at.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
        self.aborted.fetch_add(1, Relaxed);
    }

    /// Waits for a slot, in the order of asking. Dropping the future leaves the line and counts as aborted.
    pub(super) async fn enter(self: &Arc<Self>) -> Ticket {
        let place = Place { books: Arc::clone(self), served: false };
        self.waiting.fetch_add(1, Relaxed);
        // The semaphore is never closed; were it, the request would run without a slot.
        let permit = Arc::clone(&self.slots).acquire_owned().await.ok();
        place.take(permit)
    }
}

/// A place in the line.
struct Place {
    books: Arc<Books>,
    served: bool,
}

impl Place {
    fn take(mut self, permit: Option<OwnedSemaphorePermit>) -> Ticket {
        self.served = true;
        let books = Arc::clone(&self.books);
        books.started.fetch_add(1, Relaxed);
        let now = books.running.fetch_add(1, Relaxed) + 1;
        books.max_running.fetch_max(now, Relaxed);
        Ticket { books, completed: false, permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.books.waiting.fetch_sub(1, Relaxed);
        if !self.served {
            self.books.abort();
        }
    }
}

/// A slot in use. Dropped before [`Ticket::complete`], its request counts as aborted.
pub(super) struct Ticket {
    books: Arc<Books>,
    completed: bool,
    permit: Option<OwnedSemaphorePermit>,
}

impl Ticket {
    /// The answer is whole.
    pub(super) fn complete(&mut self) {
        self.completed = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Books first, so that whoever gets the slot finds them right.
        self.books.running.fetch_sub(1, Relaxed);
        if self.completed {
            self.books.completed.fetch_add(1, Relaxed);
        } else {
            self.books.abort();
        }
        drop(self.permit.take());
    }
}
