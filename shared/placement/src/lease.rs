//! Leases: a session's claim that a model stays warm. They weigh in the choice of victims and load a model that
//! is not there onto room that is idle; they are capped, and jobs that have waited too long override them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use berth_wire::{ApiError, ErrorKind, KeyId, Lease, LeaseState, ModelId, SessionId, Timestamp};
use serde::Serialize;

use crate::books::{EnginePhase, Model};
use crate::effect::Effect;
use crate::scene::Scene;
use crate::state::{State, Step};
use crate::timers::Due;

/// A lease in the books.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) lease: Lease,
    /// The expiry that was last handed out to be kept.
    kept: Timestamp,
}

/// With leases on more models than this, those that count are found anew no more often than this.
const MANY: usize = 64;
const NOT_BEFORE: Duration = Duration::from_millis(250);

/// Leases in the orders in which they are asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Order {
    /// By model, the oldest first.
    on: BTreeMap<ModelId, BTreeSet<(Timestamp, SessionId)>>,
    /// The oldest of each model.
    first: BTreeSet<(Timestamp, SessionId, ModelId)>,
    expiries: BTreeSet<(Timestamp, SessionId, ModelId)>,
    /// By API key; those without one are one caller.
    of_key: BTreeMap<Option<KeyId>, usize>,
}

impl Order {
    fn insert(&mut self, lease: &Lease) {
        self.change(&lease.model, |on| on.insert((lease.since, lease.session.clone())));
        self.expiries.insert((lease.expires, lease.session.clone(), lease.model.clone()));
        *self.of_key.entry(lease.key.clone()).or_default() += 1;
    }

    fn remove(&mut self, lease: &Lease) {
        self.change(&lease.model, |on| on.remove(&(lease.since, lease.session.clone())));
        self.expiries.remove(&(lease.expires, lease.session.clone(), lease.model.clone()));
        if let Some(count) = self.of_key.get_mut(&lease.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of_key.remove(&lease.key);
            }
        }
    }

    fn change(
        &mut self,
        model: &ModelId,
        change: impl FnOnce(&mut BTreeSet<(Timestamp, SessionId)>) -> bool,
    ) {
        let on = self.on.entry(model.clone()).or_default();
        let before = on.first().cloned();
        change(on);
        let after = on.first().cloned();
        if after.is_none() {
            self.on.remove(model);
        }
        if before == after {
            return;
        }
        if let Some((since, session)) = before {
            self.first.remove(&(since, session, model.clone()));
        }
        if let Some((since, session)) = after {
            self.first.insert((since, session, model.clone()));
        }
    }
}

/// A lease as its holder sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeaseView {
    /// The lease.
    #[serde(flatten)]
    pub lease: Lease,
    /// How near its model is.
    pub state: LeaseState,
    /// Who goes before: jobs of the model that wait and, while it has no engine, models that have room before it.
    pub position: usize,
    /// When the model is expected to be ready, in seconds; `None`: not known.
    pub eta_s: Option<f64>,
}

impl State {
    /// Every lease, by session.
    #[must_use]
    pub fn leases(&self, now: Timestamp) -> Vec<LeaseView> {
        let mut near: BTreeMap<&ModelId, Near> = BTreeMap::new();
        let known = self.leases.values().filter_map(|held| Some((held, self.models.get(&held.lease.model)?)));
        known
            .map(|(held, model)| {
                let near = near.entry(&held.lease.model).or_insert_with(|| self.near(model, now));
                near.seen_by(&held.lease)
            })
            .collect()
    }

    /// Models on which the session has leases.
    fn leases_of(&self, session: &SessionId) -> impl Iterator<Item = &ModelId> {
        let from = (session.clone(), ModelId::from(""));
        let of_session = move |of: &SessionId| of == &from.0;
        self.leases
            .range((session.clone(), ModelId::from(""))..)
            .map(|((of, on), _)| (of, on))
            .take_while(move |(of, _)| of_session(of))
            .map(|(_, on)| on)
    }

    /// One lease.
    #[must_use]
    pub fn lease(&self, session: &SessionId, model: &ModelId, now: Timestamp) -> Option<LeaseView> {
        let held = self.leases.get(&(session.clone(), model.clone()))?;
        Some(self.near(self.models.get(model)?, now).seen_by(&held.lease))
    }

    /// How near a model is for those who hold leases on it.
    fn near(&self, model: &Model, now: Timestamp) -> Near {
        let scene = Scene::new(self, now);
        let engines = || model.engines.iter().filter_map(|id| self.engines.get(id));
        let position = model.queue.len();
        if engines().any(|engine| engine.phase == EnginePhase::Ready) {
            return Near { state: LeaseState::Ready, position, eta_s: Some(0.0) };
        }
        if engines().any(|engine| engine.phase.is_loading()) {
            let loading = engines().filter(|engine| engine.phase.is_loading());
            let eta_s = loading.filter_map(|engine| scene.start_left(engine)).min_by(f64::total_cmp);
            return Near { state: LeaseState::Loading, position, eta_s };
        }
        let outlook = scene.lease_outlook(model);
        Near { state: LeaseState::Queued, position: position + outlook.before, eta_s: outlook.ready }
    }
}

