//! What the leader must still be told, in order, numbered, and kept until it is acknowledged.
//!
//! What was sent keeps its number and content, since a leader may have taken it although its answer was lost.
//! What was not sent yet may be replaced by something newer.

use std::collections::{BTreeMap, VecDeque};

use berth_wire::{Ended, EngineReport, Epoch, JobId, ReportAck, ReportEntry, Snapshot, Started};

/// Entries of one report.
const BATCH: usize = 256;
/// Jobs of the express lane that came and went untold.
const PASSED: usize = 1000;
/// With so much unacknowledged the agent takes no new work.
const FULL: usize = 10_000;

/// The entries of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) first: u64,
    pub(crate) entries: Vec<ReportEntry>,
}

/// The queue of entries.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// How many entries have been acknowledged: the number of the last one.
    acked: u64,
    sent: VecDeque<ReportEntry>,
    queued: VecDeque<ReportEntry>,
    /// Entries that fit into one message.
    limit: usize,
    /// Somebody may have taken what was sent, although no answer came.
    perhaps_taken: bool,
    /// Ends that a leader took before it had a snapshot, and so may not have understood.
    unsure: Vec<Ended>,
    want_snapshot: bool,
    /// The leader that has a snapshot of us.
    met: Option<Epoch>,
    /// Jobs of the express lane whose start is not queued yet: most end before anybody needs to know.
    starts: BTreeMap<JobId, Started>,
    /// Ends in `queued` that hold their start.
    passed: usize,
    /// What is queued should not wait for more.
    urgent: bool,
    /// Snapshots made so far.
    snapshots: u64,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            acked: 0,
            sent: VecDeque::new(),
            queued: VecDeque::new(),
            limit: BATCH,
            perhaps_taken: false,
            unsure: Vec::new(),
            want_snapshot: false,
            met: None,
            starts: BTreeMap::new(),
            passed: 0,
            urgent: false,
            snapshots: 0,
        }
    }
}

impl Outbox {
    /// Asks for a snapshot to be sent next.
    pub(crate) fn want_snapshot(&mut self) {
        self.want_snapshot = true;
    }

    /// What is queued is not to wait for more.
    pub(crate) fn hurry(&mut self) {
        self.urgent = true;
    }

    /// Whether what there is may wait a moment for more to go with it.
    pub(crate) fn may_wait(&self) -> bool {
        !self.is_empty() && !self.urgent && !self.want_snapshot && self.sent.is_empty()
    }

    /// A job was taken by the express lane.
    pub(crate) fn push_started(&mut self, started: Started) {
        self.starts.insert(started.job, started);
    }

    pub(crate) fn push_engine(&mut self, report: EngineReport) {
        self.urgent = true;
        let older = |entry: &ReportEntry| match entry {
            ReportEntry::Engine(queued) => queued.engine == report.engine && !queued.state.is_gone(),
            _ => false,
        };
        self.queued.retain(|entry| !older(entry));
        self.queued.push_back(ReportEntry::Engine(report));
    }

    /// An attempt has ended. One of the express lane that nobody heard the start of is told in one entry; while no
    /// leader takes them, only so many are kept, since no slot depends on them.
    pub(crate) fn push_ended(&mut self, mut ended: Ended) {
        if !ended.attempt.is_express() {
            self.urgent = true;
        } else if let Some(started) = self.starts.remove(&ended.job) {
            if self.passed >= PASSED {
                return;
            }
            self.passed += 1;
            ended.started = Some(Box::new(started));
        }
        self.queued.push_back(ReportEntry::Ended(ended));
    }

    pub(crate) fn push_goodbye(&mut self) {
        self.urgent = true;
        self.queued.push_back(ReportEntry::Goodbye);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.queued.is_empty() && self.starts.is_empty() && !self.want_snapshot
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= FULL
    }

    pub(crate) fn len(&self) -> usize {
        self.sent.len() + self.queued.len()
    }

    /// Ends that no leader has surely understood.
    pub(crate) fn unacknowledged(&self) -> Vec<Ended> {
        let ends = self.sent.iter().chain(&self.queued).filter_map(|entry| match entry {
            ReportEntry::Ended(ended) => Some(ended.clone()),
            _ => None,
        });
        self.unsure.iter().cloned().chain(ends).collect()
    }

    /// Numbers a snapshot that is made now, so that a leader can tell what it heard before from what is newer.
    pub(crate) fn number(&mut self, snapshot: &mut Snapshot) {
        self.snapshots += 1;
        snapshot.number = self.snapshots;
        snapshot.upto = self.acked + self.sent.len() as u64;
    }

