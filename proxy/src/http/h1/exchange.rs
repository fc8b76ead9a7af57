//! One request of an HTTP/1 client and its response, by HTTP/1 to an endpoint. One task moves the bytes of both sides.
//!
//! Invariants
//! - The next request of a connection is looked at when the response before it is with the client whole.
//! - A connection is used again only if both messages on it ended where their framing says.
//! - A response that breaks off is never ended in order: the client learns that something is missing.
//! - A client that ends its side is gone, as nginx and Envoy have it: its request is given up, and the application learns of it.
//! - A response that comes before the request has ended is the connection's last, and its client is told so.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use http::{HeaderValue, Method};
use tokio::time::Sleep;
use weft_engine::framing::BodyLength;
use weft_engine::head::{Asked, Kind, ResponseBody};
use weft_engine::reason::Reason;
use weft_engine::request::{Headers, RequestView};
use weft_engine::route::{Called, HeaderEdit, Rewritten};

use super::heads::{self, Came, Introduced, Outgoing, Returning};
use super::pump::{Fault, Pump};
use super::refusal::{Manner, reply};
use super::sending::{Answer, Sending};
use super::wire::Wire;
use crate::detect::{Downstream, HEAD_TIMEOUT};
use crate::http::attempt::{Terms, send};
use crate::http::inbound;
use crate::http::outbound;
use crate::http::refuse::Reply;
use crate::http::session::{Exchange, Session};
use crate::tcp::reset_on_close;
use crate::telemetry::Direction;
use crate::telemetry::counters::Retired;
use crate::upstream::Pool;
use crate::upstream::h1::H1Conn;

/// Bytes of a refused request's body that are waited for, so that the connection can go on.
const SKIPPED: u64 = 64 << 10;

/// What becomes of the client's connection.
pub enum After {
    /// It takes the next request.
    Keep,
    /// It ends, after what was written.
    Close,
    /// It has ended, or must not end in order.
    Gone,
    /// It has left HTTP: bytes are relayed between both ends.
    Tunnel(Box<H1Conn>, Box<Exchange>),
}

/// A client's connection.
pub type Client = Wire<Downstream>;

/// Answers one request.
pub async fn run(session: &Arc<Session>, client: &mut Client, came: Came) -> After {
    let Ok(method) = Method::from_bytes(came.head.method.of(&came.bytes)) else { return After::Close };
    let mut exchange = Exchange::begin(session, method.clone(), came.head.path(&came.bytes));
    let mut sending = Sending::new(session, client, &came, &method);
    let answered = if session.inbound.is_some() {
        inbound(&mut exchange, &mut sending, &method).await
    } else {
        outbound(&mut exchange, &mut sending, &method).await
    };
    match answered {
        Ok((answer, returning)) => sending.respond(exchange, answer, returning).await,
        Err(_) if sending.gone => After::Gone,
        Err(refusal) => sending.refuse(exchange, &refusal).await,
    }
}

// How a response returns.
struct Return {
    // Ready to be sent.
    head: Vec<u8>,
    // The client was told that its connection goes on.
    keeps: bool,
    // The time that the whole may take.
    deadline: Option<Pin<Box<Sleep>>>,
}

type Answered = Result<(Answer, Return), Box<Reply>>;

async fn inbound(exchange: &mut Exchange, sending: &mut Sending<'_>, method: &Method) -> Answered {
    let session = Arc::clone(&exchange.session);
    let Some(peer) = session.inbound.as_deref() else { return Err(Box::new(Reason::LoopRefused.into())) };
    exchange.series = Some(Arc::clone(&peer.series));
    inbound::admit(&session, peer, &view(sending.came, method), exchange.started)?;
    let certificate = peer.certificate.as_ref().map(HeaderValue::as_bytes);
    let told = Introduced { certificate, address: peer.address.as_bytes() };
    let rewritten = Rewritten::default();
    sending.begin(&Outgoing { peer: Some(told), edits: &[], host: session.destination, rewritten });
    let answer = match send(exchange, inbound::goal(peer), method, sending, Terms::default()).await {
        // The client's sidecar may try another endpoint, whatever the method.
        Err(Reason::ConnectFailed) => return Err(Box::new(Reason::NotProcessed.into())),
        other => other.map(|answered| answered.answer).map_err(|reason| Box::new(reason.into()))?,
    };
    // An application does not speak for the mesh.
    let back = sending.returning(&answer, false, &[], None);
    Ok((answer, back))
}

