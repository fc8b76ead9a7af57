//! What it means that the API server does not let control read a kind (403), and how people are told.
//!
//! The rule: what says who may send what, who somebody is, and where a request of HTTP goes has to be read, or nobody is answered. Proxies that run
//! then serve on with what they have, and a rollout of control stops there; to begin without would take policies and routes from all of
//! them. What is left can be spared: without it less is known, and nobody is let in who should not be.

use super::kind::{WATCHED, Watched};

/// What control does without a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// It answers nobody.
    Needed,
    /// It begins, and goes on asking.
    Spared,
}

/// Of a kind: whether it is needed, and what it costs not to know it.
fn of(kind: &str) -> (Need, &'static str) {
    match kind {
        "AuthorizationPolicy" => (Need::Needed, "whom these policies deny would be let in, so nobody is answered"),
        "RateLimitPolicy" => (Need::Needed, "what these policies limit would not be limited, so nobody is answered"),
        "Namespace" => (Need::Needed, "which namespaces are strict or deny is not known, so nobody is answered"),
        "HTTPRoute" | "GRPCRoute" => {
            (Need::Needed, "requests would go as if there were no such route, so nobody is answered")
        }
        "TLSRoute" | "TCPRoute" => {
            (Need::Spared, "connections go as if there were none but those that --state-dir has from before")
        }
        "ReferenceGrant" => {
            (Need::Spared, "backends in other namespaces are refused but for what --state-dir has from before")
        }
        "ServiceImport" => {
            (Need::Spared, "services of other clusters are unknown but for those that --state-dir has from before")
        }
        "Node" => (Need::Spared, "zones are not known, so clients use endpoints of all zones alike"),
        _ => (Need::Needed, "without these objects nobody is known and nothing is found, so nobody is answered"),
    }
}

impl Watched {
    /// Whether control can do without it.
    pub fn need(&self) -> Need {
        of(self.kind).0
    }

    /// That it may not be read, what that costs, and what to do.
    pub fn forbidden(&self) -> String {
        let group = self.versions.first().and_then(|version| version.split_once('/')).map_or("", |(group, _)| group);
        let dot = if group.is_empty() { "" } else { "." };
        format!(
            "control may not list and watch {}{dot}{group}: {}; give it the ClusterRole weft-source of docs/kubernetes.md, \"Rights\"",
            self.plural,
            of(self.kind).1
        )
    }
}

/// That control may not read a kind, for people; nothing of a kind that is not watched.
pub fn forbidden(kind: &str) -> Option<String> {
    WATCHED.iter().find(|watched| watched.kind == kind).map(Watched::forbidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_guards_is_needed_and_each_sentence_names_the_right() {
        let spared: Vec<_> =
            WATCHED.iter().filter(|one| one.need() == Need::Spared).map(|watched| watched.kind).collect();
        assert_eq!(spared, ["Node", "ServiceImport", "TLSRoute", "TCPRoute", "ReferenceGrant"]);
        let policy = forbidden("AuthorizationPolicy").unwrap();
        assert!(policy.starts_with("control may not list and watch authorizationpolicies.weft.dev: whom"), "{policy}");
        assert!(forbidden("Pod").unwrap().contains(" pods: "));
        // The rule that the page gives is this one.
        let page = include_str!("../../../../docs/kubernetes.md");
        let named: Vec<String> = spared.iter().map(|kind| format!("`{kind}`")).collect();
        assert!(page.contains(&named.join(", ")), "{named:?}");
        assert_eq!(forbidden("Secret"), None);
    }
}
