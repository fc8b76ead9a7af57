//! What operators and the kubelet ask: metrics, health (ours, and what the kubelet would ask the application), and on loopback tables,
//! configuration and drain. Plain HTTP/1, on the admin thread.
//!
//! Invariants
//! - Nothing here is reached by the data path, and nothing here waits for it.
//! - Connections are bounded, so are the heads that are read and the time they take.
//! - Only [`local`] changes anything of the proxy itself, and only loopback reaches it. [`drain_wait`] alone makes it turn requests away, for a while,
//!   for whoever has the key ([`hook_key`]).

mod application;
mod drain_wait;
pub(crate) mod health;
mod hook_key;
mod local;
mod metrics;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::Shared;
use crate::config::Config;
use crate::control_channel::Target;
use crate::discovery::address::canonical;

pub(crate) use self::drain_wait::tell_control;
pub use self::hook_key::HookKey;

/// Open connections of each port.
const CONNECTIONS: usize = 64;
/// Time in which a request's head must be there.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEADER_BYTES: usize = 16 * 1024;
/// Pause after the kernel had no file descriptor for a connection.
const PAUSE: Duration = Duration::from_millis(100);

type Body = Full<Bytes>;

/// The three listeners, open.
pub struct Listeners {
    metrics: std::net::TcpListener,
    health: std::net::TcpListener,
    local: std::net::TcpListener,
}

impl Listeners {
    /// Opens them.
    ///
    /// # Errors
    /// What the kernel says, with the address.
    pub fn bind(config: &Config) -> io::Result<Self> {
        let bind = |addr| {
            crate::capture::listen(addr).map_err(|error| io::Error::new(error.kind(), format!("{addr}: {error}")))
        };
        Ok(Self { metrics: bind(config.metrics)?, health: bind(config.health)?, local: bind(config.admin)? })
    }
}

/// What the pages are made of.
#[derive(Clone)]
struct Admin {
    shared: Arc<Shared>,
    control: Target,
}

#[derive(Clone, Copy)]
enum Port {
    Metrics,
    Health,
    Local,
}

/// Serves the three ports for as long as it is polled.
///
/// # Errors
/// A listener that tokio does not take.
pub async fn serve(shared: Arc<Shared>, control: Target, listeners: Listeners) -> io::Result<()> {
    let admin = Admin { shared, control };
    let [metrics, health, local] = [listeners.metrics, listeners.health, listeners.local].map(TcpListener::from_std);
    let (metrics, health, local) = (metrics?, health?, local?);
    tokio::join!(
        accept(metrics, admin.clone(), Port::Metrics),
        accept(health, admin.clone(), Port::Health),
        accept(local, admin, Port::Local),
    );
    Ok(())
}

/// Takes one port's connections, [`CONNECTIONS`] at once at most; the others wait in the kernel's queue.
async fn accept(listener: TcpListener, admin: Admin, port: Port) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection to an admin port");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let admin = admin.clone();
        // The kubelet calls the pod's address.
        let here = stream.local_addr().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |addr| canonical(addr).ip());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(&admin, port, here, request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .max_buf_size(HEADER_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to an admin port ended badly");
            }
            drop(place);
        });
    }
}

async fn answer(
    admin: &Admin,
    port: Port,
    here: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (method, path) = (request.method(), request.uri().path());
    Ok(match port {
        Port::Metrics => metrics::answer(admin, method, path).await,
        Port::Health => health::answer(admin, here, &request).await,
        Port::Local => local::answer(admin, method, path).await,
    })
}

/// Whether a method only asks.
fn reads(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

fn plain(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut text = text.into();
    text.push('\n');
    typed(status, "text/plain; charset=utf-8", text.into())
}

fn only(method: &'static str) -> Response<Body> {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, format!("only {method}"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(method));
    response
}

fn json(value: &serde_json::Value) -> Response<Body> {
    typed(StatusCode::OK, "application/json", format!("{value:#}\n").into())
}

fn typed(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
