//! Sets and maps that mostly hold one entry: that one lies in them, without a node of its own.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

/// An ordered set.
#[derive(Debug, Clone)]
pub(crate) enum SmallSet<T> {
    One(Option<T>),
    Many(BTreeSet<T>),
}

/// An ordered map.
#[derive(Debug, Clone)]
pub(crate) enum SmallMap<K, V> {
    One(Option<(K, V)>),
    Many(BTreeMap<K, V>),
}

impl<T> Default for SmallSet<T> {
    fn default() -> Self {
        Self::One(None)
    }
}

impl<K, V> Default for SmallMap<K, V> {
    fn default() -> Self {
        Self::One(None)
    }
}

impl<T: Ord> SmallSet<T> {
    pub(crate) fn first(&self) -> Option<&T> {
        match self {
            Self::One(one) => one.as_ref(),
            Self::Many(many) => many.first(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    pub(crate) fn insert(&mut self, entry: T) {
        match self {
            Self::Many(many) => {
                many.insert(entry);
            }
            Self::One(one) => match one.take() {
                Some(other) if other != entry => *self = Self::Many(BTreeSet::from([other, entry])),
                _ => *one = Some(entry),
            },
        }
    }

    pub(crate) fn remove(&mut self, entry: &T) {
        match self {
            Self::One(one) => {
                if one.as_ref() == Some(entry) {
                    *one = None;
                }
            }
            Self::Many(many) => {
                many.remove(entry);
                if many.len() < 2 {
                    *self = Self::One(many.pop_first());
                }
            }
        }
    }
}

impl<K: Ord, V> SmallMap<K, V> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::One(one) => usize::from(one.is_some()),
            Self::Many(many) => many.len(),
        }
    }

    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::One(one) => one.as_ref().filter(|(at, _)| at.borrow() == key).map(|(_, value)| value),
            Self::Many(many) => many.get(key),
        }
    }

    pub(crate) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::One(one) => one.as_mut().filter(|(at, _)| (*at).borrow() == key).map(|(_, value)| value),
            Self::Many(many) => many.get_mut(key),
        }
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        match self {
            Self::Many(many) => {
                many.insert(key, value);
            }
            Self::One(one) => match one.take() {
                Some(other) if other.0 != key => {
                    *self = Self::Many(BTreeMap::from([other, (key, value)]));
                }
                _ => *one = Some((key, value)),
            },
        }
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        match self {
            Self::One(one) => *one = one.take().filter(|(_, value)| keep(value)),
            Self::Many(many) => {
                many.retain(|_, value| keep(value));
                if many.len() < 2 {
                    *self = Self::One(many.pop_first());
                }
            }
        }
    }
}
