//! The slots of an engine: taken by a guard, given back when it is dropped.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::gate::{Gate, No};

/// Slots of one engine.
#[derive(Debug)]
pub(crate) struct Slots {
    gate: RefCell<Gate>,
    freed: Notify,
}

impl Slots {
    pub(crate) fn new(all: u32) -> Rc<Self> {
        Rc::new(Self { gate: RefCell::new(Gate::new(all)), freed: Notify::new() })
    }

    /// Looks at the gate, or changes it.
    pub(crate) fn gate<T>(&self, change: impl FnOnce(&mut Gate) -> T) -> T {
        change(&mut self.gate.borrow_mut())
    }

    pub(crate) fn taken(&self) -> u32 {
        self.gate.borrow().taken()
    }

    /// Takes one, if the gate lets it.
    pub(crate) fn take(
        self: &Rc<Self>,
        ask: impl FnOnce(&mut Gate) -> Result<(), No>,
    ) -> Result<SlotGuard, No> {
        self.gate(ask)?;
        Ok(SlotGuard(Rc::clone(self)))
    }

    /// Waits until none is taken.
    pub(crate) async fn idle(&self) {
        while self.taken() > 0 {
            self.freed.notified().await;
        }
    }
}

/// A slot that is taken.
#[derive(Debug)]
pub(crate) struct SlotGuard(Rc<Slots>);

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.0.gate(Gate::leave);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use berth_wire::EngineState;

    use super::*;

    #[test]
    fn a_slot_is_free_again_when_its_guard_is_dropped() {
        let slots = Slots::new(1);
        slots.gate(|gate| gate.set_state(EngineState::Ready));
        let guard = slots.take(Gate::dispatch);
        assert!(guard.is_ok());
        assert!(slots.take(Gate::dispatch).is_err());
        drop(guard);
        assert!(slots.take(Gate::dispatch).is_ok());
    }
}
