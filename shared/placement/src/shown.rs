//! What people are shown of jobs and models.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_wire::{ApiError, EngineId, HostId, JobId, JobView, JobWhy, KeyId, ModelId, PlaceView, Timestamp};

use crate::books::{Engine, EnginePhase, Job, JobPhase, Model};
use crate::explain::{Explanation, Place};
use crate::scene::Scene;
use crate::state::State;

/// So many models are told why their jobs wait in one answer: each takes a search.
const TOLD: usize = 32;

/// What the core knows of a model.
#[derive(Debug, Clone)]
pub struct ModelFacts {
    /// Its engines, where each is and its phase.
    pub engines: Vec<(EngineId, HostId, EnginePhase)>,
    /// Jobs that wait.
    pub waiting: usize,
    /// Jobs that run.
    pub running: usize,
    /// What a job submitted now may expect to wait, in seconds.
    pub wait_s: Option<f64>,
    /// Sessions with a lease on it.
    pub leases: usize,
    /// Hints of it.
    pub hints: usize,
    /// An operator asked for an engine.
    pub asked_for: bool,
    /// Bytes that it is estimated to take, by its files.
    pub estimated: Option<u64>,
    /// Most bytes that were measured, of an engine run as it is configured now.
    pub measured: Option<u64>,
    /// Why it has no engine and gets none: it is given up for now, the last start failed, or it fits nowhere.
    pub error: Option<ApiError>,
}

impl State {
    /// Whose job it is; `None`: it is not known, or came with no key.
    #[must_use]
    pub fn key_of(&self, job: JobId) -> Option<&KeyId> {
        self.jobs.get(&job)?.key.as_ref()
    }

    /// The jobs that have not ended, those that wait first and each the oldest first, and how many there are.
    #[must_use]
    pub fn job_views(
        &self,
        waiting: bool,
        key: Option<&KeyId>,
        limit: usize,
        now: Timestamp,
    ) -> (Vec<JobView>, usize) {
        let mine = |of: Option<&KeyId>| key.is_none_or(|key| of == Some(key));
        let mut jobs: Vec<(&JobId, &Job)> = self
            .jobs
            .iter()
            .filter(|(_, job)| mine(job.key.as_ref()) && !(waiting && job.phase.is_running()))
            .collect();
        jobs.sort_by_key(|(id, job)| (job.phase.is_running(), job.arrival, **id));
        let express = self.engines.iter().flat_map(|(id, engine)| {
            engine.express.iter().map(move |(job, entry)| (*job, *id, engine, entry.counted.as_ref()))
        });
        let express: Vec<_> = express
            .filter(|(_, _, _, counted)| !waiting && mine(counted.and_then(|counted| counted.key.as_ref())))
            .collect();
        let total = jobs.len() + express.len();
        let mut reasons = BTreeMap::new();
        let mut views: Vec<JobView> = jobs
            .into_iter()
            .take(limit)
            .map(|(id, job)| self.job_view(*id, job, &mut reasons, now))
            .collect();
        let left = limit.saturating_sub(views.len());
        views.extend(express.into_iter().take(left).map(|(job, id, engine, counted)| JobView {
            job,
            model: engine.model.clone(),
            running: true,
            position: None,
            class: counted.map(|counted| counted.class).unwrap_or_default(),
            session: counted.and_then(|counted| counted.session.clone()),
            key: counted.and_then(|counted| counted.key.clone()),
            age_s: counted.map_or(0.0, |counted| seconds(now.since(counted.arrival))),
            eta_s: None,
            why: None,
            engine: Some(id),
            host: Some(engine.host.clone()),
            attempts: 1,
        }));
        (views, total)
    }

