//! What is known of the fleet, and what is new in it: pure, fed with levels and the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use berth_bus::Entries;
use berth_wire::{EngineId, EngineRecord, EngineState, HostBeat, HostId, LeaderRecord, ModelId, Timestamp};
use serde::Serialize;

/// How long a leader or the last host may be missing: an election and a heartbeat take less.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// Something that a person should know of, told once when it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the field names are the documentation")]
pub enum Finding {
    NoLeader,
    LeaderBack {
        instance: String,
    },
    NoHosts,
    HostJoined {
        host: HostId,
    },
    /// Its heartbeat has stopped without a farewell.
    HostLost {
        host: HostId,
    },
    /// It was draining and is gone.
    HostLeft {
        host: HostId,
    },
    EngineFailed {
        engine: EngineId,
        host: HostId,
        model: ModelId,
        detail: Option<String>,
    },
}

impl Finding {
    /// Somebody should look.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        match self {
            Self::LeaderBack { .. } | Self::HostJoined { .. } | Self::HostLeft { .. } => false,
            Self::NoLeader | Self::NoHosts | Self::HostLost { .. } | Self::EngineFailed { .. } => true,
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoLeader => {
                write!(
                    f,
                    "no scheduler has led for {} s; jobs wait: start `berth scheduler`",
                    PATIENCE.as_secs()
                )
            }
            Self::LeaderBack { instance } => write!(f, "the scheduler {instance} leads"),
            Self::NoHosts => {
                write!(
                    f,
                    "there has been no host for {} s; jobs wait: start `berth agent`",
                    PATIENCE.as_secs()
                )
            }
            Self::HostJoined { host } => write!(f, "the host {host} is here"),
            Self::HostLost { host } => write!(f, "the host {host} has gone silent"),
            Self::HostLeft { host } => write!(f, "the host {host} has left"),
            Self::EngineFailed { engine, host, model, detail } => {
                write!(f, "the engine {engine} of {model} on {host} failed")?;
                detail.as_ref().map_or(Ok(()), |detail| write!(f, ": {detail}"))
            }
        }
    }
}

/// What KV says at one moment.
pub(crate) struct Levels {
    pub(crate) leader: Entries<LeaderRecord>,
    pub(crate) hosts: Entries<HostBeat>,
    pub(crate) engines: Entries<EngineRecord>,
}

/// A condition that must hold for a while before it is told.
#[derive(Debug, Default)]
struct Missing {
    since: Option<Instant>,
    told: bool,
}

impl Missing {
    /// Whether to tell now.
    fn judge(&mut self, missing: bool, now: Instant) -> bool {
        if !missing {
            *self = Self::default();
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let tell = !self.told && now.saturating_duration_since(since) >= PATIENCE;
        self.told |= tell;
        tell
    }
}

/// A host as last heard of.
#[derive(Debug, Clone)]
struct Known {
    beat: Timestamp,
    /// When that beat was first seen, by our own clock.
    heard: Instant,
    draining: bool,
}

/// The fleet as last seen.
#[derive(Debug)]
pub(crate) struct Picture {
    host_timeout: Duration,
    /// When the bus came back, if it was away.
    bus_back: Option<Instant>,
    no_leader: Missing,
    no_hosts: Missing,
    leader: Option<String>,
    hosts: BTreeMap<HostId, Known>,
    engines: BTreeMap<EngineId, EngineState>,
}

/// The state of the parts, for people.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) leader: Option<String>,
    pub(crate) hosts: Vec<HostId>,
    pub(crate) draining: usize,
    pub(crate) engines: BTreeMap<&'static str, usize>,
}

impl Picture {
    pub(crate) fn new(host_timeout: Duration) -> Self {
        Self {
            host_timeout,
            bus_back: None,
            no_leader: Missing::default(),
            no_hosts: Missing::default(),
            leader: None,
            hosts: BTreeMap::new(),
            engines: BTreeMap::new(),
        }
    }

