//! Which hosts are alive, and how far each has reported.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use berth_bus::Entries;
use berth_wire::{HostBeat, HostId, Timestamp};

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
    /// It said goodbye.
    left: bool,
    asked: Option<Instant>,
    /// It is being asked whether it lives.
    suspected: bool,
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

    /// A snapshot that was asked for has come.
    pub(crate) fn synced(&mut self, host: &HostId, boot: &str, now: Instant) {
        let seen = self.host(host, boot, now);
        seen.synced = true;
        seen.left = false;
        seen.suspected = false;
        seen.beat = now;
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
    use super::*;

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
        hosts.synced(&"h".into(), "b", start);
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
        hosts.synced(&"h".into(), "b", start);
        let later = start + Duration::from_secs(16);
        assert_eq!(hosts.review(&Entries::default(), later).len(), 1);
        hosts.synced(&"h".into(), "b", later);
        assert!(!hosts.is_lost(&"h".into(), later));
        assert!(hosts.review(&Entries::default(), later + Duration::from_secs(14)).is_empty());
    }
}
