//! SPIFFE IDs of workloads: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A workload's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Lower-case host name (SPIFFE-ID section 2.1).
    pub trust_domain: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Kubernetes service account.
    pub service_account: Arc<str>,
}

/// The text is no workload identity of the form that the mesh uses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
pub struct NotAnIdentity(pub String);

impl Identity {
    /// The identity of a service account; fails if a part is empty or has a character that no DNS label or domain has.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, NotAnIdentity> {
        let ok = |part: &str| {
            !part.is_empty()
                && part.len() <= 253
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_'))
        };
        if ok(trust_domain) && ok(namespace) && ok(service_account) {
            Ok(Self {
                trust_domain: trust_domain.into(),
                namespace: namespace.into(),
                service_account: service_account.into(),
            })
        } else {
            Err(NotAnIdentity(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")))
        }
    }

    /// The same namespace and service account in another trust domain, or under another name of the same.
    #[must_use]
    pub fn within(&self, trust_domain: &Arc<str>) -> Self {
        Self { trust_domain: Arc::clone(trust_domain), ..self.clone() }
    }

    /// Whether namespace and service account are the same, whatever the trust domains are called.
    pub fn has_path_of(&self, other: &Self) -> bool {
        self.namespace == other.namespace && self.service_account == other.service_account
    }

    /// `NAMESPACE/SERVICE-ACCOUNT`, as people write it in policies and on the command line.
    pub fn short(&self) -> String {
        format!("{}/{}", self.namespace, self.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Identity {
    type Err = NotAnIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = || {
            let mut parts = text.strip_prefix("spiffe://")?.split('/');
            let found = (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?);
            match (found, parts.next()) {
                ((domain, "ns", namespace, "sa", account), None) => Some((domain, namespace, account)),
                _ => None,
            }
        };
        let (domain, namespace, account) = parts().ok_or_else(|| NotAnIdentity(text.to_owned()))?;
        Self::new(domain, namespace, account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses() {
        let text = "spiffe://cluster.local/ns/shop/sa/web";
        let id: Identity = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(id.short(), "shop/web");
        for bad in [
            "",
            "spiffe://",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns/shop/sa/web/more",
            "spiffe://cluster.local/ns//sa/web",
            "https://cluster.local/ns/shop/sa/web",
            "spiffe://Cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/ns/sh%6fp/sa/web",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
