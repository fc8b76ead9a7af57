//! A request on its way to an endpoint, by as many attempts as it takes, until the head of its response has come.
//!
//! Invariants
//! - An attempt sends the request from its beginning, or nothing: half a request would be the next one's beginning.
//! - A request that found its pooled connection closed before a byte had left, or had reached its server, goes to a new connection,
//!   whatever its method.
//! - A client that goes away meanwhile is noticed, and its request given up.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use weft_engine::framing::BodyLength;
use weft_engine::head::{Asked, Field, Kind, ResponseBody, ResponseHead, read_response};
use weft_engine::outcome::Failed;
use weft_engine::reason::Reason;

use super::drain::drain;
use super::exchange::Client;
use super::heads::{self, Came, Outgoing, Returning};
use super::mirror::Copy;
use super::pump::{Fault, Pump};
use crate::Shared;
use crate::discovery::snapshot::{Backend, Endpoint};
use crate::http::attempt::{Failure, Message};
use crate::http::mirror;
use crate::http::session::Session;
use crate::telemetry::Direction;
use crate::telemetry::counters::Retired;
use crate::upstream::h1::H1Conn;
use crate::upstream::{self, Pool, Target};

/// Interim responses (1xx) to one request.
const INTERIMS: usize = 16;

/// A response's head, and the connection that its body comes by.
pub(super) struct Answer {
    pub(super) conn: Box<H1Conn>,
    pub(super) head: ResponseHead,
    pub(super) bytes: Vec<u8>,
    pub(super) fields: Vec<Field>,
    pub(super) meshed: bool,
}

impl Answer {
    /// What has come by an endpoint's connection, which learns from it how long it may be kept.
    pub(super) fn came(target: Target<'_>, mut conn: Box<H1Conn>, head: ResponseHead, fields: Vec<Field>) -> Self {
        let bytes = conn.wire.split(head.len);
        let answer = Self { conn, head, bytes, fields, meshed: target.endpoint.identity.is_some() };
        upstream::answered(target.endpoint, &answer.conn, answer.raw(Kind::KeepAlive));
        answer
    }

    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.head.status).unwrap_or(StatusCode::BAD_GATEWAY)
    }

    // Whether another sidecar says that its application has not seen the request.
    pub(super) fn says_not_processed(&self) -> bool {
        self.meshed && self.reason() == Some(Reason::NotProcessed)
    }

    pub(super) fn value(&self, kind: Kind) -> Option<&str> {
        std::str::from_utf8(self.raw(kind)?).ok()
    }

    pub(super) fn raw(&self, kind: Kind) -> Option<&[u8]> {
        let field = self.fields.iter().find(|field| field.kind == kind)?;
        Some(field.value.of(&self.bytes))
    }

    // What another sidecar says that it was.
    pub(super) fn reason(&self) -> Option<Reason> {
        let name = crate::http::headers::REASON;
        let named = |field: &&Field| {
            field.kind == Kind::Ours && field.name.of(&self.bytes).eq_ignore_ascii_case(name.as_str().as_bytes())
        };
        let field = self.fields.iter().find(named)?;
        Reason::from_code(std::str::from_utf8(field.value.of(&self.bytes)).ok()?)
    }
}

// A request on its way, by as many attempts as it takes.
pub(super) struct Sending<'a> {
    pub(super) session: &'a Arc<Session>,
    pub(super) client: &'a mut Client,
    pub(super) came: &'a Came,
    pub(super) asked: Asked,
    pub(super) upload: Pump,
    // Where a copy goes once it is sent whole.
    pub(super) mirrors: Vec<Arc<Backend>>,
    // The server took no more of the request; it may have answered all the same.
    cut: bool,
    // What is held of the response may be a head.
    legible: bool,
    // 1xx for the client.
    pub(super) interim: Vec<u8>,
    interims: usize,
    // The client went away.
    pub(super) gone: bool,
}

// Why there is no response.
pub(super) enum Broke {
    Gone,
    Malformed,
    Server,
    Nonsense,
    // The server is not believed any more.
    Revoked,
}

