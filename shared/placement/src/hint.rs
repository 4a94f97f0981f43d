//! Hints: a session says when it will need a model, and an engine may be loaded for it ahead of time.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_wire::{ApiError, ErrorKind, ModelId, SessionId, Timestamp};

use crate::effect::Effect;
use crate::state::Step;
use crate::timers::Due;

/// When a session with too many hints may try another.
const AGAIN: Duration = Duration::from_secs(10);

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

    /// A request of the session has come: the first of its hints has come true. Whether there was one.
    pub(crate) fn came_true(&mut self, session: &SessionId) -> bool {
        let Some(hints) = self.by_session.get_mut(session) else { return false };
        let first = hints.iter().enumerate().min_by_key(|(_, hint)| hint.due).map(|(place, _)| place);
        if let Some(place) = first {
            hints.swap_remove(place);
        }
        if hints.is_empty() {
            self.by_session.remove(session);
        }
        first.is_some()
    }

    /// How many there are of each session.
    pub(crate) fn sessions(&self) -> Vec<(SessionId, usize)> {
        self.by_session.iter().map(|(session, hints)| (session.clone(), hints.len())).collect()
    }

    /// Forgets what was due before; of which sessions, and how many.
    fn expire(&mut self, before: Timestamp) -> Vec<(SessionId, usize)> {
        let mut gone = Vec::new();
        self.by_session.retain(|session, hints| {
            let had = hints.len();
            hints.retain(|hint| hint.due > before);
            if hints.len() < had {
                gone.push((session.clone(), had - hints.len()));
            }
            !hints.is_empty()
        });
        gone
    }
}

impl Step<'_> {
    pub(crate) fn hinted(&mut self, session: &SessionId, model: &ModelId, due: Timestamp) {
        if let Some(error) = self.refusal(model) {
            self.emit(Effect::LeaseRefused { session: session.clone(), model: model.clone(), error });
            return;
        }
        let grace = self.state.policy.hint_grace;
        if let Some(error) = self.hint_cap(session) {
            self.emit(Effect::LeaseRefused { session: session.clone(), model: model.clone(), error });
            return;
        }
        let Some(entry) = self.state.models.get_mut(model) else { return };
        let hint = Hint { said: self.now, due: due.max(self.now) };
        entry.hints.by_session.entry(session.clone()).or_default().push(hint);
        *self.state.hints_of.entry(session.clone()).or_default() += 1;
        self.state.timers.set(hint.due.plus(grace), Due::Hints(model.clone()));
        self.touch(model);
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
        for (session, count) in entry.hints.expire(before) {
            self.hints_gone(&session, count);
        }
        self.touch(model);
    }

    /// A session has so many hints less.
    pub(crate) fn hints_gone(&mut self, session: &SessionId, count: usize) {
        if let Some(left) = self.state.hints_of.get_mut(session) {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.state.hints_of.remove(session);
            }
        }
    }
}
