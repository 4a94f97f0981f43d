//! A map that remembers which of its entries may have changed, so that what is derived from them can follow.

use std::borrow::Borrow;
use std::collections::{BTreeMap, btree_map};

/// An ordered map with a list of keys whose entries were lent out to be changed.
#[derive(Debug, Clone)]
pub(crate) struct Watched<K, V> {
    entries: BTreeMap<K, V>,
    changed: Vec<K>,
}

impl<K, V> Default for Watched<K, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), changed: Vec::new() }
    }
}

impl<K: Ord + Clone, V> Watched<K, V> {
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

    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
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
        self.entries.insert(key, value)
    }

    pub(crate) fn get_or_insert_with(&mut self, key: K, value: impl FnOnce() -> V) -> &mut V {
        self.note(&key);
        self.entries.entry(key).or_insert_with(value)
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.note(key);
        self.entries.remove(key)
    }

    pub(crate) fn keys(&self) -> btree_map::Keys<'_, K, V> {
        self.entries.keys()
    }

    pub(crate) fn values(&self) -> btree_map::Values<'_, K, V> {
        self.entries.values()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl<'a, K, V> IntoIterator for &'a Watched<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = btree_map::Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.iter()
    }
}
