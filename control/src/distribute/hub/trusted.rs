//! Who is believed: the roots that proxies are told, copies of these, and who is revoked.

use std::sync::Arc;

use prost::Message as _;
use weft_api::names;
use weft_api::wire::v1;
use weft_certs::revoked::DenyList;

use super::{Cause, Hub};
use crate::copies::{Behind, Told};
use crate::revoked::List;
use crate::rotation::Waiting;

impl Hub {
    /// Takes another set of roots, and tells everybody. Returns whether it is another one.
    pub fn trust(&self, trust: &v1::Trust) -> bool {
        // Held for as long as it takes: a model that is compiled meanwhile must not miss it.
        let _leaves = self.leaves.lock();
        let seen = self.now();
        let patch = self.compiled.read().update_trust(trust);
        let changes = self.compiled.write().apply(patch);
        self.dispatch(&changes, Cause::of("trust", None), seen);
        !changes.is_empty()
    }

    /// The trust domains that are believed beside our own.
    pub fn federated(&self) -> Vec<String> {
        let told = self.compiled.read().get(names::TRUST);
        let told = told.and_then(|told| v1::Trust::decode(told.bytes.clone()).ok()).unwrap_or_default();
        let foreign = told.bundles.into_iter().map(|bundle| bundle.trust_domain).filter(|domain| *domain != told.own);
        foreign.collect()
    }

    /// Takes another list of who is revoked, and tells everybody: those who are on it too, whose streams go on until
    /// [`Hub::end_revoked`]. Returns whether it is another one.
    pub fn revoke(&self, list: List) -> bool {
        let _leaves = self.leaves.lock();
        let seen = self.now();
        self.metrics.revoked.set(i64::try_from(list.denied.len()).unwrap_or(i64::MAX));
        self.denied.set(Arc::new(list.denied));
        let patch = self.compiled.read().update_revoked(&list.message);
        let changes = self.compiled.write().apply(patch);
        self.dispatch(&changes, Cause::of("revoked", None), seen);
        !changes.is_empty()
    }

    /// Takes which copies of the roots are behind.
    pub fn copies_are(&self, behind: Behind) {
        self.metrics.ca.copies_behind.set(i64::try_from(behind.count).unwrap_or(i64::MAX));
        *self.copies.lock() = Some(behind);
    }

    /// Which copies are behind these roots.
    pub fn copies_behind(&self, roots: Told) -> Vec<Waiting> {
        self.copies.lock().as_ref().map(|copies| copies.of(roots)).unwrap_or_default()
    }

    /// Who is not believed now.
    pub fn denied(&self) -> Arc<DenyList> {
        self.denied.now()
    }

    /// Ends the streams of who is revoked.
    pub fn end_revoked(&self) {
        let denied = self.denied.now();
        if denied.is_empty() {
            return;
        }
        for stream in self.streams.read().all() {
            if stream.client.proved.is_on(&denied) {
                stream.revoked.cancel();
            }
        }
    }
}
