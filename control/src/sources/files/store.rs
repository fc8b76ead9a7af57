//! All objects of all files, and the last good version of each.
//!
//! Invariants: an object that was good stays until it is replaced by a good one or is really gone: gone from a file that
//! could be read and understood. What cannot be read, or not be told apart, deletes nothing.
//! Across a restart the same holds for what was saved (`saved`), but for this: an object counts as deleted unless something broken has its name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use weft_api::kinds::{Fault, Position};

use super::assemble;
use super::object::{Content, Item, Key, Thing, Written, read_file};
use super::problem::Problem;
use super::saved;
use super::scan::{Failure, Root, Scan, Stamp};
use super::{Loaded, State};
use crate::model::Change;
use crate::sources::saved::{Saved, Snapshot};

/// A file that was written this lately may be written again within the same tick of its clock: it is read once more.
const RACY: Duration = Duration::from_millis(50);

/// Where an object stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Origin {
    pub file: Arc<str>,
    pub at: Position,
    pub thing: Arc<Thing>,
    pub warnings: Vec<Fault>,
    /// The document that it stands in, if texts are kept.
    pub written: Option<Arc<Written>>,
}

pub(super) struct Cached {
    stamp: Stamp,
    racy: bool,
    /// Of the text, or of why there is none.
    digest: u128,
    pub(super) file: Arc<str>,
    pub(super) items: Result<Vec<Item>, String>,
}

/// All there is after an edit, where everything is well.
pub(super) struct Edited {
    present: Present,
    trust_domain: String,
    files: usize,
}

/// Files that are others than before.
#[derive(Default)]
pub(super) struct Reread {
    /// What they were, if anything.
    pub before: Vec<Cached>,
    /// Those that are there.
    pub now: Vec<PathBuf>,
}

/// What a look at the files has found.
pub(super) enum News {
    Nothing,
    /// Some objects are others, and everything is as well as it was.
    Edit(Vec<Change>),
    All(Box<Loaded>),
}

pub(super) struct Store {
    paths: Vec<PathBuf>,
    trust_domain: String,
    pub(super) cache: BTreeMap<PathBuf, Cached>,
    roots: Vec<Root>,
    failures: Option<Vec<Failure>>,
    pub(super) last_good: BTreeMap<Key, Origin>,
    /// Whether the last good objects are just what the files say: nothing in them is broken, doubled or unreadable.
    pub(super) clean: bool,
    /// Whether something was edited since all of it was told.
    pub behind: bool,
    bounds_hit: u64,
    /// Whether to keep the objects' texts, so that they can be saved.
    keep: bool,
    /// What was saved before this process started; `None` once every path has been read.
    saved: Option<Saved>,
    /// The objects in it, read only if something is broken.
    before: BTreeMap<Key, Origin>,
    failing_since: Option<Instant>,
    /// Directories to be watched, from the last walk.
    pub directories: BTreeSet<PathBuf>,
}

/// Objects of one moment, before references are resolved.
#[derive(Default)]
pub(super) struct Present {
    pub objects: BTreeMap<Key, Origin>,
    /// Stand-ins of broken objects: in the model, but not good.
    pub instead: BTreeMap<Key, Origin>,
    pub problems: Vec<Problem>,
    pub skipped: BTreeMap<String, u64>,
}

impl Store {
    pub fn new(paths: &[PathBuf], trust_domain: &str) -> Self {
        Self {
            paths: paths.to_vec(),
            trust_domain: trust_domain.to_owned(),
            cache: BTreeMap::new(),
            roots: Vec::new(),
            failures: None,
            last_good: BTreeMap::new(),
            clean: false,
            behind: false,
            bounds_hit: 0,
            keep: false,
            saved: None,
            before: BTreeMap::new(),
            failing_since: None,
            directories: BTreeSet::new(),
        }
    }

    /// Starts with what a process before this one has saved, and makes it possible to save again.
    pub fn keeping(self, saved: Saved) -> Self {
        Self { keep: true, saved: Some(saved), ..self }
    }

    /// What to save; `None` as long as some path has never been read: less than there is must not take the place of all.
    pub fn snapshot(&self) -> Option<Snapshot> {
        (self.keep && self.complete()).then(|| saved::snapshot(&self.last_good))
    }

    fn complete(&self) -> bool {
        self.roots.iter().all(|root| root.seen.is_some())
    }

    /// Reads what has changed, and tells all there is. `None` if nothing has since the last time.
    pub fn refresh(&mut self) -> Option<Loaded> {
        let (failures, reread) = self.reread();
        let same = reread.is_empty() && self.failures.as_ref() == Some(&failures);
        (!same).then(|| self.load(failures))
    }

    /// Reads what has changed, and tells no more than that where it can.
    pub fn look(&mut self) -> News {
        let (failures, reread) = self.reread();
        let same = self.failures.as_ref() == Some(&failures);
        if same && reread.is_empty() {
            return News::Nothing;
        }
        let edited = if same { self.edit(&reread) } else { None };
        match edited {
            Some(changes) => {
                self.behind = true;
                News::Edit(changes)
            }
            None => News::All(Box::new(self.load(failures))),
        }
    }