fn length(came: &Came) -> ResponseBody {
    match came.head.body {
        BodyLength::Known(0) => ResponseBody::None,
        BodyLength::Known(bytes) => ResponseBody::Known(bytes),
        BodyLength::Chunked => ResponseBody::Chunked,
    }
}

impl<'a> Sending<'a> {
    pub(super) fn new(session: &'a Arc<Session>, client: &'a mut Client, came: &'a Came, method: &Method) -> Self {
        let asked = match *method {
            Method::HEAD => Asked::Head,
            Method::CONNECT => Asked::Connect,
            _ => Asked::Other,
        };
        let upload = Pump::new(Vec::new(), length(came));
        Self {
            session,
            client,
            came,
            asked,
            upload,
            mirrors: Vec::new(),
            cut: false,
            legible: false,
            interim: Vec::new(),
            interims: 0,
            gone: false,
        }
    }

    // Its head is written.
    pub(super) fn begin(&mut self, outgoing: &Outgoing<'_>) {
        let head = heads::request(self.came, outgoing);
        self.upload = Pump::new(head, length(self.came)).kept();
    }

    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>, conn: &mut H1Conn) -> Result<(), Broke> {
        if !self.upload.is_done() && !self.cut {
            match self.upload.poll(cx, self.client, &mut conn.wire) {
                Poll::Ready(Err(Fault::From)) => return Err(Broke::Gone),
                Poll::Ready(Err(Fault::Malformed)) => return Err(Broke::Malformed),
                Poll::Ready(Err(Fault::To(_))) => self.cut = true,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        if !self.mirrors.is_empty() && self.upload.is_done() {
            self.copy();
        }
        let watched = self.upload.is_done() && self.client.poll_gone(cx).is_ready();
        if watched { Err(Broke::Gone) } else { Ok(()) }
    }

    fn copy(&mut self) {
        let to = std::mem::take(&mut self.mirrors);
        let Ok(method) = Method::from_bytes(self.came.head.method.of(&self.came.bytes)) else { return };
        match self.upload.copied() {
            Some(bytes) => {
                let message = Copy { bytes: Bytes::copy_from_slice(bytes), asked: self.asked };
                mirror::copy(self.session, to, &method, self.came.head.path(&self.came.bytes), &message);
            }
            None => self.session.shared.telemetry.mirrors.drop_all(&to),
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        conn: &mut H1Conn,
        fields: &mut Vec<Field>,
    ) -> Poll<Result<ResponseHead, Broke>> {
        if conn.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(Broke::Revoked));
        }
        self.poll_upload(cx, conn)?;
        let limit = self.session.shared.config.limits.head_bytes;
        loop {
            if let Poll::Ready(Err(_)) = self.poll_interim(cx) {
                return Poll::Ready(Err(Broke::Gone));
            }
            if self.legible {
                match read_response(conn.wire.held(), limit, self.asked, fields) {
                    Err(_) => return Poll::Ready(Err(Broke::Nonsense)),
                    Ok(Some(head)) if head.status == 101 && !self.came.upgrades => {
                        return Poll::Ready(Err(Broke::Nonsense));
                    }
                    Ok(Some(head)) if head.status < 200 && head.status != 101 => {
                        let bytes = conn.wire.split(head.len);
                        self.take_interim(&bytes, &head, fields)?;
                        continue;
                    }
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) => self.legible = false,
                }
            }
            let read = conn.wire.poll_some(cx, |wire, _, bytes| {
                // Beginnings are looked at, and then the ends of lines: a head that comes byte by byte is not read anew for each.
                let held = wire.held().len();
                self.legible |= held == 0 || held + bytes.len() >= limit || bytes.contains(&b'\n');
                wire.hold(bytes);
                bytes.len()
            });
            if !matches!(ready!(read), Ok(1..)) {
                return Poll::Ready(Err(Broke::Server));
            }
        }
    }

    // HTTP/1.0 knows no interim responses.
    fn take_interim(&mut self, bytes: &[u8], head: &ResponseHead, fields: &[Field]) -> Result<(), Broke> {
        self.interims += 1;
        if self.interims > INTERIMS {
            return Err(Broke::Nonsense);
        }
        if self.came.head.http11 {
            let returning = Returning { meshed: false, edits: &[], close: false, http11: true, leaves: false };
            self.interim.extend_from_slice(&heads::response(bytes, head, fields, &returning));
        }
        Ok(())
    }

    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        while !self.interim.is_empty() {
            let written = ready!(self.client.poll_write(cx, &self.interim))?;
            self.interim.drain(..written);
        }
        self.client.poll_flush(cx)
    }

    fn failure(&mut self, broke: &Broke, conn: &H1Conn) -> Failure {
        let silent = conn.wire.held().is_empty() && self.interims == 0;
        let reset = if matches!(broke, Broke::Revoked) { Reason::IdentityRevoked } else { Reason::UpstreamReset };
        let (what, reason) = match broke {
            Broke::Server if self.upload.is_unsent() => (Failed::NotProcessed, Reason::ConnectFailed),
            Broke::Revoked if self.upload.is_unsent() => (Failed::NotProcessed, reset),
            Broke::Server | Broke::Revoked if silent => (Failed::NoResponseByte, reset),
            Broke::Server | Broke::Revoked => (Failed::ResponseStarted, reset),
            Broke::Nonsense => (Failed::ResponseStarted, Reason::UpstreamProtocol),
            Broke::Malformed => (Failed::ResponseStarted, Reason::MalformedRequest),
            Broke::Gone => {
                self.gone = true;
                (Failed::ResponseStarted, Reason::UpstreamReset)
            }
        };
        let client = matches!(broke, Broke::Gone | Broke::Malformed);
        Failure { what, reason, reused: conn.reused.is_some(), client }
    }

    // Whether a connection that ended without a word had ended before the request came to its server.
    fn never_arrived(&self, target: Target<'_>, conn: &H1Conn) -> bool {
        let sent = self.upload.sent_at_once().filter(|_| self.upload.is_whole());
        sent.is_some_and(|sent| conn.was_closed_before(sent, target.endpoint.application))
    }
}

