//! The slots of an engine: taken by a guard, given back when it is dropped.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

/// Slots of one engine.
#[derive(Debug)]
pub(crate) struct Slots {
    all: u32,
    taken: Cell<u32>,
    freed: Notify,
}

impl Slots {
    pub(crate) fn new(all: u32) -> Rc<Self> {
        Rc::new(Self { all, taken: Cell::new(0), freed: Notify::new() })
    }

    pub(crate) fn taken(&self) -> u32 {
        self.taken.get()
    }

    /// Takes one, if one is free.
    pub(crate) fn take(self: &Rc<Self>) -> Option<SlotGuard> {
        let taken = self.taken.get();
        if taken >= self.all {
            return None;
        }
        self.taken.set(taken + 1);
        Some(SlotGuard(Rc::clone(self)))
    }

    /// Waits until none is taken.
    pub(crate) async fn idle(&self) {
        while self.taken.get() > 0 {
            self.freed.notified().await;
        }
    }
}

/// A slot that is taken.
#[derive(Debug)]
pub(crate) struct SlotGuard(Rc<Slots>);

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.0.taken.set(self.0.taken.get().saturating_sub(1));
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_again_when_its_guard_is_dropped() {
        let slots = Slots::new(1);
        let guard = slots.take();
        assert!(guard.is_some());
        assert!(slots.take().is_none());
        drop(guard);
        assert!(slots.take().is_some());
    }
}
