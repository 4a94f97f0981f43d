//! Bus messages as the core's events.

use berth_config::SchedulerConfig;
use berth_placement::{AttemptEnd, EngineFacts, Event, HostFacts, JobFacts, Policy};
use berth_wire::{Class, Ended, EngineReport, Job, Outcome, SessionId, Snapshot, Timestamp};

pub(crate) fn policy(config: &SchedulerConfig) -> Policy {
    Policy {
        idle_ttl: config.idle_ttl,
        max_wait: config.max_wait,
        queue_limit: usize::try_from(config.queue_limit).unwrap_or(usize::MAX),
        ..Policy::default()
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
        session: job.session.as_deref().map(SessionId::from),
        key: None,
        class: Class::default(),
        tokens: (job.body.len() / BYTES_PER_TOKEN).saturating_add(EXPECTED_OUTPUT),
    }
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
    let beat = snapshot.beat;
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
    events.push(Event::HostSnapshot { host, engines, running });
    events
}
