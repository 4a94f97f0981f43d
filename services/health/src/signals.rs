//! From what is known of the fleet to readings that may raise an alert: pure, fed with levels and the time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use berth_config::{AlertConfig, show_bytes, show_duration};
use berth_wire::{HostId, ModelId};
use serde_json::Value;

use crate::alerts::{Alert, Level, Reading};
use crate::picture::{Finding, Levels};
use crate::roll_call::Services;

/// A host that does not come back is not missed for longer.
const MISSED: Duration = Duration::from_secs(24 * 3600);

/// What must be remembered between two looks.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    config: AlertConfig,
    lost: BTreeMap<HostId, Instant>,
    failures: BTreeMap<ModelId, VecDeque<Instant>>,
    /// Those that answer, once somebody was asked.
    gateways: Option<usize>,
    /// Dropped messages that a service has told of, and when they became more.
    drops: BTreeMap<String, (u64, VecDeque<Instant>)>,
}

impl Signals {
    pub(crate) fn new(config: AlertConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Something new.
    pub(crate) fn found(&mut self, finding: &Finding, now: Instant) {
        match finding {
            Finding::HostLost { host } => {
                self.lost.insert(host.clone(), now);
            }
            Finding::HostJoined { host } | Finding::HostLeft { host } => {
                self.lost.remove(host);
            }
            Finding::NoLeader | Finding::LeaderBack { .. } | Finding::NoHosts => {}
        }
    }

    /// An engine of the model has failed.
    pub(crate) fn failed(&mut self, model: ModelId, at: Instant) {
        self.failures.entry(model).or_default().push_back(at);
    }

    /// A host was lost before this began, and was not back by then.
    pub(crate) fn misses(&mut self, host: HostId, since: Instant) {
        self.lost.insert(host, since);
    }

    /// What services have told of themselves.
    pub(crate) fn heard(&mut self, services: &Services, now: Instant) {
        self.gateways = Some(services.values().filter(|service| service.name == "berth-gateway").count());
        self.drops.retain(|id, _| services.contains_key(id));
        for (id, service) in services {
            let dropped = service.report.get("slow_consumers").and_then(Value::as_u64).unwrap_or_default();
            let (last, when) = self.drops.entry(id.clone()).or_default();
            if dropped > *last {
                when.push_back(now);
            }
            *last = dropped;
        }
    }

    /// All that may raise an alert, as it is now. `jetstream`: which share of its limits each stream holds; `connected`:
    /// NATS is reached.
    pub(crate) fn readings(
        &mut self,
        levels: &Levels,
        services: &Services,
        jetstream: &BTreeMap<String, f64>,
        connected: bool,
        now: Instant,
    ) -> Vec<Reading> {
        // Of what comes by NATS nothing is known without it.
        let known = |bad| if connected { Level::bad_if(bad) } else { Level::Between };
        let mut readings = vec![
            reading(Alert::NoNats, "nats", Level::bad_if(!connected), || {
                "health cannot reach NATS, by which all of the fleet talks: see to the server and the network"
                    .into()
            }),
            reading(Alert::NoLeader, "scheduler", known(levels.leader.is_empty()), || {
                "no scheduler leads; requests that need the queue wait: start `berth scheduler`".into()
            }),
            reading(Alert::NoHosts, "hosts", known(levels.hosts.is_empty()), || {
                "there is no host; requests wait: start `berth agent`".into()
            }),
            reading(Alert::NoGateways, "gateways", known(self.gateways == Some(0)), || {
                "no gateway answers; requests are refused: start `berth gateway`".into()
            }),
        ];
        self.remembered(&mut readings, now);
        self.of_services(&mut readings, services);
        self.of_accelerators(&mut readings, levels);
        let limit = f64::from(self.config.jetstream_percent) / 100.0;
        for (stream, used) in jetstream {
            readings.push(reading(Alert::JetstreamFull, stream, Level::at_most(*used, limit), || {
                format!(
                    "the stream {stream} holds {:.0}% of what it may; full, it refuses what is new",
                    used * 100.0
                )
            }));
        }
        readings
    }

    /// What happened a while ago.
    fn remembered(&mut self, readings: &mut Vec<Reading>, now: Instant) {
        let window = self.config.failure_window;
        self.lost.retain(|_, since| now.saturating_duration_since(*since) < MISSED);
        for host in self.lost.keys() {
            readings.push(reading(Alert::HostLost, host.as_str(), Level::Bad, || {
                format!("the host {host} has gone silent")
            }));
        }
        let recent = |times: &mut VecDeque<Instant>| {
            times.retain(|at| now.saturating_duration_since(*at) < window);
            times.len()
        };
        self.failures.retain(|_, times| recent(times) > 0);
        for (model, times) in &self.failures {
            let level = Level::at_most(times.len() as f64, f64::from(self.config.engine_failures));
            readings.push(reading(Alert::EngineCrashLoop, model.as_str(), level, || {
                format!(
                    "engines of {model} failed {} times within {}: `berth models` and `berth events --kind engine` show why",
                    times.len(),
                    show_duration(window)
                )
            }));
        }
        for (service, (dropped, times)) in &mut self.drops {
            let level = Level::bad_if(recent(times) > 0);
            readings.push(reading(Alert::SlowConsumer, service, level, || {
                format!(
                    "NATS has dropped messages of {service} that it did not read in time ({dropped} times)"
                )
            }));
        }
    }

    fn of_services(&self, readings: &mut Vec<Reading>, services: &Services) {
        for (id, service) in services {
            let actors = service.report.get("actors").and_then(Value::as_array);
            let stuck =
                actors.into_iter().flatten().find(|actor| actor.get("healthy") == Some(&Value::Bool(false)));
            let name = stuck.and_then(|actor| actor.get("name")).and_then(Value::as_str).unwrap_or_default();
            readings.push(reading(Alert::ActorStuck, id, Level::bad_if(stuck.is_some()), || {
                format!("the actor {name} of {id} makes no progress: restart that service")
            }));
            if let (Some(host), Some(free)) =
                (service.report.get("host").and_then(Value::as_str), service.disk_free())
            {
                let level = Level::at_least(free as f64, self.config.disk_free as f64);
                readings.push(reading(Alert::DiskLow, host, level, || {
                    format!(
                        "{} are free on the disk of {host} where its agent keeps its state",
                        show_bytes(free)
                    )
                }));
            }
            for (model, waiting) in service.waiting() {
                let level = Level::at_most(waiting, self.config.queue_wait.as_secs_f64());
                readings.push(reading(Alert::QueueWait, &model, level, || {
                    format!(
                        "a request for {model} has waited for {waiting:.0} s; `berth status` says for what"
                    )
                }));
            }
        }
    }

    fn of_accelerators(&self, readings: &mut Vec<Reading>, levels: &Levels) {
        for beat in levels.hosts.values() {
            for accelerator in &beat.accelerators {
                let Some(bytes) = accelerator.unexplained else { continue };
                let about = format!("{}.{}", beat.host, accelerator.id);
                let level = Level::at_most(bytes as f64, self.config.memory_unexplained as f64);
                readings.push(reading(Alert::MemoryUnexplained, &about, level, || {
                    format!("{} of {about} are held by what Berth did not start", show_bytes(bytes))
                }));
            }
        }
    }
}

fn reading(alert: Alert, about: &str, level: Level, message: impl FnOnce() -> String) -> Reading {
    let message = if level == Level::Good { String::new() } else { message() };
    Reading { alert, about: about.to_owned(), level, message }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::roll_call::Service;

    fn levels() -> Levels {
        Levels { leader: Arc::default(), hosts: Arc::default(), engines: Arc::default() }
    }

    fn bad(signals: &mut Signals, services: &Services, now: Instant) -> Vec<(Alert, String)> {
        signals
            .readings(&levels(), services, &BTreeMap::new(), true, now)
            .into_iter()
            .filter(|reading| reading.level == Level::Bad)
            .map(|reading| (reading.alert, reading.about))
            .collect()
    }

    fn service(report: Value) -> Services {
        let service = Service { name: "berth-agent".into(), report };
        BTreeMap::from([("berth-agent.x".to_owned(), service)])
    }

    #[test]
    fn failures_count_within_their_window() {
        let (now, mut signals) = (Instant::now(), Signals::new(AlertConfig::default()));
        for seconds in [0, 60, 120] {
            signals.failed("m".into(), now + Duration::from_secs(seconds));
        }
        let crash = (Alert::EngineCrashLoop, "m".to_owned());
        assert!(bad(&mut signals, &Services::new(), now + Duration::from_secs(121)).contains(&crash));
        assert!(!bad(&mut signals, &Services::new(), now + Duration::from_secs(601)).contains(&crash));
    }

    #[test]
    fn a_host_is_missed_until_it_is_back() {
        let (now, mut signals) = (Instant::now(), Signals::new(AlertConfig::default()));
        let lost = (Alert::HostLost, "h".to_owned());
        signals.found(&Finding::HostLost { host: "h".into() }, now);
        assert!(bad(&mut signals, &Services::new(), now).contains(&lost));
        signals.found(&Finding::HostJoined { host: "h".into() }, now);
        assert!(!bad(&mut signals, &Services::new(), now).contains(&lost));
    }

    #[test]
    fn what_services_tell_of_themselves_is_judged() {
        let (now, mut signals) = (Instant::now(), Signals::new(AlertConfig::default()));
        let services = service(json!({
            "host": "h", "disk_free": 1_000_000_u64, "slow_consumers": 2,
            "actors": [
                {"name": "a", "healthy": false, "state": null},
                {"name": "leader", "healthy": true, "state": {"waiting": {"m": {"jobs": 1, "oldest_s": 700.0}}}}
            ]
        }));
        signals.heard(&services, now);
        let found = bad(&mut signals, &services, now);
        for expected in [
            (Alert::SlowConsumer, "berth-agent.x"),
            (Alert::ActorStuck, "berth-agent.x"),
            (Alert::DiskLow, "h"),
            (Alert::QueueWait, "m"),
        ] {
            assert!(found.contains(&(expected.0, expected.1.to_owned())), "{expected:?} in {found:?}");
        }
    }
    #[test]
    fn without_nats_only_that_is_known() {
        let (now, mut signals) = (Instant::now(), Signals::new(AlertConfig::default()));
        let bad = |signals: &mut Signals, connected| -> Vec<Alert> {
            let readings = signals.readings(&levels(), &Services::new(), &BTreeMap::new(), connected, now);
            readings
                .into_iter()
                .filter(|reading| reading.level == Level::Bad)
                .map(|reading| reading.alert)
                .collect()
        };
        assert_eq!(bad(&mut signals, true), [Alert::NoLeader, Alert::NoHosts], "no gateway was asked yet");
        signals.heard(&Services::new(), now);
        assert_eq!(bad(&mut signals, true), [Alert::NoLeader, Alert::NoHosts, Alert::NoGateways]);
        assert_eq!(bad(&mut signals, false), [Alert::NoNats]);
    }
}
