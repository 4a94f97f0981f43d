//! Alerts: raised once when something has been bad for a while, resolved once when it has been good for as long. Pure:
//! fed with readings and the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Alert {
    /// No scheduler leads.
    NoLeader,
    /// There is no host.
    NoHosts,
    /// No gateway answers.
    NoGateways,
    /// Health does not reach NATS.
    NoNats,
    /// A host has gone silent.
    HostLost,
    /// Engines of a model fail again and again.
    EngineCrashLoop,
    /// A model's oldest job has waited for long.
    QueueWait,
    /// An accelerator's memory is held by what nobody knows.
    MemoryUnexplained,
    /// NATS drops messages of a service.
    SlowConsumer,
    /// A stream that refuses what is new is nearly full.
    JetstreamFull,
    /// A host's disk is nearly full.
    DiskLow,
    /// An actor of a service makes no progress.
    ActorStuck,
}

impl Alert {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::NoLeader,
        Self::NoHosts,
        Self::NoGateways,
        Self::NoNats,
        Self::HostLost,
        Self::EngineCrashLoop,
        Self::QueueWait,
        Self::MemoryUnexplained,
        Self::SlowConsumer,
        Self::JetstreamFull,
        Self::DiskLow,
        Self::ActorStuck,
    ];

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|alert| alert.as_str() == name)
    }

    /// Its name in events, metrics and webhooks.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoLeader => "no_leader",
            Self::NoHosts => "no_hosts",
            Self::NoGateways => "no_gateways",
            Self::NoNats => "no_nats",
            Self::HostLost => "host_lost",
            Self::EngineCrashLoop => "engine_crash_loop",
            Self::QueueWait => "queue_wait",
            Self::MemoryUnexplained => "memory_unexplained",
            Self::SlowConsumer => "slow_consumer",
            Self::JetstreamFull => "jetstream_full",
            Self::DiskLow => "disk_low",
            Self::ActorStuck => "actor_stuck",
        }
    }
}

/// How good a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Good enough to resolve an alert.
    Good,
    /// Neither raises an alert nor resolves one.
    Between,
    /// Bad enough to raise one.
    Bad,
}

impl Level {
    /// Bad from `limit` on, good below nine tenths of it.
    #[must_use]
    pub fn at_most(value: f64, limit: f64) -> Self {
        if value >= limit {
            Self::Bad
        } else if value < limit * 0.9 {
            Self::Good
        } else {
            Self::Between
        }
    }

    /// Bad below `limit`, good from eleven tenths of it on.
    #[must_use]
    pub fn at_least(value: f64, limit: f64) -> Self {
        if value < limit {
            Self::Bad
        } else if value >= limit * 1.1 {
            Self::Good
        } else {
            Self::Between
        }
    }

    /// Bad or good, nothing between.
    #[must_use]
    pub fn bad_if(bad: bool) -> Self {
        if bad { Self::Bad } else { Self::Good }
    }
}

/// One thing as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// What alert it may raise.
    pub alert: Alert,
    /// The host, model, stream or service that it is of.
    pub about: String,
    /// How good it is.
    pub level: Level,
    /// For people.
    pub message: String,
}

/// An alert that is raised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Raised {
    /// Which.
    pub alert: Alert,
    /// Of what.
    pub about: String,
    /// In words, as it was when it was raised.
    pub message: String,
    /// For how long, in seconds.
    pub for_s: u64,
}

/// What is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It has begun.
    Raised(Raised),
    /// It is over.
    Resolved(Raised),
}

#[derive(Debug, Default)]
struct Track {
    /// Since when it has been without a break what would change its state.
    since: Option<Instant>,
    raised: Option<(Instant, String)>,
}

/// All alerts.
#[derive(Debug)]
pub struct Alerts {
    hold: Duration,
    tracks: BTreeMap<(Alert, String), Track>,
}

