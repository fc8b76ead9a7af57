//! The delta ADS service: a thin shell around a [`Session`](super::session::Session).
//!
//! Its messages are framed here and not by the library, whose encoder keeps the room of the largest one that it ever sent, and at least 8 KiB,
//! for as long as the stream lives: 64 KiB for a proxy that calls 20 services. Here a message's room goes with it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::{BufMut as _, Bytes};
use http::header::{CONTENT_TYPE, HeaderMap};
use http_body_util::StreamBody;
use hyper::body::Frame;
use prost::Message;
use prost_types::value::Kind;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};
use weft_api::names::short_type;
use weft_api::wire::core::Node;
use weft_api::wire::discovery::aggregated_discovery_service_server::SERVICE_NAME;
use weft_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_engine::ratelimit::{Cell, Decision, Rate};

use super::hub::{Client, Hub, Stream};
use crate::auth::{self, Proved};
use crate::config::Config;

/// How long a new stream may say nothing.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Of what a proxy says of itself.
const LONGEST_TEXT: usize = 128;
/// Responses made but not yet taken by the connection. More would be decided too early.
const IN_HAND: usize = 2;

/// A request that says all that a proxy holds (4,096 addresses and what they point to) is a few hundred KiB; one with the members of a
/// very large set may be a few MiB.
const MAX_REQUEST: usize = 16 * 1024 * 1024;
/// Room for requests that a stream keeps; an acknowledgement takes 50 bytes.
const REQUEST_ROOM: usize = 512;
const METHOD: &str = "/DeltaAggregatedResources";

type Out = mpsc::Sender<Result<Bytes, Status>>;

/// The gRPC service.
#[derive(Clone, Debug)]
pub struct Ads {
    hub: Arc<Hub>,
    stopping: CancellationToken,
    /// How many streams were opened lately.
    opened: Arc<Cell>,
    rate: Rate,
    most: i64,
}

impl NamedService for Ads {
    const NAME: &'static str = SERVICE_NAME;
}

impl tower::Service<http::Request<Body>> for Ads {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let known =
            request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME)) == Some(METHOD);
        let opened = if known {
            self.delta_aggregated_resources(Request::from_http(request))
        } else {
            Err(Status::unimplemented("control serves delta ADS only"))
        };
        ready(Ok(opened.unwrap_or_else(Status::into_http)))
    }
}

impl Ads {
    /// Over a store, until `stopping`.
    pub fn new(hub: Arc<Hub>, config: &Config, stopping: CancellationToken) -> Self {
        let (requests, burst) = config.new_streams;
        let rate = Rate { requests, per: Duration::from_secs(1), burst };
        // Of one proxy there may be two for a moment.
        let most = i64::try_from(config.max_connections.saturating_mul(2)).unwrap_or(i64::MAX);
        Self { hub, stopping, opened: Arc::default(), rate, most }
    }

    /// A new stream costs most at its beginning: what comes all at once waits outside, so that those which are here are served meanwhile.
    fn admit(&self) -> Result<(), Status> {
        if self.hub.metrics.streams.get() >= self.most {
            self.hub.metrics.bound("streams", 1);
            return Err(Status::unavailable(
                "this control has as many proxies as it takes; connect to another, or later",
            ));
        }
        let Decision::Admit { .. } = self.rate.check(&self.opened, self.hub.now()) else {
            self.hub.metrics.bound("new_streams", 1);
            return Err(Status::unavailable("too many proxies connect at this moment; connect again in a while"));
        };
        Ok(())
    }

    fn delta_aggregated_resources(&self, request: Request<Body>) -> Result<http::Response<Body>, Status> {
        let addr = auth::peer(&request)?.addr;
        let proved =
            auth::proved(&request).cloned().inspect_err(|status| self.hub.audit("stream", "", addr, status))?;
        self.admit()?;
        let (out, responses) = mpsc::channel(IN_HAND);
        let (hub, stopping) = (Arc::clone(&self.hub), self.stopping.clone());
        let incoming = Streaming::new_request(Requests, request.into_inner(), None, Some(MAX_REQUEST));
        tokio::spawn(async move {
            let served = tokio::select! {
                served = serve(&hub, &proved, addr, incoming, &out) => served,
                () = ends(&proved) => Err(auth::expired()),
                () = stopping.cancelled() => Err(Status::unavailable("control is stopping; connect again")),
            };
            if let Err(status) = &served {
                hub.audit("stream", &proved.identity.to_string(), addr, status);
            }
            // Best effort: a peer that reads nothing is cut off by the connection's end.
            let _ = out.try_send(Err(served.err().unwrap_or_else(|| Status::ok(""))));
        });
        let frames = ReceiverStream::new(responses).map(|response| Ok::<_, Infallible>(frame(response)));
        let mut response = http::Response::new(Body::new(StreamBody::new(frames)));
        response.headers_mut().insert(CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
        Ok(response)
    }
}

/// A message, or the end.
fn frame(response: Result<Bytes, Status>) -> Frame<Bytes> {
    match response {
        Ok(message) => Frame::data(message),
        Err(status) => {
            let mut trailers = HeaderMap::new();
            // A status that does not fit into headers is left out: then the stream ends without one.
            let _ = status.add_header(&mut trailers);
            Frame::trailers(trailers)
        }
    }
}

/// Before each message: whether it is compressed, and its length.
const HEAD: usize = 5;

/// As it travels: its head, itself.
fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = Vec::with_capacity(HEAD + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // Cannot fail: a vector has room.
    let _ = message.encode(&mut framed);
    framed.into()
}

/// Reads requests.
struct Requests;

impl Decoder for Requests {
    type Item = DeltaDiscoveryRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DeltaDiscoveryRequest>, Status> {
        let request = DeltaDiscoveryRequest::decode(from);
        request.map(Some).map_err(|error| Status::invalid_argument(format!("a request cannot be read: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(REQUEST_ROOM, REQUEST_ROOM)
    }
}

/// Returns when the certificate has expired, by the wall clock, which may be set.
async fn ends(proved: &Proved) {
    while let Ok(left) = proved.not_after.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(Duration::from_secs(30)).max(Duration::from_millis(10))).await;
    }
}

/// A stream's entry in the store, taken out when dropped.
struct Open<'h> {
    hub: &'h Hub,
    stream: Arc<Stream>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.hub.close(&self.stream);
    }
}