/// How near a model is.
struct Near {
    state: LeaseState,
    position: usize,
    eta_s: Option<f64>,
}

impl Near {
    fn seen_by(&self, lease: &Lease) -> LeaseView {
        LeaseView { lease: lease.clone(), state: self.state, position: self.position, eta_s: self.eta_s }
    }
}

impl State {
    /// Models whose leases count: the oldest leases first, until their engines hold the share of the
    /// accelerators' memory that leases may keep.
    fn find_protected(&self, shares: &mut HashMap<ModelId, f64>) -> BTreeSet<ModelId> {
        let mut protected = BTreeSet::new();
        let most = libm::ceil(self.yard.accelerators() as f64 * self.policy.lease_share);
        let mut kept = 0.0;
        for (_, _, id) in &self.lease_order.first {
            let Some(model) = self.models.get(id) else { continue };
            kept += *shares.entry(id.clone()).or_insert_with(|| self.accelerators_of(model));
            if kept > most {
                break;
            }
            protected.insert(id.clone());
        }
        protected
    }

    /// Brings them up to date; where there are many, not at every change.
    pub(crate) fn refresh_protected(&mut self, now: Timestamp) {
        let soon = self.lease_order.first.len() > MANY && now.since(self.protected_at) < NOT_BEFORE;
        if !self.protected_stale || soon {
            return;
        }
        self.protected_stale = false;
        self.protected_at = now;
        let mut shares = std::mem::take(&mut self.shares);
        self.protected = self.find_protected(&mut shares);
        self.shares = shares;
    }

    /// Accelerators that a model's engines hold, by their share of each one's memory; one that is not there yet
    /// counts with what it will take.
    fn accelerators_of(&self, model: &Model) -> f64 {
        let engines = model.engines.iter().filter_map(|id| self.engines.get(id));
        let mut up = engines.filter(|engine| engine.phase != EnginePhase::Sleeping).peekable();
        if up.peek().is_none() {
            let share = self
                .yard
                .sorts()
                .map(|device| part(self.need_on(model, device), device.memory))
                .fold(1.0, f64::min);
            return share * f64::from(model.needs.accelerators);
        }
        up.filter_map(|engine| Some((engine, self.hosts.get(&engine.host)?)))
            .flat_map(|(engine, host)| {
                host.devices.iter().map(move |device| part(engine.awake_on(&device.id), device.memory))
            })
            .sum()
    }
}

/// Why a lease cannot last for so long. It is not cut to what may be had: its holder would count on the rest.
fn out_of_range(ttl: Duration, ceiling: Duration) -> Option<ApiError> {
    if (Duration::from_secs(1)..=ceiling).contains(&ttl) {
        return None;
    }
    let message = format!(
        "a lease lasts for 1 to {} s here ([scheduler] lease_ceiling), and {} s were asked for (ttlSeconds, --ttl); \
         a lease can be renewed as often as it is needed",
        ceiling.as_secs_f64(),
        ttl.as_secs_f64(),
    );
    Some(ApiError::new(ErrorKind::InvalidRequest, "invalid_value", message).param("ttlSeconds"))
}

fn part(bytes: u64, of: u64) -> f64 {
    bytes as f64 / of.max(1) as f64
}

