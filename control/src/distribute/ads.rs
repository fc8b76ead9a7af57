//! The delta ADS service: a thin shell around a [`Session`](super::session::Session).
//!
//! It is served on the connection's own task ([`crate::server`]), straight on its HTTP/2 stream, and frames messages itself: the room of a
//! message goes with it, and nothing stands between a change and the socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_TYPE, HeaderMap};
use prost::Message;
use prost_types::value::Kind;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Status};
use weft_api::names::{MOVE, short_type};
use weft_api::wire::core::Node;
use weft_api::wire::discovery::aggregated_discovery_service_server::SERVICE_NAME;
use weft_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_engine::ratelimit::{Cell, Decision, Rate};

use super::hub::{Client, Hub, Stream};
use crate::auth::{self, Proved};
use crate::config::Config;
use crate::server::http2::room;

/// How long a new stream may say nothing.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Of what a proxy says of itself.
const LONGEST_TEXT: usize = 128;

/// A request that says all that a proxy holds (4,096 addresses and what they point to) is a few hundred KiB; one with the members of a
/// very large set may be a few MiB.
const MAX_REQUEST: usize = 16 * 1024 * 1024;
const METHOD: &str = "/DeltaAggregatedResources";

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
        if self.hub.replicas.is_stopping() {
            return Err(moved(&[]));
        }
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

    /// Whether a request is for this service.
    pub(crate) fn is_for<B>(request: &http::Request<B>) -> bool {
        method(request.uri().path()).is_some()
    }

    /// One stream, until it has ended. `None`: it was refused.
    pub(crate) fn serve(
        &self,
        request: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let (head, requests) = request.into_parts();
        let known = method(head.uri.path()) == Some(METHOD);
        let opened = if known {
            self.opened(&Request::from_http(http::Request::from_parts(head, ())))
        } else {
            Err(Status::unimplemented("control serves delta ADS only"))
        };
        let (addr, proved) = match opened {
            Ok(opened) => opened,
            Err(status) => {
                // A peer that is gone needs no answer.
                let _ = respond.send_response(status.into_http::<()>(), true);
                return None;
            }
        };
        let mut head = http::Response::new(());
        head.headers_mut().insert(CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
        let out = respond.send_response(head, false).ok()?;
        let (hub, stopping) = (Arc::clone(&self.hub), self.stopping.clone());
        let conversation = (Requests { stream: requests, buffer: BytesMut::new() }, Responses(out));
        Some(last(hub, stopping, addr, proved, conversation))
    }

    /// Who opens a stream, if he may.
    fn opened(&self, request: &Request<()>) -> Result<(SocketAddr, Box<Proved>), Status> {
        let addr = auth::peer(request)?.addr;
        let proved = auth::proved(request).cloned().inspect_err(|status| self.hub.audit("stream", "", addr, status))?;
        self.admit()?;
        Ok((addr, Box::new(proved)))
    }
}

