//! The shop: its manifests, its pods, and who calls whom.
//!
//! The manifests are in the binary, so the demo needs nothing beside it; they are the files of `deploy/examples/shop`.

use crate::app::client::Kind;

/// The namespace of all of it.
pub const NAMESPACE: &str = "shop";

/// The file that the demo edits while traffic flows.
pub const POLICY_FILE: &str = "ledger-policy.yaml";
/// What stands in it, and what the edit makes of that.
pub const POLICY_EDIT: (&str, &str) = ("identities: [shop/web]", "identities: [shop/web, shop/audit]");
/// The pod that the demo kills.
pub const VICTIM: &str = "reviews-1";
/// What the limit of `payments` admits: requests a second, and at once on top.
pub const LIMIT: (f64, f64) = (50.0, 25.0);

macro_rules! manifests {
    ($($name:literal),*) => {
        /// File name and text.
        pub const MANIFESTS: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../../../deploy/examples/shop/", $name)))),*];
    };
}
manifests!(
    "namespace.yaml",
    "web.yaml",
    "staff.yaml",
    "catalog.yaml",
    "cart.yaml",
    "inventory.yaml",
    "reviews.yaml",
    "payments.yaml",
    "ledger.yaml",
    "ledger-policy.yaml",
    "nginx.yaml",
    "redis.yaml"
);

/// What runs in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// Only what the demo starts in it: the clients.
    Clients,
    /// `weft app http`.
    Http,
    /// `weft app grpc`.
    Grpc,
    /// `weft app tcp`.
    Tcp,
    /// nginx.
    Nginx,
    /// redis-server.
    Redis,
}

/// A pod of the shop.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The pod's name.
    pub pod: &'static str,
    /// Its service account.
    pub account: &'static str,
    /// Its address, as its manifest says.
    pub ip: &'static str,
    /// What runs in it.
    pub runs: Runs,
    /// Its application's port; 0 without one.
    pub port: u16,
    /// The version that its answers carry.
    pub version: &'static str,
}

const fn part(pod: &'static str, account: &'static str, ip: &'static str, runs: Runs, port: u16) -> Part {
    Part { pod, account, ip, runs, port, version: "v1" }
}

/// Every pod.
pub const PARTS: &[Part] = &[
    part("web-0", "web", "10.244.0.10", Runs::Clients, 0),
    part("intern-0", "intern", "10.244.0.11", Runs::Clients, 0),
    part("audit-0", "audit", "10.244.0.12", Runs::Clients, 0),
    part("catalog-v1-0", "catalog", "10.244.0.20", Runs::Http, 8080),
    Part { version: "v2", ..part("catalog-v2-0", "catalog", "10.244.0.21", Runs::Http, 8080) },
    part("cart-0", "cart", "10.244.0.30", Runs::Grpc, 50051),
    part("inventory-0", "inventory", "10.244.0.40", Runs::Tcp, 7000),
    part("reviews-0", "reviews", "10.244.0.50", Runs::Http, 8080),
    part("reviews-1", "reviews", "10.244.0.51", Runs::Http, 8080),
    part("reviews-2", "reviews", "10.244.0.52", Runs::Http, 8080),
    part("payments-0", "payments", "10.244.0.60", Runs::Http, 8080),
    part("ledger-0", "ledger", "10.244.0.70", Runs::Http, 8080),
    part("nginx-0", "nginx", "10.244.0.80", Runs::Nginx, 8080),
    part("redis-0", "redis", "10.244.0.81", Runs::Redis, 6379),
];

/// Services and their cluster addresses, as their manifests say.
pub const SERVICES: &[(&str, &str)] = &[
    ("catalog", "10.96.0.20"),
    ("cart", "10.96.0.30"),
    ("inventory", "10.96.0.40"),
    ("reviews", "10.96.0.50"),
    ("payments", "10.96.0.60"),
    ("ledger", "10.96.0.70"),
    ("nginx", "10.96.0.80"),
    ("redis", "10.96.0.81"),
];

/// What should become of a flow's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// All answered well.
    Served,
    /// All answered well, nine of ten by `v1`.
    Split,
    /// Requests that are not safe to repeat: those in flight on a killed endpoint may be lost.
    ServedOnce,
    /// As many as [`LIMIT`] says, the others limited.
    Limited,
    /// All denied.
    Denied,
    /// Denied until the policy is edited, then served, then denied again.
    Edited,
}

/// Somebody calls something, all the time.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Its name in the results.
    pub name: &'static str,
    /// The client's pod.
    pub from: &'static str,
    /// The service and its port.
    pub to: (&'static str, u16),
    /// What the client speaks.
    pub kind: Kind,
    /// HTTP method.
    pub method: &'static str,
    /// HTTP path.
    pub path: &'static str,
    /// Bytes of body.
    pub body: usize,
    /// Requests a second.
    pub rate: f64,
    /// Connections.
    pub connections: u32,
    /// What should become of it.
    pub want: Want,
    /// The service's pods.
    pub servers: &'static [&'static str],
}