impl Step<'_> {
    pub(crate) fn lease_asked(
        &mut self,
        session: SessionId,
        model: ModelId,
        key: Option<KeyId>,
        ttl: Duration,
        keep_context: Option<bool>,
    ) {
        let refusal = self
            .refusal(&model)
            .or_else(|| out_of_range(ttl, self.state.policy.lease_ceiling))
            .or_else(|| self.context_is_lost(&model).filter(|_| keep_context == Some(true)));
        if let Some(error) = refusal {
            self.emit(Effect::LeaseRefused { session, model, error });
            return;
        }
        let (since, kept) = match self.state.leases.get(&(session.clone(), model.clone())) {
            Some(held) => (held.lease.since, held.lease.keep_context),
            None => {
                if let Some(error) = self.lease_cap(&session, key.as_ref()) {
                    self.emit(Effect::LeaseRefused { session, model, error });
                    return;
                }
                (self.now, false)
            }
        };
        let (expires, keep_context) = (self.now.plus(ttl), keep_context.unwrap_or(kept));
        self.keep_lease(Lease { session, model, key, since, ttl, expires, keep_context });
    }

    /// Why neither a lease on the model nor a hint of it would lead to anything.
    pub(crate) fn refusal(&self, model: &ModelId) -> Option<ApiError> {
        if self.state.models.contains_key(model) {
            return self.state.cannot_serve(model, self.now);
        }
        let message = format!("the model `{model}` is not in the catalog");
        Some(ApiError::new(ErrorKind::ModelNotFound, "model_not_found", message).param("model"))
    }

    /// Why what its engines have read of a session does not outlast them. A lease without it would not be what was
    /// asked for.
    fn context_is_lost(&self, id: &ModelId) -> Option<ApiError> {
        let model = self.state.models.get(id)?;
        if model.needs.keeps_context {
            return None;
        }
        let message = format!(
            "the context of a session on `{id}` cannot be kept (keepContext, --keep-context): only that of a \
             llama.cpp that Berth runs without adapters can, unless its configuration says keep_context = \"off\"; \
             ask for the lease without it"
        );
        Some(ApiError::new(ErrorKind::InvalidRequest, "invalid_value", message).param("keepContext"))
    }

    /// Why the session or its key may hold no more.
    fn lease_cap(&self, session: &SessionId, key: Option<&KeyId>) -> Option<ApiError> {
        let policy = &self.state.policy;
        let of_session = self.state.leases_of(session).count();
        let of_key = self.state.lease_order.of_key.get(&key.cloned()).copied().unwrap_or(0);
        let (held, most, name) = if of_session >= policy.leases_per_session {
            (
                format!("this session holds {of_session} leases"),
                policy.leases_per_session,
                "leases_per_session",
            )
        } else if of_key >= policy.leases_per_key {
            let who = if key.is_some() { "this API key holds" } else { "callers without an API key hold" };
            (format!("{who} {of_key} leases"), policy.leases_per_key, "leases_per_key")
        } else {
            return None;
        };
        let soonest = self.state.lease_order.expiries.first().map(|(at, _, _)| at.since(self.now));
        let error = ApiError::new(
            ErrorKind::Overloaded,
            "too_many_leases",
            format!("{held}, and {most} is the most ([scheduler] {name}); release one first"),
        );
        Some(
            error.retry_after(
                soonest.unwrap_or_default().clamp(Duration::from_secs(1), Duration::from_secs(60)),
            ),
        )
    }

    fn keep_lease(&mut self, lease: Lease) {
        let model = lease.model.clone();
        let kept = lease.expires;
        self.enter_lease(lease.clone(), kept);
        self.emit(Effect::LeaseKept(lease));
        self.touch(&model);
    }

    fn enter_lease(&mut self, lease: Lease, kept: Timestamp) {
        let id = (lease.session.clone(), lease.model.clone());
        if let Some(model) = self.state.models.get_mut(&lease.model) {
            model.leases.insert(lease.session.clone());
        }
        self.state.timers.set(lease.expires, Due::Lease(id.0.clone(), id.1.clone()));
        let before = self.state.leases.remove(&id).map(|held| held.lease);
        if let Some(before) = &before {
            if before.expires != lease.expires {
                self.state.timers.unset(before.expires, Due::Lease(id.0.clone(), id.1.clone()));
            }
            self.state.lease_order.remove(before);
        }
        self.state.protected_stale |= before.is_none_or(|before| before.since != lease.since);
        self.state.lease_order.insert(&lease);
        self.state.leases.insert(id, Held { lease, kept });
    }

    pub(crate) fn leases_restored(&mut self, leases: Vec<Lease>) {
        for lease in leases {
            let (model, kept) = (lease.model.clone(), lease.expires);
            self.enter_lease(lease, kept);
            self.touch(&model);
        }
    }

    /// A request of a session carries its lease on the model on.
    pub(crate) fn renew_lease(&mut self, session: &SessionId, model: &ModelId) {
        let Some(held) = self.state.leases.get(&(session.clone(), model.clone())) else { return };
        let (mut lease, kept) = (held.lease.clone(), held.kept);
        lease.expires = lease.expires.max(self.now.plus(lease.ttl));
        // Not written down at every request: what is written may fall short by a quarter of its time.
        if lease.expires.since(kept) >= lease.ttl / 4 {
            self.keep_lease(lease);
        } else {
            self.enter_lease(lease, kept);
        }
    }

    pub(crate) fn lease_released(&mut self, session: &SessionId, model: Option<&ModelId>) {
        let held: Vec<ModelId> = self
            .state
            .leases_of(session)
            .filter(|on| model.is_none_or(|model| model == *on))
            .cloned()
            .collect();
        for model in held {
            self.end_lease(session.clone(), model);
        }
    }

    pub(crate) fn lease_due(&mut self, session: SessionId, model: ModelId) {
        let over = self
            .state
            .leases
            .get(&(session.clone(), model.clone()))
            .is_some_and(|held| held.lease.expires <= self.now);
        if over {
            self.end_lease(session, model);
        }
    }

    fn end_lease(&mut self, session: SessionId, model: ModelId) {
        let Some(held) = self.state.leases.remove(&(session.clone(), model.clone())) else { return };
        self.state.timers.unset(held.lease.expires, Due::Lease(session.clone(), model.clone()));
        self.state.lease_order.remove(&held.lease);
        self.state.protected_stale = true;
        if let Some(entry) = self.state.models.get_mut(&model) {
            entry.leases.remove(&session);
            let idle: Vec<_> = entry.engines.iter().copied().collect();
            for engine in idle {
                // What the lease kept may be idle for too long already.
                self.idle_due(engine);
            }
        }
        self.touch(&model);
        self.room_changed();
        self.emit(Effect::LeaseEnded { session, model });
    }
}
