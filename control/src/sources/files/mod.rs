//! The source `files`: a directory of ordinary Kubernetes manifests, watched.
//!
//! - `scan`: which files there are, and whether they have changed.
//! - `object`: a file's text -> objects, each right or wrong by itself (`core` reads the core kinds, `weft_api::kinds` the strict ones).
//! - `store`: all objects, and the last good version of each.
//! - `edit`: what few files among many have changed in them.
//! - `assemble`: objects -> [`Model`], references looked up.
//! - `saved`: the last good versions, for the next start.
//! - `watch`: all of it again when a file changes.
//!
//! What a broken object becomes: its last good version, if there is one, be it from before a restart. Else a policy closes its targets (`policy_invalid`), or its whole
//! namespace if its targets cannot be read; a broken namespace has the strictest posture that it may have meant; every other
//! object is as if it were not written. A route that is not there leaves its parents with their own endpoints, as before it was written:
//! it says where requests go, never who may send them.

mod assemble;
mod core;
mod edit;
pub(super) mod object;
mod problem;
mod saved;
mod scan;
mod store;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::model::Model;

use super::State;
pub use problem::{Problem, Report};
pub(super) use scan::MAX_TOTAL_BYTES;
pub use watch::{Edit, Watch, watch};

/// All that the files say at one moment.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The how manieth thing it is that is told, or how many are in it.
    pub number: u64,
    /// Whether more is in it than in what was told before.
    pub news: bool,
    /// What is in force.
    pub model: Model,
    /// What must be mended, in the order of files and lines.
    pub problems: Vec<Problem>,
    /// What is doubtful, such as references that lead nowhere.
    pub warnings: Vec<Problem>,
    /// Objects left alone, by kind.
    pub skipped: BTreeMap<String, u64>,
    /// Objects in force, by kind.
    pub objects: BTreeMap<String, u64>,
    /// Whether all of it could be read.
    pub state: State,
    /// Whether every path that was given could be read at least once. Until then the model is less than there is, and no ground to
    /// answer "outside the mesh" or "no endpoints" to anybody.
    pub complete: bool,
    /// Manifest files read.
    pub files: usize,
    /// How often a bound (files, bytes, depth) kept something from being read.
    pub bounds_hit: u64,
}

impl Loaded {
    /// What `weft policy check` tells.
    pub fn report(&self) -> Report {
        Report {
            ok: self.problems.is_empty(),
            files: self.files,
            objects: self.objects.clone(),
            skipped: self.skipped.clone(),
            problems: self.problems.clone(),
            warnings: self.warnings.clone(),
        }
    }
}

/// Reads files and directories once. Never fails: what is wrong is among the problems.
pub fn load(paths: &[PathBuf], trust_domain: &str) -> Loaded {
    let mut store = store::Store::new(paths, trust_domain);
    store.refresh().unwrap_or_else(Loaded::empty)
}

/// Reads files and directories once, for `weft policy check`.
pub fn check(paths: &[PathBuf], trust_domain: &str) -> Report {
    load(paths, trust_domain).report()
}

impl Loaded {
    fn empty() -> Self {
        Self {
            number: 0,
            news: true,
            model: Model::default(),
            problems: Vec::new(),
            warnings: Vec::new(),
            skipped: BTreeMap::new(),
            objects: BTreeMap::new(),
            state: State::Synced,
            complete: false,
            files: 0,
            bounds_hit: 0,
        }
    }
}