impl Flow {
    /// What it speaks, in a word.
    pub fn protocol(&self) -> &'static str {
        match self.kind {
            Kind::Http => "http",
            Kind::Grpc => "grpc",
            Kind::Tcp | Kind::Redis => "tcp",
        }
    }

    /// `NAMESPACE/SERVICE-ACCOUNT` of the client.
    pub fn client(&self) -> String {
        let account = PARTS.iter().find(|part| part.pod == self.from).map_or("", |part| part.account);
        format!("{NAMESPACE}/{account}")
    }

    /// `NAMESPACE/SERVICE` of the server.
    pub fn server(&self) -> String {
        format!("{NAMESPACE}/{}", self.to.0)
    }

    /// Whether a server answers with what it saw in the request's head.
    pub fn is_http(&self) -> bool {
        matches!(self.kind, Kind::Http | Kind::Grpc)
    }
}

/// Requests that the split is measured over, at least.
pub const SPLIT_REQUESTS: u64 = 5_000;
/// Requests a second of the split flow, if the time is long enough.
const SPLIT_RATE: f64 = 320.0;

/// All flows, for a run of `seconds` of traffic.
pub fn flows(seconds: f64) -> Vec<Flow> {
    let http = |name, from, service, path, rate, want, servers| Flow {
        name,
        from,
        to: (service, 80),
        kind: Kind::Http,
        method: "GET",
        path,
        body: 0,
        rate,
        connections: 4,
        want,
        servers,
    };
    let reviews: &[&str] = &["reviews-0", "reviews-1", "reviews-2"];
    let split_rate = SPLIT_RATE.max(SPLIT_REQUESTS as f64 * 1.1 / seconds);
    vec![
        Flow {
            connections: 16,
            ..http("catalog", "web-0", "catalog", "/items", split_rate, Want::Split, &["catalog-v1-0", "catalog-v2-0"])
        },
        Flow {
            to: ("cart", 50051),
            kind: Kind::Grpc,
            connections: 2,
            ..http("cart", "web-0", "cart", "/", 40.0, Want::Served, &["cart-0"])
        },
        Flow {
            to: ("inventory", 7000),
            kind: Kind::Tcp,
            connections: 2,
            ..http("inventory", "web-0", "inventory", "/", 20.0, Want::Served, &["inventory-0"])
        },
        http("reviews", "web-0", "reviews", "/delay/5", 80.0, Want::Served, reviews),
        Flow {
            method: "POST",
            body: 1024,
            ..http("reviews-post", "web-0", "reviews", "/delay/5", 20.0, Want::ServedOnce, reviews)
        },
        http("payments", "web-0", "payments", "/pay", LIMIT.0 * 2.2, Want::Limited, &["payments-0"]),
        http("ledger", "web-0", "ledger", "/entries/today", 20.0, Want::Served, &["ledger-0"]),
        Flow {
            connections: 1,
            ..http("ledger-intern", "intern-0", "ledger", "/entries/today", 10.0, Want::Denied, &["ledger-0"])
        },
        Flow {
            connections: 1,
            ..http("ledger-audit", "audit-0", "ledger", "/entries/today", 20.0, Want::Edited, &["ledger-0"])
        },
        Flow { connections: 2, ..http("nginx", "web-0", "nginx", "/", 20.0, Want::Served, &["nginx-0"]) },
        Flow {
            to: ("redis", 6379),
            kind: Kind::Redis,
            connections: 2,
            ..http("redis", "web-0", "redis", "/", 20.0, Want::Served, &["redis-0"])
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_name_pods_that_exist() {
        let known = |pod: &str| PARTS.iter().any(|part| part.pod == pod);
        for flow in flows(20.0) {
            assert!(known(flow.from) && flow.servers.iter().all(|pod| known(pod)), "{}", flow.name);
        }
        assert!(known(VICTIM));
    }

    #[test]
    fn parts_are_as_the_manifests_say() {
        let all: String = MANIFESTS.iter().map(|(_, text)| *text).collect();
        for part in PARTS {
            assert!(all.contains(&format!("name: {}\n", part.pod)), "{}", part.pod);
            assert!(all.contains(&format!("podIP: {}\n", part.ip)), "{}", part.pod);
        }
        for (service, ip) in SERVICES {
            let named =
                format!("kind: Service\nmetadata:\n  name: {service}\n  namespace: shop\nspec:\n  clusterIP: {ip}\n");
            assert!(all.contains(&named), "{service}");
        }
        let policy = MANIFESTS.iter().find(|(name, _)| *name == POLICY_FILE).unwrap().1;
        assert!(policy.contains(POLICY_EDIT.0));
        assert!(all.contains("requests: 50\n") && all.contains("burst: 25\n"));
    }

    #[test]
    fn a_short_run_sends_enough_for_the_split() {
        assert!(flows(10.0)[0].rate * 10.0 >= SPLIT_REQUESTS as f64);
    }
}
