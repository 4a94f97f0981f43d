//! Jobs: submitted, cancelled, ended, and tried again.

use std::time::Duration;

use berth_wire::{
    ApiError, Attempt, Class, EngineId, Epoch, ErrorKind, EventBody, JobId, ModelId, Stage, Usage,
};

use crate::books::{Engine, EnginePhase, Job, JobPhase};
use crate::effect::{Effect, Verdict};
use crate::engines::doubled;
use crate::event::{AttemptEnd, JobFacts, Refusal};
use crate::policy::Policy;
use crate::queue::Waiting;
use crate::scene::Scene;
use crate::state::Step;
use crate::timers::Due;

/// SDKs take no longer hint of when to try again seriously.
const LONGEST_HINT: Duration = Duration::from_secs(60);
/// Nothing is sent for so long to an engine whose host says that its slots are taken.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// The same for a host that did not take a dispatch.
const SILENT_PAUSE: Duration = Duration::from_secs(1);
/// The same for an engine that broke a first attempt off without output; doubles with every attempt.
const FAILED_PAUSE: Duration = Duration::from_millis(250);

impl Step<'_> {
    pub(crate) fn job_submitted(&mut self, facts: &JobFacts) {
        let id = facts.id;
        if self.state.jobs.contains_key(&id) {
            return;
        }
        if self.state.over.contains(id) {
            // Delivered again after it ended: only its removal from the stream is missing.
            self.emit(Effect::End { job: id, verdict: Verdict::Cancelled });
            return;
        }
        let Some(model) = self.state.models.get_mut(&facts.model) else {
            let error = ApiError::new(
                ErrorKind::ModelNotFound,
                "model_not_found",
                format!("the model `{}` is not in the catalog any more", facts.model),
            )
            .param("model");
            self.refuse(facts, error);
            return;
        };
        if let Some((until, error)) = &model.blocked {
            if *until > self.now {
                let error = error.clone().retry_after(until.since(self.now));
                self.refuse(facts, error);
                return;
            }
            model.blocked = None;
        }
        if let Some(error) = self.over_a_cap(facts).or_else(|| self.too_late(facts)) {
            self.refuse(facts, error);
            return;
        }
        if let Some(deadline) = facts.deadline {
            self.state.timers.set(deadline, Due::Deadline(id));
        }
        let job = Job {
            model: facts.model.clone(),
            arrival: facts.arrival,
            deadline: facts.deadline,
            hurried: facts.hurried,
            key: facts.key.clone(),
            session: facts.session.clone(),
            class: facts.class,
            tokens: facts.tokens,
            attempts: 0,
            phase: JobPhase::Queued,
            started: self.now,
            cancelled: false,
        };
        self.asked_for(&facts.model, facts.class);
        if let Some(key) = &facts.key {
            *self.state.of_key.entry(key.clone()).or_default() += 1;
        }
        if let Some(model) = self.state.models.get_mut(&facts.model) {
            model.queue.push(id, waiting(&job, &self.state.policy));
            if let Some(session) = &facts.session
                && model.hints.came_true(session)
            {
                self.hint_gone(session);
            }
        }
        self.state.jobs.insert(id, job);
        if let Some(session) = &facts.session {
            self.renew_lease(session, &facts.model);
        }
        // After a change of leaders it may be running already: its host has said so.
        if let Some((engine, attempt)) = self.found_running(id) {
            self.mark_running(id, engine, attempt);
            return;
        }
        self.admit(&facts.model);
        if self.is_queued(id) {
            self.tell(id);
            let why = self.why_waiting(&facts.model);
            self.emit(Effect::Record(EventBody::JobQueued { job: id, model: facts.model.clone(), why }));
        }
        self.touch(&facts.model);
    }

    /// Counts an arrival.
    pub(crate) fn asked_for(&mut self, model: &ModelId, class: Class) {
        if let Some(model) = self.state.models.get_mut(model) {
            model.rate.arrived(self.now, &self.state.policy);
            let weight = class.quarters() as f64 / 4.0;
            model.weight += (weight - model.weight) / 16.0;
        }
    }

    /// Which limit of outstanding jobs is reached.
    fn over_a_cap(&self, facts: &JobFacts) -> Option<ApiError> {
        let policy = &self.state.policy;
        let model = self.state.models.get(&facts.model)?;
        let of_key = facts.key.as_ref().and_then(|key| self.state.of_key.get(key)).copied().unwrap_or(0);
        let message = if self.state.jobs.len() >= policy.queue_limit {
            format!("{} jobs are outstanding already", policy.queue_limit)
        } else if model.queue.len() >= policy.model_queue_limit {
            format!("{} jobs wait for `{}` already", policy.model_queue_limit, facts.model)
        } else if of_key >= policy.key_queue_limit {
            format!("{} jobs of this API key are outstanding already", policy.key_queue_limit)
        } else {
            return None;
        };
        let wait = self.state.expected_wait(model, model.queue.len(), self.now).unwrap_or(LONGEST_HINT);
        let error =
            ApiError::new(ErrorKind::Overloaded, "queue_full", format!("{message}; try again shortly"));
        Some(error.retry_after(wait.clamp(Duration::from_secs(1), LONGEST_HINT)))
    }

    /// A job that cannot start before its client's own deadline is not taken: its client can go elsewhere at once. Half of what is
    /// expected counts as certain, since jobs before it may leave.
    fn too_late(&self, facts: &JobFacts) -> Option<ApiError> {
        let left = facts.deadline.filter(|_| facts.hurried)?.since(self.now);
        let model = self.state.models.get(&facts.model)?;
        let prospect = Scene::new(self.state, self.now).prospect(model);
        let needs = match prospect.wait(model.queue.len()).map(|wait| wait / 2) {
            Some(least) if least > left => {
                format!("needs {:.1} s at the least before it can start", least.as_secs_f64())
            }
            None if prospect.outlook.is_some_and(|outlook| outlook.never) => {
                "has no place: pinned models hold every one that it could have".to_owned()
            }
            _ => return None,
        };
        let message = format!(
            "the job has {:.1} s until its deadline, and `{}` {needs}",
            left.as_secs_f64(),
            facts.model
        );
        Some(ApiError::new(ErrorKind::Expired, "deadline_unmeetable", message))
    }

    /// Ends a job that never entered the books.
    fn refuse(&mut self, facts: &JobFacts, error: ApiError) {
        self.emit(Effect::Record(EventBody::JobEnded {
            job: facts.id,
            model: facts.model.clone(),
            outcome: error.code.clone(),
        }));
        self.state.over.insert(facts.id);
        self.emit(Effect::End { job: facts.id, verdict: Verdict::Failed { error, told: false } });
    }

    fn found_running(&self, id: JobId) -> Option<(EngineId, Attempt)> {
        let model = self.state.model_of(id)?;
        let strays =
            self.state.strays.range((id, EngineId::new(Epoch(0), 0))..).take_while(|(job, _)| *job == id);
        strays.map(|(_, engine)| engine).filter(|engine| model.engines.contains(engine)).find_map(|engine| {
            let attempt = self.state.engines.get(engine)?.attempt_of(id)?;
            Some((*engine, attempt))
        })
    }

    pub(crate) fn mark_running(&mut self, id: JobId, engine: EngineId, attempt: Attempt) {
        let Some(job) = self.state.jobs.get_mut(&id) else { return };
        if job.phase.is_running() {
            return;
        }
        job.phase = JobPhase::Running { engine, attempt };
        job.attempts = job.attempts.max(1);
        job.started = self.now;
        if let Some(model) = self.state.models.get_mut(&job.model) {
            model.queue.remove(id);
        }
    }

    fn is_queued(&self, id: JobId) -> bool {
        self.state.jobs.get(&id).is_some_and(|job| job.phase == JobPhase::Queued)
    }

    pub(crate) fn job_cancelled(&mut self, id: JobId) {
        let Some(job) = self.state.jobs.get_mut(&id) else {
            // It may have been cancelled faster than the stream delivered it.
            self.state.over.insert(id);
            return;
        };
        match job.phase {
            JobPhase::Queued => self.end(id, Verdict::Cancelled),
            JobPhase::Running { engine, attempt } => {
                job.cancelled = true;
                if let Some(host) = self.state.engines.get(&engine).map(|engine| engine.host.clone()) {
                    self.emit(Effect::CancelAttempt { job: id, attempt, host });
                }
            }
        }
    }

    pub(crate) fn attempt_ended(
        &mut self,
        id: JobId,
        attempt: Attempt,
        engine: EngineId,
        end: AttemptEnd,
        usage: Usage,
    ) {
        if attempt.is_express() {
            self.express_ended(id, engine, &end, usage);
            return;
        }
        self.free_slot(id, attempt, engine);
        let Some(job) = self.state.jobs.get(&id) else {
            // Ended before the stream delivered it to this leader; only a retry would still need it.
            if !matches!(end, AttemptEnd::Failed { output_sent: false, .. }) {
                self.state.over.insert(id);
            }
            return;
        };
        let current = matches!(job.phase, JobPhase::Running { attempt: a, .. } if a == attempt);
        let cancelled = job.cancelled;
        let took = self.now.since(job.started);
        match end {
            // Whatever attempt it was, the client has its answer.
            AttemptEnd::Completed => {
                self.served(id, engine, took, usage);
                self.end(id, Verdict::Completed);
            }
            AttemptEnd::Failed { error, output_sent: true } => {
                self.end(id, Verdict::Failed { error, told: true });
            }
            _ if !current => {}
            AttemptEnd::Cancelled => self.end(id, Verdict::Cancelled),
            AttemptEnd::Failed { .. } if cancelled => self.end(id, Verdict::Cancelled),
            AttemptEnd::Failed { error, .. } => {
                // An engine that refuses connections would use up every attempt before its host sees it die.
                let tried = self.state.jobs.get(&id).map_or(1, |job| job.attempts);
                self.hold(engine, doubled(FAILED_PAUSE, tried, self.state.policy.retry_delay));
                self.retry(id, error);
            }
        }
    }

    /// Learns from an answer, and puts right what its session was expected to take.
    fn served(&mut self, id: JobId, engine: EngineId, took: Duration, usage: Usage) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let waited = waiting(job, &self.state.policy);
        let model = job.model.clone();
        if let (Some(prompt), Some(output)) = (usage.prompt_tokens, usage.completion_tokens)
            && let Some(entry) = self.state.models.get_mut(&model)
        {
            let took = prompt.saturating_add(output);
            entry.queue.settle(&waited, took);
            entry.tokens =
                Some(entry.tokens.map_or(took, |mean| mean.saturating_mul(7).saturating_add(took) / 8));
        }
        self.learn_service(engine, &model, took, usage);
    }

    /// Gives a slot back.
    fn free_slot(&mut self, id: JobId, attempt: Attempt, engine_id: EngineId) {
        let Some(engine) = self.state.engines.get_mut(&engine_id) else { return };
        if engine.attempt_of(id) != Some(attempt) {
            return;
        }
        engine.running.remove(&id);
        self.state.strays.remove(&(id, engine_id));
        engine.last_used = self.now;
        let model = engine.model.clone();
        if engine.is_idle() {
            self.engine_idle(engine_id);
        }
        self.touch(&model);
    }

    /// An attempt is gone with its engine or host. How much of it has reached the client only the gateway
    /// knows: it ends the job if anything has, else it waits for the next attempt.
    pub(crate) fn attempt_lost(&mut self, id: JobId, attempt: Attempt, error: &ApiError) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        if !matches!(job.phase, JobPhase::Running { attempt: current, .. } if current == attempt) {
            return;
        }
        if job.cancelled {
            self.end(id, Verdict::Cancelled);
            return;
        }
        self.emit(Effect::AttemptLost { job: id, attempt, error: error.clone() });
        self.retry(id, error.clone());
    }

    /// Puts a job whose attempt came to nothing back into the queue, or ends it.
    pub(crate) fn retry(&mut self, id: JobId, mut error: ApiError) {
        let max = self.state.policy.max_attempts;
        let failure = self.state.model_of(id).and_then(|model| model.last_failure.clone());
        let Some(job) = self.state.jobs.get_mut(&id) else { return };
        if job.attempts >= max {
            // What the attempt saw (a refused connection, say) seldom says why.
            if let Some(failure) = failure.filter(|failure| !error.message.contains(failure.as_str())) {
                error.message =
                    format!("{}; the last engine of `{}` failed: {failure}", error.message, job.model);
            }
            self.end(id, Verdict::Failed { error, told: false });
            return;
        }
        job.phase = JobPhase::Queued;
        let model = job.model.clone();
        let waits = waiting(job, &self.state.policy);
        if let Some(entry) = self.state.models.get_mut(&model) {
            // What it was counted for it has not had.
            entry.queue.settle(&waits, 0);
            entry.queue.push(id, waits);
        }
        self.places_changed(&model);
        self.emit(Effect::Record(EventBody::JobRetried { job: id, why: error.message }));
        self.emit(Effect::Tell { job: id, stage: Stage::Queued, position: 0, eta: None });
        self.touch(&model);
    }

    pub(crate) fn dispatch_refused(&mut self, id: JobId, attempt: Attempt, why: &Refusal) {
        let phase = self.state.jobs.get(&id).map(|job| job.phase);
        let Some(JobPhase::Running { engine, attempt: current }) = phase.filter(|phase| phase.is_running())
        else {
            self.forget_dispatch(id, attempt);
            return;
        };
        if current != attempt {
            self.forget_dispatch(id, attempt);
            return;
        }
        let Some(job) = self.state.jobs.get_mut(&id) else { return };
        let cancelled = job.cancelled;
        if matches!(why, Refusal::Busy | Refusal::Silent(_)) {
            // The host's slots are taken by express jobs that it has yet to tell of, or it is away and not yet counted
            // as lost: not the job's fault.
            job.attempts = job.attempts.saturating_sub(1);
        }
        self.hold(engine, if *why == Refusal::Busy { BUSY_PAUSE } else { SILENT_PAUSE });
        if let Some(target) = self.state.engines.get_mut(&engine) {
            target.running.remove(&id);
            // A host that is full closes its lane by itself.
            target.lane = None;
            self.state.strays.remove(&(id, engine));
            let (idle, host) = (target.is_idle(), target.host.clone());
            if *why != Refusal::Busy {
                // It may have been taken all the same, its answer lost.
                self.emit(Effect::CancelAttempt { job: id, attempt, host });
            }
            if idle {
                self.engine_idle(engine);
            }
        }
        if cancelled {
            self.end(id, Verdict::Cancelled);
            return;
        }
        let message = match why {
            Refusal::Busy => "the engine's slots were taken".to_owned(),
            Refusal::Failed(message) | Refusal::Silent(message) => message.clone(),
        };
        let error = ApiError::new(ErrorKind::Unavailable, "dispatch_failed", message)
            .retry_after(Duration::from_secs(5));
        self.retry(id, error);
    }

    /// A dispatch was not taken whose job an earlier attempt has ended meanwhile: its slot is free again.
    fn forget_dispatch(&mut self, id: JobId, attempt: Attempt) {
        let has = |engine: &Engine| engine.attempt_of(id) == Some(attempt);
        let engine = self.state.engines.iter().find(|(_, engine)| has(engine)).map(|(id, _)| *id);
        if let Some(engine) = engine {
            self.free_slot(id, attempt, engine);
        }
    }

    /// Sends nothing to an engine for a moment: its books at the host differ from ours, or it does not answer.
    fn hold(&mut self, id: EngineId, pause: Duration) {
        let until = self.now.plus(pause);
        if let Some(engine) = self.state.engines.get_mut(&id) {
            engine.held_until = engine.held_until.max(Some(until));
            self.state.timers.set(until, Due::Held(id));
        }
    }

    pub(crate) fn release_hold(&mut self, id: EngineId) {
        let Some(engine) = self.state.engines.get_mut(&id) else { return };
        if engine.held_until.is_some_and(|until| until <= self.now) {
            engine.held_until = None;
            let model = engine.model.clone();
            self.touch(&model);
        }
    }

    pub(crate) fn deadline_due(&mut self, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let late = job.deadline.is_some_and(|deadline| deadline <= self.now);
        if job.phase == JobPhase::Queued && late {
            let waited = self.now.since(job.arrival).as_secs();
            let (code, why) = if job.hurried {
                ("deadline_exceeded", "its deadline passed before it could start")
            } else {
                ("wait_limit", "may wait no longer for its start")
            };
            let error =
                ApiError::new(ErrorKind::Expired, code, format!("the job waited {waited} s and {why}"));
            self.end(id, Verdict::Failed { error, told: false });
        }
    }

    /// Ends a job, once.
    pub(crate) fn end(&mut self, id: JobId, verdict: Verdict) {
        let Some(job) = self.state.jobs.remove(&id) else { return };
        if let Some(deadline) = job.deadline {
            self.state.timers.unset(deadline, Due::Deadline(id));
        }
        if let Some(model) = self.state.models.get_mut(&job.model) {
            if model.queue.remove(id) {
                self.places_changed(&job.model);
            }
            self.touch(&job.model);
        }
        if let Some(key) = &job.key
            && let Some(count) = self.state.of_key.get_mut(key)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.state.of_key.remove(key);
            }
        }
        let outcome = match &verdict {
            Verdict::Completed => "completed".to_owned(),
            Verdict::Cancelled => "cancelled".to_owned(),
            Verdict::Failed { error, .. } => error.code.clone(),
        };
        self.state.over.insert(id);
        self.emit(Effect::Record(EventBody::JobEnded { job: id, model: job.model, outcome }));
        self.emit(Effect::End { job: id, verdict });
    }

    /// Ends every waiting job of a model with the same error.
    pub(crate) fn fail_queue(&mut self, model: &ModelId, error: &ApiError) {
        let Some(entry) = self.state.models.get(model) else { return };
        let jobs: Vec<JobId> = entry.queue.ids().collect();
        for job in jobs {
            self.end(job, Verdict::Failed { error: error.clone(), told: false });
        }
    }

    /// An engine runs nothing any more.
    pub(crate) fn engine_idle(&mut self, id: EngineId) {
        let Some(engine) = self.state.engines.get(&id) else { return };
        if engine.phase != EnginePhase::Ready {
            return;
        }
        if !self.state.models.contains_key(&engine.model) {
            self.stop(id, "its model was taken out of the catalog".into());
            return;
        }
        if let Some(claimant) = engine.draining_for.clone() {
            let plan = self.state.models.get(&claimant).and_then(|model| model.plan.as_ref());
            let stops = plan.is_none_or(|plan| plan.stops);
            self.make_way(id, stops, format!("drained: {claimant} has waited too long for its room"));
            return;
        }
        if self.state.wanting.len() > 0 {
            self.room_changed();
        }
        self.set_idle_timer(id);
    }
}

/// A job as its model's queue sees it.
fn waiting(job: &Job, policy: &Policy) -> Waiting {
    Waiting {
        arrival: job.arrival,
        limit: job.arrival.plus(policy.max_wait_of(job.class)),
        key: job.key.clone(),
        session: job.session.clone(),
        class: job.class,
        tokens: job.tokens,
    }
}