async fn outbound(exchange: &mut Exchange, sending: &mut Sending<'_>, method: &Method) -> Answered {
    let refuse = |reason: Reason| Box::new(Reply::from(reason));
    let session = Arc::clone(&exchange.session);
    let destination = outbound::destination(&session, sending.came.called()).await.map_err(refuse)?;
    let request = view(sending.came, method);
    let called = Called { authority: sending.came.called(), address: session.destination };
    let way = outbound::way(&destination, &request, &called);
    let way = way.inspect_err(|_| exchange.unassigned(&destination)).map_err(|ended| Box::new(ended.into()))?;
    let edits: Vec<&HeaderEdit> = way.filters.request_edits().collect();
    // The target of CONNECT is a name, not a path under one.
    let rewritten = if sending.came.is_connect() { Rewritten::default() } else { way.filters.rewritten(request.path) };
    sending.begin(&Outgoing { peer: None, edits: &edits, host: session.destination, rewritten });
    let mut deadline = way.request_timeout().map(|limit| Box::pin(tokio::time::sleep(limit)));
    if !sending.came.upgrades && !sending.came.is_connect() {
        sending.mirrors.clone_from(&way.mirrors);
    }
    let answering = send(exchange, way.goal, method, sending, way.terms());
    let answered = outbound::within(&mut deadline, answering).await;
    session.shared.telemetry.mirrors.drop_all(&std::mem::take(&mut sending.mirrors));
    let answer = answered.inspect_err(|_| exchange.unassigned(&destination)).map_err(|reason| way.refused(reason))?;
    let edits: Vec<&HeaderEdit> = way.response_edits().collect();
    let back = sending.returning(&answer, answer.meshed, &edits, deadline);
    Ok((answer, back))
}

fn view<'a>(came: &'a Came, method: &'a Method) -> RequestView<'a> {
    RequestView {
        method,
        path: came.head.path(&came.bytes),
        query: came.head.query(&came.bytes),
        headers: Headers::Raw { bytes: &came.bytes, fields: &came.fields },
    }
}

