//! Threads that carry traffic share nothing that a request would wait for: each accepts its own connections and keeps its own connections to
//! endpoints, so that a request is served from its first byte to its last by one thread, without a lock that another holds and without
//! waking another.
//!
//! Invariants
//! - A task stays on the worker that spawned it: each worker is a runtime of one thread.
//! - What is measured of an endpoint (load, health, series) is one for all workers; only connections are each worker's own.

use std::cell::Cell;
use std::sync::OnceLock;

thread_local! {
    // (which worker this thread is, of how many)
    static ME: Cell<(usize, usize)> = const { Cell::new((0, 1)) };
}

/// Says that this thread is worker `id` of `count`. A thread that never says so counts as the first, of one.
pub fn enter(id: usize, count: usize) {
    ME.set((id, count));
}

/// One `T` for each worker; those of the second and later ones are made when one of them asks first.
#[derive(Debug, Default)]
pub struct PerWorker<T> {
    first: T,
    others: OnceLock<Box<[T]>>,
}

impl<T: Default> PerWorker<T> {
    /// The one of this thread.
    pub fn mine(&self) -> &T {
        let (id, count) = ME.get();
        if id == 0 {
            return &self.first;
        }
        let others = self.others.get_or_init(|| (1..count).map(|_| T::default()).collect());
        others.get(id - 1).unwrap_or(&self.first)
    }

    /// All that were made.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.first).chain(self.others.get().into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_has_its_own() {
        let slots = PerWorker::<Cell<u32>>::default();
        slots.mine().set(1);
        assert_eq!(slots.all().count(), 1);
        for id in [2, 1] {
            enter(id, 3);
            slots.mine().set(10 * id as u32);
        }
        assert_eq!(slots.all().map(Cell::get).collect::<Vec<_>>(), [1, 10, 20]);
        enter(0, 3);
        assert_eq!(slots.mine().get(), 1);
    }
}