    fn job_view<'a>(
        &'a self,
        id: JobId,
        job: &'a Job,
        reasons: &mut BTreeMap<&'a ModelId, String>,
        now: Timestamp,
    ) -> JobView {
        let model = self.models.get(&job.model);
        let engine = match job.phase {
            JobPhase::Running { engine, .. } => Some(engine),
            JobPhase::Queued => None,
        };
        let position = model.filter(|_| engine.is_none()).map_or(0, |model| model.queue.position(id));
        let mut why = None;
        let mut eta_s = None;
        if let (Some(model), None) = (model, engine) {
            if reasons.len() < TOLD || reasons.contains_key(&job.model) {
                let reason = reasons.entry(&job.model).or_insert_with(|| Scene::new(self, now).reason(model));
                why = Some(reason.clone());
            }
            eta_s = self.expected_wait(model, position, now).map(seconds);
        }
        JobView {
            job: id,
            model: job.model.clone(),
            running: engine.is_some(),
            position: engine.is_none().then_some(position as u64),
            class: job.class,
            session: job.session.clone(),
            key: job.key.clone(),
            age_s: seconds(now.since(job.arrival)),
            eta_s,
            why,
            engine,
            host: engine.and_then(|engine| Some(self.engines.get(&engine)?.host.clone())),
            attempts: job.attempts,
        }
    }

    /// Why a job is where it is; `None`: it is not known, or has ended.
    #[must_use]
    pub fn job_why(&self, id: JobId, now: Timestamp) -> Option<JobWhy> {
        let Explanation { why, model_waited_s, places, .. } = self.explain(id, now)?;
        let mut job = self.job_view(id, self.jobs.get(&id)?, &mut BTreeMap::new(), now);
        job.why = Some(why);
        let model_waited_s = to_millis(model_waited_s);
        Some(JobWhy { job, model_waited_s, places: places.into_iter().map(place).collect() })
    }

    /// What the core knows of a model.
    #[must_use]
    pub fn model_facts(&self, id: &ModelId, now: Timestamp) -> Option<ModelFacts> {
        let model = self.models.get(id)?;
        let engines = || model.engines.iter().filter_map(|id| Some((*id, self.engines.get(id)?)));
        Some(ModelFacts {
            engines: engines().map(|(id, engine)| (id, engine.host.clone(), engine.phase)).collect(),
            waiting: model.queue.len(),
            running: engines().map(|(_, engine): (_, &Engine)| engine.taken()).sum(),
            wait_s: self.expected_wait(model, model.queue.len(), now).map(seconds),
            leases: model.leases.len(),
            hints: model.hints.count(),
            asked_for: model.load.is_some(),
            estimated: model.estimate,
            measured: self.measured(model),
            error: self.standing(model, now),
        })
    }

    /// What stands in the way of the model's engines. How the last start failed is told until somebody asks again, though
    /// it may be tried again before.
    fn standing(&self, model: &Model, now: Timestamp) -> Option<ApiError> {
        let none = model.engines.is_empty();
        match &model.blocked {
            Some((until, error)) if none || *until > now => Some(error.clone()),
            _ if none => self.cannot_serve(&model.needs.id, now),
            _ => None,
        }
    }

    /// Why no engine of the model can be had, now or ever.
    pub(crate) fn cannot_serve(&self, id: &ModelId, now: Timestamp) -> Option<ApiError> {
        let model = self.models.get(id)?;
        if let Some((until, error)) = &model.blocked
            && *until > now
        {
            return Some(error.clone().retry_after(until.since(now)));
        }
        let fits = self.fits_somewhere(model);
        let known = self.settled && !self.hosts.is_empty() && !self.one_is_leaving(id);
        (known && !fits).then(|| self.cannot_fit(id))
    }

    fn measured(&self, model: &Model) -> Option<u64> {
        let learned = self.profiles.get(&model.needs.id)?.values();
        let current = learned.filter(|learned| learned.profile.config == model.needs.config);
        current.filter_map(|learned| learned.profile.peak_memory).max()
    }
}

fn place(place: Place) -> PlaceView {
    PlaceView {
        host: place.host,
        accelerators: place.accelerators,
        evicts: place.victims.into_iter().map(|(_, model)| model).collect(),
        wake: place.wake,
        loss_s: to_millis(place.loss_s),
        drain_s: to_millis(place.drain_s),
        start_s: to_millis(place.start_s),
        cost_s: to_millis(place.cost_s),
    }
}

/// As people are shown it: no clock here tells less than a millisecond.
pub(crate) fn seconds(span: Duration) -> f64 {
    to_millis(span.as_secs_f64())
}

fn to_millis(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}
