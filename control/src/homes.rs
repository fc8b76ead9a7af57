//! Where the CA lives, and with it the marks of join tokens that were used: one directory, or one namespace of the cluster. Replicas of
//! control share it.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::runtime::Handle;
use weft_certs::ca::Home;

use crate::ca_secret::{Blocking, SecretHome};
use crate::cluster::Access;
use crate::config::Config;
use crate::issue::used::{Marks, UsedTokens, directory, leases};

/// Where used tokens are, in the CA's directory.
const USED: &str = "used-tokens";

/// Both.
#[derive(Debug)]
pub struct Homes {
    /// The CA's.
    pub ca: Home,
    /// The tokens'.
    pub used: UsedTokens,
}

impl Homes {
    /// As configured. Of the cluster nothing is asked yet.
    ///
    /// # Errors
    /// The directory cannot be made, or nothing is known of the cluster.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let (ca, marks): (Home, Arc<dyn Marks>) = match &config.ca_secret {
            None => {
                let marks = directory::Directory::open(config.ca_dir.join(USED), directory::MAX_USED)?;
                (Home::from(&config.ca_dir), Arc::new(marks))
            }
            Some(name) => {
                let client = Access::from(&config.issuing).client().await.context("--ca-secret")?;
                let asking = Blocking::new(client, Handle::current());
                let marks = leases::Leases::new(name.namespace.clone(), asking.clone(), leases::MAX_USED);
                (SecretHome::new(name.clone(), asking).home(), Arc::new(marks))
            }
        };
        Ok(Self { ca, used: UsedTokens::new(marks) })
    }
}

#[cfg(test)]
mod tests;