async fn serve(
    hub: &Hub,
    proved: &Proved,
    addr: SocketAddr,
    mut incoming: Streaming<DeltaDiscoveryRequest>,
    out: &Out,
) -> Result<(), Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no message came on the new stream"))??;
    let Some(first) = first else { return Ok(()) };
    let mut loaded = hub.loaded();
    // Before the first model nobody's workload is known: a proxy is not refused for that.
    let waited = tokio::time::timeout(FIRST_MESSAGE, async { loaded.wait_for(|loaded| *loaded).await.is_ok() }).await;
    if waited != Ok(true) {
        return Err(Status::unavailable("control has not read its sources yet; connect again"));
    }
    let client = client(hub, proved, addr, first.node.as_ref())?;
    let open = Open { hub, stream: hub.open(client) };
    tracing::info!(workload = %open.stream.client.workload, identity = %proved.identity, %addr, "a proxy is connected");
    let ended = converse(hub, &open.stream, first, incoming, out).await;
    tracing::info!(workload = %open.stream.client.workload, "a proxy is disconnected");
    ended
}

fn client(hub: &Hub, proved: &Proved, addr: SocketAddr, node: Option<&Node>) -> Result<Client, Status> {
    let node = node.ok_or_else(|| Status::invalid_argument("the first message must carry the node"))?;
    let workload = auth::workload(&node.id)?;
    auth::must_own(hub, proved, &workload)?;
    let field = |name: &str| node.metadata.as_ref()?.fields.get(name)?.kind.as_ref();
    let features: Vec<String> = match field("features") {
        Some(Kind::ListValue(list)) => list.values.iter().filter_map(|value| text(value.kind.as_ref()?)).collect(),
        _ => Vec::new(),
    };
    let instance = field("instance").and_then(text);
    let lacks = |ours: &&str| !features.iter().any(|theirs| theirs == ours);
    let missing: Vec<&str> = weft_api::FEATURES.iter().copied().filter(lacks).collect();
    if !missing.is_empty() {
        tracing::warn!(%workload, ?missing, "a proxy cannot enforce all that control may ask for; it refuses what needs these");
    }
    let version = node.user_agent_version.chars().take(LONGEST_TEXT).collect();
    Ok(Client { workload, proved: proved.clone(), features, instance, addr, version })
}

fn text(kind: &Kind) -> Option<String> {
    match kind {
        Kind::StringValue(text) if text.len() <= LONGEST_TEXT => Some(text.clone()),
        _ => None,
    }
}

async fn converse(
    hub: &Hub,
    stream: &Stream,
    first: DeltaDiscoveryRequest,
    mut incoming: Streaming<DeltaDiscoveryRequest>,
    out: &Out,
) -> Result<(), Status> {
    hear(hub, stream, first)?;
    loop {
        let has_work = stream.has_work();
        tokio::select! {
            biased;
            () = stream.revoked.cancelled() => {
                let message = "the workload belongs to another identity now, or is another pod, or that is revoked";
                return Err(Status::permission_denied(message));
            }
            message = incoming.message() => match message? {
                Some(request) => hear(hub, stream, request)?,
                None => return Ok(()),
            },
            permit = out.reserve(), if has_work => {
                let Ok(permit) = permit else { return Ok(()) };
                if let Some(response) = hub.next(stream) {
                    let framed = framed(&response);
                    count(hub, &response, framed.len() - HEAD);
                    permit.send(Ok(framed));
                }
            }
            () = stream.wake.notified(), if !has_work => {}
        }
    }
}

fn hear(hub: &Hub, stream: &Stream, request: DeltaDiscoveryRequest) -> Result<(), Status> {
    use super::session::Violation;
    let heard = hub.hear(stream, request);
    heard.map(|_| ()).map_err(|violation| match violation {
        Violation::NotYours { .. } => Status::permission_denied(violation.to_string()),
        Violation::Nonce(_) => Status::invalid_argument(violation.to_string()),
    })
}

fn count(hub: &Hub, response: &DeltaDiscoveryResponse, bytes: usize) {
    hub.metrics.pushed(
        short_type(&response.type_url),
        response.resources.len(),
        response.removed_resources.len(),
        bytes,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_travels_behind_its_length_and_a_stream_ends_with_its_status() {
        let message = DeltaDiscoveryRequest { type_url: "t".repeat(300), ..Default::default() };
        let bytes = frame(Ok(framed(&message))).into_data().unwrap();
        assert_eq!(bytes[..5], [0, 0, 0, 1, 47]);
        assert_eq!(DeltaDiscoveryRequest::decode(&bytes[5..]).unwrap(), message);
        let ended = |status| frame(Err(status)).into_trailers().unwrap();
        assert_eq!(ended(Status::ok(""))["grpc-status"], "0");
        let refused = ended(Status::permission_denied("not yours"));
        assert_eq!(
            (&refused["grpc-status"], &refused["grpc-message"]),
            (&"7".parse().unwrap(), &"not%20yours".parse().unwrap())
        );
    }
}
