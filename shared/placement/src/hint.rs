//! Hints: a session says when it will need a model, and an engine may be loaded for it ahead of time.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_wire::{ModelId, SessionId, Timestamp};

use crate::effect::Effect;
use crate::state::Step;
use crate::timers::Due;

/// The hints of one model.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hints {
    by_session: BTreeMap<SessionId, Vec<Hint>>,
}

#[derive(Debug, Clone, Copy)]
struct Hint {
    said: Timestamp,
    due: Timestamp,
}

impl Hints {
    fn all(&self) -> impl Iterator<Item = &Hint> {
        self.by_session.values().flatten()
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

    /// A request of the session has come: the first of its hints has come true.
    pub(crate) fn came_true(&mut self, session: &SessionId) {
        let Some(hints) = self.by_session.get_mut(session) else { return };
        let first = hints.iter().enumerate().min_by_key(|(_, hint)| hint.due).map(|(place, _)| place);
        if let Some(place) = first {
            hints.swap_remove(place);
        }
        if hints.is_empty() {
            self.by_session.remove(session);
        }
    }

    fn of_session(&self, session: &SessionId) -> usize {
        self.by_session.get(session).map_or(0, Vec::len)
    }

    fn expire(&mut self, before: Timestamp) {
        self.by_session.retain(|_, hints| {
            hints.retain(|hint| hint.due > before);
            !hints.is_empty()
        });
    }
}

impl Step<'_> {
    pub(crate) fn hinted(&mut self, session: &SessionId, model: &ModelId, due: Timestamp) {
        if let Some(error) = self.refusal(model) {
            self.emit(Effect::LeaseRefused { session: session.clone(), model: model.clone(), error });
            return;
        }
        let policy = &self.state.policy;
        let grace = policy.hint_grace;
        let of_session: usize = self.state.models.values().map(|model| model.hints.of_session(session)).sum();
        if of_session >= policy.hints_per_session {
            return;
        }
        let Some(entry) = self.state.models.get_mut(model) else { return };
        let hint = Hint { said: self.now, due: due.max(self.now) };
        entry.hints.by_session.entry(session.clone()).or_default().push(hint);
        self.state.timers.set(hint.due.plus(grace), Due::Hints(model.clone()));
        self.touch(model);
    }

    pub(crate) fn hints_due(&mut self, model: &ModelId) {
        let grace = self.state.policy.hint_grace;
        let Some(entry) = self.state.models.get_mut(model) else { return };
        let before = Timestamp(self.now.0.saturating_sub(u64::try_from(grace.as_millis()).unwrap_or(0)));
        entry.hints.expire(before);
        self.touch(model);
    }
}
