//! Few values by key.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// Sorted values by key; most keys have one or two, so a vector each. Invariants: a key without values is not here; a value that was put in
/// twice is there twice, and has to be taken out twice.
#[derive(Clone, Debug, PartialEq)]
pub struct Multi<K: Eq + Hash, V>(HashMap<K, Vec<V>>);

impl<K: Eq + Hash, V> Default for Multi<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V: Ord> Multi<K, V> {
    /// Puts a value in.
    pub fn put(&mut self, key: K, value: V) {
        let values = self.0.entry(key).or_insert_with(|| Vec::with_capacity(1));
        let (Ok(at) | Err(at)) = values.binary_search(&value);
        values.insert(at, value);
    }

    /// Takes a value out, once.
    pub fn cut<Q: Eq + Hash + ?Sized>(&mut self, key: &Q, value: &V)
    where
        K: Borrow<Q>,
    {
        let Some(values) = self.0.get_mut(key) else { return };
        if let Ok(at) = values.binary_search(value) {
            values.remove(at);
        }
        if values.is_empty() {
            self.0.remove(key);
        }
    }

    /// The values of a key.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> &[V]
    where
        K: Borrow<Q>,
    {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }
}
