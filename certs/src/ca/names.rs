//! What a trust domain is called over time. Pure. The name that its CA was made under stands with the CA's other parts and is handed in
//! here as `first`; this holds the rest, which is nothing for most.
//!
//! Invariants
//! - A name that was had once, or was to be had, is known for good: pods may have been started with it.
//! - They are at most [`MAX_NAMES`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use weft_engine::identity::Identity;

use super::rotation::RotationError;

/// Names that a trust domain may have in its life: control has a certificate in each.
pub const MAX_NAMES: usize = 16;

/// The names beside the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Names {
    /// In their order.
    later: Vec<String>,
    /// The one that leaves are issued in; none: the first.
    issuing: Option<String>,
    /// Those that are believed for good beside it.
    kept: BTreeSet<String>,
}

impl Names {
    /// Whether there was never another.
    pub fn is_first(&self) -> bool {
        *self == Self::default()
    }

    /// Whether what was read from a file is what this module could have written.
    pub fn is_sound(&self) -> bool {
        let domain = |name: &String| Identity::new(name, "any", "any").is_ok();
        let elsewhere = self.kept.iter().chain(&self.issuing).filter(|name| !self.later.contains(name));
        let first: BTreeSet<&String> = elsewhere.collect();
        self.later.len() < MAX_NAMES && self.later.iter().chain(&self.kept).all(domain) && first.len() <= 1
    }

    /// Whether this can be one of the names: whichever is not known here may be the first.
    pub fn may_be(&self, name: &str) -> bool {
        !self.later.is_empty() && Identity::new(name, "any", "any").is_ok()
    }

    /// The name that leaves are issued in.
    pub fn issuing<'a>(&'a self, first: &'a str) -> &'a str {
        self.issuing.as_deref().unwrap_or(first)
    }

    /// Names that are believed for good; the one that issues may be among them while a rotation is under way.
    pub fn kept(&self) -> impl Iterator<Item = &str> {
        self.kept.iter().map(String::as_str)
    }

    /// Whether this is one of them.
    pub fn keeps(&self, name: &str) -> bool {
        self.kept.contains(name)
    }

    /// All, the oldest first.
    pub fn every<'a>(&'a self, first: &'a str) -> impl Iterator<Item = &'a str> {
        std::iter::once(first).chain(self.later.iter().map(String::as_str))
    }

    pub(super) fn begin(&mut self, first: &str, to: &str, keep: bool) -> Result<(), RotationError> {
        if !self.every(first).any(|name| name == to) {
            if self.later.len() + 1 >= MAX_NAMES {
                return Err(RotationError::Names(MAX_NAMES));
            }
            self.later.push(to.to_owned());
        }
        if keep {
            self.kept.insert(self.issuing(first).to_owned());
        }
        Ok(())
    }

    pub(super) fn issue_in(&mut self, name: &str) {
        self.issuing = Some(name.to_owned());
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.later.retain(|later| later != name);
    }

    /// Returns whether it was kept.
    pub(super) fn give_up(&mut self, name: &str) -> bool {
        self.issuing.as_deref() != Some(name) && self.kept.remove(name)
    }

    /// A rotation has ended with this name: it is not kept beside itself.
    pub(super) fn settle(&mut self, issuing: &str) {
        self.kept.remove(issuing);
    }
}
