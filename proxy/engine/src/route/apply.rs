//! What a selected rule does: the weighted choice of a backend, and header edits.

use http::HeaderMap;

use super::{Backend, HeaderEdit};

/// The backend that a drawn number falls on: each has the share `weight / sum of weights`, weight 0 is never chosen.
///
/// `random` is uniform over all of `u64`. `None` if the weights sum to 0. An invalid backend keeps its share: the caller answers
/// it with its reason (Gateway API `BackendRefs`: "that percentage of requests must receive a 500").
pub fn pick_backend(backends: &[Backend], random: u64) -> Option<usize> {
    let sum: u64 = backends.iter().map(|b| u64::from(b.weight)).sum();
    // Multiply and shift maps the draw on 0..sum without the bias of a remainder, and without a division.
    let mut at = ((u128::from(random) * u128::from(sum)) >> 64) as u64;
    for (index, backend) in backends.iter().enumerate() {
        let weight = u64::from(backend.weight);
        if at < weight {
            return Some(index);
        }
        at -= weight;
    }
    None
}

impl HeaderEdit {
    /// Sets, then adds, then removes.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn weighted(weights: &[u32]) -> Vec<Backend> {
        weights.iter().map(|&weight| Backend { weight, ..Backend::default() }).collect()
    }

    #[test]
    fn extremes_of_the_draw_stay_inside() {
        let backends = weighted(&[0, 3, 0, 1, 0]);
        assert_eq!(pick_backend(&backends, 0), Some(1));
        assert_eq!(pick_backend(&backends, u64::MAX), Some(3));
        assert_eq!(pick_backend(&weighted(&[0, 0]), 7), None);
        assert_eq!(pick_backend(&[], 7), None);
        assert_eq!(pick_backend(&weighted(&[u32::MAX; 3]), u64::MAX), Some(2));
    }

    proptest! {
        #[test]
        fn ten_thousand_draws_follow_the_weights(
            weights in proptest::collection::vec(prop_oneof![Just(0u32), 1u32..1000], 1..8),
            seed in any::<u64>(),
        ) {
            const DRAWS: u32 = 10_000;
            let backends = weighted(&weights);
            let mut random = fastrand::Rng::with_seed(seed);
            let mut hits = vec![0u32; weights.len()];
            let sum: u32 = weights.iter().sum();
            for _ in 0..DRAWS {
                match pick_backend(&backends, random.u64(..)) {
                    Some(index) => hits[index] += 1,
                    None => prop_assert_eq!(sum, 0),
                }
            }
            for (weight, hit) in weights.iter().zip(hits) {
                if *weight == 0 {
                    prop_assert_eq!(hit, 0);
                    continue;
                }
                let share = f64::from(*weight) / f64::from(sum);
                // Six standard deviations of a binomial: a false alarm once in 10^9.
                let tolerance = 6.0 * (f64::from(DRAWS) * share * (1.0 - share)).sqrt() + 1.0;
                prop_assert!((f64::from(hit) - f64::from(DRAWS) * share).abs() <= tolerance, "{hit} of share {share}");
            }
        }
    }

    #[test]
    fn edits_set_then_add_then_remove() {
        let name = |text: &'static str| HeaderName::from_static(text);
        let value = |text: &'static str| HeaderValue::from_static(text);
        let edit = HeaderEdit {
            set: vec![(name("a"), value("new"))],
            add: vec![(name("b"), value("two")), (name("c"), value("gone"))],
            remove: vec![name("c")],
        };
        let mut headers = HeaderMap::new();
        headers.append("a", value("old"));
        headers.append("a", value("older"));
        headers.append("b", value("one"));
        edit.apply(&mut headers);
        assert_eq!(headers.get_all("a").iter().collect::<Vec<_>>(), ["new"]);
        assert_eq!(headers.get_all("b").iter().collect::<Vec<_>>(), ["one", "two"]);
        assert!(!headers.contains_key("c"));
    }
}
