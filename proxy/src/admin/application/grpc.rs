//! `grpc`: one call of `grpc.health.v1.Health/Check` in the clear, as the kubelet makes it (KEP-2727).

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, Request, StatusCode};
use prost::Message;

use super::{Door, Found, MAX_ANSWER};

/// `HealthCheckResponse.SERVING`.
const SERVING: i32 = 1;
/// Of a message in gRPC: whether it is compressed, and its length.
const PREFIX: usize = 5;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

pub(super) async fn ask(door: Door, service: &str) -> io::Result<Found> {
    let (tcp, addr) = (door.open().await?, door.addr);
    let (sender, connection) = h2::client::handshake(tcp).await.map_err(io::Error::other)?;
    // It ends with the last of its streams.
    tokio::spawn(connection);
    let mut sender = sender.ready().await.map_err(io::Error::other)?;
    let request = Request::post(format!("http://{addr}/grpc.health.v1.Health/Check"));
    let request =
        request.header(CONTENT_TYPE, "application/grpc").header(TE, "trailers").body(()).map_err(io::Error::other)?;
    let (answer, mut body) = sender.send_request(request, false).map_err(io::Error::other)?;
    body.send_data(framed(&HealthCheckRequest { service: service.to_owned() }), true).map_err(io::Error::other)?;
    let answer = answer.await.map_err(io::Error::other)?;
    if answer.status() != StatusCode::OK {
        return Ok(Found::Failed(format!("{addr} speaks no gRPC: it answered {}", answer.status())));
    }
    let (head, mut body) = answer.into_parts();
    let mut message = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(io::Error::other)?;
        let _ = body.flow_control().release_capacity(data.len());
        if message.len() + data.len() > MAX_ANSWER {
            return Ok(Found::Failed(format!("{addr} answers with more than a health check has")));
        }
        message.extend_from_slice(&data);
    }
    // An answer that is only a head has the status there.
    let trailers = body.trailers().await.map_err(io::Error::other)?;
    Ok(judge(trailers.as_ref().unwrap_or(&head.headers), &message, service))
}

fn framed(message: &HealthCheckRequest) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.freeze()
}

fn judge(end: &HeaderMap, message: &[u8], service: &str) -> Found {
    let field = |name: &str| end.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if field("grpc-status") != "0" {
        return Found::Failed(format!(
            "service `{service}`: gRPC status {} {}",
            field("grpc-status"),
            field("grpc-message")
        ));
    }
    match message.get(PREFIX..).map(HealthCheckResponse::decode) {
        Some(Ok(HealthCheckResponse { status: SERVING })) => Found::Answer(StatusCode::OK, "serving\n".into()),
        Some(Ok(HealthCheckResponse { status })) => {
            Found::Failed(format!("service `{service}` is not serving: {status}"))
        }
        Some(Err(_)) | None => Found::Failed(format!("service `{service}`: no answer to a health check")),
    }
}
