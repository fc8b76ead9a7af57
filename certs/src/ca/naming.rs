//! A CA and the names of its trust domain: which identities it issues for, and the change from one name to the next ([`super::names`]).

use std::collections::BTreeSet;
use std::time::SystemTime;

use weft_engine::identity::Identity;

use super::store::Files;
use super::{Ca, CaError};

/// What a trust domain is called at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    /// The name that leaves are issued in.
    pub now: String,
    /// Other names under which workloads are believed, sorted.
    pub aliases: Vec<String>,
    /// Names that it had or was about to have, sorted: nobody is believed under them, and no other mesh can have them.
    pub former: Vec<String>,
}

impl Called {
    /// Never anything else.
    pub fn only(name: &str) -> Self {
        Self { now: name.to_owned(), aliases: Vec::new(), former: Vec::new() }
    }

    /// All of them, the one of now first.
    pub fn every(&self) -> impl Iterator<Item = &str> {
        [&self.now].into_iter().chain(&self.aliases).chain(&self.former).map(String::as_str)
    }

    /// The identity as it is issued now, whichever of our names it was proved under; `None` if that is none of them.
    pub fn named_now(&self, identity: &Identity) -> Option<Identity> {
        let ours = self.every().any(|name| *name == *identity.trust_domain);
        ours.then(|| identity.within(&self.now.as_str().into()))
    }
}

impl Ca {
    /// The name that leaves are issued in, such as `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        self.authorities.called(&self.trust_domain)
    }

    /// The name that the CA was made under: join tokens are for it, whatever the mesh is called when they are used.
    pub fn first_name(&self) -> &str {
        &self.trust_domain
    }

    /// All that it is called.
    pub fn called(&self) -> Called {
        let aliases = self.authorities.aliases(&self.trust_domain);
        let now = self.trust_domain();
        let former: BTreeSet<&str> = self.every_name().filter(|name| *name != now && !aliases.contains(name)).collect();
        let owned = |names: BTreeSet<&str>| names.into_iter().map(str::to_owned).collect();
        Called { now: now.to_owned(), aliases: owned(aliases), former: owned(former) }
    }

    /// Every name that the trust domain has, had or is about to have, the oldest first.
    pub fn every_name(&self) -> impl Iterator<Item = &str> {
        self.authorities.every_name(&self.trust_domain)
    }

    /// Begins to call the trust domain `to`: [`Authorities::rename`](super::rotation::Authorities::rename).
    ///
    /// # Errors
    /// It is no name for one or is called so already, a rotation is under way, or somebody else changed the CA: nothing has changed.
    pub fn rename(&self, to: &str, kept: bool, now: SystemTime) -> Result<Self, CaError> {
        if Identity::new(to, "any", "any").is_err() {
            return Err(CaError::TrustDomain(to.to_owned()));
        }
        let mut authorities = self.authorities.clone();
        authorities.rename(&self.trust_domain, to, kept, now)?;
        self.replace(authorities, &Files::new())
    }

    /// Turns a change of name back that was just begun, and forgets the name: it turns out to be somebody else's.
    ///
    /// # Errors
    /// There is none, it has gone too far, or somebody else changed the CA: nothing has changed.
    pub fn refuse_name(&self, now: SystemTime) -> Result<Self, CaError> {
        let mut authorities = self.authorities.clone();
        authorities.refuse_name(now)?;
        self.replace(authorities, &Files::new())
    }

    /// Gives up a name that was kept: [`Authorities::drop_alias`](super::rotation::Authorities::drop_alias).
    ///
    /// # Errors
    /// It is none, a rotation is under way, or somebody else changed the CA: nothing has changed.
    pub fn drop_alias(&self, alias: &str, now: SystemTime) -> Result<Self, CaError> {
        let mut authorities = self.authorities.clone();
        authorities.drop_alias(&self.trust_domain, alias, now)?;
        self.replace(authorities, &Files::new())
    }
}
