//! Who gets a slot of an engine: dispatches of the leader, and offers of gateways while the lane is open. Plain values,
//! so that every order of events can be tried.

use berth_wire::{EngineState, Epoch};

/// The slots of one engine, and whether it takes offers. Its host decides, whatever the leader or gateways believe.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    slots: u32,
    taken: u32,
    state: EngineState,
    /// Closed until a leader has opened it; a later leader's word takes the place of an earlier one's.
    open: bool,
    told: (Epoch, u64),
}

/// Why a job does not get a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum No {
    /// The engine does not serve.
    NotReady(EngineState),
    /// Every slot is taken.
    Full,
    /// Somebody waits for the model, or the engine is about to go.
    Closed,
}

impl Gate {
    /// Of an engine that is being started.
    pub(crate) fn new(slots: u32) -> Self {
        Self { slots, taken: 0, state: EngineState::Starting, open: false, told: (Epoch(0), 0) }
    }

    pub(crate) fn taken(&self) -> u32 {
        self.taken
    }

    pub(crate) fn state(&self) -> EngineState {
        self.state
    }

    /// Moves the engine on; its state before.
    pub(crate) fn set_state(&mut self, state: EngineState) -> EngineState {
        std::mem::replace(&mut self.state, state)
    }

    pub(crate) fn takes_offers(&self) -> bool {
        self.open && self.state == EngineState::Ready
    }

    /// A job of the queue. One that finds no slot waits on, so that no offer may go before it: the lane is closed.
    pub(crate) fn dispatch(&mut self) -> Result<(), No> {
        let taken = self.take();
        if taken == Err(No::Full) {
            self.open = false;
        }
        taken
    }

    /// A job of a gateway.
    pub(crate) fn offer(&mut self) -> Result<(), No> {
        if self.state == EngineState::Ready && !self.open {
            return Err(No::Closed);
        }
        self.take()
    }

    fn take(&mut self) -> Result<(), No> {
        if self.state != EngineState::Ready {
            return Err(No::NotReady(self.state));
        }
        if self.taken >= self.slots {
            return Err(No::Full);
        }
        self.taken += 1;
        Ok(())
    }

    /// A job has left.
    pub(crate) fn leave(&mut self) {
        self.taken = self.taken.saturating_sub(1);
    }

    /// The leader opens or closes the lane. What it said before and what came late changes nothing.
    pub(crate) fn set_lane(&mut self, epoch: Epoch, number: u64, open: bool) {
        if (epoch, number) >= self.told {
            self.told = (epoch, number);
            self.open = open;
        }
    }

    /// The leader wants it stopped: not while it serves, unless it is forced. It takes nothing from here on.
    pub(crate) fn stop(&mut self, force: bool) -> Result<(), u32> {
        if self.taken > 0 && !force {
            return Err(self.taken);
        }
        if self.state == EngineState::Ready {
            self.state = EngineState::Stopping;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "gate_races/mod.rs"]
mod races;

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(slots: u32) -> Gate {
        let mut gate = Gate::new(slots);
        gate.set_state(EngineState::Ready);
        gate
    }

    #[test]
    fn no_offer_is_taken_before_a_leader_has_opened_the_lane() {
        let mut gate = ready(1);
        assert_eq!(gate.offer(), Err(No::Closed));
        gate.set_lane(Epoch(7), 1, true);
        assert_eq!(gate.offer(), Ok(()));
        assert_eq!(gate.offer(), Err(No::Full));
    }

    #[test]
    fn a_late_word_of_a_leader_and_one_of_an_earlier_leader_change_nothing() {
        let mut gate = ready(1);
        gate.set_lane(Epoch(7), 2, false);
        gate.set_lane(Epoch(7), 1, true);
        assert!(!gate.takes_offers());
        gate.set_lane(Epoch(8), 1, true);
        gate.set_lane(Epoch(7), 9, false);
        assert!(gate.takes_offers());
    }

    #[test]
    fn nobody_goes_before_a_job_of_the_queue_that_found_no_slot() {
        let mut gate = ready(1);
        gate.set_lane(Epoch(7), 1, true);
        assert_eq!(gate.offer(), Ok(()));
        assert_eq!(gate.dispatch(), Err(No::Full));
        gate.leave();
        assert_eq!(gate.offer(), Err(No::Closed));
        assert_eq!(gate.dispatch(), Ok(()));
    }

    #[test]
    fn an_engine_that_serves_is_not_stopped_and_one_that_is_stopped_serves_nobody() {
        let mut gate = ready(2);
        gate.set_lane(Epoch(7), 1, true);
        assert_eq!(gate.offer(), Ok(()));
        assert_eq!(gate.stop(false), Err(1));
        gate.leave();
        assert_eq!(gate.stop(false), Ok(()));
        assert_eq!(gate.offer(), Err(No::NotReady(EngineState::Stopping)));
        assert_eq!(gate.dispatch(), Err(No::NotReady(EngineState::Stopping)));
    }
}
