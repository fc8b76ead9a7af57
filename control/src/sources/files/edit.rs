//! An edit of few files among many: what has changed is found without a look at the rest.
//!
//! It is so only while everything is well: where nothing in any file is broken, doubled or unreadable, what is in force is just what the files
//! say, and each object stands in one file. Anything else is for [`Store::refresh`].

use std::collections::{BTreeMap, BTreeSet};

use super::object::{Content, Key, change};
use super::store::{Cached, Origin, Reread, Store};
use crate::model::Change;

impl Store {
    /// What of the objects has changed by these files; taken over. `None`, and nothing is different, if more has to be looked at.
    pub(super) fn edit(&mut self, reread: &Reread) -> Option<Vec<Change>> {
        if !self.clean {
            return None;
        }
        let now = self.good(reread)?;
        let before: BTreeSet<Key> = reread.before.iter().flat_map(keys).collect();
        // It stands in another file too.
        if now.keys().any(|key| self.last_good.contains_key(key) && !before.contains(key)) {
            return None;
        }
        let mut changes = Vec::new();
        for key in before.into_iter().filter(|key| !now.contains_key(key)) {
            self.last_good.remove(&key);
            changes.push(change(key.kind, key.name, None));
        }
        for (key, origin) in now {
            if self.last_good.get(&key).is_none_or(|old| old.thing != origin.thing) {
                changes.push(change(key.kind, key.name.clone(), Some(origin.thing.as_ref().clone())));
            }
            self.last_good.insert(key, origin);
        }
        Some(changes)
    }

    /// The objects in files that were read anew, if each is right and there once.
    fn good(&self, reread: &Reread) -> Option<BTreeMap<Key, Origin>> {
        let mut good = BTreeMap::new();
        for path in &reread.now {
            let cached = self.cache.get(path)?;
            for item in cached.items.as_ref().ok()? {
                match &item.content {
                    Content::Good { key, thing, warnings } => {
                        if good.insert(key.clone(), Origin::new(cached, item, thing, warnings)).is_some() {
                            return None;
                        }
                    }
                    Content::Broken { .. } => return None,
                    Content::Skipped(_) => {}
                }
            }
        }
        Some(good)
    }
}

fn keys(cached: &Cached) -> impl Iterator<Item = Key> {
    cached.items.iter().flatten().filter_map(|item| match &item.content {
        Content::Good { key, .. } => Some(key.clone()),
        Content::Broken { .. } | Content::Skipped(_) => None,
    })
}
