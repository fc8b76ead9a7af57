//! One request of an HTTP/2 client and its response, by HTTP/2 to an endpoint. One task moves the bytes of both ways.
//!
//! Invariants
//! - Codes are carried across: a client that resets its stream resets the endpoint's with the same code, and the other way round. Only
//!   a request that was certainly not processed is tried again instead.
//! - A response that breaks off is never ended in order. To a gRPC client the proxy's own word on that comes as trailers.
//! - CONNECT, plain and extended (RFC 8441), is a request whose both ways go on until both have ended; it ends when the peer may no longer
//!   make it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason as Code, RecvStream, SendStream};
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode};
use weft_engine::outcome::Failed;
use weft_engine::reason::Reason;
use weft_engine::request::RequestView;
use weft_engine::route::Called;

use super::heads::{rewrite, settle_authority};
use super::mirror::Copy;
use super::opening::{Answer, open, refused};
use super::pipe::{Fault, Incoming, Pipe, Settles, Source};
use super::replay::Replay;
use crate::Shared;
use crate::discovery::snapshot::{Backend, Endpoint};
use crate::http::attempt::{Failure, Message, Terms, send};
use crate::http::headers::{REASON, is_grpc, strip_identity};
use crate::http::inbound;
use crate::http::mirror;
use crate::http::outbound::{self, Deadline};
use crate::http::refuse::{Reply, grpc_trailers, refusal};
use crate::http::session::{Exchange, Session};
use crate::http::upgrade::withdrawn;
use crate::upstream::Target;

