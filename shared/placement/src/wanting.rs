//! Models that may want an engine, in the order in which they are seen to.
//!
//! A small fleet sees to all of them whenever room may have become free. With more models than `Policy::ordered_whole` each
//! step sees to a few, those of the highest rank first and some in rotation, so that none is left out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use berth_wire::{ModelId, Timestamp};

use crate::demand::{Cause, Demand};

/// Of more models, so many are looked at in one step: by rank, and in rotation.
const BY_RANK: usize = 3;
const IN_ROTATION: usize = 1;

/// Where a model stood when it was looked at last; the least goes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank(bool, Option<Timestamp>, bool, Option<Cause>, Reverse<u64>);

impl Rank {
    pub(crate) fn of(demand: Option<&Demand>) -> Self {
        let Some(demand) = demand else { return Self(true, None, true, None, Reverse(0)) };
        // A priority is never negative, so its bits are in its order.
        let priority = demand.priority.max(0.0).to_bits();
        Self(demand.first.is_none(), demand.first, false, Some(demand.cause), Reverse(priority))
    }
}

#[derive(Debug, Clone)]
struct Entry {
    rank: Rank,
    /// When its oldest job arrived, if it has no engine.
    unserved_since: Option<Timestamp>,
}

/// A round through all of them that is not over.
#[derive(Debug, Clone, Default)]
struct Round {
    /// Up to where it has come by rank; `None`: to the end.
    ranked: Option<Bound<(Rank, ModelId)>>,
    /// Up to where it has come in rotation, and whether another is due after this.
    rotated: Option<Bound<ModelId>>,
    again: bool,
}

/// The models.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanting {
    /// Up to so many are put in order anew each time.
    few: usize,
    models: BTreeMap<ModelId, Entry>,
    by_rank: BTreeSet<(Rank, ModelId)>,
    /// How many have jobs and no engine, and the sum of the arrivals of their oldest jobs.
    unserved: u64,
    arrivals: u128,
    /// Not looked at yet, though something has changed for them.
    left: BTreeSet<ModelId>,
    round: Round,
}

impl Wanting {
    pub(crate) fn new(few: usize) -> Self {
        Self { few, ..Self::default() }
    }

    /// Whether all of them are put in order each time.
    pub(crate) fn are_few(&self) -> bool {
        self.models.len() <= self.few
    }

    pub(crate) fn len(&self) -> usize {
        self.models.len()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &ModelId> {
        self.models.keys()
    }

    pub(crate) fn contains(&self, id: &ModelId) -> bool {
        self.models.contains_key(id)
    }

    /// Whether the model is still to be looked at.
    pub(crate) fn is_left(&self, id: &ModelId) -> bool {
        self.left.contains(id)
    }

    pub(crate) fn insert(&mut self, id: &ModelId) {
        if self.models.contains_key(id) {
            return;
        }
        let rank = Rank::of(None);
        self.by_rank.insert((rank.clone(), id.clone()));
        self.models.insert(id.clone(), Entry { rank, unserved_since: None });
    }

    pub(crate) fn remove(&mut self, id: &ModelId) {
        self.unserved_since(id, None);
        self.left.remove(id);
        if let Some(entry) = self.models.remove(id) {
            self.by_rank.remove(&(entry.rank, id.clone()));
        }
    }

    /// Notes since when a model waits that has no engine.
    pub(crate) fn unserved_since(&mut self, id: &ModelId, since: Option<Timestamp>) {
        let Some(entry) = self.models.get_mut(id) else { return };
        if let Some(before) = std::mem::replace(&mut entry.unserved_since, since) {
            self.unserved = self.unserved.saturating_sub(1);
            self.arrivals = self.arrivals.saturating_sub(u128::from(before.0));
        }
        if let Some(since) = since {
            self.unserved += 1;
            self.arrivals += u128::from(since.0);
        }
    }

    /// How many wait without an engine, and the sum of the arrivals of their oldest jobs.
    pub(crate) fn unserved(&self) -> (u64, u128) {
        (self.unserved, self.arrivals)
    }

    /// How many others wait without an engine, and how many seconds their oldest jobs have waited together.
    pub(crate) fn others(&self, id: &ModelId, now: Timestamp) -> (f64, f64) {
        let own = self.models.get(id).and_then(|entry| entry.unserved_since);
        let count = self.unserved.saturating_sub(u64::from(own.is_some()));
        let arrivals = self.arrivals.saturating_sub(own.map_or(0, |own| u128::from(own.0)));
        let waited = (u128::from(now.0) * u128::from(count)).saturating_sub(arrivals);
        (count as f64, waited as f64 / 1000.0)
    }

    pub(crate) fn rank(&mut self, id: &ModelId, demand: Option<&Demand>) {
        let Some(entry) = self.models.get_mut(id) else { return };
        let rank = Rank::of(demand);
        if entry.rank != rank {
            let before = std::mem::replace(&mut entry.rank, rank.clone());
            self.by_rank.remove(&(before, id.clone()));
            self.by_rank.insert((rank, id.clone()));
        }
    }

    /// Room may have become free: all of them are to be looked at.
    pub(crate) fn room_changed(&mut self) {
        if self.are_few() {
            self.left.extend(self.models.keys().cloned());
            return;
        }
        self.round.ranked = Some(Bound::Unbounded);
        match self.round.rotated {
            None => self.round.rotated = Some(Bound::Unbounded),
            Some(_) => self.round.again = true,
        }
    }

    /// A model was not come to in this step.
    pub(crate) fn leave(&mut self, id: ModelId) {
        self.left.insert(id);
    }

    /// Whether some are still to be looked at.
    pub(crate) fn has_left(&self) -> bool {
        !self.left.is_empty() || self.round.ranked.is_some() || self.round.rotated.is_some()
    }

    /// Takes those that were not come to before.
    pub(crate) fn take_left(&mut self) -> BTreeSet<ModelId> {
        std::mem::take(&mut self.left)
    }

    /// Takes the next of the round.
    pub(crate) fn next_of_round(&mut self) -> BTreeSet<ModelId> {
        let mut next = BTreeSet::new();
        if let Some(from) = self.round.ranked.take() {
            let upto = next.len() + BY_RANK;
            for (rank, id) in self.by_rank.range((from, Bound::Unbounded)) {
                next.insert(id.clone());
                if next.len() == upto {
                    self.round.ranked = Some(Bound::Excluded((rank.clone(), id.clone())));
                    break;
                }
            }
        }
        if let Some(from) = self.round.rotated.take() {
            for (n, (id, _)) in self.models.range((from, Bound::Unbounded)).enumerate() {
                next.insert(id.clone());
                if n + 1 == IN_ROTATION {
                    self.round.rotated = Some(Bound::Excluded(id.clone()));
                    break;
                }
            }
            if self.round.rotated.is_none() && std::mem::take(&mut self.round.again) {
                self.round.rotated = Some(Bound::Unbounded);
            }
        }
        next
    }
}