/// Until one of those that end a stream does.
async fn last(
    hub: Arc<Hub>,
    stopping: CancellationToken,
    addr: SocketAddr,
    proved: Box<Proved>,
    (mut requests, mut responses): (Requests, Responses),
) {
    let served = tokio::select! {
        served = serve(&hub, &proved, addr, &mut requests, &mut responses) => served,
        () = auth::ends(&proved) => Err(auth::expired()),
        () = stopping.cancelled() => Err(Status::unavailable("control is stopping; connect again")),
    };
    if let Err(status) = &served {
        hub.audit("stream", &proved.identity.to_string(), addr, status);
    }
    responses.end(&served.err().unwrap_or_else(|| Status::ok("")));
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

/// The method of this service that a path names.
fn method(path: &str) -> Option<&str> {
    path.strip_prefix('/')?.strip_prefix(SERVICE_NAME).filter(|method| method.starts_with('/'))
}

/// What a proxy says.
struct Requests {
    stream: RecvStream,
    /// What has come of the next message.
    buffer: BytesMut,
}

impl Requests {
    /// The next message; `None` at the end. Nothing is lost if this is dropped.
    async fn next(&mut self) -> Result<Option<DeltaDiscoveryRequest>, Status> {
        loop {
            if let Some(message) = whole(&mut self.buffer)? {
                let request = DeltaDiscoveryRequest::decode(message);
                let unread = |error| Status::invalid_argument(format!("a request cannot be read: {error}"));
                return request.map(Some).map_err(unread);
            }
            let Some(data) = self.stream.data().await else { return Ok(None) };
            let data = data.map_err(|error| Status::cancelled(format!("the stream broke off: {error}")))?;
            // It fails only for more than was given.
            let _ = self.stream.flow_control().release_capacity(data.len());
            self.buffer.extend_from_slice(&data);
        }
    }
}

/// Takes a whole message out of what has come.
fn whole(buffer: &mut BytesMut) -> Result<Option<BytesMut>, Status> {
    let Some([compressed, length @ ..]) = buffer.first_chunk::<HEAD>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if *compressed != 0 {
        return Err(Status::unimplemented("a request is compressed, which was not agreed on"));
    }
    if length > MAX_REQUEST {
        return Err(Status::out_of_range(format!("a request has {length} bytes; at most {MAX_REQUEST} are taken")));
    }
    if buffer.len() - HEAD < length {
        return Ok(None);
    }
    buffer.advance(HEAD);
    let message = buffer.split_to(length);
    if buffer.is_empty() {
        // Who says nothing holds no room.
        *buffer = BytesMut::new();
    }
    Ok(Some(message))
}

/// What control says.
struct Responses(SendStream<Bytes>);

impl Responses {
    fn say(&mut self, message: Bytes) -> Result<(), Status> {
        let said = self.0.send_data(message, false);
        said.map_err(|error| Status::cancelled(format!("the stream broke off: {error}")))
    }

    fn end(mut self, status: &Status) {
        // A peer that is gone needs no end.
        let _ = self.0.send_trailers(trailers(status));
    }
}

/// The answer to a proxy that is to go to another replica: to one of these, if there are any.
fn moved(to: &[SocketAddr]) -> Status {
    let mut why = MetadataMap::new();
    let to = to.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    // Addresses always are a value.
    let to = MetadataValue::try_from(to).ok().filter(|to| !to.is_empty());
    why.insert(MOVE, to.unwrap_or(MetadataValue::from_static("1")));
    Status::with_metadata(Code::Unavailable, "another control has more room; connect to that", why)
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // A status that does not fit into headers is left out: then the stream ends without one.
    let _ = status.add_header(&mut trailers);
    trailers
}

/// A stream's entry in the store, taken out when dropped.
struct Open<'h> {
    hub: &'h Hub,
    stream: Arc<Stream>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.hub.close(&self.stream);
        tracing::info!(workload = %self.stream.client.workload, "a proxy is disconnected");
    }
}

async fn serve(
    hub: &Hub,
    proved: &Proved,
    addr: SocketAddr,
    requests: &mut Requests,
    responses: &mut Responses,
) -> Result<(), Status> {
    // Boxed: it is needed once.
    let Some(open) = Box::pin(begin(hub, proved, addr, requests)).await? else { return Ok(()) };
    converse(hub, &open.stream, requests, responses).await
}

/// A stream begins with its first message. `None` if it ends before that.
async fn begin<'h>(
    hub: &'h Hub,
    proved: &Proved,
    addr: SocketAddr,
    requests: &mut Requests,
) -> Result<Option<Open<'h>>, Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE, requests.next())
        .await
        .map_err(|_| Status::deadline_exceeded("no message came on the new stream"))??;
    let Some(first) = first else { return Ok(None) };
    let mut loaded = hub.loaded();
    // Before the first model nobody's workload is known: a proxy is not refused for that.
    let waited = async { loaded.wait_for(|loaded| *loaded).await.is_ok() };
    let waited = tokio::time::timeout(FIRST_MESSAGE, async { tokio::join!(waited, hub.replicas.settled()).0 }).await;
    if waited != Ok(true) {
        return Err(Status::unavailable("control has not read its sources yet; connect again"));
    }
    let client = client(hub, proved, addr, first.node.as_ref())?;
    let open = Open { hub, stream: hub.open(client) };
    tracing::info!(workload = %open.stream.client.workload, identity = %proved.identity, %addr, "a proxy is connected");
    hear(hub, &open.stream, first)?;
    Ok(Some(open))
}

