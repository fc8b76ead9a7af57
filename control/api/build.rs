//! Compiles the protobuf schema in pure Rust: no protoc, no system library.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/envoy/service/discovery/v3/discovery.proto",
        "proto/istio/v1/auth/ca.proto",
        "proto/spiffe/workload.proto",
        "proto/weft/v1/weft.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    // It holds a private key.
    let secret = [".X509SVID"];
    tonic_prost_build::configure().bytes(".").skip_debug(secret).build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
