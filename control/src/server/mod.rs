//! The doors of control: gRPC over TLS for proxies ([`tls`], [`ca`], discovery and drain), plain HTTP for operators ([`admin`], [`status`]), HTTPS for
//! other meshes ([`bundle`]) and for the API server ([`webhook`]).

pub mod admin;
pub mod bundle;
pub mod ca;
pub(crate) mod http2;
mod plain;
pub mod status;
pub mod tls;
pub mod webhook;

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use weft_api::wire::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use weft_api::wire::replicas::replicas_server::ReplicasServer;
use weft_api::wire::v1::drain_server::DrainServer;

use crate::config::Config;
use crate::distribute::Hub;
use crate::distribute::ads::Ads;
use crate::distribute::drain::DrainService;
use crate::issue::Provers;
use crate::replicas::share::Place;
use crate::replicas::{follow, tell};
use crate::rotation::Authority;
use crate::svid_roots::Further;
use http2::Services;

/// Of all calls but discovery.
const MAX_SMALL_REQUEST: usize = 64 * 1024;

/// Where control listens for others than operators.
#[derive(Debug)]
pub struct Listeners {
    /// For proxies.
    pub discovery: TcpListener,
    /// Roots that clients' certificates there may lead to, beside the CA's.
    pub svid_roots: watch::Receiver<Further>,
    /// For other meshes, if any.
    pub bundle: Option<TcpListener>,
    /// For the API server, and how pods are injected, if they are.
    pub webhook: Option<(TcpListener, webhook::Settings)>,
}

/// Serves proxies until `stopping`, then until the connections have ended.
pub async fn serve(
    listeners: Listeners,
    config: &Config,
    hub: Arc<Hub>,
    ca: Authority,
    provers: Provers,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let (further, metrics) = (listeners.svid_roots, Arc::clone(&hub.metrics));
    let served_as = config.webhook.iter().map(|webhook| webhook.name.clone()).collect();
    let acceptor = tls::Acceptor::new((ca.clone(), served_as), further, metrics, config.max_connections).await?;
    if let Some(listener) = listeners.bundle {
        let (doors, metrics) = (acceptor.doors(), Arc::clone(&hub.metrics));
        let published = bundle::Published { ca: ca.clone(), doors, refresh: config.bundle_refresh, metrics };
        tokio::spawn(bundle::serve(listener, published, stopping.clone()));
    }
    if let Some((listener, settings)) = listeners.webhook {
        tokio::spawn(webhook::serve(listener, settings, acceptor.doors(), Arc::clone(&hub), stopping.clone()));
    }
    let own = follow::Own {
        hub: Arc::clone(&hub),
        doors: acceptor.doors(),
        name: config.called.clone(),
        port: listeners.discovery.local_addr()?.port(),
        place: Place { zone: config.zone.clone(), ip: config.presence.as_ref().map(|presence| presence.serves.ip()) },
    };
    let _following = follow::start(own, config.replicas.clone(), config.presence.is_some());
    let replicas = tell::Service {
        hub: Arc::clone(&hub),
        ca: ca.clone(),
        name: config.called.clone(),
        pages: admin::Admin { hub: Arc::clone(&hub), ca: ca.clone(), debug_remote: true },
        stopping: stopping.clone(),
    };
    let replicas = ReplicasServer::new(replicas).max_decoding_message_size(MAX_SMALL_REQUEST);
    let ads = Ads::new(Arc::clone(&hub), config, stopping.clone());
    let certificates = ca::CertificateService::new(ca, provers, config, Arc::clone(&hub.metrics));
    let certificates = IstioCertificateServiceServer::new(certificates).max_decoding_message_size(MAX_SMALL_REQUEST);
    let drain = DrainServer::new(DrainService::new(hub)).max_decoding_message_size(MAX_SMALL_REQUEST);
    let others = Routes::new(certificates).add_service(drain).add_service(replicas).prepare();
    let services = Arc::new(Services { ads, others, keepalive: config.keepalive });
    let stop = stopping.clone();
    let serve = move |connection| http2::serve(connection, Arc::clone(&services), stop.clone());
    acceptor.listen(listeners.discovery, serve, stopping).await;
    Ok(())
}
