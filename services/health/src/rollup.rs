//! Roll-ups: what five minutes of the fleet were like. Pure: fed with what gateways have counted and what engines do.

use std::collections::BTreeMap;

use berth_wire::{Message, Timestamp};
use serde::{Deserialize, Serialize};

/// Seconds of one slot.
pub const SLOT_S: u64 = 300;
/// Slots that are kept: a day of them.
pub const SLOTS: u64 = 288;

/// A histogram: counts at and below each bound, the last of them without one.
pub type Cumulative = Vec<(Option<f64>, u64)>;

/// What a gateway has counted since it began, by measure and model.
pub type Times = BTreeMap<String, BTreeMap<String, Cumulative>>;

/// Quantiles of one measure, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Quantiles {
    /// How many there were.
    pub count: u64,
    /// Half were at most so long.
    pub p50: f64,
    /// 95 in 100 were.
    pub p95: f64,
    /// 99 in 100 were.
    pub p99: f64,
}

/// How an accelerator was used.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Used {
    /// Share of the time in which an engine on it served somebody.
    pub busy: f64,
    /// Share of its memory that was set aside, on average.
    pub reserved: f64,
}

/// `berth_trends/<number of the slot, modulo 288>`: five minutes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Slot {
    /// When it began.
    pub at: Timestamp,
    /// By model and measure (`wait`, `load`, `first_token`).
    pub models: BTreeMap<String, BTreeMap<String, Quantiles>>,
    /// By `<host>.<accelerator>`.
    pub accelerators: BTreeMap<String, Used>,
    /// Engines that were started or woken.
    pub swaps: u64,
}

impl Message for Slot {
    const SCHEMA: &'static str = "kv.trend/1";
}

impl Slot {
    /// The key of the slot that a moment is in.
    #[must_use]
    pub fn key(at: Timestamp) -> String {
        (at.0 / 1000 / SLOT_S % SLOTS).to_string()
    }

    /// When the slot that a moment is in began.
    #[must_use]
    pub fn begin(at: Timestamp) -> Timestamp {
        Timestamp(at.0 / 1000 / SLOT_S * SLOT_S * 1000)
    }
}

/// The value below which a share of what a histogram counted lies, as far as its buckets tell; within a bucket values
/// are taken to be spread evenly. Of what is above all bounds only that is known.
#[must_use]
pub fn quantile(counts: &[(Option<f64>, u64)], share: f64) -> f64 {
    let total = counts.last().map_or(0, |(_, count)| *count);
    let rank = share.clamp(0.0, 1.0) * total as f64;
    let (mut below, mut before) = (0.0, 0_u64);
    for (bound, count) in counts {
        let Some(bound) = bound else { return below };
        if *count > before && *count as f64 >= rank {
            let inside = (rank - before as f64) / (*count - before) as f64;
            return below + (bound - below) * inside.clamp(0.0, 1.0);
        }
        (below, before) = (*bound, *count);
    }
    below
}

/// What has come since: of one that began anew, everything.
fn since(now: &Cumulative, before: Option<&Cumulative>) -> Cumulative {
    let comparable = before.filter(|before| {
        before.len() == now.len() && now.iter().zip(before.iter()).all(|(now, before)| now.1 >= before.1)
    });
    match comparable {
        Some(before) => now.iter().zip(before).map(|(now, before)| (now.0, now.1 - before.1)).collect(),
        None => now.clone(),
    }
}

/// What a gateway has told.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Heard {
    /// When it began, by its own clock.
    pub started: Timestamp,
    /// What it has counted since.
    pub times: Times,
}

/// A gateway that began so long before health did counts as new to it: both are started together.
const TOGETHER_MS: u64 = 10_000;
/// Gateways that are remembered although they did not answer.
const REMEMBERED: usize = 256;

#[derive(Debug, Default)]
struct Looks {
    all: u64,
    busy: u64,
    reserved: f64,
}