impl Alerts {
    /// None is raised. A value must be bad, or good, for `hold` before that counts.
    #[must_use]
    pub fn new(hold: Duration) -> Self {
        Self { hold, tracks: BTreeMap::new() }
    }

    /// It was raised at `at`, by whoever watched before.
    pub fn take_over(&mut self, alert: Alert, about: String, message: String, at: Instant) {
        self.tracks.insert((alert, about), Track { since: None, raised: Some((at, message)) });
    }

    /// It was resolved by whoever watched before.
    pub fn leave(&mut self, alert: Alert, about: String) {
        self.tracks.remove(&(alert, about));
    }

    /// Takes in all that is so now and returns what is new. What is not read any more counts as good.
    pub fn judge(&mut self, readings: Vec<Reading>, now: Instant) -> Vec<Change> {
        let mut read: BTreeMap<(Alert, String), Reading> = BTreeMap::new();
        for reading in readings {
            read.insert((reading.alert, reading.about.clone()), reading);
        }
        for (key, _) in read.iter().filter(|(_, reading)| reading.level == Level::Bad) {
            if !self.tracks.contains_key(key) {
                self.tracks.insert(key.clone(), Track::default());
            }
        }
        let (hold, mut changes) = (self.hold, Vec::new());
        self.tracks.retain(|(alert, about), track| {
            let reading = read.remove(&(*alert, about.clone()));
            let level = reading.as_ref().map_or(Level::Good, |reading| reading.level);
            let turning = if track.raised.is_some() { Level::Good } else { Level::Bad };
            if level != turning {
                track.since = None;
                return track.raised.is_some();
            }
            let since = *track.since.get_or_insert(now);
            if now.saturating_duration_since(since) < hold {
                return true;
            }
            track.since = None;
            match track.raised.take() {
                Some((at, message)) => {
                    let for_s = now.saturating_duration_since(at).as_secs();
                    changes.push(Change::Resolved(Raised {
                        alert: *alert,
                        about: about.clone(),
                        message,
                        for_s,
                    }));
                    false
                }
                None => {
                    let message = reading.map(|reading| reading.message).unwrap_or_default();
                    track.raised = Some((now, message.clone()));
                    changes.push(Change::Raised(Raised {
                        alert: *alert,
                        about: about.clone(),
                        message,
                        for_s: 0,
                    }));
                    true
                }
            }
        });
        changes
    }

