//! Marks as Leases, in the namespace of a CA that lives in a Secret.
//!
//! ```text
//! Lease NAMESPACE/weft-used-token-HASH     SHA-256 of the token's number; `holderIdentity`: the key it was used with;
//!                                          label `weft.dev/used-token`: the hour in which it expires, since 1970
//! ```
//!
//! A Lease says who holds something, which is what there is to say. It is made by POST: the API server makes it or says that it is there.
//! It is not a ConfigMap, because the right to make any of those is the right to make those that programs are configured by, and many
//! programs keep all of them in memory; nor a key of one shared object, because that has a bound of size and one writer at a time.
//!
//! Invariant: a Lease is never changed, only made and, when its hour is over, removed with all of that hour.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};

use super::{Mark, Marks, UseError};
use crate::ca_secret::Blocking;
use crate::cluster::{ClusterError, FIELD_MANAGER, MANAGED_BY};

/// Leases that there may be: each is about half a kilobyte of the cluster's database.
pub const MAX_USED: usize = 10_000;
/// All are listed for it, by each replica whose tokens are used.
const SWEEP_EVERY: Duration = Duration::from_mins(10);
/// In one answer.
const PAGE: u32 = 500;
const HOUR: u64 = 3600;
const LABEL: &str = "weft.dev/used-token";

/// The Leases of one namespace.
#[derive(Debug)]
pub struct Leases {
    namespace: String,
    asking: Blocking,
    most: usize,
}

impl Leases {
    /// Nothing is asked yet.
    pub fn new(namespace: String, asking: Blocking, most: usize) -> Self {
        Self { namespace, asking, most }
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.asking.client.clone(), &self.namespace)
    }

    fn failed(&self, error: ClusterError) -> UseError {
        let advice = match error.status() {
            Some(403) => "; give control the Role of docs/identity.md, \"The CA in a Secret\"",
            _ => "; try again",
        };
        UseError::Store { place: format!("the Leases of {}", self.namespace), what: format!("{error}{advice}") }
    }

    fn remove(&self, hour: u64) -> Result<(), UseError> {
        let leases = self.api();
        let of_hour = ListParams::default().labels(&format!("{LABEL}={hour}"));
        match self.asking.ask(async move { leases.delete_collection(&DeleteParams::default(), &of_hour).await }) {
            // It goes on, or the next sweep does.
            Ok(_) | Err(ClusterError::Slow) => Ok(()),
            Err(error) => Err(self.failed(error)),
        }
    }
}

impl Marks for Leases {
    fn make(&self, mark: &Mark, key: &str) -> Result<Option<String>, UseError> {
        let (managed, by) = MANAGED_BY;
        let labels = [(managed.to_owned(), by.to_owned()), (LABEL.to_owned(), (mark.expires / HOUR).to_string())];
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name(mark)),
                labels: Some(BTreeMap::from(labels)),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec { holder_identity: Some(key.to_owned()), ..LeaseSpec::default() }),
        };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let leases = self.api();
        match self.asking.ask(async move { leases.create(&params, &lease).await }) {
            Ok(_) => Ok(None),
            // If it is swept in between, its token has expired an hour ago: used, by nobody who could ask again.
            Err(error) if error.is_conflict() => Ok(Some(self.made_by(mark)?.unwrap_or_default())),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn made_by(&self, mark: &Mark) -> Result<Option<String>, UseError> {
        let (leases, name) = (self.api(), name(mark));
        let found = self.asking.ask(async move { leases.get_opt(&name).await }).map_err(|error| self.failed(error))?;
        Ok(found.map(|lease| lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default()))
    }

    fn sweep(&self, before: u64) -> Result<usize, UseError> {
        let (mut left, mut over, mut from) = (0, BTreeSet::new(), None);
        loop {
            let leases = self.api();
            let page = ListParams { continue_token: from, ..ListParams::default().labels(LABEL).limit(PAGE) };
            let found = self.asking.ask(async move { leases.list_metadata(&page).await });
            let found = found.map_err(|error| self.failed(error))?;
            for lease in found.items {
                let hour = lease.metadata.labels.and_then(|labels| labels.get(LABEL)?.parse::<u64>().ok());
                match hour.filter(|hour| hour.saturating_add(1).saturating_mul(HOUR) <= before) {
                    Some(hour) => drop(over.insert(hour)),
                    None => left += 1,
                }
            }
            from = found.metadata.continue_.filter(|more| !more.is_empty());
            if from.is_none() || left > self.most {
                break;
            }
        }
        over.into_iter().try_for_each(|hour| self.remove(hour))?;
        Ok(left)
    }

    fn most(&self) -> usize {
        self.most
    }

    fn sweep_every(&self) -> Duration {
        SWEEP_EVERY
    }
}

fn name(mark: &Mark) -> String {
    format!("weft-used-token-{}", mark.hash)
}
