//! Who sits in which slot of an engine. Plain values.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use berth_wire::{Job, KeyId, Lease, ModelSpec};
use bytes::Bytes;

use super::files;
use crate::spans::set;

/// A session on an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sitter {
    file: String,
    /// The key of its lease, if it has one.
    lease: String,
    key: Option<KeyId>,
}

impl Sitter {
    /// The session of a request, whose context is in this file.
    pub(super) fn of(model: &ModelSpec, job: &Job, file: String) -> Self {
        let session = job.session.clone().unwrap_or_default().into();
        Self { file, lease: Lease::key_of(&session, &model.id), key: job.key.clone() }
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }
}

/// A slot of the server.
#[derive(Debug, Default)]
struct Seat {
    /// The session whose context is in it.
    sitter: Option<Sitter>,
    taken: bool,
    used: u64,
}

/// Who sits where on one engine, and whose context is to be kept.
#[derive(Debug)]
pub(crate) struct Contexts {
    /// Everybody's is.
    always: bool,
    /// None on an engine that cannot keep any.
    seats: RefCell<Vec<Seat>>,
    /// Leases that ask for it, with the API key that each counts for.
    leases: RefCell<HashMap<String, Option<KeyId>>>,
    /// Requests that the engine has found a slot for itself.
    standing: Cell<u32>,
    /// What contexts depend on, looked up once: weights may lie on a disk that is slow to answer.
    stamp: OnceCell<String>,
}

/// A request has this slot until it is dropped; `None`: one of the engine's choice.
#[derive(Debug)]
pub(crate) struct Seated {
    contexts: Rc<Contexts>,
    slot: Option<usize>,
}

impl Seated {
    /// The body with the slot that it is to have.
    pub(crate) fn name(slot: usize, body: Bytes) -> Bytes {
        set(body, "id_slot", &slot.to_string())
    }

    pub(crate) fn slot(&self) -> Option<usize> {
        self.slot
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        let Some(slot) = self.slot else {
            self.contexts.standing.set(self.contexts.standing.get().saturating_sub(1));
            return;
        };
        if let Some(seat) = self.contexts.seats.borrow_mut().get_mut(slot) {
            seat.taken = false;
        }
    }
}

impl Contexts {
    pub(crate) fn new(model: &ModelSpec) -> Rc<Self> {
        let slots = if model.may_keep_context() { model.concurrency } else { 0 };
        Rc::new(Self {
            always: model.keep_context.is_some(),
            seats: RefCell::new((0..slots).map(|_| Seat::default()).collect()),
            leases: RefCell::default(),
            standing: Cell::new(0),
            stamp: OnceCell::new(),
        })
    }

    /// As [`files::stamp`], of the weights as they were when this was first asked.
    pub(super) fn stamp(&self, model: &ModelSpec) -> &str {
        self.stamp.get_or_init(|| files::stamp(model))
    }

    /// Nothing of this engine can be kept after all.
    pub(super) fn give_up(&self) {
        self.seats.borrow_mut().clear();
    }

    pub(super) fn may_keep(&self) -> bool {
        !self.seats.borrow().is_empty()
    }

    /// Whether leases have a say.
    pub(super) fn heeds_leases(&self) -> bool {
        self.may_keep() && !self.always
    }

    /// These leases ask for their session's context to be kept, and no others.
    pub(super) fn heed(&self, leases: HashMap<String, Option<KeyId>>) {
        *self.leases.borrow_mut() = leases;
    }

    /// Whether a session's context is to be kept. A lease without an API key is its session's, whoever asks for it.
    pub(super) fn wants(&self, sitter: &Sitter) -> bool {
        let leased = || match self.leases.borrow().get(&sitter.lease) {
            Some(Some(key)) => sitter.key.as_ref() == Some(key),
            Some(None) => true,
            None => false,
        };
        self.always || leased()
    }

    fn holds(&self, seat: &Seat) -> bool {
        seat.sitter.as_ref().is_some_and(|sitter| self.wants(sitter))
    }

    /// Whether every request is to be told its slot. Where nobody's context is to be kept the engine knows best which
    /// slot suits, and from then on nobody knows who sits where.
    pub(super) fn are_assigned(&self) -> bool {
        let mut seats = self.seats.borrow_mut();
        let assigned = self.always || seats.iter().any(|seat| self.holds(seat));
        if !assigned {
            seats.iter_mut().for_each(|seat| seat.sitter = None);
        }
        assigned
    }

    pub(super) fn any_stands(&self) -> bool {
        self.standing.get() > 0
    }

    /// A request for which the engine finds a slot.
    pub(super) fn stand(contexts: &Rc<Self>) -> Seated {
        contexts.standing.set(contexts.standing.get() + 1);
        Seated { contexts: Rc::clone(contexts), slot: None }
    }

