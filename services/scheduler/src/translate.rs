//! Bus messages as the core's events.

use std::time::Duration;

use berth_config::SchedulerConfig;
use berth_placement::{AttemptEnd, EngineFacts, Event, HostFacts, JobFacts, LeaseView, ModelNeeds, Policy};
use berth_wire::{
    Ended, EngineReport, EngineSpec, Job, LeaseStatus, ModelSpec, Outcome, SessionId, Snapshot, Started,
    Timestamp,
};
use serde::Serialize;

pub(crate) fn policy(config: &SchedulerConfig) -> Policy {
    let count = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
    Policy {
        idle_ttl: config.idle_ttl,
        asleep_ttl: config.asleep_ttl,
        max_wait: config.max_wait,
        queue_limit: count(config.queue_limit),
        model_queue_limit: count(config.model_queue_limit),
        key_queue_limit: count(config.key_queue_limit),
        lease_ceiling: config.lease_ceiling,
        leases_per_session: count(config.leases_per_session),
        leases_per_key: count(config.leases_per_key),
        ..Policy::default()
    }
}

pub(crate) fn needs(spec: &ModelSpec) -> ModelNeeds {
    ModelNeeds { max_replicas: spec.replicas, config: config(spec), ..ModelNeeds::from(spec) }
}

/// Names what a model is run with, in 16 hexadecimal digits: whatever changes how fast an engine starts or
/// answers, or what it takes up.
pub(crate) fn config(spec: &ModelSpec) -> String {
    #[derive(Serialize)]
    struct Run<'a> {
        engine: EngineSpec,
        memory: &'a Option<u64>,
        accelerators: u32,
        concurrency: u32,
        context: &'a Option<u32>,
    }
    let mut engine = spec.engine.clone();
    // How long is waited for it changes nothing about it.
    engine.start_timeout = Duration::ZERO;
    engine.stop_grace = Duration::ZERO;
    engine.container.pull_timeout = None;
    let run = Run {
        engine,
        memory: &spec.memory,
        accelerators: spec.accelerators,
        concurrency: spec.concurrency,
        context: &spec.context,
    };
    let written = serde_json::to_vec(&run).unwrap_or_default();
    blake3::hash(&written).to_hex().chars().take(16).collect()
}

/// A lease as its holder is told of it.
pub(crate) fn lease(view: LeaseView, now: Timestamp) -> LeaseStatus {
    LeaseStatus {
        left: view.lease.expires.since(now),
        state: view.state,
        position: view.position as u64,
        eta: view.eta_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        lease: view.lease,
    }
}

/// About so many bytes of a request make a token of prompt.
const BYTES_PER_TOKEN: u64 = 4;
/// Output tokens of a job of which nothing is known.
const EXPECTED_OUTPUT: u64 = 256;

/// A gateway's clock may be ahead; a job has arrived by now at the latest.
pub(crate) fn job(job: &Job, now: Timestamp) -> JobFacts {
    JobFacts {
        id: job.id,
        model: job.model.clone(),
        arrival: job.submitted_at.min(now),
        deadline: job.deadline,
        hurried: job.hurried,
        session: job.session.as_deref().map(SessionId::from),
        key: job.key.clone(),
        class: job.class,
        tokens: (job.body.len() / BYTES_PER_TOKEN).saturating_add(EXPECTED_OUTPUT),
    }
}

/// A job that its host took by the express lane.
pub(crate) fn started(started: &Started, now: Timestamp) -> Event {
    let job = JobFacts {
        id: started.job,
        model: started.model.clone(),
        arrival: started.submitted_at.min(now),
        deadline: None,
        hurried: false,
        session: started.session.clone(),
        key: started.key.clone(),
        class: started.class,
        tokens: (started.bytes / BYTES_PER_TOKEN).saturating_add(EXPECTED_OUTPUT),
    };
    Event::JobStarted { job, engine: started.engine }
}

pub(crate) fn engine(report: EngineReport) -> EngineFacts {
    EngineFacts {
        id: report.engine,
        model: report.model,
        state: report.state,
        reservations: report.reservations,
        concurrency: report.concurrency,
        failure: report.failure,
        start_took: report.start_took,
        sleep: report.sleep,
        peak_memory: report.peak_memory,
    }
}