impl Sending<'_> {
    // The response's head is written for the client.
    fn returning(
        &mut self,
        answer: &Answer,
        meshed: bool,
        edits: &[&HeaderEdit],
        deadline: Option<Pin<Box<Sleep>>>,
    ) -> Return {
        let (http11, keeps) = (self.came.head.http11, self.keeps(answer));
        let returning = Returning { meshed, edits, close: !keeps, http11, leaves: self.leaves(answer) };
        let mut head = std::mem::take(&mut self.interim);
        head.extend_from_slice(&heads::response(&answer.bytes, &answer.head, &answer.fields, &returning));
        Return { head, keeps, deadline }
    }

    // Whether the connection leaves HTTP with this response. Only who has asked for an upgrade gets a 101 as far as here.
    fn leaves(&self, answer: &Answer) -> bool {
        let status = answer.head.status;
        status == 101 || self.asked == Asked::Connect && (200..300).contains(&status)
    }

    // Whether the client's connection can go on behind this response. One that comes before the request has ended may be the last that
    // the server has read of it: then the rest is nobody's, and the client is told that it need not go on.
    fn keeps(&self, answer: &Answer) -> bool {
        let framed = match answer.head.body {
            ResponseBody::UntilClose => false,
            ResponseBody::Chunked => self.came.head.http11,
            ResponseBody::None | ResponseBody::Known(_) => true,
        };
        framed && self.upload.is_read() && self.came.keeps_alive() && !self.session.ends_now()
    }

    async fn respond(mut self, mut exchange: Exchange, mut answer: Answer, back: Return) -> After {
        let status = answer.status();
        let grpc_status = answer.value(Kind::GrpcStatus).and_then(|value| value.parse().ok());
        exchange.answered_with(status, grpc_status);
        // A refusal by another sidecar is its own to count; here it is told in the log.
        if answer.meshed
            && let Some(reason) = answer.reason()
        {
            exchange.reason = Some(reason);
            exchange.refused_there = true;
        }
        if self.leaves(&answer) {
            return self.leave(exchange, answer, back.head).await;
        }
        let download = Pump::new(back.head, answer.head.body);
        let mut download = if self.came.head.http11 { download } else { download.decoded() };
        let mut deadline = back.deadline;
        let conn = &mut *answer.conn;
        let passed = poll_fn(|cx| self.poll_pass(cx, conn, &mut download, deadline.as_mut())).await;
        if let Err(reason) = passed {
            if conn.is_revoked() {
                self.session.shared.telemetry.retired.add(Direction::Outbound, Retired::Revoked);
            }
            exchange.reason = exchange.reason.or(reason);
            reset_on_close(self.client.get_ref().socket());
            return After::Gone;
        }
        let whole = self.upload.is_done() && !answer.head.close && answer.head.body != ResponseBody::UntilClose;
        if whole
            && answer.conn.wire.held().is_empty()
            && let Some((endpoint, answered)) = exchange.endpoint().zip(exchange.head_came())
        {
            Pool::put(&self.session.shared, endpoint, answer.conn, answered);
        }
        if back.keeps { After::Keep } else { After::Close }
    }

    // The request ends as HTTP before another protocol begins: what it lacks must not be taken for that, nor lost.
    async fn leave(mut self, exchange: Exchange, mut answer: Answer, head: Vec<u8>) -> After {
        let mut granted = Pump::new(head, ResponseBody::None);
        let mut nothing = Wire::new(tokio::io::empty());
        let left = poll_fn(|cx| {
            if let Poll::Ready(Err(fault)) = granted.poll(cx, &mut nothing, self.client) {
                return Poll::Ready(Err(fault));
            }
            ready!(self.upload.poll(cx, self.client, &mut answer.conn.wire))?;
            if granted.is_done() { Poll::Ready(Ok(())) } else { Poll::Pending }
        });
        if left.await.is_ok() { After::Tunnel(answer.conn, Box::new(exchange)) } else { After::Gone }
    }

    // The error is the reason to count, if it is not the client's own doing.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        conn: &mut H1Conn,
        download: &mut Pump,
        deadline: Option<&mut Pin<Box<Sleep>>>,
    ) -> Poll<Result<(), Option<Reason>>> {
        if conn.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(Some(Reason::IdentityRevoked)));
        }
        if self.poll_upload(cx, conn).is_err() {
            return Poll::Ready(Err(None));
        }
        match download.poll(cx, &mut conn.wire, self.client) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(Fault::To(_))) => return Poll::Ready(Err(None)),
            Poll::Ready(Err(Fault::From)) => return Poll::Ready(Err(Some(Reason::UpstreamReset))),
            Poll::Ready(Err(Fault::Malformed)) => return Poll::Ready(Err(Some(Reason::UpstreamProtocol))),
            Poll::Pending => {}
        }
        match deadline {
            Some(deadline) => deadline.as_mut().poll(cx).map(|()| Err(Some(Reason::RequestTimeout))),
            None => Poll::Pending,
        }
    }

    async fn refuse(mut self, mut exchange: Exchange, why: &Reply) -> After {
        let rest = self.skip_body();
        let whole = match &rest {
            Poll::Ready(read) => read.is_ok(),
            // It is on its way and small: cheaper to wait for than another connection, and in the mesh another handshake.
            Poll::Pending => !self.came.waits() && matches!(self.came.head.body, BodyLength::Known(..=SKIPPED)),
        };
        let close = !whole || !self.came.keeps_alive() || self.session.ends_now();
        let grpc = self.came.is_grpc();
        let manner = Manner { grpc, named: self.session.may_know(), close, bodyless: self.asked == Asked::Head };
        let (status, bytes) = reply(why, manner);
        exchange.status = status;
        exchange.grpc_status = why.reason.filter(|_| grpc).map(Reason::grpc_status);
        exchange.reason = why.reason;
        let mut out = std::mem::take(&mut self.interim);
        out.extend_from_slice(&bytes);
        match write(self.client, out).await {
            Err(_) => After::Gone,
            Ok(()) if close => After::Close,
            Ok(()) if rest.is_ready() => After::Keep,
            Ok(()) => {
                let skipping = poll_fn(|cx| self.poll_skip(cx));
                let skipped = tokio::time::timeout(HEAD_TIMEOUT, skipping).await;
                if matches!(skipped, Ok(Ok(()))) { After::Keep } else { After::Gone }
            }
        }
    }

    // Reads over what has come of the request's body.
    fn skip_body(&mut self) -> Poll<Result<(), Fault>> {
        // Who waits for the rest asks again.
        self.poll_skip(&mut Context::from_waker(Waker::noop()))
    }

    fn poll_skip(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.upload.poll(cx, self.client, &mut Wire::new(tokio::io::sink()))
    }
}

/// Writes bytes of our own to a client.
///
/// # Errors
/// It went away.
pub async fn write(client: &mut Client, bytes: Vec<u8>) -> Result<(), Fault> {
    let mut message = Pump::new(bytes, ResponseBody::None);
    let mut nothing = Wire::new(tokio::io::empty());
    poll_fn(|cx| message.poll(cx, &mut nothing, client)).await
}
