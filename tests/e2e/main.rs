//! The mesh end to end: what the issues promise, one test each, on real processes in network namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod attacks;
mod away;
mod discovery;
mod dns;
mod docs;
mod drain;
mod explain;
mod federation;
mod flood;
mod grpc;
mod ipv6;
mod killed;
mod lab;
mod life;
mod opaque;
mod policy;
mod replicas;
mod revoked;
mod rollout;
mod rotation;
mod routing;
mod slow;
mod smuggling;
mod sni;
mod socket_lb;
mod telemetry;
mod wire;

use std::process::ExitCode;

/// A namespace in which plaintext is refused.
const STRICT: &str = "apiVersion: v1
kind: Namespace
metadata:
  name: shop
  annotations: {weft.dev/mtls: strict}
";

fn main() -> ExitCode {
    // Those first that take longest.
    let mut trials = Vec::new();
    trials.extend(rotation::tests());
    trials.extend(away::tests());
    trials.extend(life::tests());
    trials.extend(replicas::tests());
    trials.extend(federation::tests());
    trials.extend(lab::tests());
    trials.extend(wire::tests());
    trials.extend(opaque::tests());
    trials.extend(attacks::tests());
    trials.extend(smuggling::tests());
    trials.extend(ipv6::tests());
    trials.extend(routing::tests());
    trials.extend(sni::tests());
    trials.extend(socket_lb::tests());
    trials.extend(policy::tests());
    trials.extend(discovery::tests());
    trials.extend(dns::tests());
    trials.extend(explain::tests());
    trials.extend(telemetry::tests());
    trials.extend(drain::tests());
    trials.extend(flood::tests());
    trials.extend(slow::tests());
    trials.extend(revoked::tests());
    trials.extend(killed::tests());
    trials.extend(rollout::tests());
    trials.extend(docs::tests());
    weft_tests::main(env!("CARGO_BIN_EXE_weft-under-test"), trials)
}
