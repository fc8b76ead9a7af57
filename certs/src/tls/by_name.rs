//! Which of its certificates a server shows: the trust domain has had several names, and a client knows the server by one of them.

use std::fmt;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::svid::Svid;

/// One certificate for each name.
pub struct ByName {
    all: Vec<(Arc<str>, Arc<CertifiedKey>)>,
    otherwise: Option<Arc<CertifiedKey>>,
}

impl fmt::Debug for ByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|(name, _)| name)).finish()
    }
}

impl ByName {
    /// Of certificates in several trust domains. Who says none of them is shown the one in `otherwise`, or else the first.
    pub fn of(svids: &[Svid], otherwise: Option<&str>) -> Self {
        let all: Vec<_> =
            svids.iter().map(|svid| (Arc::clone(&svid.identity().trust_domain), svid.certified())).collect();
        let wanted = all.iter().find(|(name, _)| otherwise == Some(&**name)).or(all.first());
        let otherwise = wanted.map(|(_, certificate)| Arc::clone(certificate));
        Self { all, otherwise }
    }

    // The longest: `mesh.example` and `example` may both be names.
    fn choose(&self, said: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let is_in = |domain: &str, host: &str| {
            host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let said = said.map(str::to_ascii_lowercase);
        let found = self.all.iter().filter(|(name, _)| said.as_ref().is_some_and(|host| is_in(name, host)));
        let found = found.max_by_key(|(name, _)| name.len()).map(|(_, certificate)| Arc::clone(certificate));
        found.or_else(|| self.otherwise.clone())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name())
    }
}
