//! Who writes to an API server: HTTP/1.1 over TLS, as many connections as there are writes at a time, kept between them.
//!
//! A write that the server was too busy for, or whose connection went, is made again a few times. All of ours may be made twice: what is there
//! already was created by the attempt whose answer was lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::super::Error;

/// Attempts of one write, and the pause after the first of them, which grows.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);
/// So much of a refusal is shown.
const SHOWN: usize = 400;

type Connection = SendRequest<Full<Bytes>>;

/// Connections to one API server.
pub struct Writer {
    to: SocketAddr,
    tls: TlsConnector,
    idle: Mutex<Vec<Connection>>,
}

fn failed(reason: impl ToString) -> Error {
    Error::Program { name: "the API server".to_owned(), reason: reason.to_string() }
}

impl Writer {
    /// Nothing is connected yet.
    pub fn new(to: SocketAddr, tls: Arc<ClientConfig>) -> Self {
        Self { to, tls: TlsConnector::from(tls), idle: Mutex::default() }
    }

    /// Sends a request, and once more if it has to be. Its answer, if that is no refusal.
    pub async fn ask(&self, method: Method, path: &str, kind: &str, body: &Value) -> Result<Bytes, Error> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let mut attempt = 1;
        loop {
            let request = Request::builder()
                .method(method.clone())
                .uri(path)
                .header(header::HOST, self.to.to_string())
                .header(header::CONTENT_TYPE, kind)
                .body(Full::new(body.clone()))
                .map_err(failed)?;
            let why = match self.once(request).await {
                Ok((status, answer)) if status.is_success() => return Ok(answer),
                Ok((StatusCode::CONFLICT, answer)) if attempt > 1 && method == Method::POST => return Ok(answer),
                Ok((status, answer)) => {
                    let said = String::from_utf8_lossy(&answer).chars().take(SHOWN).collect::<String>();
                    let why = format!("{method} {path}: {status}: {said}");
                    if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
                        return Err(failed(why));
                    }
                    why
                }
                Err(error) => format!("{method} {path}: {error}"),
            };
            if attempt == ATTEMPTS {
                return Err(failed(why));
            }
            tokio::time::sleep(PAUSE * attempt).await;
            attempt += 1;
        }
    }

    async fn once(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), Error> {
        let mut connection = self.connection().await?;
        let answer = connection.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(failed)?.to_bytes();
        self.idle.lock().push(connection);
        Ok((status, body))
    }

    /// One that is idle and alive, or a new one.
    async fn connection(&self) -> Result<Connection, Error> {
        loop {
            let Some(mut idle) = self.idle.lock().pop() else { break };
            // Fails at once if the server has closed it meanwhile.
            if idle.ready().await.is_ok() {
                return Ok(idle);
            }
        }
        let tcp = TcpStream::connect(self.to).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let tls = self.tls.connect(ServerName::from(self.to.ip()), tcp).await.map_err(failed)?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.map_err(failed)?;
        // Ends with the connection; what went wrong is heard by who sends.
        tokio::spawn(connection);
        Ok(sender)
    }
}
