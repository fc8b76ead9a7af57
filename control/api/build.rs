//! Compiles the protobuf schema in pure Rust: no protoc, no system library.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/envoy/service/discovery/v3/discovery.proto",
        "proto/istio/v1/auth/ca.proto",
        "proto/spiffe/workload.proto",
        "proto/weft/replicas/v1/replicas.proto",
        "proto/weft/v1/weft.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    // It holds a private key.
    let secret = [".X509SVID"];
    let mut build = tonic_prost_build::configure().bytes(".").skip_debug(secret).build_transport(false);
    // Ours are shown to people (src/show.rs): numbers that stand for words by their words, bytes as what they are.
    build = build.type_attribute(".weft.v1", "#[derive(serde::Serialize)] #[serde(rename_all = \"snake_case\")]");
    for (field, how) in [
        ("Service.protocol", "word::<crate::wire::v1::Protocol, _>"),
        ("InboundPort.protocol", "word::<crate::wire::v1::Protocol, _>"),
        ("Workload.mode", "word::<crate::wire::v1::MtlsMode, _>"),
        ("AuthorizationPolicy.action", "word::<crate::wire::v1::authorization_policy::Action, _>"),
        ("RateLimit.key", "word::<crate::wire::v1::rate_limit::Key, _>"),
        ("Endpoint.ip", "ip"),
        ("EndpointHead.digest", "hex"),
        ("Trust.svid_roots", "fingerprints"),
        ("TrustBundle.roots", "fingerprints"),
        ("Revoked.serials", "hexes"),
    ] {
        let how = format!("#[serde(serialize_with = \"crate::show::{how}\")]");
        build = build.field_attribute(format!(".weft.v1.{field}"), how);
    }
    build.compile_fds(descriptors)?;
    Ok(())
}