/// The slot that runs.
#[derive(Debug, Default)]
pub struct Rollup {
    at: Timestamp,
    /// What gateways had counted when they were last heard.
    heard: BTreeMap<String, Times>,
    /// When this began: what older gateways had counted before they were first heard is of no slot.
    born: Timestamp,
    models: BTreeMap<String, BTreeMap<String, Cumulative>>,
    accelerators: BTreeMap<String, Looks>,
    swaps: u64,
}

/// An accelerator as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// `<host>.<accelerator>`.
    pub accelerator: String,
    /// An engine on it serves somebody.
    pub busy: bool,
    /// Share of its memory that is set aside.
    pub reserved: f64,
}

impl Rollup {
    /// Nothing yet.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { at: Slot::begin(now), born: now, ..Self::default() }
    }

    /// What every gateway that answers has counted.
    pub fn hear(&mut self, gateways: BTreeMap<String, Heard>) {
        for (gateway, Heard { started, times }) in &gateways {
            let before = self.heard.get(gateway);
            if before.is_none() && started.0 + TOGETHER_MS < self.born.0 {
                continue;
            }
            for (measure, models) in times {
                for (model, counts) in models {
                    let before = before.and_then(|times| times.get(measure)?.get(model));
                    let new = since(counts, before);
                    let sums =
                        self.models.entry(model.clone()).or_default().entry(measure.clone()).or_default();
                    if sums.len() == new.len() {
                        sums.iter_mut().zip(&new).for_each(|(sum, new)| sum.1 += new.1);
                    } else {
                        *sums = new;
                    }
                }
            }
        }
        if self.heard.len() > REMEMBERED {
            self.heard.clear();
        }
        self.heard.extend(gateways.into_iter().map(|(gateway, heard)| (gateway, heard.times)));
    }

    /// An engine was ready, started or woken.
    pub fn swapped(&mut self, at: Timestamp) {
        self.swaps += u64::from(Slot::begin(at) == self.at);
    }

    /// What accelerators do.
    pub fn look(&mut self, accelerators: Vec<Look>) {
        for look in accelerators {
            let looks = self.accelerators.entry(look.accelerator).or_default();
            looks.all += 1;
            looks.busy += u64::from(look.busy);
            looks.reserved += look.reserved;
        }
    }

    /// The slot as it is so far.
    #[must_use]
    pub fn slot(&self) -> Slot {
        let share = |part: f64, all: u64| if all == 0 { 0.0 } else { part / all as f64 };
        let quantiles = |counts: &Cumulative| Quantiles {
            count: counts.last().map_or(0, |(_, count)| *count),
            p50: quantile(counts, 0.5),
            p95: quantile(counts, 0.95),
            p99: quantile(counts, 0.99),
        };
        let models = self.models.iter().filter_map(|(model, measures)| {
            let told: BTreeMap<_, _> = measures
                .iter()
                .map(|(measure, counts)| (measure.clone(), quantiles(counts)))
                .filter(|(_, quantiles)| quantiles.count > 0)
                .collect();
            (!told.is_empty()).then(|| (model.clone(), told))
        });
        let accelerators = self.accelerators.iter().map(|(name, looks)| {
            let used = Used {
                busy: share(looks.busy as f64, looks.all),
                reserved: share(looks.reserved, looks.all),
            };
            (name.clone(), used)
        });
        Slot {
            at: self.at,
            models: models.collect(),
            accelerators: accelerators.collect(),
            swaps: self.swaps,
        }
    }

    /// Where `now` is in a later slot, begins that one and returns the one that is over.
    pub fn turn(&mut self, now: Timestamp) -> Option<Slot> {
        let at = Slot::begin(now);
        if at == self.at {
            return None;
        }
        let over = self.slot();
        self.at = at;
        self.models.clear();
        self.accelerators.clear();
        self.swaps = 0;
        Some(over)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn times(counts: &[(Option<f64>, u64)]) -> Times {
        let models = BTreeMap::from([("m".to_owned(), counts.to_vec())]);
        BTreeMap::from([("wait".to_owned(), models)])
    }

    fn heard(gateway: &str, started: u64, counts: &[(Option<f64>, u64)]) -> BTreeMap<String, Heard> {
        let heard = Heard { started: Timestamp(started), times: times(counts) };
        BTreeMap::from([(gateway.to_owned(), heard)])
    }

    #[test]
    fn only_what_came_since_counts() {
        let mut rollup = Rollup::new(Timestamp(100_000));
        let one = |count| [(Some(1.0), count), (None, count)];
        rollup.hear(heard("a", 0, &one(50)));
        assert!(rollup.slot().models.is_empty(), "what was before health is not of this slot");
        rollup.hear(heard("a", 0, &one(54)));
        assert_eq!(rollup.slot().models["m"]["wait"].count, 4);
        // A gateway that began since; one that did not answer once; and the same id after it was restarted.
        rollup.hear(heard("b", 100_500, &one(3)));
        rollup.hear(heard("a", 0, &one(55)));
        assert_eq!(rollup.slot().models["m"]["wait"].count, 8);
        rollup.hear(heard("b", 200_000, &one(1)));
        assert_eq!(rollup.slot().models["m"]["wait"].count, 9);
    }

    #[test]
    fn a_slot_ends_with_its_five_minutes() {
        let mut rollup = Rollup::new(Timestamp(1000));
        rollup.look(vec![Look { accelerator: "h.gpu0".into(), busy: true, reserved: 0.5 }]);
        rollup.look(vec![Look { accelerator: "h.gpu0".into(), busy: false, reserved: 1.0 }]);
        rollup.swapped(Timestamp(200_000));
        rollup.swapped(Timestamp(300_000));
        assert_eq!(rollup.turn(Timestamp(299_999)), None);
        let over = rollup.turn(Timestamp(300_000)).unwrap();
        assert_eq!(over.swaps, 1, "each counts in its own slot");
        assert_eq!(rollup.slot().swaps, 0);
        assert_eq!(
            (over.at, over.accelerators["h.gpu0"]),
            (Timestamp(0), Used { busy: 0.5, reserved: 0.75 })
        );
        assert!(rollup.slot().accelerators.is_empty());
        assert_eq!(Slot::key(Timestamp(300_000)), "1");
        assert_eq!(Slot::key(Timestamp(SLOT_S * 1000 * SLOTS)), "0", "a day later it is written anew");
    }

    #[test]
    fn what_is_above_all_bounds_is_at_least_the_last() {
        assert_eq!(quantile(&[(Some(1.0), 0), (Some(900.0), 0), (None, 3)], 0.5), 900.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    proptest! {
        #[test]
        fn quantiles_lie_near_what_was_counted(
            mut values in prop::collection::vec(0.0_f64..10.0, 1..200), shares in [0.0_f64..1.0, 0.0_f64..1.0]
        ) {
            let bounds = [0.5, 1.0, 2.0, 4.0, 8.0, 10.0];
            let mut counts: Cumulative = bounds
                .iter()
                .map(|bound| (Some(*bound), values.iter().filter(|value| *value <= bound).count() as u64))
                .collect();
            counts.push((None, values.len() as u64));
            values.sort_by(f64::total_cmp);
            let [low, high] = if shares[0] < shares[1] { shares } else { [shares[1], shares[0]] };
            prop_assert!(quantile(&counts, low) <= quantile(&counts, high) + 1e-9);
            // It lies in the bucket of the true one.
            let rank = (high * values.len() as f64).ceil().max(1.0) as usize;
            let exact = values[rank - 1];
            let at = bounds.iter().position(|bound| exact <= *bound).unwrap();
            let below = if at == 0 { 0.0 } else { bounds[at - 1] };
            let found = quantile(&counts, high);
            prop_assert!((below - 1e-9..=bounds[at] + 1e-9).contains(&found), "{found} for {exact}");
        }
    }
}
