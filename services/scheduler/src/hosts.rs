//! Which hosts are alive, and how far each has reported.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use berth_bus::Entries;
use berth_wire::{HostBeat, HostId, ReportEntry, Snapshot, Timestamp};

/// One host as this term knows it.
#[derive(Debug)]
struct Seen {
    boot: String,
    at: Timestamp,
    beat: Instant,
    /// Its snapshot is in the books.
    synced: bool,
    /// Number of the next report entry.
    next: u64,
    /// Number of the newest snapshot taken, and of the last report entry that had been sent by then.
    snapshot: u64,
    upto: u64,
    /// It said goodbye.
    left: bool,
    asked: Option<Instant>,
    /// It is being asked whether it lives.
    suspected: bool,
}

impl Seen {
    fn takes(&mut self, snapshot: &Snapshot) {
        self.snapshot = self.snapshot.max(snapshot.number);
        self.upto = self.upto.max(snapshot.upto);
    }
}

/// What is to be done about hosts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Todo {
    /// Ask for a snapshot.
    Ask(HostId),
    /// It has been silent for too long: ask it once more, and take it out of the books if it does not answer.
    Suspect(HostId, String),
}

/// How a report is to be taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Its entries from this index on are news.
    From(usize),
    /// A snapshot is needed first.
    WantSnapshot,
}

/// All hosts of this term.
#[derive(Debug)]
pub(crate) struct Hosts {
    seen: BTreeMap<HostId, Seen>,
    timeout: Duration,
}

const ASK_AGAIN: Duration = Duration::from_secs(3);

impl Hosts {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { seen: BTreeMap::new(), timeout }
    }

    /// A host silent for so long counts as lost.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    fn host(&mut self, host: &HostId, boot: &str, now: Instant) -> &mut Seen {
        let fresh = || Seen {
            boot: boot.to_owned(),
            at: Timestamp::default(),
            beat: now,
            synced: false,
            next: 0,
            snapshot: 0,
            upto: 0,
            left: false,
            asked: None,
            suspected: false,
        };
        let seen = self.seen.entry(host.clone()).or_insert_with(fresh);
        if seen.boot != boot {
            *seen = fresh();
        }
        seen
    }

    /// Compares with the heartbeats there are.
    pub(crate) fn review(&mut self, beats: &Entries<HostBeat>, now: Instant) -> Vec<Todo> {
        let mut todo = Vec::new();
        for beat in beats.values() {
            let seen = self.host(&beat.host, &beat.boot, now);
            if seen.at != beat.at {
                seen.at = beat.at;
                seen.beat = now;
            }
            let due = seen.asked.is_none_or(|asked| now.duration_since(asked) >= ASK_AGAIN);
            let silent = now.duration_since(seen.beat);
            if !seen.synced && !seen.left && due && silent < ASK_AGAIN * 3 {
                seen.asked = Some(now);
                todo.push(Todo::Ask(beat.host.clone()));
            }
        }
        for (id, seen) in &mut self.seen {
            let silent = now.duration_since(seen.beat);
            if seen.synced && silent >= self.timeout && !seen.suspected {
                seen.suspected = true;
                todo.push(Todo::Suspect(id.clone(), format!("no sign of life for {} s", silent.as_secs())));
            }
        }
        todo
    }

    /// A snapshot that was asked for has come. Whether it is news: what the host has reported may have overtaken it.
    pub(crate) fn synced(&mut self, snapshot: &Snapshot, now: Instant) -> bool {
        let seen = self.host(&snapshot.beat.host, &snapshot.beat.boot, now);
        seen.suspected = false;
        seen.beat = now;
        let heard_since = seen.next > snapshot.upto.saturating_add(1);
        // One without a number comes from an agent of an earlier version.
        let old = heard_since || snapshot.number < seen.snapshot;
        if seen.synced && old && snapshot.number > 0 {
            return false;
        }
        seen.synced = true;
        seen.left = false;
        seen.takes(snapshot);
        true
    }

    /// Whether an entry of a report is news beside the snapshots that were taken: one that was sent before may be sent
    /// again to a later leader.
    pub(crate) fn is_news(&mut self, host: &HostId, entry: &ReportEntry, number: u64) -> bool {
        let Some(seen) = self.seen.get_mut(host) else { return true };
        match entry {
            ReportEntry::Snapshot(snapshot) if snapshot.number < seen.snapshot => false,
            ReportEntry::Snapshot(snapshot) => {
                seen.takes(snapshot);
                true
            }
            // That one is gone, and why, is news to whoever had it.
            ReportEntry::Engine(report) => number > seen.upto || report.state.is_gone(),
            ReportEntry::Started(_) | ReportEntry::Ended(_) | ReportEntry::Goodbye => true,
        }
    }

    /// A suspect did not answer. Whether it is lost: it may have reported meanwhile.
    pub(crate) fn is_lost(&mut self, host: &HostId, now: Instant) -> bool {
        let Some(seen) = self.seen.get_mut(host) else { return false };
        seen.suspected = false;
        if now.duration_since(seen.beat) < self.timeout {
            return false;
        }
        self.seen.remove(host);
        true
    }

    /// What of a report is news. Whoever reports is alive.
    pub(crate) fn take(
        &mut self,
        host: &HostId,
        boot: &str,
        first: u64,
        entries: usize,
        starts_with_snapshot: bool,
        now: Instant,
    ) -> Taken {
        let seen = self.host(host, boot, now);
        seen.beat = now;
        if !seen.synced && !starts_with_snapshot {
            return Taken::WantSnapshot;
        }
        if starts_with_snapshot && !seen.synced {
            seen.synced = true;
            seen.left = false;
        }
        let known = usize::try_from(seen.next.saturating_sub(first)).unwrap_or(usize::MAX).min(entries);
        seen.next = seen.next.max(first.saturating_add(entries as u64));
        Taken::From(known)
    }

    pub(crate) fn left(&mut self, host: &HostId) {
        if let Some(seen) = self.seen.get_mut(host) {
            seen.left = true;
            seen.synced = false;
        }
    }

    pub(crate) fn alive(&self) -> usize {
        self.seen.values().filter(|seen| seen.synced).count()
    }
}

