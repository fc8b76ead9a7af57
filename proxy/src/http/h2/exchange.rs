//! One request of an HTTP/2 client and its response, by HTTP/2 to an endpoint. One task moves the bytes of both ways.
//!
//! Invariants
//! - Codes are carried across: a client that resets its stream resets the endpoint's with the same code, and the other way round. Only
//!   a request that was certainly not processed is tried again instead.
//! - A response that breaks off is never ended in order. To a gRPC client the proxy's own word on that comes as trailers.
//! - CONNECT, plain and extended (RFC 8441), is a request whose both ways go on until both have ended; it ends when the peer may no longer
//!   make it.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason as Code, RecvStream, SendStream};
use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, Uri};
use weft_engine::outcome::Failed;
use weft_engine::reason::Reason;
use weft_engine::request::RequestView;

use super::pipe::{Fault, Incoming, Pipe, Settles, Source};
use super::replay::Replay;
use crate::http::attempt::{Failure, Message, send};
use crate::http::headers::{REASON, is_grpc, strip_identity};
use crate::http::inbound::{self, Refusal};
use crate::http::outbound::{self, Deadline};
use crate::http::refuse::{grpc_trailers, refusal};
use crate::http::session::{Exchange, Session};
use crate::http::upgrade::withdrawn;
use crate::upstream::h2::H2Stream;
use crate::upstream::{Pool, Target};

/// Interim responses (1xx) to one request.
const INTERIMS: usize = 16;
/// Connections of the pool that may turn out to have ended before one is found that takes a request.
const STALE: usize = 3;

/// Answers one request; `settles` if the client may not have acknowledged our settings yet.
pub async fn run(
    session: Arc<Session>,
    request: Request<RecvStream>,
    client: SendResponse<Bytes>,
    settles: Option<Settles>,
) {
    let (head, body) = request.into_parts();
    let mut exchange = Exchange::begin(&session, head.method.clone(), head.uri.path());
    let mut sending = Sending::new(Request::from_parts(head, ()), Incoming::new(body, settles), client);
    let mut deadline = None;
    let answered = if session.inbound.is_some() {
        inbound(&mut exchange, &mut sending).await
    } else {
        outbound(&mut exchange, &mut sending, &mut deadline).await
    };
    match answered {
        Ok(answer) => sending.respond(exchange, answer, deadline).await,
        Err(refusal) => sending.refuse(exchange, &refusal),
    }
}

async fn inbound(exchange: &mut Exchange, sending: &mut Sending) -> Result<Answer, Box<Refusal>> {
    let refuse = |reason: Reason| Box::new(Refusal::from(reason));
    let session = Arc::clone(&exchange.session);
    let Some(peer) = session.inbound.as_deref() else { return Err(refuse(Reason::LoopRefused)) };
    exchange.series = Some(Arc::clone(&peer.series));
    settle_authority(&mut sending.head, session.destination).map_err(refuse)?;
    inbound::admit(&session, peer, &RequestView::of(&sending.head), exchange.started)?;
    inbound::introduce(peer, sending.head.headers_mut());
    let method = sending.head.method().clone();
    let mut answer = match send(exchange, inbound::goal(peer), &method, sending, None).await {
        // The client's sidecar may try another endpoint, whatever the method.
        Err(Reason::ConnectFailed) => return Err(refuse(Reason::NotProcessed)),
        other => other.map_err(refuse)?,
    };
    // An application does not speak for the mesh.
    strip_identity(answer.head.headers_mut());
    Ok(answer)
}

async fn outbound(
    exchange: &mut Exchange,
    sending: &mut Sending,
    deadline: &mut Deadline,
) -> Result<Answer, Box<Refusal>> {
    let refuse = |reason: Reason| Box::new(Refusal::from(reason));
    let session = Arc::clone(&exchange.session);
    settle_authority(&mut sending.head, session.destination).map_err(refuse)?;
    let destination = outbound::destination(&session).await.map_err(refuse)?;
    let way = outbound::way(&destination, &RequestView::of(&sending.head)).map_err(refuse)?;
    for edit in way.edits(true) {
        edit.apply(sending.head.headers_mut());
    }
    *deadline = way.request_timeout().map(|limit| Box::pin(tokio::time::sleep(limit)));
    let method = sending.head.method().clone();
    let answering = send(exchange, way.goal, &method, sending, way.attempt_timeout());
    let mut answer = outbound::within(deadline, answering).await.map_err(refuse)?;
    let headers = answer.head.headers_mut();
    if !answer.meshed {
        // Reason codes are the mesh's: from outside of it they are nobody's word.
        headers.remove(REASON);
    }
    for edit in way.edits(false) {
        edit.apply(headers);
    }
    Ok(answer)
}

