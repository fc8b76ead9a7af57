//! The last good versions of objects in files, for the next start: [`crate::sources::saved`] keeps them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use weft_api::kinds::Document;

use super::object::{Content, Key, Written, read_document};
use super::store::Origin;
use crate::sources::saved::{Saved, Snapshot};

/// Their file in the state directory.
pub(super) const FILE: &str = "objects";

/// Gathers the documents of these objects; cheap, for it copies no text.
pub(super) fn snapshot(objects: &BTreeMap<Key, Origin>) -> Snapshot {
    let mut found = Snapshot::new();
    let mut places: HashMap<*const Written, usize> = HashMap::new();
    for (key, origin) in objects {
        let Some(written) = &origin.written else { continue };
        let place = *places.entry(Arc::as_ptr(written)).or_insert_with(|| {
            found.push((Arc::clone(&origin.file), Arc::clone(written), Vec::new()));
            found.len() - 1
        });
        if let Some((_, _, keys)) = found.get_mut(place) {
            keys.push(key.clone());
        }
    }
    found
}

/// Reads the objects. What this build does not find good any more is left out.
pub(super) fn objects(saved: &Saved) -> BTreeMap<Key, Origin> {
    let mut found = BTreeMap::new();
    for entry in &saved.documents {
        let file: Arc<str> = entry.file.as_str().into();
        let document = Document { text: &entry.text, lines_before: entry.lines_before };
        let mut items = Vec::new();
        let meant: HashSet<&str> = entry.objects.iter().map(String::as_str).collect();
        read_document(&file, document, true, &mut items);
        for item in items {
            let Content::Good { key, thing, warnings } = item.content else { continue };
            if meant.contains(key.to_string().as_str()) {
                let (file, at, written) = (Arc::clone(&file), item.at, item.written);
                found.entry(key).or_insert(Origin { file, at, thing, warnings, written });
            }
        }
    }
    found
}