    /// What to send next; what was sent and not acknowledged comes first, as it was. `None`: nothing.
    pub(crate) fn batch(&mut self, snapshot: impl FnOnce(Vec<Ended>) -> Snapshot) -> Option<Batch> {
        self.urgent = false;
        let starts = std::mem::take(&mut self.starts).into_values();
        self.queued.extend(starts.map(|started| ReportEntry::Started(Box::new(started))));
        if std::mem::take(&mut self.want_snapshot) {
            // It says how engines are; only that one is gone, and why, must still be told beside it.
            self.queued.retain(|entry| match entry {
                ReportEntry::Engine(report) => report.state.is_gone(),
                ReportEntry::Snapshot(_) => false,
                _ => true,
            });
            let mut snapshot = snapshot(self.unacknowledged());
            self.number(&mut snapshot);
            // Nothing is told after a goodbye.
            let at = self.queued.iter().position(|entry| *entry == ReportEntry::Goodbye);
            self.queued.insert(at.unwrap_or(self.queued.len()), ReportEntry::Snapshot(Box::new(snapshot)));
        }
        let room = self.limit.saturating_sub(self.sent.len()).min(self.queued.len());
        self.sent.extend(self.queued.drain(..room));
        self.recount();
        (!self.sent.is_empty())
            .then(|| Batch { first: self.acked + 1, entries: self.sent.iter().cloned().collect() })
    }

    /// Sends less next time: the batch was too large for one message. False if it was a single entry.
    pub(crate) fn shrink(&mut self) -> bool {
        let keep = self.sent.len() / 2;
        if keep == 0 {
            return false;
        }
        self.limit = keep;
        for entry in self.sent.split_off(keep).into_iter().rev() {
            self.queued.push_front(entry);
        }
        true
    }

    /// No answer came to what was sent last: it must be sent again as it was.
    pub(crate) fn unanswered(&mut self) {
        self.perhaps_taken = true;
    }

    /// Nobody was there to take what was sent last. Unless an earlier try may have been taken, it counts as not
    /// sent, so that it stays fresh until there is a leader again.
    pub(crate) fn undelivered(&mut self) {
        if self.perhaps_taken {
            return;
        }
        for entry in std::mem::take(&mut self.sent).into_iter().rev() {
            match entry {
                ReportEntry::Snapshot(_) => self.want_snapshot = true,
                entry => self.queued.push_front(entry),
            }
        }
        self.recount();
    }

    /// Counts the entries that [`PASSED`] limits.
    fn recount(&mut self) {
        let passed =
            |entry: &&ReportEntry| matches!(entry, ReportEntry::Ended(ended) if ended.started.is_some());
        self.passed = self.queued.iter().filter(passed).count();
    }

    /// Drops an entry that can never be sent.
    pub(crate) fn drop_first(&mut self) {
        self.sent.pop_front();
    }

