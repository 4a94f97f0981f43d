//! What people ask of jobs and models: shown, loaded, unloaded, pinned.

use actix::{ActorFutureExt, Context, Handler, Message, ResponseActFuture, WrapFuture};
use berth_bus::{Bus, BusError, amend_json, get_json};
use berth_config::SchedulerConfig;
use berth_placement::{EnginePhase, Event, ModelFacts};
use berth_wire::{
    AdapterSpec, AdapterView, ApiError, ErrorKind, EventBody, HintView, LEASE_TTL, ModelId, ModelSpec,
    ModelView, OperateReply, OperateRequest, PolicySettings, slug,
};
use tracing::info;

use super::Leader;
use crate::effects::record;
use crate::translate;

/// Jobs in one answer, which must fit into a message of 1 MiB.
const LISTED: usize = 1000;

/// Somebody asks something.
#[derive(Message)]
#[rtype(result = "OperateReply")]
pub(crate) struct Operated(pub(crate) OperateRequest);

impl Handler<Operated> for Leader {
    type Result = ResponseActFuture<Self, OperateReply>;

    fn handle(&mut self, Operated(request): Operated, ctx: &mut Self::Context) -> Self::Result {
        let at_once = match request {
            OperateRequest::Pin { model, pin } => return self.pin(model, pin, None),
            OperateRequest::Unload { model, host, force: true }
                if host.is_none() && self.catalog.get(&model).is_some_and(|spec| spec.pin) =>
            {
                // Else it would be loaded again at once.
                let then = OperateRequest::Unload { model: model.clone(), host, force: true };
                return self.pin(model, false, Some(then));
            }
            other => self.operate(other, ctx),
        };
        let reply = at_once.unwrap_or_else(OperateReply::Refused);
        Box::pin(std::future::ready(reply).into_actor(self))
    }
}

impl Leader {
    fn operate(
        &mut self,
        request: OperateRequest,
        ctx: &mut Context<Self>,
    ) -> Result<OperateReply, ApiError> {
        let now = self.clock.now();
        match request {
            OperateRequest::Explain { job, key } => {
                let mine = key.is_none() || self.state.key_of(job) == key.as_ref();
                let why = self.state.job_why(job, now).filter(|_| mine).ok_or_else(no_such_job)?;
                Ok(OperateReply::Explained(Box::new(why)))
            }
            OperateRequest::Jobs { waiting, limit, key } => {
                let limit = usize::try_from(limit).unwrap_or(LISTED).min(LISTED);
                let (jobs, total) = self.state.job_views(waiting, key.as_ref(), limit, now);
                Ok(OperateReply::Jobs { jobs, total: total as u64 })
            }
            OperateRequest::Models => Ok(OperateReply::Models(
                self.catalog
                    .values()
                    .filter_map(|spec| Some(view(spec, self.state.model_facts(&spec.id, now)?)))
                    .collect(),
            )),
            OperateRequest::Load { model, host } => {
                self.feed(Event::LoadAsked { model: model.clone(), host }, ctx);
                self.refused()?;
                let facts = self.state.model_facts(&model, now);
                Ok(OperateReply::Done {
                    already: facts.as_ref().is_some_and(|facts| !facts.asked_for),
                    engines: facts.map(engines_of).unwrap_or_default(),
                })
            }
            OperateRequest::Unload { model, host, force } => {
                let facts = self.state.model_facts(&model, now);
                let there = |at: &berth_wire::HostId| host.as_ref().is_none_or(|host| host == at);
                let engines = facts.map(|facts| facts.engines).unwrap_or_default();
                let engines: Vec<_> =
                    engines.into_iter().filter(|(_, at, _)| there(at)).map(|(id, ..)| id).collect();
                self.feed(Event::UnloadAsked { model, host, force }, ctx);
                self.refused()?;
                Ok(OperateReply::Done { already: engines.is_empty(), engines })
            }
            OperateRequest::Hints { session, key } => {
                let mut hints = self.state.hints(now);
                hints.retain(|hint| session.as_ref().is_none_or(|s| hint.session == *s) && is_of(hint, &key));
                Ok(OperateReply::Hints(hints))
            }
            OperateRequest::Withdraw { session, model, key } => {
                let given = self.state.hints(now).into_iter().filter(|hint| {
                    hint.session == session
                        && model.as_ref().is_none_or(|model| hint.model == *model)
                        && is_of(hint, &key)
                });
                let models: Vec<ModelId> = given.map(|hint| hint.model).collect();
                for model in &models {
                    let (session, model) = (session.clone(), Some(model.clone()));
                    self.feed(Event::HintWithdrawn { session, model }, ctx);
                }
                Ok(OperateReply::Withdrawn { models })
            }
            OperateRequest::Pin { .. } => {
                Err(ApiError::new(ErrorKind::Internal, "internal_error", "a pin is written, not decided"))
            }
        }
    }

    fn refused(&mut self) -> Result<(), ApiError> {
        self.leases.refused.take().map_or(Ok(()), Err)
    }

