//! Copies of the roots in the cluster, for those who cannot ask control yet: a ConfigMap in each namespace, which new pods are given, and
//! the `caBundle` of webhooks that control serves.
//!
//! Invariants
//! - A rotation does not go on while a copy is behind; it is named ([`Behind`]).
//! - A replica of control that is behind others does not write older roots over newer ones: each copy says which revision of the CA it is of,
//!   and is written only if it is still what was seen.
//! - Nothing is deleted by us: a namespace that is not wanted any more keeps what it has. Where control keeps a webhook's bundle too, that
//!   webhook's configuration owns the ConfigMaps, and the cluster takes them away with it.
//!
//! [`view`] says what is to be done, [`keep`] when, [`write`] does it.

mod keep;
mod view;
mod write;

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

pub use view::{Roots, Told};

use crate::distribute::Hub;
use crate::rotation::{Authority, Waiting};

/// Key of the roots in a ConfigMap, PEM.
pub const KEY: &str = "root.pem";

/// Which copies there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
// Its group would have the name of another struct's.
#[group(skip)]
pub struct Settings {
    /// Keep the roots (root.pem) in a ConfigMap of this name in each namespace, for pods that are started.
    #[arg(long, value_name = "NAME", help_heading = "Copies of the roots in the cluster")]
    pub roots_configmap: Option<String>,
    /// Only in namespaces with these labels (`weft.dev/inject=enabled`); what others have is left as it is.
    #[arg(
        long,
        value_name = "SELECTOR",
        requires = "roots_configmap",
        help_heading = "Copies of the roots in the cluster"
    )]
    pub roots_namespaces: Option<String>,
    /// Keep the roots as caBundle of this MutatingWebhookConfiguration; may be given several times.
    #[arg(long, value_name = "NAME", help_heading = "Copies of the roots in the cluster")]
    pub roots_webhook: Vec<String>,
}

impl Settings {
    /// Whether any is wanted.
    pub fn is_empty(&self) -> bool {
        self.roots_configmap.is_none() && self.roots_webhook.is_empty()
    }
}

/// Which copies are behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Behind these roots.
    pub roots: Told,
    /// How many.
    pub count: usize,
    /// Some of them, and why.
    pub named: Vec<Waiting>,
}

impl Behind {
    /// Nothing has been looked at yet.
    pub fn unknown(roots: Told) -> Self {
        let why = "have not been read yet".to_owned();
        Self { roots, count: 1, named: vec![Waiting { workload: "copies of the roots".to_owned(), why }] }
    }

    /// Those that are behind the roots as the CA has them.
    pub fn of(&self, roots: Told) -> Vec<Waiting> {
        if self.roots == roots { self.named.clone() } else { Self::unknown(roots).named }
    }
}

/// Keeps them current for as long as this is held, and tells the hub which are behind.
pub fn start(client: kube::Client, settings: &Settings, ca: Authority, hub: Arc<Hub>) -> AbortOnDropHandle<()> {
    hub.copies_are(Behind::unknown(Roots::of(&**ca.borrow()).told()));
    let keeping = keep::keep(client, settings.clone(), ca, move |behind| hub.copies_are(behind));
    AbortOnDropHandle::new(tokio::spawn(keeping))
}

#[cfg(test)]
mod tests;
