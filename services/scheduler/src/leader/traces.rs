//! What traces tell of decisions: how long a job waited, for what engine and why that was started, and its way to a host.
//! Without a collector nothing of it is kept.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use berth_placement::Verdict;
use berth_telemetry::trace::{Context, Span, SpanKind, Tracer};
use berth_wire::{Attempt, EngineId, EventBody, HostId, Job, JobId, ModelId};

use crate::effects::Answer;

#[derive(Default)]
pub(super) struct Traces {
    tracer: Tracer,
    jobs: HashMap<JobId, Waiting>,
    engines: BTreeMap<EngineId, Load>,
}

/// A job whose trace is recorded.
struct Waiting {
    /// Above all that is told of it here.
    above: String,
    model: ModelId,
    /// When it came into the queue, or back into it; `None`: it was sent to a host.
    since: Option<SystemTime>,
}

/// How an engine came to be ready.
struct Load {
    name: &'static str,
    began: SystemTime,
    ready: Option<SystemTime>,
    why: String,
}

impl Traces {
    pub(super) fn new(tracer: Tracer) -> Self {
        Self { tracer, ..Self::default() }
    }

    /// A job was submitted, or delivered again.
    pub(super) fn arrived(&mut self, job: &Job) {
        if !self.tracer.is_on() || self.jobs.contains_key(&job.id) {
            return;
        }
        let recorded = |above: &&String| Context::parse(above).is_some_and(|context| context.sampled);
        let Some(above) = job.traceparent.as_ref().filter(recorded) else { return };
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(job.submitted_at.0);
        let waiting = Waiting { above: above.clone(), model: job.model.clone(), since: Some(since) };
        self.jobs.insert(job.id, waiting);
    }

    /// Something happened to an engine.
    pub(super) fn heard(&mut self, body: &EventBody) {
        if !self.tracer.is_on() {
            return;
        }
        let mut begin = |engine: EngineId, name, why: &String| {
            let load = Load { name, began: SystemTime::now(), ready: None, why: why.clone() };
            self.engines.insert(engine, load);
        };
        match body {
            EventBody::EngineStarting { engine, why, .. } => begin(*engine, "load", why),
            EventBody::EngineWaking { engine, why, .. } => begin(*engine, "wake", why),
            EventBody::EngineReady { engine, .. } => {
                if let Some(load) = self.engines.get_mut(engine) {
                    load.ready = Some(SystemTime::now());
                }
            }
            EventBody::EngineStopped { engine, .. } | EventBody::EngineFailed { engine, .. } => {
                self.engines.remove(engine);
            }
            _ => {}
        }
    }

    /// A job goes to a host: its wait is over, and the span of its way there begins.
    pub(super) fn dispatched(
        &mut self,
        job: JobId,
        attempt: Attempt,
        engine: EngineId,
        host: &HostId,
    ) -> Option<Box<Span>> {
        let queue = self.queue(job)?;
        let waited_since = self.jobs.get_mut(&job)?.since.take()?;
        if let Some(load) = self.engines.get(&engine)
            && let Some(ready) = load.ready.filter(|ready| *ready > waited_since)
        {
            let model = &self.jobs.get(&job)?.model;
            let mut span = queue.child(SpanKind::Internal, format!("{} {model}", load.name));
            span.began(load.began.max(waited_since));
            span.set("berth.engine", engine.to_string());
            span.set("berth.host", host.to_string());
            span.set("berth.why", load.why.clone());
            span.ended(ready);
        }
        queue.end();
        let waiting = self.jobs.get(&job)?;
        let name = format!("dispatch {}", waiting.model);
        let mut span = self.tracer.within(Some(&waiting.above), SpanKind::Producer, name)?;
        span.set("berth.job", job.to_string());
        span.set("berth.attempt", attempt.to_string());
        span.set("berth.engine", engine.to_string());
        span.set("berth.host", host.to_string());
        Some(span)
    }

    /// A job waits again.
    pub(super) fn back(&mut self, job: JobId) {
        if let Some(waiting) = self.jobs.get_mut(&job) {
            waiting.since = Some(SystemTime::now());
        }
    }

    /// A job is over; what waited to its end says why.
    pub(super) fn ended(&mut self, job: JobId, verdict: &Verdict) {
        if let Some(mut queue) = self.queue(job) {
            match verdict {
                Verdict::Completed => {}
                Verdict::Cancelled => queue.fail("cancelled"),
                Verdict::Failed { error, .. } => queue.fail(&error.code),
            }
            queue.end();
        }
        self.jobs.remove(&job);
    }

    /// The wait of a job that still waits.
    fn queue(&self, job: JobId) -> Option<Box<Span>> {
        let waiting = self.jobs.get(&job)?;
        let mut span = self.tracer.within(Some(&waiting.above), SpanKind::Internal, "queue")?;
        span.began(waiting.since?);
        span.set("berth.job", job.to_string());
        span.set("berth.model", waiting.model.to_string());
        Some(span)
    }
}

/// Ends the span of a dispatch as its host answered.
pub(super) fn answered(span: Option<Box<Span>>, answer: &Answer) {
    let Some(mut span) = span else { return };
    match answer {
        Answer::Taken => {}
        Answer::Refused(_) => span.fail("refused"),
        Answer::Unanswered(_) => span.fail("unanswered"),
        Answer::Stale => span.fail("stale"),
    }
    span.end();
}
