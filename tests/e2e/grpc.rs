//! A gRPC client of the tests' own, with messages encoded by hand: what it needs of `echo.v1.Echo` is two fields.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use weft::lab::Pod;

/// A connection for calls side by side.
pub async fn open(pod: &Pod, to: SocketAddr) -> Result<http2::SendRequest<Full<Bytes>>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = pod.connect(to).map_err(|error| text(&error))?;
    stream.set_nonblocking(true).map_err(|error| text(&error))?;
    let stream = TokioIo::new(TcpStream::from_std(stream).map_err(|error| text(&error))?);
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), stream).await.map_err(|error| format!("{error:?}"))?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// A call: the concatenated messages of the answer, and the trailer `grpc-status`.
pub async fn call(
    sender: &mut http2::SendRequest<Full<Bytes>>,
    method: &str,
    message: &[u8],
    metadata: Option<(&str, &str)>,
) -> Result<(String, String), String> {
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(message.len() as u32);
    body.put_slice(message);
    let mut request = Request::post(format!("http://echo/echo.v1.Echo/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some((name, value)) = metadata {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(body.freeze())).unwrap();
    let answer = async {
        sender.ready().await?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let collected = body.collect().await?;
        let status = |headers: &http::HeaderMap| headers.get("grpc-status").map(|value| format!("{value:?}"));
        let status = collected.trailers().and_then(status).or_else(|| status(&head.headers)).unwrap_or_default();
        Ok::<_, hyper::Error>((String::from_utf8_lossy(&collected.to_bytes()).into_owned(), status))
    };
    match tokio::time::timeout(Duration::from_secs(30), answer).await {
        Ok(result) => result.map_err(|error| format!("{error:?}")),
        Err(_) => Err("no answer in 30 s".to_owned()),
    }
}

/// `Say` on a connection of its own: the reply's bytes, in which name and version can be looked for.
pub async fn say(pod: &Pod, to: SocketAddr, metadata: Option<(&str, &str)>) -> Result<String, String> {
    let mut sender = open(pod, to).await?;
    let (reply, status) = call(&mut sender, "Say", b"\x0a\x02hi", metadata).await?;
    if status == "\"0\"" { Ok(reply) } else { Err(format!("grpc-status {status}: {reply}")) }
}

/// The request of `Repeat`: `count` answers, `every_ms` apart.
pub fn repeat(count: u8, every_ms: u16) -> Vec<u8> {
    let mut message = b"\x0a\x02hi".to_vec();
    message.extend([0x10, count & 0x7f]);
    message.extend([0x18, (every_ms & 0x7f) as u8 | 0x80, (every_ms >> 7) as u8]);
    message
}
