//! Envoy's configuration, as an operator would write it for a pair of sidecars by hand: one listener and one cluster for each port, mutual
//! TLS 1.3 between them, statistics named by what they are, everything else as it comes.
//!
//! It has neither an authorization nor a rate limit (Weft has both), and its client connects to it directly instead of being
//! redirected: both favour Envoy a little.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use serde_json::{Value, json};

use super::arena::{ECHO, H2C, HTTP, IPERF};

/// What the client's proxy adds to a port that it listens on, on loopback.
pub const OUTBOUND_OFFSET: u16 = 10_000;
/// What the server's proxy adds to a port that it listens on, on the pod's address.
pub const INBOUND_OFFSET: u16 = 20_000;
/// Where a proxy says that it is ready.
pub const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
/// So that no default bound of Envoy's is what is measured: connections, requests and streams at once.
const PLENTY: u32 = 100_000;

/// Which of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Beside the client.
    Outbound,
    /// Beside the server.
    Inbound,
}

/// How a pair treats what goes through it.
#[derive(Debug, Clone, Copy)]
pub struct Mode {
    /// Reads HTTP where the port speaks it; otherwise everything is bytes.
    pub http: bool,
    /// How many TLS sessions the client's side keeps to resume. A session of TLS 1.3 is resumed once, so Envoy's default of one helps
    /// the first of several connections at a time only.
    pub sessions: u32,
}

/// The configuration of one side; `certs` holds key.pem, chain.pem and root.pem.
pub fn config(side: Side, mode: Mode, server: Ipv4Addr, certs: &Path, peer: &str) -> Value {
    let ports = [("http", HTTP), ("h2c", H2C), ("echo", ECHO), ("bulk", IPERF)];
    let (listeners, clusters): (Vec<_>, Vec<_>) = ports
        .iter()
        .map(|&(name, port)| {
            let http = mode.http && matches!(port, HTTP | H2C);
            let mut listener = listener(name, http);
            let mut cluster = cluster(name, http.then_some(port == H2C));
            let (listens, calls) = match side {
                Side::Outbound => {
                    cluster["transport_socket"] = upstream_tls(certs, peer, mode.sessions);
                    ((Ipv4Addr::LOCALHOST, port + OUTBOUND_OFFSET), (server, port + INBOUND_OFFSET))
                }
                Side::Inbound => {
                    listener["filter_chains"][0]["transport_socket"] = downstream_tls(certs, peer, mode.sessions);
                    ((server, port + INBOUND_OFFSET), (Ipv4Addr::LOCALHOST, port))
                }
            };
            listener["address"] = address(listens);
            cluster["load_assignment"]["endpoints"] =
                json!([{"lb_endpoints": [{"endpoint": {"address": address(calls)}}]}]);
            (listener, cluster)
        })
        .unzip();
    json!({
        "admin": {"address": address((Ipv4Addr::LOCALHOST, ADMIN.port()))},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn address((ip, port): (Ipv4Addr, u16)) -> Value {
    json!({"socket_address": {"address": ip.to_string(), "port_value": port}})
}

fn listener(name: &str, http: bool) -> Value {
    let filter = if http {
        json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "codec_type": "AUTO",
            "route_config": {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}]}]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        }})
    } else {
        json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name,
            "cluster": name,
        }})
    };
    json!({"name": name, "filter_chains": [{"filters": [filter]}]})
}

/// `http` says whether it is HTTP/2.
fn cluster(name: &str, http: Option<bool>) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name},
        "circuit_breakers": {"thresholds": [{"max_connections": PLENTY, "max_pending_requests": PLENTY, "max_requests": PLENTY}]},
    });
    if let Some(h2) = http {
        let version = if h2 { "http2_protocol_options" } else { "http_protocol_options" };
        cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {version: {}},
        }});
    }
    cluster
}

fn common_tls(certs: &Path, peer: &str) -> Value {
    let file = |name: &str| json!({"filename": certs.join(name)});
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": file("chain.pem"), "private_key": file("key.pem")}],
        "validation_context": {
            "trusted_ca": file("root.pem"),
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    })
}

fn upstream_tls(certs: &Path, peer: &str, sessions: u32) -> Value {
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": common_tls(certs, peer),
        "sni": "server.bench",
        "max_session_keys": sessions,
    });
    json!({"name": "envoy.transport_sockets.tls", "typed_config": tls})
}

fn downstream_tls(certs: &Path, peer: &str, sessions: u32) -> Value {
    let mut tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": common_tls(certs, peer),
        "require_client_certificate": true,
    });
    if sessions == 0 {
        tls["disable_stateless_session_resumption"] = json!(true);
        tls["disable_stateful_session_resumption"] = json!(true);
    }
    json!({"name": "envoy.transport_sockets.tls", "typed_config": tls})
}
