//! Which adapters an engine holds, who uses them, and which one goes next. Plain values.

use std::collections::BTreeMap;

use berth_wire::ModelId;

#[derive(Debug)]
struct Held {
    users: u32,
    used: u64,
    /// It is to go: nobody gets it any more.
    leaving: bool,
}

/// The adapters of one engine.
#[derive(Debug)]
pub(crate) struct Loaded {
    most: usize,
    held: BTreeMap<ModelId, Held>,
    uses: u64,
}

impl Loaded {
    /// Of an engine that holds `most` at a time.
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(1), held: BTreeMap::new(), uses: 0 }
    }

    /// One more request is for it; no, if it is not there or about to go.
    pub(crate) fn take(&mut self, id: &ModelId) -> bool {
        let Some(held) = self.held.get_mut(id).filter(|held| !held.leaving) else { return false };
        self.uses += 1;
        held.users += 1;
        held.used = self.uses;
        true
    }

    /// One of its requests has ended.
    pub(crate) fn leave(&mut self, id: &ModelId) {
        if let Some(held) = self.held.get_mut(id) {
            held.users = held.users.saturating_sub(1);
        }
    }

    /// Those that are there.
    pub(crate) fn held(&self) -> Vec<ModelId> {
        self.held.keys().cloned().collect()
    }

    pub(crate) fn users(&self, id: &ModelId) -> u32 {
        self.held.get(id).map_or(0, |held| held.users)
    }

    /// It has been loaded.
    pub(crate) fn add(&mut self, id: ModelId) {
        self.held.entry(id).or_insert(Held { users: 0, used: self.uses, leaving: false });
    }

    pub(crate) fn remove(&mut self, id: &ModelId) {
        self.held.remove(id);
    }

    /// Chooses the one that must go before another can come: the one that was used longest ago. From here on nobody
    /// gets it.
    pub(crate) fn make_room(&mut self) -> Option<ModelId> {
        if self.held.len() < self.most {
            return None;
        }
        let (id, held) = self.held.iter_mut().min_by_key(|(_, held)| held.used)?;
        held.leaving = true;
        Some(id.clone())
    }

    /// Forgets all; what they were.
    pub(crate) fn clear(&mut self) -> Vec<ModelId> {
        std::mem::take(&mut self.held).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ModelId {
        text.into()
    }

    #[test]
    fn the_one_used_longest_ago_goes_and_is_given_to_nobody_meanwhile() {
        let mut loaded = Loaded::new(2);
        loaded.add(id("a"));
        loaded.add(id("b"));
        assert!(loaded.take(&id("a")) && loaded.take(&id("b")) && loaded.take(&id("a")));
        loaded.leave(&id("a"));
        assert_eq!(loaded.make_room(), Some(id("b")));
        assert!(!loaded.take(&id("b")), "it is to go");
        assert_eq!((loaded.users(&id("a")), loaded.users(&id("b"))), (1, 1));
        loaded.leave(&id("b"));
        loaded.remove(&id("b"));
        assert_eq!(loaded.make_room(), None);
        loaded.add(id("c"));
        assert!(loaded.take(&id("c")));
    }

    #[test]
    fn what_is_not_there_is_not_given() {
        let mut loaded = Loaded::new(1);
        assert!(!loaded.take(&id("a")));
        loaded.add(id("a"));
        assert_eq!(loaded.clear(), [id("a")]);
        assert!(!loaded.take(&id("a")));
    }
}