fn client(hub: &Hub, proved: &Proved, addr: SocketAddr, node: Option<&Node>) -> Result<Client, Status> {
    let node = node.ok_or_else(|| Status::invalid_argument("the first message must carry the node"))?;
    let workload = auth::workload(&node.id)?;
    auth::must_own(hub, proved, &workload)?;
    let field = |name: &str| node.metadata.as_ref()?.fields.get(name)?.kind.as_ref();
    let said: Vec<String> = match field("features") {
        Some(Kind::ListValue(list)) => list.values.iter().filter_map(|value| text(value.kind.as_ref()?)).collect(),
        _ => Vec::new(),
    };
    let instance = field("instance").and_then(text);
    let lacks = |ours: &&str| !said.iter().any(|theirs| theirs == ours);
    let missing: Vec<&str> = weft_api::FEATURES.iter().copied().filter(lacks).collect();
    if !missing.is_empty() {
        tracing::warn!(%workload, ?missing, "a proxy cannot enforce all that control may ask for; it refuses what needs these");
    }
    let version = node.user_agent_version.chars().take(LONGEST_TEXT).collect();
    // Those of this build need no room.
    let features = if said == weft_api::FEATURES { None } else { Some(said.into()) };
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
    requests: &mut Requests,
    responses: &mut Responses,
) -> Result<(), Status> {
    loop {
        let has_work = stream.has_work();
        tokio::select! {
            biased;
            () = stream.revoked.cancelled() => {
                if let Some(to) = stream.sent_away() {
                    return Err(moved(to));
                }
                let message = "the workload belongs to another identity now, or is another pod, or that is revoked";
                return Err(Status::permission_denied(message));
            }
            message = requests.next() => match message? {
                Some(request) => hear(hub, stream, request)?,
                None => return Ok(()),
            },
            // What is made before the peer has room for it is decided too early.
            takes = room(&mut responses.0), if has_work => {
                if !takes {
                    return Ok(());
                }
                if let Some(response) = hub.next(stream) {
                    let framed = framed(&response);
                    count(hub, &response, framed.len() - HEAD);
                    responses.say(framed)?;
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
    fn a_message_travels_behind_its_length_and_is_read_however_it_comes() {
        let message = DeltaDiscoveryRequest { type_url: "t".repeat(300), ..Default::default() };
        let bytes = framed(&message);
        assert_eq!(bytes[..5], [0, 0, 0, 1, 47]);
        let (mut buffer, mut found) = (BytesMut::new(), 0);
        for byte in [&bytes[..], &bytes[..]].concat() {
            buffer.put_u8(byte);
            while let Some(one) = whole(&mut buffer).unwrap() {
                assert_eq!(DeltaDiscoveryRequest::decode(one).unwrap(), message);
                found += 1;
            }
        }
        assert_eq!((found, buffer.capacity()), (2, 0), "nothing is kept where nothing waits");
        for (head, code) in [([1, 0, 0, 0, 0], Code::Unimplemented), ([0, 255, 0, 0, 0], Code::OutOfRange)] {
            assert_eq!(whole(&mut BytesMut::from(&head[..])).unwrap_err().code(), code);
        }
    }

    #[test]
    fn a_stream_ends_with_its_status() {
        assert_eq!(trailers(&Status::ok(""))["grpc-status"], "0");
        let refused = trailers(&Status::permission_denied("not yours"));
        assert_eq!(
            (&refused["grpc-status"], &refused["grpc-message"]),
            (&"7".parse().unwrap(), &"not%20yours".parse().unwrap())
        );
    }
}