    /// Writes the pin into the catalog, from which everybody reads it; and goes on with what was asked.
    fn pin(
        &mut self,
        model: ModelId,
        pin: bool,
        then: Option<OperateRequest>,
    ) -> ResponseActFuture<Self, OperateReply> {
        let bus = self.carrier.bus.clone();
        let written = async move { write_pin(&bus, &model, pin).await };
        Box::pin(written.into_actor(self).map(move |written, leader, ctx| match (written, then) {
            (Err(error), _) => OperateReply::Refused(error),
            (Ok(_), Some(then)) => {
                if let OperateRequest::Unload { model, .. } = &then {
                    leader.unpinned(model, ctx);
                }
                leader.operate(then, ctx).unwrap_or_else(OperateReply::Refused)
            }
            (Ok(changed), None) => OperateReply::Done { engines: Vec::new(), already: !changed },
        }))
    }

    /// The catalog's own word comes a moment later.
    fn unpinned(&mut self, model: &ModelId, ctx: &mut Context<Self>) {
        if let Some(spec) = self.catalog.get_mut(model) {
            std::sync::Arc::make_mut(spec).pin = false;
        }
        let needs = self.catalog.values().map(|spec| translate::needs(spec)).collect();
        self.feed(Event::Catalog(needs), ctx);
    }
}

/// The fleet's policy is another one from here on.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct PolicyChanged(pub(crate) PolicySettings);

impl Handler<PolicyChanged> for Leader {
    type Result = ();

    fn handle(&mut self, PolicyChanged(settings): PolicyChanged, ctx: &mut Self::Context) {
        let policy = translate::policy(&SchedulerConfig::default().under(&settings));
        if policy == *self.state.policy() {
            return;
        }
        info!("following another policy from here on");
        self.lease_ttl = LEASE_TTL.min(policy.lease_ceiling);
        self.feed(Event::Policy(Box::new(policy)), ctx);
    }
}

/// Whether it changed anything.
async fn write_pin(bus: &Bus, model: &ModelId, pin: bool) -> Result<bool, ApiError> {
    let failed = |error: BusError| {
        ApiError::new(
            ErrorKind::Unavailable,
            "catalog_not_written",
            format!("the catalog is not written: {error}"),
        )
    };
    let store = bus.bucket("catalog").await.map_err(failed)?;
    let key = slug::encode(model.as_str());
    loop {
        let Some((mut spec, revision)) = get_json::<ModelSpec>(&store, &key).await.map_err(failed)? else {
            let message = format!("the model `{model}` is not in the catalog");
            return Err(ApiError::new(ErrorKind::ModelNotFound, "model_not_found", message).param("model"));
        };
        if spec.is_found() {
            let message =
                format!("`{model}` is served by a server that somebody else runs, and cannot be pinned");
            return Err(ApiError::new(ErrorKind::InvalidRequest, "model_not_ours", message).param("model"));
        }
        if spec.pin == pin {
            return Ok(false);
        }
        spec.pin = pin;
        if amend_json(&store, &key, &spec, revision).await.map_err(failed)?.is_some() {
            record(bus, EventBody::ModelPinned { model: model.clone(), pin }).await;
            return Ok(true);
        }
        // Somebody else wrote it: look again.
    }
}

fn is_of(hint: &HintView, key: &Option<berth_wire::KeyId>) -> bool {
    key.is_none() || hint.key == *key
}

fn engines_of(facts: ModelFacts) -> Vec<berth_wire::EngineId> {
    facts.engines.into_iter().map(|(id, ..)| id).collect()
}

fn no_such_job() -> ApiError {
    ApiError::new(
        ErrorKind::InvalidRequest,
        "job_not_found",
        "no such job waits or runs: it has ended, or took the express lane",
    )
}

fn view(spec: &ModelSpec, facts: ModelFacts) -> ModelView {
    let mut hosts: Vec<_> = facts.engines.iter().map(|(_, host, _)| host.clone()).collect();
    hosts.sort();
    hosts.dedup();
    let best = facts.engines.iter().map(|(_, _, phase)| rank(*phase)).max();
    let state = match (best, &facts.error) {
        (None, Some(error)) if error.kind == ErrorKind::CannotFit => "cannot_fit",
        (None, Some(error)) if error.code == "host_drained" => "stopped",
        (None, Some(_)) => "failed",
        (None, None) => "stopped",
        (Some((_, name)), _) => name,
    };
    ModelView {
        model: spec.id.clone(),
        aliases: spec.aliases.clone(),
        engine: spec.engine.kind.as_str().into(),
        state: state.into(),
        hosts,
        engines: facts.engines.iter().map(|(id, ..)| *id).collect(),
        pinned: spec.pin,
        memory: spec.memory,
        estimated: facts.estimated,
        measured: facts.measured,
        context: spec.context,
        concurrency: spec.concurrency,
        waiting: facts.waiting as u64,
        running: facts.running as u64,
        wait_s: facts.wait_s,
        leases: facts.leases as u64,
        hints: facts.hints as u64,
        asked_for: facts.asked_for,
        error: facts.error.map(|error| error.message),
        adapters: spec.adapters.iter().map(adapter).collect(),
    }
}

/// Who holds it the engines' own records say.
fn adapter(spec: &AdapterSpec) -> AdapterView {
    AdapterView { model: spec.id.clone(), aliases: spec.aliases.clone(), engines: Vec::new() }
}

fn rank(phase: EnginePhase) -> (u8, &'static str) {
    match phase {
        EnginePhase::Ready => (4, "ready"),
        EnginePhase::Ordered | EnginePhase::Starting | EnginePhase::Waking => (3, "loading"),
        EnginePhase::Sleeping | EnginePhase::FallingAsleep => (2, "sleeping"),
        EnginePhase::Stopping => (1, "stopping"),
    }
}