/// Makes `:authority` the one name of whom a request is for (RFC 9113 section 8.3.1): a `Host` that says another refuses the request,
/// one that stands alone becomes it, and where neither came it is the destination.
fn settle_authority(head: &mut Request<()>, destination: SocketAddr) -> Result<(), Reason> {
    let mut hosts = head.headers().get_all(HOST).iter();
    let host = hosts.next();
    let several = hosts.next().is_some();
    let authority = match (head.uri().authority(), host) {
        _ if several => return Err(Reason::MalformedRequest),
        (Some(named), _) if named.as_str().contains('@') => return Err(Reason::MalformedRequest),
        (Some(named), Some(host)) if !named.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            return Err(Reason::MalformedRequest);
        }
        (Some(_), _) => return Ok(()),
        (None, Some(host)) => Authority::try_from(host.as_bytes()).ok(),
        (None, None) => Authority::try_from(destination.to_string()).ok(),
    };
    let authority = authority.filter(|name| !name.as_str().contains('@')).ok_or(Reason::MalformedRequest)?;
    let path = head.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build();
    *head.uri_mut() = uri.map_err(|_| Reason::MalformedRequest)?;
    Ok(())
}

/// A response's head, and the streams to its endpoint.
struct Answer {
    head: Response<()>,
    body: Incoming,
    // The rest of the request goes here.
    up: SendStream<Bytes>,
    meshed: bool,
    stream: H2Stream,
}

// A request on its way, by as many attempts as it takes.
struct Sending {
    head: Request<()>,
    grpc: bool,
    body: Replay<Incoming>,
    upload: Pipe,
    // The endpoint took no more of the request; it may have answered all the same.
    cut: bool,
    client: SendResponse<Bytes>,
    interims: usize,
    // The client went away.
    gone: bool,
    // The code by which the endpoint has reset the stream of the last attempt.
    reset: Option<Code>,
}

// Why a request, or its response, came to no end.
enum Broke {
    // The client has reset its stream, or is gone.
    Client(Code),
    Server(h2::Error),
    Own(Reason),
}

impl Sending {
    fn new(head: Request<()>, body: Incoming, client: SendResponse<Bytes>) -> Self {
        Self {
            grpc: is_grpc(head.headers()),
            head,
            body: Replay::new(body),
            upload: Pipe::default(),
            cut: false,
            client,
            interims: 0,
            gone: false,
            reset: None,
        }
    }