    /// A leader has taken the batch that was sent last.
    pub(crate) fn acknowledge(&mut self, ack: &ReportAck) {
        self.limit = BATCH;
        self.perhaps_taken = false;
        let mut introduced = false;
        let mut ends = Vec::new();
        for entry in self.sent.drain(..) {
            self.acked += 1;
            match entry {
                ReportEntry::Snapshot(_) => introduced = true,
                ReportEntry::Ended(ended) => ends.push(ended),
                _ => {}
            }
        }
        let stranger = ack.want_snapshot || (!introduced && self.met != Some(ack.epoch));
        if stranger {
            self.unsure.append(&mut ends);
            self.want_snapshot = true;
        } else {
            self.met = Some(ack.epoch);
            if introduced {
                self.unsure.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_wire::{Attempt, EngineId, EngineState, HostBeat, JobId, Outcome, Timestamp, Usage};

    use super::*;

    fn engine(n: u32, state: EngineState) -> EngineReport {
        EngineReport {
            engine: EngineId::new(Epoch(1), n),
            model: "m".into(),
            state,
            reservations: Vec::new(),
            concurrency: 1,
            failure: None,
            start_took: None,
            detail: None,
            sleep: None,
            peak_memory: None,
        }
    }

    fn ended(n: u128) -> Ended {
        Ended {
            job: JobId(n),
            attempt: Attempt::new(Epoch(1), 1),
            engine: EngineId::new(Epoch(1), 1),
            outcome: Outcome::Completed,
            usage: Usage::default(),
            started: None,
        }
    }

    fn snapshot(ended: Vec<Ended>) -> Snapshot {
        let beat = HostBeat {
            host: "h".into(),
            boot: "b".into(),
            version: "0".into(),
            at: Timestamp(0),
            accelerators: Vec::new(),
            drivers: Vec::new(),
            labels: Vec::new(),
            running: 0,
            draining: false,
            sleep_memory: 0,
            sleep_spare: 0,
        };
        Snapshot {
            beat,
            engines: Vec::new(),
            models: Vec::new(),
            running: Vec::new(),
            ended,
            estimates: Vec::new(),
            found: Vec::new(),
            number: 0,
            upto: 0,
        }
    }

    /// The entry of a snapshot that was made as the n-th, with so many entries sent before.
    fn nth(number: u64, upto: u64, ended: Vec<Ended>) -> ReportEntry {
        ReportEntry::Snapshot(Box::new(Snapshot { number, upto, ..snapshot(ended) }))
    }

    fn ack(epoch: u64, want_snapshot: bool) -> ReportAck {
        ReportAck { epoch: Epoch(epoch), want_snapshot }
    }

    fn known_to(epoch: u64) -> Outbox {
        let mut outbox = Outbox::default();
        outbox.want_snapshot();
        assert_eq!(outbox.batch(snapshot).unwrap().first, 1);
        outbox.acknowledge(&ack(epoch, false));
        assert!(outbox.is_empty());
        outbox
    }

    #[test]
    fn what_was_sent_is_sent_again_with_the_same_numbers_and_what_is_new_follows() {
        let mut outbox = known_to(5);
        outbox.push_ended(ended(1));
        let first = outbox.batch(snapshot).unwrap();
        assert_eq!(first.first, 2);
        outbox.push_ended(ended(2));
        let second = outbox.batch(snapshot).unwrap();
        assert_eq!(second.first, 2);
        assert_eq!(second.entries, [ReportEntry::Ended(ended(1)), ReportEntry::Ended(ended(2))]);
        outbox.acknowledge(&ack(5, false));
        assert!(outbox.is_empty());
        outbox.push_ended(ended(3));
        assert_eq!(outbox.batch(snapshot).unwrap().first, 4);
    }

    #[test]
    fn a_newer_state_replaces_an_older_one_that_was_not_sent() {
        let mut outbox = known_to(5);
        outbox.push_engine(engine(1, EngineState::Starting));
        outbox.push_engine(engine(2, EngineState::Starting));
        outbox.push_engine(engine(1, EngineState::Ready));
        let batch = outbox.batch(snapshot).unwrap();
        assert_eq!(
            batch.entries,
            [
                ReportEntry::Engine(engine(2, EngineState::Starting)),
                ReportEntry::Engine(engine(1, EngineState::Ready))
            ]
        );
        outbox.push_engine(engine(1, EngineState::Stopping));
        assert_eq!(outbox.batch(snapshot).unwrap().entries.len(), 3, "what was sent stays");
    }

    #[test]
    fn a_new_leader_gets_a_snapshot_with_the_ends_that_it_may_not_have_understood() {
        let mut outbox = known_to(5);
        outbox.push_ended(ended(1));
        outbox.batch(snapshot).unwrap();
        outbox.acknowledge(&ack(6, true));
        let batch = outbox.batch(snapshot).unwrap();
        assert_eq!(batch.first, 3);
        assert_eq!(batch.entries, [nth(2, 2, vec![ended(1)])]);
        outbox.acknowledge(&ack(6, false));
        assert!(outbox.is_empty());
        assert!(outbox.unacknowledged().is_empty());
    }

    #[test]
    fn a_snapshot_keeps_the_news_of_engines_that_are_gone() {
        let mut outbox = known_to(5);
        outbox.push_engine(engine(1, EngineState::Failed));
        outbox.push_engine(engine(2, EngineState::Ready));
        outbox.want_snapshot();
        let batch = outbox.batch(snapshot).unwrap();
        assert_eq!(batch.entries.len(), 2);
        assert_eq!(batch.entries[0], ReportEntry::Engine(engine(1, EngineState::Failed)));
        assert!(matches!(batch.entries[1], ReportEntry::Snapshot(_)));
    }

    #[test]
    fn without_a_leader_what_waits_stays_fresh() {
        let mut outbox = Outbox::default();
        outbox.want_snapshot();
        outbox.push_engine(engine(1, EngineState::Starting));
        outbox.batch(snapshot).unwrap();
        outbox.undelivered();
        outbox.push_engine(engine(1, EngineState::Ready));
        outbox.push_ended(ended(1));
        let batch = outbox.batch(snapshot).unwrap();
        assert_eq!(batch.first, 1);
        assert_eq!(batch.entries, [ReportEntry::Ended(ended(1)), nth(2, 0, vec![ended(1)])]);
        outbox.unanswered();
        outbox.undelivered();
        outbox.push_ended(ended(2));
        assert_eq!(outbox.batch(snapshot).unwrap().entries[..2], batch.entries, "it may have been taken");
    }

    #[test]
    fn a_snapshot_says_how_far_the_entries_go_that_it_holds() {
        let mut outbox = known_to(5);
        outbox.push_engine(engine(1, EngineState::Ready));
        outbox.batch(snapshot).unwrap();
        outbox.push_engine(engine(1, EngineState::Stopping));
        let mut asked = snapshot(Vec::new());
        outbox.number(&mut asked);
        assert_eq!((asked.number, asked.upto), (2, 2), "the entry that was sent is the second one");
        outbox.number(&mut asked);
        assert_eq!((asked.number, asked.upto), (3, 2));
    }

    #[test]
    fn a_batch_that_is_too_large_is_cut_without_losing_its_order() {
        let mut outbox = known_to(5);
        for n in 0..4 {
            outbox.push_ended(ended(n));
        }
        assert_eq!(outbox.batch(snapshot).unwrap().entries.len(), 4);
        assert!(outbox.shrink());
        assert_eq!(outbox.sent.len(), 2);
        outbox.acknowledge(&ack(5, false));
        let rest = outbox.batch(snapshot).unwrap();
        assert_eq!((rest.first, &rest.entries[0]), (4, &ReportEntry::Ended(ended(2))));
    }
}
