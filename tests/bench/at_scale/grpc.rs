//! One stream of gRPC on a connection of its own: TCP, mutual TLS, HTTP/2 by the library that the sidecar has, messages framed here, so that
//! each is counted as it travels: five bytes and the message.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::client::Builder;
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::{Request, Version};
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use weft_certs::tls::CONTROL_SERVER_NAME;

/// Before each message: whether it is compressed, and its length.
pub const PREFIX: usize = 5;
/// Longest message; the protocol's bound is 1 MiB.
const LONGEST: usize = 2 << 20;
/// A stream's window and its connection's.
const WINDOW: u32 = 64 << 10;
/// How often a sidecar pings control.
const PING: Duration = Duration::from_secs(10);
const METHOD: &str =
    "https://weft-control/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The connection.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// HTTP/2.
    #[error("{0}")]
    Http(#[from] h2::Error),
    /// The request could not be made.
    #[error("{0}")]
    Request(#[from] http::Error),
    /// A message that is none.
    #[error("{0}")]
    Message(#[from] prost::DecodeError),
    /// What control said.
    #[error("control ended the stream: {0}")]
    Ended(String),
}

/// An open stream.
pub struct Stream {
    out: SendStream<Bytes>,
    incoming: RecvStream,
    buffer: BytesMut,
    /// Ends the connection with the stream.
    _connection: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens one, with these messages in front. Returns their bytes too.
pub async fn open(to: SocketAddr, tls: &TlsConnector, first: &[impl Message]) -> Result<(Stream, usize), Broken> {
    let tcp = TcpStream::connect(to).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from(CONTROL_SERVER_NAME).map_err(std::io::Error::other)?;
    let tls = tls.connect(name, tcp).await?;
    let mut builder = Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
    let (requests, mut connection) = builder.handshake::<_, Bytes>(tls).await?;
    let pings = connection.ping_pong();
    let connection = AbortOnDrop(tokio::spawn(async move {
        tokio::select! {
            // Why it ended is seen by the stream.
            _ = connection => {}
            () = ping(pings) => {}
        }
    }));
    let mut requests = requests.ready().await?;
    let request = Request::post(METHOD).version(Version::HTTP_2).header("content-type", "application/grpc");
    let (response, mut out) = requests.send_request(request.header("te", "trailers").body(())?, false)?;
    let mut bytes = 0;
    for message in first {
        bytes += send(&mut out, message)?;
    }
    let response = response.await?;
    if let Some(status) = status(response.headers()) {
        return Err(Broken::Ended(status));
    }
    Ok((Stream { out, incoming: response.into_body(), buffer: BytesMut::new(), _connection: connection }, bytes))
}

/// As a sidecar does.
async fn ping(pings: Option<PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING).await;
        if pings.ping(Ping::opaque()).await.is_err() {
            return;
        }
    }
}

fn send(out: &mut SendStream<Bytes>, message: &impl Message) -> Result<usize, Broken> {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(length as u32);
    framed.extend_from_slice(&message.encode_to_vec());
    out.send_data(framed.freeze(), false)?;
    Ok(PREFIX + length)
}

/// What a stream that has ended says of it; `None` if all is well so far.
fn status(headers: &http::HeaderMap) -> Option<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    headers.contains_key("grpc-status").then(|| format!("{} {}", text("grpc-status"), text("grpc-message")))
}

impl Stream {
    /// Sends a message. Returns its bytes.
    pub fn send(&mut self, message: &impl Message) -> Result<usize, Broken> {
        send(&mut self.out, message)
    }

    /// The next message.
    pub async fn next(&mut self) -> Result<Bytes, Broken> {
        loop {
            if let Some(message) = whole(&mut self.buffer)? {
                return Ok(message);
            }
            match self.incoming.data().await {
                Some(data) => {
                    let data = data?;
                    self.incoming.flow_control().release_capacity(data.len())?;
                    self.buffer.extend_from_slice(&data);
                }
                None => {
                    let trailers = self.incoming.trailers().await?.unwrap_or_default();
                    return Err(Broken::Ended(status(&trailers).unwrap_or_else(|| "without a status".to_owned())));
                }
            }
        }
    }
}

/// Takes a whole message out of what has come.
fn whole(buffer: &mut BytesMut) -> Result<Option<Bytes>, Broken> {
    let Some(length) = buffer.get(1..PREFIX).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes) else {
        return Ok(None);
    };
    let length = length as usize;
    if length > LONGEST {
        return Err(Broken::Ended(format!("a message of {length} bytes, which is over the protocol's bound")));
    }
    if buffer.len() < PREFIX + length {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    let message = buffer.split_to(length).freeze();
    if buffer.is_empty() {
        // Idle streams hold nothing.
        *buffer = BytesMut::new();
    }
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_whole_however_they_come() {
        let message = weft_api::wire::v1::DrainRequest { workload: "a/b".to_owned(), deadline_ms: 7, instance: None };
        let encoded = message.encode_to_vec();
        let one = [&[0, 0, 0, 0, encoded.len() as u8], &encoded[..]].concat();
        let bytes = [one.clone(), one].concat();
        let mut buffer = BytesMut::new();
        let mut found = 0;
        for byte in bytes {
            buffer.extend_from_slice(&[byte]);
            while let Some(one) = whole(&mut buffer).unwrap() {
                assert_eq!(weft_api::wire::v1::DrainRequest::decode(one).unwrap(), message);
                found += 1;
            }
        }
        assert_eq!((found, buffer.len()), (2, 0));
        buffer.extend_from_slice(&[0, 255, 255, 255, 255]);
        assert!(whole(&mut buffer).is_err());
    }
}