pub(crate) fn ended(ended: Ended) -> Event {
    let end = match ended.outcome {
        Outcome::Completed => AttemptEnd::Completed,
        Outcome::Cancelled | Outcome::Abandoned => AttemptEnd::Cancelled,
        Outcome::Failed { error, output_sent } => AttemptEnd::Failed { error, output_sent },
    };
    Event::AttemptEnded {
        job: ended.job,
        attempt: ended.attempt,
        engine: ended.engine,
        end,
        usage: ended.usage,
    }
}

/// A snapshot as events, in the order in which they are to be taken in.
pub(crate) fn snapshot(snapshot: Snapshot) -> Vec<Event> {
    let mut beat = snapshot.beat;
    // What its servers have can run there and nowhere else.
    beat.labels.extend(snapshot.found.into_iter().flat_map(|model| model.labels));
    let host = HostFacts {
        id: beat.host,
        boot: beat.boot,
        accelerators: beat.accelerators,
        drivers: beat.drivers,
        labels: beat.labels,
        draining: beat.draining,
        sleep_memory: beat.sleep_memory,
        sleep_spare: beat.sleep_spare,
    };
    let running = snapshot.running.into_iter().map(|r| (r.job, r.attempt, r.engine)).collect();
    let engines = snapshot.engines.into_iter().map(engine).collect();
    // Ends come first: what has ended must not look as if it ran, nor be run again.
    let mut events: Vec<Event> = snapshot.ended.into_iter().map(ended).collect();
    if !snapshot.estimates.is_empty() {
        events.push(Event::Estimates(snapshot.estimates));
    }
    events.push(Event::HostSnapshot { host, engines, running });
    events
}

#[cfg(test)]
mod tests {
    use berth_config::Config;

    use super::*;

    fn model(more: &str) -> ModelSpec {
        let text = format!("[[models]]\nid = \"m\"\nengine = \"llama.cpp\"\n{more}");
        Config::parse(&text, "test.toml").unwrap().models.remove(0)
    }

    #[test]
    fn a_configuration_is_named_by_what_changes_how_an_engine_runs() {
        let named = |more: &str| config(&model(more));
        let plain = named("");
        assert_eq!(plain.len(), 16);
        let same = [
            "aliases = [\"n\"]",
            "idle_ttl = \"1m\"",
            "asleep_ttl = \"1m\"",
            "pin = true",
            "replicas = 2",
            "labels = [\"a\"]",
            "start_timeout = \"9m\"",
            "stop_grace = \"1s\"",
            "driver = \"docker\"\npull_timeout = \"1m\"",
        ];
        for more in same {
            assert_eq!(named(more), plain, "{more}");
        }
        let others = [
            "args = [\"-x\"]",
            "memory = \"2GiB\"",
            "accelerators = 2",
            "concurrency = 7",
            "context = 4096",
            "image = \"other\"",
        ];
        for more in others {
            assert_ne!(named(more), plain, "{more}");
        }
    }

    #[test]
    fn limits_and_replicas_reach_the_core() {
        let text = "[scheduler]\nmax_wait = \"7s\"\nlease_ceiling = \"2h\"\nleases_per_session = 3\n\
                    leases_per_key = 4\nmodel_queue_limit = 5\nkey_queue_limit = 6\n";
        let policy = policy(&Config::parse(text, "test.toml").unwrap().scheduler);
        assert_eq!((policy.max_wait.as_secs(), policy.lease_ceiling.as_secs()), (7, 7200));
        assert_eq!((policy.leases_per_session, policy.leases_per_key), (3, 4));
        assert_eq!((policy.model_queue_limit, policy.key_queue_limit), (5, 6));
        assert_eq!(needs(&model("replicas = 2")).max_replicas, Some(2));
    }

    #[test]
    fn what_is_configured_by_default_is_what_the_core_does_by_default() {
        assert_eq!(policy(&SchedulerConfig::default()), Policy::default());
    }
}
