//! A bounded, process-wide cache of things that never change once written (manifests, delete files), by location.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps what was used lately, in two generations: when the young one holds half of the bound, the old one is dropped and the
/// young one becomes old. Every operation is a look-up; nothing is sorted or linked.
pub(crate) struct Cache<T> {
    /// Weight of both generations together, in the unit of `insert`'s `weight`.
    capacity: u64,
    state: Mutex<Generations<T>>,
}

struct Generations<T> {
    young: HashMap<String, (Arc<T>, u64)>,
    old: HashMap<String, (Arc<T>, u64)>,
    young_weight: u64,
}

impl<T> Cache<T> {
    pub(crate) fn new(capacity: u64) -> Self {
        let state = Generations { young: HashMap::new(), old: HashMap::new(), young_weight: 0 };
        Self { capacity, state: Mutex::new(state) }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Arc<T>> {
        // Every change of the state is complete before the lock is released, so a poisoned one is still good.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((value, _)) = state.young.get(key) {
            return Some(value.clone());
        }
        let (value, weight) = state.old.remove(key)?;
        self.put(&mut state, key.to_owned(), value.clone(), weight);
        Some(value)
    }

    /// `weight` is about the bytes in memory. What is heavier than half of the bound is not kept.
    pub(crate) fn insert(&self, key: String, value: Arc<T>, weight: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.put(&mut state, key, value, weight);
    }

    fn put(&self, state: &mut Generations<T>, key: String, value: Arc<T>, weight: u64) {
        let half = self.capacity / 2;
        if weight > half {
            return;
        }
        if state.young_weight + weight > half {
            state.old = std::mem::take(&mut state.young);
            state.young_weight = 0;
        }
        if let Some((_, replaced)) = state.young.insert(key, (value, weight)) {
            state.young_weight -= replaced;
        }
        state.young_weight += weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_bound_holds() {
        let cache = Cache::new(100);
        cache.insert("hot".into(), Arc::new(0), 10);
        for i in 0..1000 {
            cache.insert(i.to_string(), Arc::new(i), 10);
            assert_eq!(cache.get("hot").as_deref(), Some(&0), "dropped after {i} others");
        }
        assert!(cache.get("1").is_none());
        let state = cache.state.lock().expect("broken invariant: not poisoned");
        let weight: u64 = state.young.values().chain(state.old.values()).map(|(_, w)| w).sum();
        assert!(weight <= 100, "{weight}");
    }

    #[test]
    fn what_is_too_heavy_is_not_kept() {
        let cache = Cache::new(100);
        cache.insert("a".into(), Arc::new(1), 51);
        assert!(cache.get("a").is_none());
    }
}
