//! An HTTP client inside a pod: plain HTTP/1.1 or HTTP/2 by prior knowledge, captured like any application's.

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use weft::lab::Pod;

use crate::mesh::SOON;

/// The longest that a test waits for one answer.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs asynchronous work of a test to its end.
///
/// # Panics
/// If no runtime can be built.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Got {
    /// Status.
    pub status: StatusCode,
    /// Header fields.
    pub headers: HeaderMap,
    /// Body, as text.
    pub body: String,
    /// From the request's first byte to the answer's last.
    pub took: Duration,
}

impl Got {
    /// A header field, empty if absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The reason code of a refusal, empty if it was none.
    pub fn reason(&self) -> &str {
        self.header("x-weft-reason")
    }

    /// The body as JSON: what `weft app http` says about itself and what it saw.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The pod that answered.
    pub fn by(&self) -> String {
        self.json()["name"].as_str().unwrap_or_default().to_owned()
    }

    /// Status and reason, to compare.
    pub fn outcome(&self) -> (u16, &str) {
        (self.status.as_u16(), self.reason())
    }
}

/// One connection from a pod; requests on it follow each other.
#[derive(Debug)]
pub struct Session {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// A sentence about what went wrong.
    pub async fn open(pod: &Pod, to: SocketAddr) -> Result<Self, String> {
        let stream = pod.connect(to).map_err(|error| format!("connect to {to}: {error}"))?;
        stream.set_nonblocking(true).map_err(|error| error.to_string())?;
        let stream = TcpStream::from_std(stream).map_err(|error| error.to_string())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender })
    }

    /// Sends, and reads the whole answer.
    ///
    /// # Errors
    /// A sentence about what went wrong.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Got, String> {
        let start = Instant::now();
        let answer = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(Got {
                status: head.status,
                headers: head.headers,
                body: String::from_utf8_lossy(&body).into_owned(),
                took: start.elapsed(),
            })
        };
        match tokio::time::timeout(LIMIT, answer).await {
            Ok(Ok(got)) => Ok(got),
            Ok(Err(error)) => Err(format!("{error:?}")),
            Err(_) => Err(format!("no answer in {LIMIT:?}")),
        }
    }
}

/// A request with an empty body. `headers` are names and values.
///
/// # Panics
/// If the parts are not valid.
pub fn request(method: Method, host: &str, path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

/// One request on a connection of its own.
///
/// # Errors
/// A sentence about what went wrong.
pub fn try_send(pod: &Pod, to: SocketAddr, request: Request<Full<Bytes>>) -> Result<Got, String> {
    run(async { Session::open(pod, to).await?.send(request).await })
}

/// One GET on a connection of its own.
///
/// # Panics
/// If there is no answer.
pub fn get(pod: &Pod, to: SocketAddr, path: &str) -> Got {
    try_send(pod, to, request(Method::GET, &to.to_string(), path, &[])).unwrap_or_else(|error| panic!("{error}"))
}

/// Calls a TCP service ([`crate::Service::tcp`]), which speaks first, as `greeter` (its pod's name and its version), and sends back what it
/// is told. The connection, on which `text` has come back.
///
/// # Panics
/// If it does anything else, or nothing within [`SOON`].
pub fn echo(pod: &Pod, to: SocketAddr, greeter: &str, text: &str) -> std::net::TcpStream {
    let mut stream = pod.connect(to).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let hears = |stream: &mut std::net::TcpStream, what: &str| {
        let mut heard = vec![0; what.len()];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), what);
    };
    hears(&mut stream, &format!("hello {greeter}\n"));
    stream.write_all(text.as_bytes()).unwrap();
    hears(&mut stream, text);
    stream
}
