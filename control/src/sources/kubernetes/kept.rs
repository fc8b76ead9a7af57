//! The last good versions of the cluster's objects, for the next start: [`crate::sources::saved`] keeps them.
//!
//! Kept is what people write, of each object as much as is read again ([`Watched::written`]): no status, no labels, no other annotations than
//! ours. Nodes, slices and pods are not: they are written by machines, all the time, and what they said in another life helps nobody.
//!
//! Invariants
//! - Until a kind was listed, what was saved of it stays; then there is a text of each object in force, and of no other.
//! - A text counts for the very object that it was of (`metadata.uid`), not for another one of its name.
//! - All texts together have [`MAX_TOTAL_BYTES`]; of an object that does not fit none is kept, and no older one either.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::kind::WATCHED;
use crate::model::Name;
use crate::sources::files::MAX_TOTAL_BYTES;
use crate::sources::files::object::{Key, Written};
use crate::sources::saved::{Saved, Snapshot};

/// Their file in the state directory.
pub(super) const FILE: &str = "cluster-objects";

/// The texts, shared with the thread that writes them.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    kinds: BTreeMap<&'static str, BTreeMap<Name, Arc<Written>>>,
    bytes: u64,
    news: News,
}

/// What has happened since somebody asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Other texts are kept than before.
    pub changed: bool,
    /// Objects of which none is, for want of room.
    pub left_out: u64,
}

impl Texts {
    /// What a process before this one has saved.
    pub fn from(saved: Saved) -> Self {
        let mut held = Held::default();
        for entry in saved.documents {
            let written = Arc::new(Written { text: entry.text, lines_before: 0 });
            for (kind, name) in entry.objects.iter().filter_map(|object| parse(object)) {
                held.put(kind, name, Arc::clone(&written));
            }
        }
        held.news = News::default();
        Self(Arc::new(Mutex::new(held)))
    }

    pub fn get(&self, kind: &str, name: &Name) -> Option<Arc<Written>> {
        self.0.lock().kinds.get(kind)?.get(name).cloned()
    }

    /// Those of a kind.
    pub fn of(&self, kind: &str) -> Vec<(Name, Arc<Written>)> {
        let held = self.0.lock();
        let texts = held.kinds.get(kind).into_iter().flatten();
        texts.map(|(name, written)| (name.clone(), Arc::clone(written))).collect()
    }

    pub fn put(&self, kind: &'static str, name: Name, written: Arc<Written>) {
        self.0.lock().put(kind, name, written);
    }

    pub fn remove(&self, kind: &str, name: &Name) {
        self.0.lock().remove(kind, name);
    }

    /// Keeps those of a kind that are there.
    pub fn retain(&self, kind: &str, is_there: impl Fn(&Name) -> bool) {
        let mut held = self.0.lock();
        let names = held.kinds.get(kind).into_iter().flat_map(BTreeMap::keys);
        let gone: Vec<Name> = names.filter(|name| !is_there(name)).cloned().collect();
        for name in gone {
            held.remove(kind, &name);
        }
    }

    /// What is new; nothing is then.
    pub fn news(&self) -> News {
        std::mem::take(&mut self.0.lock().news)
    }

    pub fn snapshot(&self) -> Snapshot {
        let (held, file) = (self.0.lock(), Arc::<str>::from(""));
        let all = held.kinds.iter().flat_map(|(kind, texts)| texts.iter().map(move |(name, text)| (*kind, name, text)));
        let one = |(kind, name, text): (&'static str, &Name, &Arc<Written>)| {
            (Arc::clone(&file), Arc::clone(text), vec![Key { kind, name: name.clone() }])
        };
        all.map(one).collect()
    }
}

impl Held {
    fn put(&mut self, kind: &'static str, name: Name, written: Arc<Written>) {
        let texts = self.kinds.entry(kind).or_default();
        // Lists say again what is known.
        if texts.get(&name).is_some_and(|before| *before == written) {
            return;
        }
        let before = texts.get(&name).map_or(0, |before| before.text.len() as u64);
        let bytes = self.bytes - before + written.text.len() as u64;
        if bytes > MAX_TOTAL_BYTES {
            self.news.left_out += 1;
            return self.remove(kind, &name);
        }
        texts.insert(name, written);
        (self.bytes, self.news.changed) = (bytes, true);
    }

    fn remove(&mut self, kind: &str, name: &Name) {
        if let Some(gone) = self.kinds.get_mut(kind).and_then(|texts| texts.remove(name)) {
            self.bytes -= gone.text.len() as u64;
            self.news.changed = true;
        }
    }
}

/// `KIND/NAMESPACE/NAME`, or `KIND/NAME` of what is in no namespace; nothing of a kind that is not watched.
fn parse(object: &str) -> Option<(&'static str, Name)> {
    let (kind, name) = object.split_once('/')?;
    let watched = WATCHED.iter().find(|watched| watched.kind == kind)?;
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Some((watched.kind, Name::new(namespace, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Arc<Written> {
        Arc::new(Written { text: text.to_owned(), lines_before: 0 })
    }

    fn name(name: &str) -> Name {
        Name::new("shop", name)
    }

    #[test]
    fn only_what_is_new_is_news_and_what_does_not_fit_is_left_out_whole() {
        let texts = Texts::default();
        assert_eq!(texts.news(), News::default());
        texts.put("HTTPRoute", name("a"), written("one"));
        assert!(texts.news().changed);
        texts.put("HTTPRoute", name("a"), written("one"));
        texts.remove("HTTPRoute", &name("b"));
        texts.retain("TCPRoute", |_| false);
        assert_eq!(texts.news(), News::default());
        texts.0.lock().bytes = MAX_TOTAL_BYTES;
        texts.put("HTTPRoute", name("a"), written("four"));
        // Not the older one either: it might let in whom the newer one shuts out.
        assert_eq!((texts.get("HTTPRoute", &name("a")), texts.news()), (None, News { changed: true, left_out: 1 }));
        assert_eq!(texts.0.lock().bytes, MAX_TOTAL_BYTES - 3);
    }

    #[test]
    fn objects_are_known_by_kind_namespace_and_name() {
        assert_eq!(parse("HTTPRoute/shop/web"), Some(("HTTPRoute", name("web"))));
        assert_eq!(parse("Namespace/shop"), Some(("Namespace", Name::new("", "shop"))));
        assert_eq!((parse("Secret/shop/web"), parse("HTTPRoute")), (None, None));
    }
}
