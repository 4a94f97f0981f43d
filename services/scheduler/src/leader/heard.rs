//! What the leading actor is told, and what it does about it.

use std::sync::Arc;
use std::time::Instant;

use actix::{Handler, Message, MessageResult};
use berth_bus::{Entries as Kv, Jobs, QueuedJob};
use berth_placement::Event;
use berth_wire::{HostBeat, JobId, ModelSpec, Report, ReportAck, ReportEntry, RollAnswer};

use super::Leader;
use crate::hosts::{Taken, Todo};
use crate::translate;

/// The catalog has changed.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Catalog(pub(crate) Kv<ModelSpec>);

impl Handler<Catalog> for Leader {
    type Result = ();

    fn handle(&mut self, Catalog(models): Catalog, ctx: &mut Self::Context) {
        self.catalog = models.values().map(|spec| (spec.id.clone(), Arc::clone(spec))).collect();
        let needs = self.catalog.values().map(|spec| translate::needs(spec)).collect();
        self.feed(Event::Catalog(needs), ctx);
        for refused in self.settle_found() {
            self.tell_found(refused, ctx);
        }
    }
}

/// The heartbeats as they are now; answers how many hosts are in the books.
#[derive(Message)]
#[rtype(result = "usize")]
pub(crate) struct Beats(pub(crate) Kv<HostBeat>);

impl Handler<Beats> for Leader {
    type Result = usize;

    fn handle(&mut self, Beats(beats): Beats, ctx: &mut Self::Context) -> usize {
        for todo in self.hosts.review(&beats, Instant::now()) {
            match todo {
                Todo::Ask(host) => self.ask(host, ctx),
                Todo::Suspect(host, reason) => self.suspect(host, reason, ctx),
            }
        }
        self.hosts.alive()
    }
}

/// A host reports.
#[derive(Message)]
#[rtype(result = "ReportAck")]
pub(crate) struct Reported(pub(crate) Report);

impl Handler<Reported> for Leader {
    type Result = MessageResult<Reported>;

    fn handle(&mut self, Reported(report): Reported, ctx: &mut Self::Context) -> Self::Result {
        let starts_with_snapshot = matches!(report.entries.first(), Some(ReportEntry::Snapshot(_)));
        let count = report.entries.len();
        let now = Instant::now();
        let taken =
            self.hosts.take(&report.host, &report.boot, report.first, count, starts_with_snapshot, now);
        let want_snapshot = match taken {
            Taken::WantSnapshot => true,
            Taken::From(index) => {
                for (entry, number) in report.entries.into_iter().zip(report.first..).skip(index) {
                    if self.hosts.is_news(&report.host, &entry, number) {
                        self.take_entry(&report.host, entry, ctx);
                    }
                }
                false
            }
        };
        MessageResult(ReportAck { epoch: self.carrier.epoch, want_snapshot })
    }
}

/// A job came from the stream.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Arrived(pub(crate) QueuedJob);

impl Handler<Arrived> for Leader {
    type Result = ();

    fn handle(&mut self, Arrived(queued): Arrived, ctx: &mut Self::Context) {
        let facts = translate::job(&queued.job, self.clock.now());
        let pending = queued.pending;
        self.traces.arrived(&queued.job);
        self.entries.insert(queued);
        self.feed(Event::JobSubmitted(facts), ctx);
        self.behind = pending > 0;
        if pending == 0 {
            self.stream_read(ctx);
        }
    }
}

/// The job stream was taken over.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct StreamTaken(pub(crate) Jobs);

impl Handler<StreamTaken> for Leader {
    type Result = ();

    fn handle(&mut self, StreamTaken(jobs): StreamTaken, ctx: &mut Self::Context) {
        let to_read = jobs.to_read();
        self.behind = to_read > 0;
        let _ = self.carrier.jobs.set(jobs);
        if to_read == 0 {
            self.stream_read(ctx);
        }
    }
}

/// Nobody waits for a job any more.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Cancelled(pub(crate) JobId);

impl Handler<Cancelled> for Leader {
    type Result = ();

    fn handle(&mut self, Cancelled(job): Cancelled, ctx: &mut Self::Context) {
        self.feed(Event::JobCancelled(job), ctx);
    }
}

/// A gateway asks which of its jobs are not outstanding. None before the leader knows them all.
#[derive(Message)]
#[rtype(result = "Option<RollAnswer>")]
pub(crate) struct RollAsked(pub(crate) Vec<JobId>);

impl Handler<RollAsked> for Leader {
    type Result = MessageResult<RollAsked>;

    fn handle(&mut self, RollAsked(mut jobs): RollAsked, _: &mut Self::Context) -> Self::Result {
        if self.behind {
            return MessageResult(None);
        }
        jobs.retain(|job| self.entries.get(*job).is_none());
        MessageResult(Some(RollAnswer { missing: jobs }))
    }
}

/// Somebody asks what the leader knows.
#[derive(Message)]
#[rtype(result = "serde_json::Value")]
pub(crate) struct StatusAsked;

impl Handler<StatusAsked> for Leader {
    type Result = MessageResult<StatusAsked>;

    fn handle(&mut self, _: StatusAsked, _: &mut Self::Context) -> Self::Result {
        MessageResult(serde_json::json!({
            "epoch": self.carrier.epoch,
            "hosts": self.hosts.alive(),
            "outstanding": self.entries.len(),
            "models": self.state.models(self.clock.now()),
            "jobs": self.state.jobs(100, self.clock.now()),
            "leases": self.shown_leases(100),
            "drains": self.shown_drains(),
        }))
    }
}
