//! A map that remembers which of its entries may have changed, so that what is derived from them can follow.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// A map with a list of keys whose entries were lent out to be changed. It is walked in the order of its keys.
#[derive(Debug, Clone)]
pub(crate) struct Watched<K, V> {
    entries: HashMap<K, V>,
    order: BTreeSet<K>,
    changed: Vec<K>,
}

impl<K, V> Default for Watched<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), order: BTreeSet::new(), changed: Vec::new() }
    }
}

impl<K: Ord + Hash + Clone, V> Watched<K, V> {
    fn note(&mut self, key: &K) {
        // One event changes the same entry several times in a row.
        if self.changed.last() != Some(key) {
            self.changed.push(key.clone());
        }
    }

    /// Keys that may have changed since this was asked last; one may be there twice.
    pub(crate) fn take_changed(&mut self) -> Vec<K> {
        std::mem::take(&mut self.changed)
    }

    pub(crate) fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.note(key);
        self.entries.get_mut(key)
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.note(&key);
        self.order.insert(key.clone());
        self.entries.insert(key, value)
    }

    pub(crate) fn get_or_insert_with(&mut self, key: K, value: impl FnOnce() -> V) -> &mut V {
        self.note(&key);
        if !self.entries.contains_key(&key) {
            self.order.insert(key.clone());
        }
        self.entries.entry(key).or_insert_with(value)
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.note(key);
        self.order.remove(key);
        self.entries.remove(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.order.iter().filter_map(|key| Some((key, self.entries.get(key)?)))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.order.iter()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}