impl Message for Sending<'_> {
    type Answer = Answer;

    async fn attempt(&mut self, target: Target<'_>, fresh: bool) -> Result<(Answer, Duration), Failure> {
        let mut fresh = fresh;
        loop {
            let begun = target.shared.clock.now();
            let mut conn = Pool::h1(target, fresh).await.map_err(|error| Failure::unsent(error.reason()))?;
            let connecting = target.shared.clock.now().saturating_sub(begun);
            if !self.upload.rewind() {
                // Nobody asks for it; half a request would be the next one's beginning.
                return Err(Failure { what: Failed::ResponseStarted, ..Failure::unsent(Reason::UpstreamReset) });
            }
            self.cut = false;
            self.legible = false;
            let mut fields = Vec::new();
            let broke = match poll_fn(|cx| self.poll_head(cx, &mut conn, &mut fields)).await {
                Ok(head) => return Ok((Answer::came(target, conn, head, fields), connecting)),
                Err(broke) => broke,
            };
            let failure = self.failure(&broke, &conn);
            if conn.is_revoked() {
                target.shared.telemetry.retired.add(Direction::Outbound, Retired::Revoked);
            }
            let unseen = match failure.what {
                Failed::NotProcessed => true,
                Failed::NoResponseByte => self.never_arrived(target, &conn),
                Failed::ResponseStarted => false,
            };
            if conn.reused.is_some() && unseen {
                if !conn.is_revoked() {
                    upstream::ended_before(target, &conn);
                }
                fresh = true;
                continue;
            }
            return Err(failure);
        }
    }

    fn status(answer: &Answer) -> StatusCode {
        answer.status()
    }

    // One that is still being asked is of no use any more.
    fn discard(&self, shared: &Arc<Shared>, endpoint: &Arc<Endpoint>, answer: Answer) {
        if self.upload.is_done() && !answer.conn.is_revoked() {
            tokio::spawn(Box::pin(drain(Arc::clone(shared), Arc::clone(endpoint), answer)));
        }
    }

    fn is_replayable(&self) -> bool {
        self.upload.is_whole()
    }

    fn commit(&mut self) {
        self.upload.commit();
    }

    fn not_processed(answer: &Answer) -> bool {
        answer.says_not_processed()
    }
}