/// Interim responses (1xx) to one request.
const INTERIMS: usize = 16;
/// Answers one request; `settles` if the client may not have acknowledged our settings yet.
pub async fn run(
    session: Arc<Session>,
    request: Request<RecvStream>,
    client: SendResponse<Bytes>,
    settles: Option<Settles>,
) {
    let (head, body) = request.into_parts();
    let mut exchange = Exchange::begin(&session, head.method.clone(), head.uri.path());
    let mut sending =
        Sending::new(Arc::clone(&session), Request::from_parts(head, ()), Incoming::new(body, settles), client);
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

async fn inbound(exchange: &mut Exchange, sending: &mut Sending) -> Result<Answer, Box<Reply>> {
    let refuse = |reason: Reason| Box::new(Reply::from(reason));
    let session = Arc::clone(&exchange.session);
    let Some(peer) = session.inbound.as_deref() else { return Err(refuse(Reason::LoopRefused)) };
    exchange.series = Some(Arc::clone(&peer.series));
    settle_authority(&mut sending.head, session.destination).map_err(refuse)?;
    inbound::admit(&session, peer, &RequestView::of(&sending.head), exchange.started)?;
    inbound::introduce(peer, sending.head.headers_mut());
    let method = sending.head.method().clone();
    let mut answer = match send(exchange, inbound::goal(peer), &method, sending, Terms::default()).await {
        // The client's sidecar may try another endpoint, whatever the method.
        Err(Reason::ConnectFailed) => return Err(refuse(Reason::NotProcessed)),
        other => other.map(|answered| answered.answer).map_err(refuse)?,
    };
    // An application does not speak for the mesh.
    strip_identity(answer.head.headers_mut());
    Ok(answer)
}

async fn outbound(
    exchange: &mut Exchange,
    sending: &mut Sending,
    deadline: &mut Deadline,
) -> Result<Answer, Box<Reply>> {
    let refuse = |reason: Reason| Box::new(Reply::from(reason));
    let session = Arc::clone(&exchange.session);
    settle_authority(&mut sending.head, session.destination).map_err(refuse)?;
    let authority = sending.head.uri().authority().map_or("", Authority::as_str).as_bytes();
    let destination = outbound::destination(&session, authority).await.map_err(refuse)?;
    let called = Called { authority, address: session.destination };
    let way = outbound::way(&destination, &RequestView::of(&sending.head), &called);
    let way = way.inspect_err(|_| exchange.unassigned(&destination)).map_err(|ended| Box::new(ended.into()))?;
    for edit in way.filters.request_edits() {
        edit.apply(sending.head.headers_mut());
    }
    let rewritten = way.filters.rewritten(sending.head.uri().path());
    rewrite(&mut sending.head, &rewritten).map_err(refuse)?;
    *deadline = way.request_timeout().map(|limit| Box::pin(tokio::time::sleep(limit)));
    let method = sending.head.method().clone();
    if !way.mirrors.is_empty() && method != Method::CONNECT {
        sending.mirrors.clone_from(&way.mirrors);
        sending.body.insist();
    }
    let answering = send(exchange, way.goal, &method, sending, way.terms());
    let answered = outbound::within(deadline, answering).await;
    session.shared.telemetry.mirrors.drop_all(&std::mem::take(&mut sending.mirrors));
    let mut answer =
        answered.inspect_err(|_| exchange.unassigned(&destination)).map_err(|reason| way.refused(reason))?;
    let headers = answer.head.headers_mut();
    if !answer.meshed {
        // Reason codes are the mesh's: from outside of it they are nobody's word.
        headers.remove(REASON);
    }
    for edit in way.response_edits() {
        edit.apply(headers);
    }
    Ok(answer)
}

// A request on its way, by as many attempts as it takes.
struct Sending {
    head: Request<()>,
    grpc: bool,
    body: Replay<Incoming>,
    upload: Pipe,
    // Where a copy goes once it is sent whole.
    mirrors: Vec<Arc<Backend>>,
    session: Arc<Session>,
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
    fn new(session: Arc<Session>, head: Request<()>, body: Incoming, client: SendResponse<Bytes>) -> Self {
        Self {
            grpc: is_grpc(head.headers()),
            head,
            body: Replay::new(body),
            upload: Pipe::default(),
            mirrors: Vec::new(),
            session,
            cut: false,
            client,
            interims: 0,
            gone: false,
            reset: None,
        }
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
            Poll::Ready(Ok(())) => {
                if !self.mirrors.is_empty() {
                    self.copy();
                }
                Ok(())
            }
            Poll::Pending => Ok(()),
        }
    }

    fn copy(&mut self) {
        let to = std::mem::take(&mut self.mirrors);
        match self.body.copied() {
            Some(body) => {
                let message = Copy { head: self.head.clone(), body };
                mirror::copy(&self.session, to, self.head.method(), self.head.uri().path(), &message);
            }
            None => self.session.shared.telemetry.mirrors.drop_all(&to),
        }
    }

    fn pass_interim(&mut self, mut interim: Response<()>) -> Result<(), Broke> {
        self.interims += 1;
        if self.interims > INTERIMS || interim.status() == StatusCode::SWITCHING_PROTOCOLS {
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

    fn refuse(mut self, mut exchange: Exchange, why: &Reply) {
        if self.gone {
            return;
        }
        exchange.reason = why.reason;
        let Some(reason) = why.reason else { return self.answer(exchange, why) };
        let (mut response, text) = refusal(reason, self.grpc, exchange.session.may_know());
        exchange.status = response.status();
        // What the application did with its stream it does with the client's.
        if reason == Reason::UpstreamReset
            && let Some(code) = self.reset
        {
            exchange.status = why.status;
            return self.client.send_reset(code);
        }
        exchange.grpc_status = self.grpc.then(|| reason.grpc_status());
        response.headers_mut().extend(why.headers.clone());
        let bodyless = text.is_empty() || *self.head.method() == Method::HEAD;
        // It may be gone already; then there is nobody to tell.
        if let Ok(mut body) = self.client.send_response(response, bodyless)
            && !bodyless
        {
            let _ = body.send_data(text, true);
        }
    }

    // A route's own answer, which has no body.
    fn answer(mut self, mut exchange: Exchange, told: &Reply) {
        exchange.status = told.status;
        let mut response = Response::new(());
        *response.status_mut() = told.status;
        response.headers_mut().clone_from(&told.headers);
        // It may be gone already; then there is nobody to tell.
        let _ = self.client.send_response(response, true);
    }
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
        let (stream, mut response, mut up) = open(target, &self.head, self.body.is_end()).await?;
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

    fn insist(&mut self) {
        self.body.insist();
    }

    fn status(answer: &Answer) -> StatusCode {
        answer.head.status()
    }

    // Its stream is reset if it has not ended; the connection is others' too.
    fn discard(&self, _: &Arc<Shared>, _: &Arc<Endpoint>, answer: Answer) {
        drop(answer);
    }

    fn is_replayable(&self) -> bool {
        self.body.is_whole()
    }

    fn commit(&mut self) {
        self.body.commit();
    }

    fn not_processed(answer: &Answer) -> bool {
        answer.says_not_processed()
    }
}