    /// What is in force after an edit, to be put together where nobody waits for it.
    pub fn edited(&self) -> Edited {
        let mut present = Present { objects: self.last_good.clone(), ..Present::default() };
        present.skip(self.cache.values());
        Edited { present, trust_domain: self.trust_domain.clone(), files: self.cache.len() }
    }

    /// All that is known, whether or not anything has changed.
    pub fn all(&mut self) -> Loaded {
        let failures = self.failures.take().unwrap_or_default();
        self.load(failures)
    }

    fn reread(&mut self) -> (Vec<Failure>, Reread) {
        let scan = Scan::walk(&self.paths, &self.roots);
        let reread = self.read(&scan.files);
        (self.roots, self.directories, self.bounds_hit) = (scan.roots, scan.directories, scan.bounds_hit);
        (scan.failures, reread)
    }

    fn load(&mut self, failures: Vec<Failure>) -> Loaded {
        self.recall(&failures);
        let present = self.present(&failures);
        let unreadable = failures.len() + self.cache.values().filter(|cached| cached.items.is_err()).count();
        let state = self.state(unreadable);
        let mut loaded = assemble::assemble(&present, &self.trust_domain);
        loaded.state = state;
        loaded.complete = self.complete();
        if loaded.complete {
            // What was needed of it is among the last good versions now; the rest is deleted for good.
            (self.saved, self.before) = (None, BTreeMap::new());
        }
        self.clean = loaded.complete && present.problems.is_empty() && present.instead.is_empty();
        self.last_good = present.objects;
        loaded.files = self.cache.len();
        loaded.bounds_hit = self.bounds_hit;
        self.failures = Some(failures);
        self.behind = false;
        loaded
    }

    /// Reads what was saved, if it may be needed.
    fn recall(&mut self, failures: &[Failure]) {
        let Some(saved) = self.saved.as_ref().filter(|_| self.before.is_empty()) else { return };
        let broken = |cached: &Cached| {
            let mut items = cached.items.iter().flatten();
            cached.items.is_err() || items.any(|item| matches!(item.content, Content::Broken { .. }))
        };
        if !failures.is_empty() || self.cache.values().any(broken) {
            self.before = saved::objects(saved);
        }
    }

    fn state(&mut self, unreadable: usize) -> State {
        if unreadable == 0 {
            self.failing_since = None;
            return State::Synced;
        }
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        let any = self.cache.values().any(|cached| cached.items.is_ok());
        if any { State::Stale { since } } else { State::Lost { since } }
    }

    fn read(&mut self, files: &BTreeMap<PathBuf, Stamp>) -> Reread {
        let mut reread = Reread::default();
        let gone = self.cache.extract_if(.., |path, _| !files.contains_key(path));
        reread.before.extend(gone.map(|(_, cached)| cached));
        for (path, stamp) in files {
            let fresh = self.cache.get(path).is_some_and(|cached| {
                // What could not be read is tried again each time.
                cached.stamp == *stamp && !cached.racy && cached.items.is_ok()
            });
            if fresh {
                continue;
            }
            let file: Arc<str> = path.display().to_string().into();
            let racy = is_racy(path);
            let text = read_text(path);
            let digest = xxhash_rust::xxh3::xxh3_128(text.as_ref().map_or_else(String::as_bytes, String::as_bytes));
            // Touched, or read once more to be sure: the same objects.
            if let Some(cached) = self.cache.get_mut(path).filter(|cached| cached.digest == digest) {
                (cached.stamp, cached.racy) = (*stamp, racy);
                continue;
            }
            let items = text.map(|text| read_file(&file, &text, self.keep));
            reread.before.extend(self.cache.insert(path.clone(), Cached { stamp: *stamp, racy, digest, file, items }));
            reread.now.push(path.clone());
        }
        reread
    }

    fn present(&self, failures: &[Failure]) -> Present {
        let mut present = Present::default();
        let mut broken: Vec<(&Cached, &Item)> = Vec::new();
        for cached in self.cache.values() {
            for item in cached.items.iter().flatten() {
                match &item.content {
                    Content::Good { key, thing, warnings } => present.add(cached, item, key, thing, warnings),
                    Content::Broken { .. } => broken.push((cached, item)),
                    Content::Skipped(_) => {}
                }
            }
        }
        present.skip(self.cache.values());
        self.keep_unreadable(failures, &mut present);
        self.keep_broken(&broken, &mut present);
        present
    }

