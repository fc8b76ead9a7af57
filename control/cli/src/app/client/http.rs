//! HTTP/1.1 over a kept connection.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HOST, HeaderName};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::tally::Fate;
use super::{Answer, Args};

/// The largest answer that is read.
const MAX_ANSWER: usize = 16 << 20;

/// One connection's worth of requests.
pub struct Speaker {
    args: Arc<Args>,
    to: SocketAddr,
    body: Bytes,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Speaker {
    /// Connects at the first call.
    pub fn new(args: Arc<Args>, to: SocketAddr) -> Self {
        let body = Bytes::from(vec![b'x'; args.body]);
        Self { args, to, body, connection: None }
    }

    /// Sends one request and reads the answer to its end.
    pub async fn call(&mut self) -> Result<Answer, String> {
        let mut kept = self.connection.take();
        if let Some(connection) = &mut kept
            && connection.ready().await.is_err()
        {
            kept = None;
        }
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let sent = connection.send_request(self.request()?).await;
        let answer = self.read(sent.map_err(|error| said(&error))?).await?;
        self.connection = Some(connection);
        Ok(answer)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect(self.to).await.map_err(|error| format!("connect: {error}"))?;
        let _ = stream.set_nodelay(true);
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(|error| said(&error))?;
        tokio::spawn(driver);
        Ok(sender)
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, String> {
        let args = &self.args;
        let mut request = Request::builder().method(args.method.clone()).uri(&args.path);
        if !args.header.iter().any(|(name, _)| name == HOST) {
            request = request.header(HOST, &args.to);
        }
        for (name, value) in &args.header {
            request = request.header(name, value);
        }
        request.body(Full::new(self.body.clone())).map_err(|error| error.to_string())
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Answer, String> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| format!("body: {error}"))?.to_bytes();
        let fate = match head.status {
            status if status.is_success() => Fate::Ok,
            StatusCode::FORBIDDEN => Fate::Denied,
            StatusCode::TOO_MANY_REQUESTS => Fate::Limited,
            _ => Fate::Failed,
        };
        if fate != Fate::Ok {
            let why = head.headers.get(HeaderName::from_static("x-weft-reason")).and_then(|why| why.to_str().ok());
            let why = format!("{} {}", head.status.as_u16(), why.unwrap_or_default());
            return Ok(Answer { fate, version: Some(why.trim_end().to_owned()), seen: None });
        }
        let said: Option<Value> = serde_json::from_slice(&body).ok();
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let version = said.as_ref().and_then(|said| text(said.get("version")));
        let seen = self.args.seen.as_ref().and_then(|name| {
            // A server that echoes nothing may still tell what it saw, in a header field of its answer.
            let told = head.headers.get(format!("x-seen-{name}")).and_then(|value| value.to_str().ok());
            said.as_ref()
                .and_then(|said| text(said.get("headers").and_then(|headers| headers.get(name))))
                .or_else(|| told.map(str::to_owned))
        });
        Ok(Answer { fate, version, seen })
    }
}

/// The whole chain of an error: hyper's own text alone says little.
fn said(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
