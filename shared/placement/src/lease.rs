//! Leases: a session's claim that a model stays warm. They weigh in the choice of victims and load a model that
//! is not there onto room that is idle; they are capped, and jobs that have waited too long override them.

use std::collections::BTreeSet;
use std::time::Duration;

use berth_wire::{ApiError, ErrorKind, KeyId, Lease, LeaseState, ModelId, SessionId, Timestamp};
use serde::Serialize;

use crate::books::{EnginePhase, Model};
use crate::effect::Effect;
use crate::scene::Scene;
use crate::site::eligible;
use crate::state::{State, Step};
use crate::timers::Due;

/// A lease in the books.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) lease: Lease,
    /// The expiry that was last handed out to be kept.
    kept: Timestamp,
}

/// A lease as its holder sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeaseView {
    /// The lease.
    #[serde(flatten)]
    pub lease: Lease,
    /// How near its model is.
    pub state: LeaseState,
    /// Jobs of the model that wait now.
    pub position: usize,
    /// When the model is expected to be ready, in seconds; `None`: not known.
    pub eta_s: Option<f64>,
}

impl State {
    /// Every lease, by session.
    #[must_use]
    pub fn leases(&self, now: Timestamp) -> Vec<LeaseView> {
        self.leases.keys().filter_map(|(session, model)| self.lease(session, model, now)).collect()
    }

    /// One lease.
    #[must_use]
    pub fn lease(&self, session: &SessionId, model: &ModelId, now: Timestamp) -> Option<LeaseView> {
        let lease = self.leases.get(&(session.clone(), model.clone()))?.lease.clone();
        let model = self.models.get(model)?;
        let phases: Vec<_> = model
            .engines
            .iter()
            .filter_map(|id| Some((self.engines.get(id)?.phase, self.engines.get(id)?.since)))
            .collect();
        let loading = phases.iter().find(|(phase, _)| phase.is_loading());
        let (state, eta) = if phases.iter().any(|(phase, _)| *phase == EnginePhase::Ready) {
            (LeaseState::Ready, Some(Duration::ZERO))
        } else if let Some((_, since)) = loading {
            (LeaseState::Loading, model.start_took.map(|took| took.saturating_sub(now.since(*since))))
        } else {
            // When there will be room nobody knows.
            (LeaseState::Queued, None)
        };
        let eta_s = eta.map(|eta| eta.as_secs_f64());
        Some(LeaseView { lease, state, position: model.queue.len(), eta_s })
    }
}

impl State {
    /// Models whose leases count: the oldest leases first, until their engines hold the share of the
    /// accelerators' memory that leases may keep.
    pub(crate) fn protected(&self) -> BTreeSet<ModelId> {
        let mut protected = BTreeSet::new();
        if self.leases.is_empty() {
            return protected;
        }
        let accelerators: usize = self.hosts.values().map(|host| host.devices.len()).sum();
        let most = libm::ceil(accelerators as f64 * self.policy.lease_share);
        let mut leases: Vec<&Lease> = self.leases.values().map(|held| &held.lease).collect();
        leases.sort_by_key(|lease| (lease.since, &lease.session, &lease.model));
        let mut kept = 0.0;
        for lease in leases {
            if protected.contains(&lease.model) {
                continue;
            }
            let Some(model) = self.models.get(&lease.model) else { continue };
            kept += self.accelerators_of(model);
            if kept > most {
                break;
            }
            protected.insert(lease.model.clone());
        }
        protected
    }

    /// Accelerators that a model's engines hold, by their share of each one's memory; one that is not there yet
    /// counts with what it will take.
    fn accelerators_of(&self, model: &Model) -> f64 {
        let engines = model.engines.iter().filter_map(|id| self.engines.get(id));
        let mut up = engines.filter(|engine| engine.phase != EnginePhase::Sleeping).peekable();
        if up.peek().is_none() {
            let devices = self.hosts.values().flat_map(|host| &host.devices);
            let share =
                devices.map(|device| part(self.need_on(model, device), device.memory)).fold(1.0, f64::min);
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
    ) {
        let refusal = self.refusal(&model).or_else(|| out_of_range(ttl, self.state.policy.lease_ceiling));
        if let Some(error) = refusal {
            self.emit(Effect::LeaseRefused { session, model, error });
            return;
        }
        let since = match self.state.leases.get(&(session.clone(), model.clone())) {
            Some(held) => held.lease.since,
            None => {
                if let Some(error) = self.lease_cap(&session, key.as_ref()) {
                    self.emit(Effect::LeaseRefused { session, model, error });
                    return;
                }
                self.now
            }
        };
        self.keep_lease(Lease { session, model, key, since, ttl, expires: self.now.plus(ttl) });
    }

    /// Why neither a lease on the model nor a hint of it would lead to anything.
    pub(crate) fn refusal(&self, model: &ModelId) -> Option<ApiError> {
        if self.state.models.contains_key(model) {
            return self.cannot_serve(model);
        }
        let message = format!("the model `{model}` is not in the catalog");
        Some(ApiError::new(ErrorKind::ModelNotFound, "model_not_found", message).param("model"))
    }

    /// Why no engine of the model can be had, now or ever.
    fn cannot_serve(&self, id: &ModelId) -> Option<ApiError> {
        let model = self.state.models.get(id)?;
        if let Some((until, error)) = &model.blocked
            && *until > self.now
        {
            return Some(error.clone().retry_after(until.since(self.now)));
        }
        let scene = Scene { state: self.state, now: self.now, protected: BTreeSet::new() };
        let fits =
            self.state.hosts.values().any(|host| eligible(host, model) && scene.fits_empty(host, model));
        let known = self.state.settled && !self.state.hosts.is_empty();
        (known && !fits).then(|| self.cannot_fit(id))
    }

    /// Why the session or its key may hold no more.
    fn lease_cap(&self, session: &SessionId, key: Option<&KeyId>) -> Option<ApiError> {
        let policy = &self.state.policy;
        let leases = || self.state.leases.values().map(|held| &held.lease);
        let of_session = leases().filter(|lease| lease.session == *session).count();
        let of_key = leases().filter(|lease| key.is_some() && lease.key.as_ref() == key).count();
        let (who, held, cap) = if of_session >= policy.leases_per_session {
            ("session", of_session, policy.leases_per_session)
        } else if of_key >= policy.leases_per_key {
            ("API key", of_key, policy.leases_per_key)
        } else {
            return None;
        };
        let soonest = leases().map(|lease| lease.expires.since(self.now)).min();
        let error = ApiError::new(
            ErrorKind::Overloaded,
            "too_many_leases",
            format!("this {who} holds {held} leases, and {cap} is the most; release one first"),
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
        if let Some(before) = self.state.leases.get(&id) {
            self.state.timers.unset(before.lease.expires, Due::Lease(id.0.clone(), id.1.clone()));
        }
        self.state.timers.set(lease.expires, Due::Lease(id.0.clone(), id.1.clone()));
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
            .leases
            .keys()
            .filter(|(of, on)| of == session && model.is_none_or(|model| model == on))
            .map(|(_, on)| on.clone())
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