    /// The bus was away. Its buckets may be empty now, which says nothing of a host until it could report.
    pub(crate) fn bus_is_back(&mut self, now: Instant) {
        self.bus_back = Some(now);
    }

    /// Whether a host that is not in its bucket may still be there.
    fn may_live(&self, host: &Known, now: Instant) -> bool {
        let recent = |since: Instant| now.saturating_duration_since(since) < self.host_timeout;
        // One that drains takes itself out of its bucket when it goes.
        self.bus_back.is_some_and(recent) || (!host.draining && recent(host.heard))
    }

    /// Takes in what is so now and returns what is new.
    pub(crate) fn look(&mut self, levels: &Levels, now: Instant) -> Vec<Finding> {
        let mut findings = Vec::new();
        let leader = levels.leader.values().next().map(|record| record.instance.clone());
        let was_told = self.no_leader.told;
        if self.no_leader.judge(leader.is_none(), now) {
            findings.push(Finding::NoLeader);
        }
        if let Some(instance) = leader.clone().filter(|_| was_told) {
            findings.push(Finding::LeaderBack { instance });
        }
        self.leader = leader;

        let mut hosts: BTreeMap<HostId, Known> = BTreeMap::new();
        for beat in levels.hosts.values() {
            let before = self.hosts.get(&beat.host).filter(|known| known.beat == beat.at);
            let heard = before.map_or(now, |known| known.heard);
            hosts.insert(beat.host.clone(), Known { beat: beat.at, heard, draining: beat.draining });
        }
        let none = hosts.is_empty();
        for host in hosts.keys().filter(|host| !self.hosts.contains_key(*host)) {
            findings.push(Finding::HostJoined { host: host.clone() });
        }
        let gone: Vec<_> = self.hosts.iter().filter(|(host, _)| !hosts.contains_key(*host)).collect();
        for (host, known) in gone {
            let (host, known) = (host.clone(), known.clone());
            if self.may_live(&known, now) {
                hosts.insert(host, known);
            } else if known.draining {
                findings.push(Finding::HostLeft { host });
            } else {
                findings.push(Finding::HostLost { host });
            }
        }
        if self.no_hosts.judge(none, now) {
            findings.push(Finding::NoHosts);
        }
        self.hosts = hosts;

        let engines: BTreeMap<EngineId, EngineState> =
            levels.engines.values().map(|record| (record.engine, record.state)).collect();
        for record in levels.engines.values().filter(|record| record.state == EngineState::Failed) {
            if self.engines.get(&record.engine) != Some(&EngineState::Failed) {
                findings.push(Finding::EngineFailed {
                    engine: record.engine,
                    host: record.host.clone(),
                    model: record.model.clone(),
                    detail: record.detail.clone(),
                });
            }
        }
        self.engines = engines;
        findings
    }

