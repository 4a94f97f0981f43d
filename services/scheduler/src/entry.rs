//! What the service keeps of a job beside the core's books.

use std::collections::{BTreeSet, HashMap};

use berth_bus::{QueuedJob, Ticket};
use berth_wire::{GatewayId, JobId};
use bytes::Bytes;

/// Payloads kept in memory together; beyond that they are fetched from the stream when they are dispatched.
const KEPT: usize = 256 * 1024 * 1024;

/// A job's payload: at hand, or where it is.
#[derive(Debug, Clone)]
pub(crate) enum Payload {
    Here(Bytes),
    InStream(u64),
}

/// One outstanding job.
pub(crate) struct Entry {
    pub(crate) gateway: GatewayId,
    pub(crate) payload: Payload,
    pub(crate) ticket: Ticket,
}

/// All outstanding jobs of this term.
#[derive(Default)]
pub(crate) struct Entries {
    jobs: HashMap<JobId, Entry>,
    kept: usize,
}

impl Entries {
    /// Notes a job; of one that is delivered again only the ticket is news.
    pub(crate) fn insert(&mut self, queued: QueuedJob) {
        let QueuedJob { job, payload, sequence, ticket, .. } = queued;
        if let Some(entry) = self.jobs.get_mut(&job.id) {
            entry.ticket = ticket;
            return;
        }
        let payload = if self.kept + payload.len() <= KEPT {
            self.kept += payload.len();
            Payload::Here(payload)
        } else {
            Payload::InStream(sequence)
        };
        self.jobs.insert(job.id, Entry { gateway: job.gateway, payload, ticket });
    }

    pub(crate) fn get(&self, job: JobId) -> Option<&Entry> {
        self.jobs.get(&job)
    }

    pub(crate) fn remove(&mut self, job: JobId) -> Option<Entry> {
        let entry = self.jobs.remove(&job)?;
        if let Payload::Here(payload) = &entry.payload {
            self.kept = self.kept.saturating_sub(payload.len());
        }
        Some(entry)
    }

    /// The gateways that somebody waits at.
    pub(crate) fn gateways(&self) -> BTreeSet<GatewayId> {
        self.jobs.values().map(|entry| entry.gateway.clone()).collect()
    }

    /// The jobs of one gateway.
    pub(crate) fn of_gateway(&self, gateway: &GatewayId) -> Vec<JobId> {
        self.jobs.iter().filter(|(_, entry)| entry.gateway == *gateway).map(|(job, _)| *job).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Bytes of payloads in memory.
    pub(crate) fn kept(&self) -> usize {
        self.kept
    }
}
