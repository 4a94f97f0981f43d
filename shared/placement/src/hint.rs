//! Hints: a session says when it will need a model, and an engine may be loaded for it ahead of time.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_wire::{ApiError, ErrorKind, HintView, KeyId, ModelId, SessionId, Timestamp};

use crate::books::Model;
use crate::effect::Effect;
use crate::shown::seconds;
use crate::state::{State, Step};
use crate::timers::Due;

/// When a session with too many hints may try another.
const AGAIN: Duration = Duration::from_secs(10);

/// The hints of one model.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hints {
    by_session: BTreeMap<SessionId, Hint>,
}

#[derive(Debug, Clone)]
struct Hint {
    said: Timestamp,
    due: Timestamp,
    /// The API key it came with.
    key: Option<KeyId>,
}

impl Hints {
    fn all(&self) -> impl Iterator<Item = &Hint> {
        self.by_session.values()
    }

    pub(crate) fn count(&self) -> usize {
        self.all().count()
    }

    /// Arrivals a second that hints add to what is expected anyway.
    pub(crate) fn rate(&self) -> f64 {
        self.all().map(|hint| 1.0 / hint.due.since(hint.said).as_secs_f64().max(1.0)).sum()
    }

    /// Seconds of waiting that those who come lose if the model is away for so many seconds.
    pub(crate) fn lost(&self, away: f64, now: Timestamp) -> f64 {
        self.all().map(|hint| (away - hint.due.since(now).as_secs_f64()).max(0.0)).sum()
    }

    /// Seconds of waiting that a start now would spare those who come: each at most the start itself.
    pub(crate) fn spared(&self, start: Duration, now: Timestamp) -> f64 {
        let start = start.as_secs_f64();
        self.all().map(|hint| start.min(hint.due.since(now).as_secs_f64() + 1.0)).sum()
    }

    /// When the first is due.
    pub(crate) fn first_due(&self) -> Option<Timestamp> {
        self.all().map(|hint| hint.due).min()
    }

    /// A request of the session has come: its hint has come true. Whether there was one.
    pub(crate) fn came_true(&mut self, session: &SessionId) -> bool {
        self.by_session.remove(session).is_some()
    }

    /// The sessions that gave them.
    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        self.by_session.keys().cloned().collect()
    }

    /// Forgets what was due before; of which sessions.
    fn expire(&mut self, before: Timestamp) -> Vec<SessionId> {
        let mut gone = Vec::new();
        self.by_session.retain(|session, hint| {
            let stays = hint.due > before;
            if !stays {
                gone.push(session.clone());
            }
            stays
        });
        gone
    }
}

impl State {
    /// Every hint that is still to come true, by model and session.
    #[must_use]
    pub fn hints(&self, now: Timestamp) -> Vec<HintView> {
        let of = |model: &'_ Model| {
            let id = model.needs.id.clone();
            let shown = move |(session, hint): (&SessionId, &Hint)| HintView {
                session: session.clone(),
                model: id.clone(),
                key: hint.key.clone(),
                due_s: seconds(hint.due.since(now)),
            };
            model.hints.by_session.iter().map(shown).collect::<Vec<_>>()
        };
        self.models.values().flat_map(of).collect()
    }
}

impl Step<'_> {
    pub(crate) fn hinted(
        &mut self,
        session: &SessionId,
        model: &ModelId,
        due: Timestamp,
        key: Option<KeyId>,
    ) {
        if let Some(error) = self.refusal(model) {
            self.emit(Effect::LeaseRefused { session: session.clone(), model: model.clone(), error });
            return;
        }
        let grace = self.state.policy.hint_grace;
        let repeated =
            self.state.models.get(model).is_some_and(|entry| entry.hints.by_session.contains_key(session));
        if !repeated && let Some(error) = self.hint_cap(session) {
            self.emit(Effect::LeaseRefused { session: session.clone(), model: model.clone(), error });
            return;
        }
        let Some(entry) = self.state.models.get_mut(model) else { return };
        let hint = Hint { said: self.now, due: due.max(self.now), key };
        self.state.timers.set(hint.due.plus(grace), Due::Hints(model.clone()));
        if entry.hints.by_session.insert(session.clone(), hint).is_none() {
            *self.state.hints_of.entry(session.clone()).or_default() += 1;
        }
        self.touch(model);
    }

    pub(crate) fn hint_withdrawn(&mut self, session: &SessionId, model: Option<&ModelId>) {
        let given = |entry: &Model| entry.hints.by_session.contains_key(session);
        let models: Vec<ModelId> = match model {
            Some(model) => vec![model.clone()],
            None => self.state.models.values().filter(|m| given(m)).map(|m| m.needs.id.clone()).collect(),
        };
        for id in models {
            if self.state.models.get_mut(&id).is_some_and(|entry| entry.hints.came_true(session)) {
                self.hint_gone(session);
                self.touch(&id);
            }
        }
    }

    /// Why the session may give no further hint.
    fn hint_cap(&self, session: &SessionId) -> Option<ApiError> {
        let (given, most) =
            (self.state.hints_of.get(session).copied().unwrap_or(0), self.state.policy.hints_per_session);
        (given >= most).then(|| {
            let message = format!(
                "this session has given {given} hints that are still to come true, and {most} is the most; a request of \
                 the session for its model uses one up, and each is forgotten {} s after it was due",
                self.state.policy.hint_grace.as_secs()
            );
            ApiError::new(ErrorKind::Overloaded, "too_many_hints", message).retry_after(AGAIN)
        })
    }

    pub(crate) fn hints_due(&mut self, model: &ModelId) {
        let grace = self.state.policy.hint_grace;
        let Some(entry) = self.state.models.get_mut(model) else { return };
        let before = Timestamp(self.now.0.saturating_sub(u64::try_from(grace.as_millis()).unwrap_or(0)));
        for session in entry.hints.expire(before) {
            self.hint_gone(&session);
        }
        self.touch(model);
    }

    /// A session has a hint less.
    pub(crate) fn hint_gone(&mut self, session: &SessionId) {
        if let Some(left) = self.state.hints_of.get_mut(session) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.state.hints_of.remove(session);
            }
        }
    }
}