    pub(crate) fn summary(&self) -> Summary {
        let mut engines = BTreeMap::new();
        for state in self.engines.values() {
            *engines.entry(state.as_str()).or_default() += 1;
        }
        Summary {
            leader: self.leader.clone(),
            hosts: self.hosts.keys().cloned().collect(),
            draining: self.hosts.values().filter(|host| host.draining).count(),
            engines,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use berth_wire::{Driver, EngineKind, Epoch};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(15);

    fn picture() -> Picture {
        Picture::new(TIMEOUT)
    }

    fn levels() -> Levels {
        Levels { leader: Arc::default(), hosts: Arc::default(), engines: Arc::default() }
    }

    fn with_leader(mut levels: Levels) -> Levels {
        let record =
            LeaderRecord { instance: "s1".into(), since: Timestamp::default(), epoch: Epoch::default() };
        levels.leader = Arc::new([("leader".to_owned(), Arc::new(record))].into());
        levels
    }

    fn with_host(mut levels: Levels, draining: bool) -> Levels {
        let beat = HostBeat {
            host: "h".into(),
            boot: "b".into(),
            version: "0".into(),
            at: Timestamp::default(),
            accelerators: Vec::new(),
            drivers: Vec::new(),
            labels: Vec::new(),
            running: 0,
            draining,
            sleep_memory: 0,
            sleep_spare: 0,
        };
        levels.hosts = Arc::new([("h".to_owned(), Arc::new(beat))].into());
        levels
    }

    fn with_engine(mut levels: Levels, state: EngineState) -> Levels {
        let record = EngineRecord {
            engine: EngineId::new(Epoch(1), 1),
            host: "h".into(),
            model: "m".into(),
            kind: EngineKind::Sim,
            driver: Driver::Process,
            state,
            running: 0,
            concurrency: 1,
            lane: false,
            reservations: Vec::new(),
            since: Timestamp::default(),
            detail: Some("exit status 1".into()),
            image: None,
            adapters: Vec::new(),
        };
        levels.engines = Arc::new([("h.1-1".to_owned(), Arc::new(record))].into());
        levels
    }

    #[test]
    fn a_missing_leader_is_told_once_after_a_while_and_again_when_it_is_back() {
        let (mut picture, start) = (picture(), Instant::now());
        let hosts = || with_host(levels(), false);
        assert_eq!(picture.look(&hosts(), start), [Finding::HostJoined { host: "h".into() }]);
        assert!(picture.look(&hosts(), start + PATIENCE / 2).is_empty());
        assert_eq!(picture.look(&hosts(), start + PATIENCE), [Finding::NoLeader]);
        assert!(picture.look(&hosts(), start + PATIENCE * 2).is_empty());
        let back = picture.look(&with_leader(hosts()), start + PATIENCE * 3);
        assert_eq!(back, [Finding::LeaderBack { instance: "s1".into() }]);
    }

    #[test]
    fn a_silent_host_is_lost_and_a_draining_one_has_left() {
        let now = Instant::now();
        let mut picture = picture();
        picture.look(&with_leader(with_host(levels(), false)), now - TIMEOUT);
        let lost = picture.look(&with_leader(levels()), now);
        assert_eq!(lost, [Finding::HostLost { host: "h".into() }]);
        picture.look(&with_leader(with_host(levels(), true)), now);
        let left = picture.look(&with_leader(levels()), now);
        assert_eq!(left, [Finding::HostLeft { host: "h".into() }]);
        assert_eq!(picture.look(&with_leader(levels()), now + PATIENCE), [Finding::NoHosts]);
    }

    #[test]
    fn a_bucket_that_was_lost_with_its_server_makes_no_host_silent() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut picture = picture();
        let here = || with_leader(with_host(levels(), false));
        let empty = || with_leader(levels());
        picture.look(&here(), start);
        // Also before anybody has told that the bus was away.
        assert!(picture.look(&empty(), start + second).is_empty());
        assert!(picture.look(&here(), start + 2 * second).is_empty(), "it is not here anew");
        // The server is away for as long as any host may be silent.
        let back = start + 10 * TIMEOUT;
        picture.look(&here(), back - second);
        picture.bus_is_back(back);
        assert!(picture.look(&empty(), back).is_empty());
        assert!(picture.look(&empty(), back + TIMEOUT - second).is_empty());
        assert_eq!(picture.summary().hosts, [HostId::from("h")]);
        let lost = picture.look(&empty(), back + TIMEOUT);
        assert!(lost.contains(&Finding::HostLost { host: "h".into() }), "{lost:?}");
    }

    #[test]
    fn a_failed_engine_is_told_once_with_its_reason() {
        let now = Instant::now();
        let mut picture = picture();
        let at = |state| with_engine(with_leader(with_host(levels(), false)), state);
        picture.look(&at(EngineState::Starting), now);
        let findings = picture.look(&at(EngineState::Failed), now);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].to_string().ends_with("failed: exit status 1"), "{}", findings[0]);
        assert!(picture.look(&at(EngineState::Failed), now).is_empty());
        assert_eq!(picture.summary().engines.get("failed"), Some(&1));
    }
}
