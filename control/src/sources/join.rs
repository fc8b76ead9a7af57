//! Several sources become one, object by object. Pure.
//!
//! Invariants
//! - Sources have an order of preference: of an object that several have, that of the first one counts. When it goes from there, the next one's
//!   does.
//! - What is told at any moment makes, applied in order, exactly that union.
//! - One source alone goes through as it is, and nothing of it is held here.

use crate::model::{Change, Model};

/// Joins sources, the preferred one first.
#[derive(Debug)]
pub struct Join {
    /// What each has; nothing if there is only one.
    held: Vec<Model>,
}

impl Join {
    /// Of so many sources.
    pub fn new(sources: usize) -> Self {
        Self { held: if sources > 1 { vec![Model::default(); sources] } else { Vec::new() } }
    }

    /// Takes what the source of that number tells. Returns what it comes to.
    pub fn take(&mut self, source: usize, changes: Vec<Change>) -> Vec<Change> {
        if self.held.is_empty() {
            return changes;
        }
        changes.into_iter().filter_map(|change| self.one(source, change)).collect()
    }

    fn one(&mut self, source: usize, change: Change) -> Option<Change> {
        if !self.held.get_mut(source)?.apply(change.clone()) {
            return None;
        }
        let (preferred, others) = self.held.split_at(source);
        if preferred.iter().any(|held| has(&held.held(&change))) {
            return None;
        }
        // This one's, else the next one's; else it is gone.
        Some(others.iter().map(|held| held.held(&change)).find(has).unwrap_or(change))
    }
}

/// Whether the object is there.
fn has(change: &Change) -> bool {
    match change {
        Change::Namespace(_, value) => value.is_some(),
        Change::Node(_, value) => value.is_some(),
        Change::Service(_, value) => value.is_some(),
        Change::Slice(_, value) => value.is_some(),
        Change::Workload(_, value) => value.is_some(),
        Change::Route(_, value) => value.is_some(),
        Change::Grant(_, value) => value.is_some(),
        Change::Authorization(_, value) => value.is_some(),
        Change::RateLimit(_, value) => value.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Name, Namespace, Service, Workload};

    const SOURCES: usize = 3;

    fn change() -> impl Strategy<Value = Change> {
        let name = || prop::sample::select(&["a", "b", "c"][..]);
        let text = || prop::option::of(prop::sample::select(&["x", "y"][..]));
        let service = |text: &str| Service { external_name: Some(text.to_owned()), ..Service::default() };
        let pod = |text: &str| Workload { uid: text.to_owned(), ..Workload::default() };
        prop_oneof![
            (name(), text()).prop_map(move |(name, text)| Change::Service(Name::new("shop", name), text.map(service))),
            (name(), text()).prop_map(move |(name, text)| Change::Workload(Name::new("shop", name), text.map(pod))),
            (name(), any::<Option<bool>>()).prop_map(|(name, deny)| {
                let namespace = deny.map(|default_deny| Namespace { default_deny, ..Namespace::default() });
                Change::Namespace(name.to_owned(), namespace)
            }),
        ]
    }

    /// The union, made anew: the least preferred first, the others over it.
    fn union(sources: &[Model]) -> Model {
        let mut all = Model::default();
        for source in sources.iter().rev() {
            for change in Model::default().changes_to(source) {
                all.apply(change);
            }
        }
        all
    }

    proptest! {
        #[test]
        fn what_is_told_makes_the_union(
            batches in prop::collection::vec((0..SOURCES, prop::collection::vec(change(), 0..6)), 0..40)
        ) {
            let (mut join, mut told) = (Join::new(SOURCES), Model::default());
            let mut sources = vec![Model::default(); SOURCES];
            for (source, changes) in batches {
                for change in changes.clone() {
                    sources[source].apply(change);
                }
                for change in join.take(source, changes) {
                    told.apply(change);
                }
                prop_assert_eq!(&told, &union(&sources));
            }
        }
    }

    #[test]
    fn the_first_source_that_has_an_object_wins_and_the_next_one_follows() {
        let service = |text: &str| Some(Service { external_name: Some(text.to_owned()), ..Service::default() });
        let name = Name::new("shop", "web");
        let tell = |join: &mut Join, source, value| join.take(source, vec![Change::Service(name.clone(), value)]);
        let mut join = Join::new(2);
        assert_eq!(tell(&mut join, 1, service("cluster")), [Change::Service(name.clone(), service("cluster"))]);
        assert_eq!(tell(&mut join, 0, service("file")), [Change::Service(name.clone(), service("file"))]);
        assert_eq!(tell(&mut join, 1, service("newer")), []);
        assert_eq!(tell(&mut join, 0, None), [Change::Service(name.clone(), service("newer"))]);
        assert_eq!(tell(&mut join, 1, None), [Change::Service(name.clone(), None)]);
    }
}