#[cfg(test)]
mod tests {
    use berth_wire::{EngineId, EngineReport, EngineState, Epoch};

    use super::*;

    fn snapshot(number: u64, upto: u64) -> Snapshot {
        let beat = HostBeat {
            host: "h".into(),
            boot: "b".into(),
            version: String::new(),
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
            ended: Vec::new(),
            estimates: Vec::new(),
            found: Vec::new(),
            number,
            upto,
        }
    }

    fn engine(state: EngineState) -> ReportEntry {
        ReportEntry::Engine(EngineReport {
            engine: EngineId::new(Epoch(1), 1),
            model: "m".into(),
            state,
            reservations: Vec::new(),
            concurrency: 1,
            failure: None,
            start_took: None,
            detail: None,
            sleep: None,
            peak_memory: None,
        })
    }

    #[test]
    fn what_was_sent_before_a_snapshot_is_not_news_after_it() {
        let now = Instant::now();
        let mut hosts = Hosts::new(Duration::from_secs(15));
        let host: HostId = "h".into();
        // A new leader has asked; what an earlier one may have taken is sent again.
        assert!(hosts.synced(&snapshot(3, 6), now));
        assert_eq!(hosts.take(&host, "b", 5, 4, true, now), Taken::From(0));
        assert!(!hosts.is_news(&host, &ReportEntry::Snapshot(Box::new(snapshot(2, 4))), 5));
        assert!(!hosts.is_news(&host, &engine(EngineState::Ready), 6));
        assert!(hosts.is_news(&host, &engine(EngineState::Failed), 6), "why it failed is news");
        assert!(hosts.is_news(&host, &engine(EngineState::Ready), 7));
        assert!(hosts.is_news(&host, &ReportEntry::Snapshot(Box::new(snapshot(4, 6))), 8));
    }

    #[test]
    fn a_snapshot_that_reports_have_overtaken_is_not_taken() {
        let now = Instant::now();
        let mut hosts = Hosts::new(Duration::from_secs(15));
        let host: HostId = "h".into();
        assert_eq!(hosts.take(&host, "b", 1, 2, true, now), Taken::From(0));
        assert!(hosts.synced(&snapshot(2, 2), now), "as far as was heard");
        assert_eq!(hosts.take(&host, "b", 3, 1, false, now), Taken::From(0));
        assert!(!hosts.synced(&snapshot(3, 2), now), "an entry came that was sent after it was made");
        hosts.left(&host);
        assert!(hosts.synced(&snapshot(4, 2), now), "better than none");
    }

    #[test]
    fn a_report_is_taken_once_however_often_it_is_sent() {
        let now = Instant::now();
        let mut hosts = Hosts::new(Duration::from_secs(15));
        let host: HostId = "h".into();
        assert_eq!(hosts.take(&host, "b", 5, 2, false, now), Taken::WantSnapshot);
        assert_eq!(hosts.take(&host, "b", 5, 3, true, now), Taken::From(0));
        assert_eq!(hosts.take(&host, "b", 5, 3, true, now), Taken::From(3));
        assert_eq!(hosts.take(&host, "b", 7, 2, false, now), Taken::From(1));
        // A restarted agent counts anew and must say where it stands.
        assert_eq!(hosts.take(&host, "b2", 1, 1, false, now), Taken::WantSnapshot);
    }

    #[test]
    fn a_host_that_falls_silent_and_does_not_answer_is_lost_once() {
        let start = Instant::now();
        let mut hosts = Hosts::new(Duration::from_secs(15));
        hosts.synced(&snapshot(1, 0), start);
        let beats = Entries::default();
        assert!(hosts.review(&beats, start + Duration::from_secs(14)).is_empty());
        let later = start + Duration::from_secs(16);
        assert!(matches!(hosts.review(&beats, later).as_slice(), [Todo::Suspect(..)]));
        assert!(hosts.review(&beats, later).is_empty(), "it is being asked");
        assert!(hosts.is_lost(&"h".into(), later));
        assert!(hosts.review(&beats, start + Duration::from_secs(40)).is_empty());
    }

    #[test]
    fn a_silent_host_that_answers_is_kept() {
        let start = Instant::now();
        let mut hosts = Hosts::new(Duration::from_secs(15));
        hosts.synced(&snapshot(1, 0), start);
        let later = start + Duration::from_secs(16);
        assert_eq!(hosts.review(&Entries::default(), later).len(), 1);
        hosts.synced(&snapshot(2, 0), later);
        assert!(!hosts.is_lost(&"h".into(), later));
        assert!(hosts.review(&Entries::default(), later + Duration::from_secs(14)).is_empty());
    }
}
