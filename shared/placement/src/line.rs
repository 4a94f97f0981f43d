//! A queue in front of slots: when the n-th of them is free.

/// The slots of one model's engines, as far as it is known when each is free.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line {
    /// By when something of them happens.
    slots: Vec<Slot>,
    /// Seconds that a job takes, if that is known.
    service: Option<f64>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    at: f64,
    /// What runs there ends about then; else the slot is there from then on.
    busy: bool,
}

/// No job is over in less.
const LEAST: f64 = 1e-3;

impl Line {
    pub(crate) fn new(service: Option<f64>) -> Self {
        Self { slots: Vec::new(), service: service.map(|seconds| seconds.max(LEAST)) }
    }

    /// A slot in use, for about so many seconds more. One of which nothing is known is left out.
    pub(crate) fn busy(&mut self, left: f64) {
        self.slots.push(Slot { at: left.max(LEAST), busy: true });
    }

    /// Slots that will be there after so many seconds.
    pub(crate) fn opens(&mut self, at: f64, slots: u32) {
        self.slots.extend((0..slots).map(|_| Slot { at, busy: false }));
    }

    pub(crate) fn sort(mut self) -> Self {
        self.slots.sort_by(|a, b| a.at.total_cmp(&b.at));
        self
    }

    /// Seconds until the n-th slot from now is free, counted from 1. What runs ends at one time or another around what
    /// is expected, so that of several slots one is free sooner.
    pub(crate) fn nth(&self, n: usize) -> Option<f64> {
        let wanted = n as f64;
        let rate = |busy: &Slot| 1.0 / busy.at;
        // Slots a second, and slots so far.
        let mut pace: f64 = self.slots.iter().filter(|slot| slot.busy).map(rate).sum();
        let (mut free, mut at) = (0.0, 0.0);
        for slot in &self.slots {
            let then = free + pace * (slot.at - at);
            if then >= wanted {
                return Some(at + (wanted - free) / pace);
            }
            (free, at) = (then, slot.at);
            if slot.busy {
                pace -= rate(slot);
            } else {
                free += 1.0;
                if free >= wanted {
                    return Some(at);
                }
            }
            pace += self.service.map_or(0.0, |service| 1.0 / service);
        }
        // Of what floating point leaves of a pace that is none nobody is served.
        (pace > 1e-9).then(|| at + (wanted - free).max(0.0) / pace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: Option<f64>, b: f64) -> bool {
        a.is_some_and(|a| (a - b).abs() < 1e-6)
    }

    #[test]
    fn one_slot_serves_one_after_the_other() {
        let mut line = Line::new(Some(5.0));
        line.busy(2.0);
        let line = line.sort();
        assert!(near(line.nth(1), 2.0) && near(line.nth(2), 7.0) && near(line.nth(4), 17.0));
    }

    #[test]
    fn slots_of_an_engine_to_come_are_taken_at_once_and_then_in_turn() {
        let mut line = Line::new(Some(4.0));
        line.opens(30.0, 2);
        let line = line.sort();
        assert!(near(line.nth(1), 30.0) && near(line.nth(2), 30.0) && near(line.nth(3), 32.0));
    }

    #[test]
    fn of_several_slots_one_is_free_sooner() {
        let mut line = Line::new(Some(8.0));
        for _ in 0..4 {
            line.busy(8.0);
        }
        let line = line.sort();
        assert!(near(line.nth(1), 2.0) && near(line.nth(8), 16.0));
    }

    #[test]
    fn a_slot_of_which_nothing_is_known_is_not_counted_on() {
        assert_eq!(Line::new(Some(4.0)).nth(1), None);
        let mut line = Line::new(None);
        line.opens(3.0, 1);
        assert_eq!((line.nth(1), line.nth(2)), (Some(3.0), None), "how long jobs take is not known");
    }
}