    /// A slot for a request that is none of the busy ones: its session's, else the free one that was used longest ago,
    /// first of those that hold no context that is to be kept. And whether the session is new there.
    pub(super) fn take(
        contexts: &Rc<Self>,
        sitter: Option<Sitter>,
        busy: &[usize],
    ) -> Option<(Seated, bool)> {
        let mut seats = contexts.seats.borrow_mut();
        let now = seats.iter().map(|seat| seat.used).max().unwrap_or(0) + 1;
        let sits =
            sitter.as_ref().and_then(|who| seats.iter().position(|seat| seat.sitter.as_ref() == Some(who)));
        let free = seats.iter().enumerate().filter(|(slot, seat)| !seat.taken && !busy.contains(slot));
        let other = free.min_by_key(|(_, seat)| (contexts.holds(seat), seat.used)).map(|(slot, _)| slot);
        let own =
            sits.filter(|slot| seats.get(*slot).is_some_and(|seat| !seat.taken) && !busy.contains(slot));
        let slot = own.or(other)?;
        let seat = seats.get_mut(slot)?;
        (seat.taken, seat.used) = (true, now);
        if own.is_none() {
            // A second request of a session beside the first has a slot and leaves nothing in it.
            seat.sitter = sitter.filter(|_| sits.is_none());
        }
        let new = own.is_none() && seat.sitter.is_some();
        Some((Seated { contexts: Rc::clone(contexts), slot: Some(slot) }, new))
    }

    /// What is to be kept, the last used first.
    pub(super) fn kept(&self) -> Vec<(usize, String)> {
        let seats = self.seats.borrow();
        let holding = seats.iter().enumerate().filter(|(_, seat)| self.holds(seat));
        let mut kept: Vec<_> = holding
            .filter_map(|(slot, seat)| Some((seat.used, slot, seat.sitter.as_ref()?.file.clone())))
            .collect();
        kept.sort_by(|a, b| b.cmp(a));
        kept.into_iter().map(|(_, slot, file)| (slot, file)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts(always: bool, slots: usize) -> Rc<Contexts> {
        Rc::new(Contexts {
            always,
            seats: RefCell::new((0..slots).map(|_| Seat::default()).collect()),
            leases: RefCell::default(),
            standing: Cell::new(0),
            stamp: OnceCell::new(),
        })
    }

    fn session(name: &str) -> Option<Sitter> {
        Some(Sitter { file: name.into(), lease: name.into(), key: None })
    }

    fn asks(key: Option<&str>) -> HashMap<String, Option<KeyId>> {
        HashMap::from([("a".to_owned(), key.map(Into::into))])
    }

    fn take(contexts: &Rc<Contexts>, sitter: Option<Sitter>) -> (Seated, usize, bool) {
        let (seated, new) = Contexts::take(contexts, sitter, &[]).unwrap();
        let slot = seated.slot().unwrap();
        (seated, slot, new)
    }

    #[test]
    fn a_session_comes_back_to_its_slot_and_others_leave_it_alone_while_they_can() {
        let contexts = contexts(true, 2);
        let (a, slot, new) = take(&contexts, session("a"));
        assert_eq!((slot, new), (0, true));
        drop(a);
        let (nobody, slot, _) = take(&contexts, None);
        assert_eq!(slot, 1, "a slot that holds nothing goes first");
        let (a, slot, new) = take(&contexts, session("a"));
        assert_eq!((slot, new), (0, false));
        assert!(Contexts::take(&contexts, session("b"), &[]).is_none(), "all are taken");
        drop(nobody);
        let (twin, slot, new) = take(&contexts, session("a"));
        assert_eq!((slot, new), (1, false), "beside its own request");
        drop((a, twin));
        assert_eq!(contexts.kept(), [(0, "a".to_owned())]);
    }

    #[test]
    fn only_what_leases_ask_for_is_kept_and_while_nobody_does_the_engine_chooses() {
        let contexts = contexts(false, 2);
        assert!(!contexts.are_assigned());
        let standing = Contexts::stand(&contexts);
        assert!(contexts.any_stands());
        contexts.heed(asks(None));
        let (a, _) = Contexts::take(&contexts, session("a"), &[0]).unwrap();
        assert_eq!(a.slot(), Some(1), "the engine says that the other is in use");
        drop((standing, a));
        assert!(contexts.are_assigned() && !contexts.any_stands());
        let (b, slot, _) = take(&contexts, session("b"));
        assert_eq!(slot, 0);
        drop(b);
        assert_eq!(contexts.kept(), [(1, "a".to_owned())], "no lease asks for the other");

        contexts.heed(HashMap::new());
        assert!(contexts.kept().is_empty());
        assert!(!contexts.are_assigned());
        contexts.heed(asks(None));
        assert!(contexts.kept().is_empty(), "others may have sat there meanwhile");
    }

    #[test]
    fn a_lease_of_an_api_key_is_not_for_another_keys_session_of_that_name() {
        let contexts = contexts(false, 1);
        let of = |key: Option<&str>| Sitter { key: key.map(Into::into), ..session("a").unwrap() };
        contexts.heed(asks(Some("k")));
        assert_eq!([Some("k"), Some("l"), None].map(|key| contexts.wants(&of(key))), [true, false, false]);
        contexts.heed(asks(None));
        assert_eq!([Some("k"), None].map(|key| contexts.wants(&of(key))), [true, true]);
    }
}