    /// Those that are raised.
    #[must_use]
    pub fn raised(&self, now: Instant) -> Vec<Raised> {
        self.tracks
            .iter()
            .filter_map(|((alert, about), track)| {
                let (at, message) = track.raised.as_ref()?;
                Some(Raised {
                    alert: *alert,
                    about: about.clone(),
                    message: message.clone(),
                    for_s: now.saturating_duration_since(*at).as_secs(),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const HOLD: Duration = Duration::from_secs(10);

    fn reading(level: Level) -> Reading {
        Reading { alert: Alert::DiskLow, about: "h".into(), level, message: "low".into() }
    }

    #[test]
    fn an_alert_is_raised_once_and_resolved_once() {
        let (begin, mut alerts) = (Instant::now(), Alerts::new(HOLD));
        let mut at = |s: u64, level| {
            let changes = alerts.judge(vec![reading(level)], begin + Duration::from_secs(s));
            changes.into_iter().map(|change| matches!(change, Change::Raised(_))).collect::<Vec<_>>()
        };
        assert_eq!(at(0, Level::Bad), [false; 0]);
        assert_eq!(at(9, Level::Bad), [false; 0]);
        assert_eq!(at(10, Level::Bad), [true]);
        assert_eq!(at(30, Level::Bad), [false; 0]);
        assert_eq!(at(40, Level::Good), [false; 0]);
        assert_eq!(at(45, Level::Between), [false; 0], "what is neither is no recovery");
        assert_eq!(at(50, Level::Good), [false; 0]);
        assert_eq!(at(60, Level::Good), [false]);
        assert_eq!(at(90, Level::Good), [false; 0]);
    }

    #[test]
    fn what_is_gone_is_resolved() {
        let (begin, mut alerts) = (Instant::now(), Alerts::new(Duration::ZERO));
        assert_eq!(alerts.judge(vec![reading(Level::Bad)], begin).len(), 1);
        let changes = alerts.judge(Vec::new(), begin + HOLD);
        assert!(matches!(&changes[..], [Change::Resolved(raised)] if raised.for_s == 10), "{changes:?}");
        assert!(alerts.raised(begin + HOLD).is_empty());
    }

    #[test]
    fn what_was_raised_before_is_not_raised_again_and_is_resolved() {
        let (begin, mut alerts) = (Instant::now(), Alerts::new(Duration::ZERO));
        for about in ["h", "other"] {
            alerts.take_over(Alert::DiskLow, about.into(), "low".into(), begin);
        }
        alerts.leave(Alert::DiskLow, "other".into());
        assert!(alerts.judge(vec![reading(Level::Bad)], begin).is_empty());
        let changes = alerts.judge(vec![reading(Level::Good)], begin + HOLD);
        assert!(matches!(&changes[..], [Change::Resolved(raised)] if raised.for_s == 10), "{changes:?}");
        assert!(Alert::ALL.into_iter().all(|alert| Alert::named(alert.as_str()) == Some(alert)));
    }

    #[test]
    fn thresholds_leave_room_between_raising_and_resolving() {
        assert_eq!(Level::at_most(100.0, 100.0), Level::Bad);
        assert_eq!(Level::at_most(95.0, 100.0), Level::Between);
        assert_eq!(Level::at_most(89.0, 100.0), Level::Good);
        assert_eq!(Level::at_least(99.0, 100.0), Level::Bad);
        assert_eq!(Level::at_least(105.0, 100.0), Level::Between);
        assert_eq!(Level::at_least(111.0, 100.0), Level::Good);
    }

    fn level() -> impl Strategy<Value = Option<Level>> {
        prop_oneof![Just(None), Just(Some(Level::Good)), Just(Some(Level::Between)), Just(Some(Level::Bad))]
    }

    proptest! {
        #[test]
        fn raising_and_resolving_take_turns_and_each_takes_its_time(
            steps in prop::collection::vec((1_u64..8, [level(), level()]), 1..80)
        ) {
            let mut alerts = Alerts::new(HOLD);
            let mut now = Instant::now();
            let mut open: BTreeSet<String> = BTreeSet::new();
            // Since when each has been bad, or not bad, without a break.
            let mut streaks = [(Level::Good, now); 2];
            for (wait, levels) in steps {
                now += Duration::from_secs(wait);
                let mut readings = Vec::new();
                for (i, (level, streak)) in levels.iter().zip(&mut streaks).enumerate() {
                    let seen = level.unwrap_or(Level::Good);
                    if streak.0 != seen {
                        *streak = (seen, now);
                    }
                    if let Some(level) = level {
                        readings.push(Reading { about: i.to_string(), ..reading(*level) });
                    }
                }
                for change in alerts.judge(readings, now) {
                    let (raised, of) = match &change {
                        Change::Raised(raised) => (true, raised),
                        Change::Resolved(raised) => (false, raised),
                    };
                    let (level, since) = streaks[of.about.parse::<usize>().unwrap()];
                    prop_assert_eq!(level, if raised { Level::Bad } else { Level::Good });
                    prop_assert!(now - since >= HOLD);
                    let new = if raised { open.insert(of.about.clone()) } else { open.remove(&of.about) };
                    prop_assert!(new, "{:?} twice", change);
                }
                let raised: BTreeSet<String> = alerts.raised(now).into_iter().map(|raised| raised.about).collect();
                prop_assert_eq!(&raised, &open);
            }
        }
    }
}
