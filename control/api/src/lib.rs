//! The contract between control and proxy: the wire schema, the policy kinds that people write, and the one conversion between them
//! and the engine.
//!
//! - [`convert`]: wire -> engine, with all validation.
//! - [`wire`]: generated messages and services.
//! - [`kinds`]: what people write: routes and policies, read strictly.
//! - [`names`]: names, type URLs and versions of resources.
//! - [`probe`]: what a sidecar asks its application in the kubelet's place.
//! - [`show`]: resources as data for people.

pub mod convert;
pub mod kinds;
pub mod names;
pub mod probe;
pub mod show;
pub mod wire;

/// What this build enforces beyond the plain messages. A resource whose `requires` names anything else is refused; a proxy lists
/// them in its node's metadata, so that control knows beforehand.
pub const FEATURES: &[&str] = &[
    "authorization",
    BRIEF_TYPES,
    "consumer-routes",
    "cors",
    "grpc-route",
    "header-filters",
    "http-route",
    "local-rate-limit",
    "mtls-by-port",
    "node-local",
    "request-mirror",
    "request-redirect",
    "request-timeouts",
    "retry",
    "session-affinity",
    "tcp-route",
    "tls-route",
    "trust-domain-names",
    "url-rewrite",
    "weighted-backends",
];

/// Not a policy but a way to write: a resource of the response's own type does not repeat it. Whoever does not say that it reads this is sent
/// every type, as the protocol has it.
pub const BRIEF_TYPES: &str = "brief-types";
