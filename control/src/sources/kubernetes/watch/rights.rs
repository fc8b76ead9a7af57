//! A kind that the server does not have, or does not let us read.
//!
//! Invariant: what is not there is never taken for forbidden: a server says 403 of both, so it is asked what it has.

use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use tokio::time::timeout;

use super::{ANSWER, Ended, Event, Follower, failed};
use crate::sources::kubernetes::kind::Watched;

/// Of what a server says that it has of a version.
const MAX_DISCOVERY: usize = 1 << 20;

/// What a server has of a version.
#[derive(Deserialize)]
struct Resources {
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
}

impl Follower {
    pub(super) async fn absent(&mut self) -> Result<(), Ended> {
        (self.served, self.resume) = (None, None);
        self.allowed();
        self.tell(Event::Absent).await
    }

    /// It may not be read. A server says so too of what it does not have.
    pub(super) async fn refused(&mut self, why: String) -> Result<(), Ended> {
        if self.watched.is_installed_by_people() && !self.is_installed().await {
            return self.absent().await;
        }
        self.metrics.source.event(self.watched.kind, "error");
        if self.listed {
            return self.tell(Event::Failed(format!("403: {why}"))).await;
        }
        self.forbidden = true;
        self.metrics.source.forbidden(self.watched.kind, true);
        self.tell(Event::Forbidden(why)).await
    }

    pub(super) fn allowed(&mut self) {
        if std::mem::take(&mut self.forbidden) {
            self.metrics.source.forbidden(self.watched.kind, false);
        }
    }

    /// Whether the server has the kind in a version that is read; what cannot be told is taken for so.
    async fn is_installed(&self) -> bool {
        for version in self.watched.versions {
            match self.has(version).await {
                Ok(false) | Err(Ended::Absent) => {}
                Ok(true) | Err(_) => return true,
            }
        }
        false
    }

    /// Whether the server has the kind in this version.
    async fn has(&self, version: &str) -> Result<bool, Ended> {
        let body = Limited::new(self.get(Watched::discovery(version)).await?, MAX_DISCOVERY);
        let text = timeout(ANSWER, body.collect()).await.map_err(failed)?.map_err(failed)?.to_bytes();
        let found: Resources = serde_json::from_slice(&text).map_err(failed)?;
        Ok(found.resources.iter().any(|resource| resource.name == self.watched.plural))
    }
}
