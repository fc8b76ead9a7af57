//! `/app/CONTAINER/KIND`: what the kubelet would ask the application, asked in its place ([`weft_api::probe`]). A strict port refuses the
//! kubelet, who has no identity of the mesh; we are inside the pod.
//!
//! Invariants
//! - Only what the injector took out of the pod is asked (`--app-probes`), at the very address that the kubelet called.
//! - It goes straight to the application, by the socket priority that the pod's rules let through.
//! - An answer is bounded in time and in bytes; what cannot be asked is a failure with a sentence, as the kubelet would show it.

mod grpc;
mod http_get;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{HeaderValue, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::time::timeout;
use weft_api::probe::{Ask, key};

use super::{Admin, Body, plain, typed};
use crate::upstream::connect::dial;

/// Of an answer, as much as the kubelet reads.
const MAX_ANSWER: usize = 10 * 1024;

/// Where the application is.
#[derive(Clone, Copy)]
struct Door {
    addr: SocketAddr,
    mark: Option<u32>,
}

impl Door {
    async fn open(self) -> io::Result<TcpStream> {
        dial(self.addr, self.mark, true).await
    }
}

/// What came of asking.
enum Found {
    /// The application's own answer.
    Answer(StatusCode, bytes::Bytes),
    /// There is none, for this reason.
    Failed(String),
}

/// Asks for whoever called us at `here`; `None` if the path is none of the application's.
pub(super) async fn answer(
    admin: &Admin,
    here: IpAddr,
    agent: Option<&HeaderValue>,
    path: &str,
) -> Option<Response<Body>> {
    let (key, handler) = admin.shared.config.app_probes.get_key_value(key(path)?)?;
    let door = Door { addr: SocketAddr::new(here, handler.ask.port()), mark: admin.shared.config.exclude };
    let addr = door.addr;
    let time = Duration::from_secs(handler.timeout_seconds.into());
    let asked = async {
        match &handler.ask {
            Ask::HttpGet(get) => http_get::ask(door, get, agent).await,
            Ask::TcpSocket(_) => door.open().await.map(|_| Found::Answer(StatusCode::OK, "connected\n".into())),
            Ask::Grpc(grpc) => grpc::ask(door, &grpc.service).await,
        }
    };
    let found = match timeout(time, asked).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => Found::Failed(format!("{key}: {addr}: {error}")),
        Err(_) => {
            let why = format!("{key}: {addr} did not answer within {} s", time.as_secs());
            return Some(plain(StatusCode::GATEWAY_TIMEOUT, why));
        }
    };
    Some(match found {
        Found::Answer(status, body) => typed(status, "text/plain; charset=utf-8", body),
        Found::Failed(why) => plain(StatusCode::BAD_GATEWAY, why),
    })
}

#[cfg(test)]
mod tests;