    // A stream to the endpoint, with the request's head sent.
    async fn open(&self, target: Target<'_>) -> Result<(H2Stream, ResponseFuture, SendStream<Bytes>), Failure> {
        let extended = self.head.extensions().get::<h2::ext::Protocol>().is_some();
        for _ in 0..=STALE {
            let stream = Pool::h2(target).await.map_err(|error| Failure::unsent(error.reason()))?;
            if extended && !stream.takes_extended_connect().await {
                return Err(refused(Reason::UpstreamProtocol));
            }
            match stream.open(self.head.clone(), self.body.is_end()) {
                Ok((response, up)) => return Ok((stream, response, up)),
                Err(error) if error.reason().is_none() && !error.is_io() => {
                    tracing::debug!(%error, "a request that cannot be sent");
                    return Err(refused(Reason::MalformedRequest));
                }
                // The connection was closing; it is not chosen again.
                Err(_) => stream.leave(),
            }
        }
        Err(Failure::unsent(Reason::ConnectFailed))
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut ResponseFuture,
        up: &mut SendStream<Bytes>,
    ) -> Poll<Result<Response<RecvStream>, Broke>> {
        if let Poll::Ready(reset) = self.client.poll_reset(cx) {
            return Poll::Ready(Err(Broke::Client(reset.unwrap_or(Code::CANCEL))));
        }
        self.poll_upload(cx, up)?;
        loop {
            match response.poll_informational(cx) {
                Poll::Ready(Some(Ok(interim))) => self.pass_interim(interim)?,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Broke::Server(error))),
                Poll::Ready(None) => return Pin::new(response).poll(cx).map_err(Broke::Server),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>, up: &mut SendStream<Bytes>) -> Result<(), Broke> {
        if self.cut {
            return Ok(());
        }
        match self.upload.poll(cx, &mut self.body, up) {
            Poll::Ready(Err(Fault::From(error))) => Err(Broke::Client(error.reason().unwrap_or(Code::CANCEL))),
            Poll::Ready(Err(Fault::To)) => {
                self.cut = true;
                Ok(())
            }
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    fn pass_interim(&mut self, mut interim: Response<()>) -> Result<(), Broke> {
        self.interims += 1;
        if self.interims > INTERIMS || interim.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return Err(Broke::Own(Reason::UpstreamProtocol));
        }
        strip_identity(interim.headers_mut());
        self.client.send_informational(interim).map_err(|_| Broke::Client(Code::CANCEL))
    }

    fn failure(&mut self, broke: Broke, up: &mut SendStream<Bytes>) -> Failure {
        let (what, reason) = match broke {
            Broke::Client(code) => {
                self.gone = true;
                cancel(up, code);
                return refused(Reason::UpstreamReset);
            }
            Broke::Own(reason) => (Failed::ResponseStarted, reason),
            Broke::Server(error) if not_processed(&error) => (Failed::NotProcessed, Reason::NotProcessed),
            Broke::Server(error) if error.is_library() => (Failed::ResponseStarted, Reason::UpstreamProtocol),
            Broke::Server(error) => {
                self.reset = remote_reset(&error);
                (Failed::NoResponseByte, Reason::UpstreamReset)
            }
        };
        Failure { what, reason, reused: true, client: false }
    }

    async fn respond(mut self, mut exchange: Exchange, answer: Answer, mut deadline: Deadline) {
        let Answer { head, mut body, mut up, meshed, stream } = answer;
        let grpc_status = head.headers().get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
        exchange.answered_with(head.status(), grpc_status);
        // A refusal by another sidecar is its own to count; here it is told in the log.
        if meshed && let Some(code) = head.headers().get(REASON) {
            exchange.reason = code.to_str().ok().and_then(Reason::from_code);
            exchange.refused_there = true;
        }
        let tunnel = *self.head.method() == Method::CONNECT && head.status().is_success();
        let ended = body.is_end();
        let Ok(mut down) = self.client.send_response(head, ended) else {
            return cancel(&mut up, Code::CANCEL);
        };
        if ended && !tunnel {
            return;
        }
        let mut download = if ended { Pipe::ended() } else { Pipe::default() };
        let mut withdrawn = tunnel.then(|| Box::pin(withdrawn(&exchange)));
        let passed = poll_fn(|cx| {
            if let Some(withdrawn) = &mut withdrawn
                && let Poll::Ready(reason) = withdrawn.as_mut().poll(cx)
            {
                return Poll::Ready(Err(Broke::Own(reason)));
            }
            if let Poll::Ready(reset) = down.poll_reset(cx) {
                return Poll::Ready(Err(Broke::Client(reset.unwrap_or(Code::CANCEL))));
            }
            self.poll_upload(cx, &mut up)?;
            match download.poll(cx, &mut body, &mut down) {
                // The other way of a tunnel goes on; that of a request is of no use any more.
                Poll::Ready(Ok(())) if !tunnel || self.cut || self.upload.is_done() => return Poll::Ready(Ok(())),
                Poll::Ready(Err(Fault::From(error))) => return Poll::Ready(Err(Broke::Server(error))),
                Poll::Ready(Err(Fault::To)) => return Poll::Ready(Err(Broke::Client(Code::CANCEL))),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
            match &mut deadline {
                Some(deadline) => deadline.as_mut().poll(cx).map(|()| Err(Broke::Own(Reason::RequestTimeout))),
                None => Poll::Pending,
            }
        })
        .await;
        match passed {
            Ok(()) if self.upload.is_done() => stream.ended(up),
            Ok(()) => {}
            Err(broke) => {
                let broke = if stream.is_revoked() { Broke::Own(Reason::IdentityRevoked) } else { broke };
                exchange.reason = self.break_off(broke, &mut up, &mut down).or(exchange.reason);
            }
        }
    }

    // Ends both streams; gives the reason to count, if it is not the client's own doing.
    fn break_off(&self, broke: Broke, up: &mut SendStream<Bytes>, down: &mut SendStream<Bytes>) -> Option<Reason> {
        let (reason, code) = match broke {
            Broke::Client(code) => {
                cancel(up, code);
                return None;
            }
            Broke::Server(error) if error.is_library() => (Reason::UpstreamProtocol, Code::INTERNAL_ERROR),
            Broke::Server(error) => {
                if let Some(code) = remote_reset(&error) {
                    down.send_reset(code);
                    return Some(Reason::UpstreamReset);
                }
                (Reason::UpstreamReset, Code::INTERNAL_ERROR)
            }
            Broke::Own(reason) => (reason, Code::CANCEL),
        };
        cancel(up, Code::CANCEL);
        if !self.grpc || down.send_trailers(grpc_trailers(reason)).is_err() {
            down.send_reset(code);
        }
        Some(reason)
    }

    fn refuse(mut self, mut exchange: Exchange, why: &Refusal) {
        if self.gone {
            return;
        }
        exchange.reason = Some(why.reason);
        let (mut response, text) = refusal(why.reason, self.grpc, exchange.session.may_know());
        exchange.status = response.status();
        // What the application did with its stream it does with the client's.
        if why.reason == Reason::UpstreamReset
            && let Some(code) = self.reset
        {
            exchange.status = why.reason.http_status();
            return self.client.send_reset(code);
        }
        exchange.grpc_status = self.grpc.then(|| why.reason.grpc_status());
        response.headers_mut().extend(why.headers.clone());
        let bodyless = text.is_empty() || *self.head.method() == Method::HEAD;
        // It may be gone already; then there is nobody to tell.
        if let Ok(mut body) = self.client.send_response(response, bodyless)
            && !bodyless
        {
            let _ = body.send_data(text, true);
        }
    }
}

// A failure that nobody tries again.
fn refused(reason: Reason) -> Failure {
    Failure { what: Failed::ResponseStarted, reason, reused: true, client: true }
}

// Tells the endpoint that its stream is of no use any more. That there is no error is no reason to break off.
fn cancel(up: &mut SendStream<Bytes>, code: Code) {
    up.send_reset(if code == Code::NO_ERROR { Code::CANCEL } else { code });
}

fn remote_reset(error: &h2::Error) -> Option<Code> {
    error.reason().filter(|_| error.is_reset() && error.is_remote())
}

// A GOAWAY reaches only the streams that the peer will not process.
fn not_processed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Code::REFUSED_STREAM))
}

