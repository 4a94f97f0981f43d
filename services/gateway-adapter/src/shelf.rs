//! Jobs whose client was told to come again: each is kept for a while, and its client's retry takes it over.
//!
//! Only a job without a client is taken over. Equal requests that wait side by side keep a job each, however often one
//! of them is retried.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_telemetry::metric;
use berth_wire::{Job, KeyId};
use tracing::debug;

use crate::answer::Reading;

/// Jobs that are kept at most; further ones end with their wait.
const MOST: usize = 1024;

/// Tells equal requests of one caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a request with this body.
    pub(crate) fn of(job: &Job, body: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        let target = job.target.as_ref().map(|target| (target.method.as_str(), target.path.as_str()));
        let parts = [
            job.key.as_ref().map(KeyId::as_str),
            Some(job.route.path()),
            target.map(|(method, _)| method),
            target.map(|(_, path)| path),
            job.content_type.as_deref(),
        ];
        for part in parts {
            // Lengths keep parts apart.
            let part = part.unwrap_or_default().as_bytes();
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(body);
        Self(*hasher.finalize().as_bytes())
    }
}

struct Kept {
    number: u64,
    reading: Reading,
}

#[derive(Default)]
struct Jobs {
    kept: HashMap<Fingerprint, VecDeque<Kept>>,
    count: usize,
    /// Of the next one.
    number: u64,
    /// Nothing more is taken.
    closed: bool,
}

/// Where such jobs wait. Clones share.
#[derive(Clone)]
pub(crate) struct Shelf {
    jobs: Arc<Mutex<Jobs>>,
    /// How long each is kept.
    pub(crate) grace: Duration,
}

impl Shelf {
    pub(crate) fn new(grace: Duration) -> Self {
        Self { jobs: Arc::default(), grace }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Jobs) -> T) -> T {
        act(&mut self.jobs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a job for the grace, then cancels it.
    pub(crate) fn keep(&self, fingerprint: Fingerprint, reading: Reading) {
        // What is not taken is dropped outside the lock: that cancels it.
        let mut reading = Some(reading);
        let kept = self.with(|jobs| {
            if jobs.closed || jobs.count >= MOST {
                return None;
            }
            let reading = reading.take()?;
            jobs.number += 1;
            jobs.count += 1;
            let number = jobs.number;
            jobs.kept.entry(fingerprint).or_default().push_back(Kept { number, reading });
            Some(number)
        });
        let Some(number) = kept else { return };
        let shelf = self.clone();
        actix_rt::spawn(async move {
            tokio::time::sleep(shelf.grace).await;
            if let Some(left) = shelf.remove(&fingerprint, |kept| kept.number == number) {
                debug!(job = %left.client.job(), "nobody has come back for a job; cancelling");
            }
        });
    }

    /// The job that has been kept longest for an equal request.
    pub(crate) fn take(&self, fingerprint: &Fingerprint) -> Option<Reading> {
        let reading = self.remove(fingerprint, |_| true)?;
        metrics::counter!(metric::REATTACHED).increment(1);
        debug!(job = %reading.client.job(), "a retry takes its job over");
        Some(reading)
    }

    fn remove(&self, fingerprint: &Fingerprint, which: impl Fn(&Kept) -> bool) -> Option<Reading> {
        self.with(|jobs| {
            let kept = jobs.kept.get_mut(fingerprint)?;
            let at = kept.iter().position(which)?;
            let found = kept.remove(at)?;
            if kept.is_empty() {
                jobs.kept.remove(fingerprint);
            }
            jobs.count -= 1;
            Some(found.reading)
        })
    }

    /// Cancels all, and keeps nothing from now on.
    pub(crate) fn close(&self) {
        let left = self.with(|jobs| {
            jobs.closed = true;
            jobs.count = 0;
            std::mem::take(&mut jobs.kept)
        });
        drop(left);
    }
}