    /// What was good in a file or directory that cannot be read stays.
    fn keep_unreadable(&self, failures: &[Failure], present: &mut Present) {
        for failure in failures {
            let path = failure.path.display().to_string();
            present.problems.push(Problem::of_file(&path, failure.message.clone()));
        }
        for cached in self.cache.values() {
            if let Err(message) = &cached.items {
                present.problems.push(Problem::of_file(&cached.file, message.clone()));
            }
        }
        let unreadable = self.cache.values().filter(|cached| cached.items.is_err());
        let files: BTreeSet<&str> = unreadable.map(|cached| cached.file.as_ref()).collect();
        for (key, origin) in self.last_good.iter().chain(&self.before) {
            let below = |failure: &Path| Path::new(origin.file.as_ref()).starts_with(failure);
            if files.contains(origin.file.as_ref()) || failures.iter().any(|failure| below(&failure.path)) {
                present.objects.entry(key.clone()).or_insert_with(|| origin.clone());
            }
        }
    }

    /// A broken object keeps its last good version. Where it cannot be told which object is broken, all that the file had and has no more
    /// stays. Where nothing good is known, a stand-in closes what a policy would have covered.
    fn keep_broken(&self, broken: &[(&Cached, &Item)], present: &mut Present) {
        for (cached, item) in broken {
            let Content::Broken { key, faults, instead } = &item.content else { continue };
            let mut kept = false;
            match key {
                Some(key) => {
                    let good = self.last_good.get(key).or_else(|| self.before.get(key));
                    let good = good.filter(|_| !present.objects.contains_key(key));
                    if let Some(good) = good {
                        present.objects.insert(key.clone(), good.clone());
                    }
                    kept = good.is_some();
                    if !present.objects.contains_key(key) {
                        present.stand_in(cached, item.at, instead);
                    }
                }
                None => {
                    // It may have been deleted while nobody looked: only what the broken text names is known to be there still.
                    let named = |key| item.written.as_ref().is_some_and(|written| written.names(key));
                    let before = self.before.iter().filter(|(key, _)| named(key));
                    let known = self.last_good.iter().chain(before);
                    for (key, good) in known.filter(|(_, good)| good.file == cached.file) {
                        present.objects.entry(key.clone()).or_insert_with(|| {
                            kept = true;
                            good.clone()
                        });
                    }
                    let covered = |(other, _): &&(Key, Arc<Thing>)| {
                        present.objects.iter().any(|(key, origin)| {
                            key.kind == other.kind
                                && key.name.namespace == other.name.namespace
                                && origin.file == cached.file
                        })
                    };
                    let open: Vec<_> = instead.iter().filter(|one| !(kept && covered(one))).cloned().collect();
                    present.stand_in(cached, item.at, &open);
                }
            }
            let object = key.as_ref().map(ToString::to_string);
            for fault in faults {
                let mut problem = Problem::of_fault(&cached.file, object.clone(), fault);
                if kept {
                    problem.message.push_str(" (the last good version stays)");
                }
                present.problems.push(problem);
            }
        }
    }
}

impl Origin {
    pub fn new(cached: &Cached, item: &Item, thing: &Arc<Thing>, warnings: &[Fault]) -> Self {
        let (file, thing, written) = (Arc::clone(&cached.file), Arc::clone(thing), item.written.clone());
        Self { file, at: item.at, thing, warnings: warnings.to_vec(), written }
    }
}

impl Reread {
    fn is_empty(&self) -> bool {
        self.before.is_empty() && self.now.is_empty()
    }
}

impl Edited {
    /// As [`Store::refresh`] would tell it: all of it is right.
    pub fn assemble(&self) -> Loaded {
        let loaded = assemble::assemble(&self.present, &self.trust_domain);
        Loaded { complete: true, files: self.files, ..loaded }
    }
}

impl Present {
    /// Counts what is left alone.
    fn skip<'c>(&mut self, cached: impl Iterator<Item = &'c Cached>) {
        for item in cached.flat_map(|cached| cached.items.iter().flatten()) {
            if let Content::Skipped(kind) = &item.content {
                *self.skipped.entry(kind.clone()).or_default() += 1;
            }
        }
    }

    fn add(&mut self, cached: &Cached, item: &Item, key: &Key, thing: &Arc<Thing>, warnings: &[Fault]) {
        if let Some(first) = self.objects.get(key) {
            let message = format!("is already defined in {}:{}, which counts", first.file, first.at.line);
            self.problems.push(Problem::of_fault(&cached.file, Some(key.to_string()), &Fault::new(item.at, message)));
            return;
        }
        self.objects.insert(key.clone(), Origin::new(cached, item, thing, warnings));
    }

    fn stand_in(&mut self, cached: &Cached, at: Position, instead: &[(Key, Arc<Thing>)]) {
        for (key, thing) in instead {
            let (file, thing) = (cached.file.clone(), thing.clone());
            let origin = Origin { file, at, thing, warnings: Vec::new(), written: None };
            self.instead.entry(key.clone()).or_insert(origin);
        }
    }
}

fn is_racy(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    // A time in the future says nothing: such a file is read again each time, which is dear but right.
    modified.is_ok_and(|modified| SystemTime::now().duration_since(modified).unwrap_or_default() < RACY)
}

fn read_text(path: &Path) -> Result<String, String> {
    let most = super::scan::MAX_FILE_BYTES;
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > most {
        return Err(format!("is larger than {most} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| format!("is not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}