impl Message for Sending {
    type Answer = Answer;

    async fn attempt(&mut self, target: Target<'_>, _fresh: bool) -> Result<(Answer, Duration), Failure> {
        self.body.rewind();
        self.upload = Pipe::default();
        self.cut = false;
        self.reset = None;
        let begun = target.shared.clock.now();
        let (stream, mut response, mut up) = self.open(target).await?;
        let connecting = target.shared.clock.now().saturating_sub(begun);
        if self.body.is_end() {
            self.upload = Pipe::ended();
        }
        match poll_fn(|cx| self.poll_head(cx, &mut response, &mut up)).await {
            Ok(came) => {
                let (head, body) = came.into_parts();
                let (head, body) = (Response::from_parts(head, ()), Incoming::new(body, None));
                let meshed = target.endpoint.identity.is_some();
                Ok((Answer { head, body, up, meshed, stream }, connecting))
            }
            Err(broke) => {
                if matches!(&broke, Broke::Server(error) if error.is_go_away() || error.is_io()) {
                    stream.leave();
                }
                let failure = self.failure(broke, &mut up);
                let reason = if stream.is_revoked() { Reason::IdentityRevoked } else { failure.reason };
                Err(Failure { reason, ..failure })
            }
        }
    }

    fn is_replayable(&self) -> bool {
        self.body.is_whole()
    }

    fn commit(&mut self) {
        self.body.commit();
    }

    fn not_processed(answer: &Answer) -> bool {
        answer.meshed && answer.head.headers().get(REASON).is_some_and(|code| code == Reason::NotProcessed.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(authority: Option<&str>, hosts: &[&str]) -> Result<String, Reason> {
        let mut head = Request::new(());
        *head.uri_mut() = match authority {
            Some(name) => format!("https://{name}/a?b=c").parse().unwrap(),
            None => "/a?b=c".parse().unwrap(),
        };
        for host in hosts {
            head.headers_mut().append(HOST, host.parse().unwrap());
        }
        settle_authority(&mut head, "10.0.0.1:80".parse().unwrap())?;
        Ok(head.uri().to_string())
    }

    #[test]
    fn a_request_is_for_one_name() {
        assert_eq!(settled(Some("shop:80"), &[]).unwrap(), "https://shop:80/a?b=c");
        assert_eq!(settled(Some("shop"), &["SHOP"]).unwrap(), "https://shop/a?b=c");
        assert_eq!(settled(None, &["shop"]).unwrap(), "http://shop/a?b=c");
        assert_eq!(settled(None, &[]).unwrap(), "http://10.0.0.1:80/a?b=c");
        for (authority, hosts) in [
            (Some("shop"), &["other"][..]),
            (Some("shop"), &["shop", "shop"]),
            (Some("shop"), &[""]),
            (Some("user@shop"), &[]),
            (None, &["user@shop"]),
            (None, &["a b"]),
            (None, &["shop", "shop"]),
        ] {
            assert_eq!(settled(authority, hosts), Err(Reason::MalformedRequest), "{authority:?} {hosts:?}");
        }
    }
}
