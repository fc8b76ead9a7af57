//! A client's HTTP/1 connection: heads as they come, one request after the other, until either side has had enough.
//!
//! Invariants
//! - A head that has begun must end within [`HEAD_TIMEOUT`]; an idle connection lives one to two times [`IDLE_TIMEOUT`], and no longer than
//!   its certificates.
//! - A head that must not be parsed is answered when its turn comes, with the reason, and ends the connection; nothing behind it is read.
//! - No timer is made for a head that comes whole. An idle connection holds no buffer.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio::time::{Instant, Sleep, sleep, timeout};
use weft_engine::head::{Field, RequestHead, read_request};
use weft_engine::reason::Reason;

use super::exchange::{After, Client, run, write};
use super::heads::Came;
use super::refusal::last;
use super::wire::Wire;
use crate::detect::{Downstream, HEAD_TIMEOUT, Prefixed};
use crate::http::session::{Exchange, Session};
use crate::http::upgrade::tunnel;
use crate::telemetry::AccessRecord;
use crate::upstream::h1::H1Conn;

/// How long a client's connection may be idle between requests: longer than any client's own pool keeps it.
pub const IDLE_TIMEOUT: Duration = Duration::from_hours(1);
/// The same once its certificates have ended.
const LAST_IDLE: Duration = Duration::from_secs(1);
/// How long a client whose connection ends may go on sending: closing earlier would reset what it has not read yet.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes that are read over meanwhile.
const LINGER_BYTES: usize = 16 << 20;

/// Serves `io` to its end.
pub async fn serve(session: Arc<Session>, io: Downstream) {
    let mut client = Wire::new(io);
    let mut reader = Reader::new(session.shared.config.limits.head_bytes, session.ends);
    loop {
        let came = match poll_fn(|cx| poll_next(cx, &session, &mut reader, &mut client)).await {
            Next::Head(came) => came,
            Next::Nothing => return session.retired(),
            Next::Refused(reason) => return Box::pin(refuse(&session, client, reason)).await,
        };
        // Boxed, so that an idle connection is not as large as a busy one.
        match Box::pin(run(&session, &mut client, *came)).await {
            After::Keep => {}
            After::Close => {
                session.retired();
                return linger(client).await;
            }
            After::Gone => return,
            After::Tunnel(conn, exchange) => return Box::pin(leave(client, conn, *exchange)).await,
        }
    }
}

// The next head. For want of memory the beginning of one is not kept: what is in flight goes on, and this has not begun.
fn poll_next(cx: &mut Context<'_>, session: &Session, reader: &mut Reader, client: &mut Client) -> Poll<Next> {
    let next = reader.poll(cx, client);
    if next.is_pending() && !client.held().is_empty() && session.shared.memory.is_full(&session.shared) {
        return Poll::Ready(Next::Refused(Reason::Overloaded));
    }
    next
}

// What came is no request: it is counted and logged as one that was refused, without a method.
async fn refuse(session: &Session, mut client: Client, reason: Reason) {
    let telemetry = &session.shared.telemetry;
    telemetry.refused(session.direction(), reason);
    telemetry.access(AccessRecord {
        direction: session.direction(),
        peer: session.identity(),
        client: session.client,
        destination: session.destination,
        endpoint: None,
        method: None,
        path: None,
        status: Some(reason.http_status()),
        reason: Some(reason),
        took: Duration::ZERO,
        bytes: None,
        sni: None,
    });
    // Before the client has taken leave: many are refused when memory is short.
    client.forget();
    // It may be gone already; then there is nobody to tell.
    let _ = write(&mut client, last(reason, session.may_know())).await;
    linger(client).await;
}

async fn leave(client: Client, conn: Box<H1Conn>, exchange: Exchange) {
    let prefixed = |held: &[u8]| BytesMut::from(held);
    let (client, said) = client.into_parts();
    let H1Conn { wire, proof, .. } = *conn;
    let (server, answered) = wire.into_parts();
    let (client, server) = (Prefixed::with(prefixed(&said), client), Prefixed::with(prefixed(&answered), server));
    tunnel(client, server, exchange, proof).await;
}

// Ends the connection in order: our end is said, and what the client still sends is read over for a while.
async fn linger(mut client: Client) {
    client.forget();
    if poll_fn(|cx| client.poll_shutdown(cx)).await.is_err() {
        return;
    }
    let mut left = LINGER_BYTES;
    let rest = poll_fn(|cx| {
        loop {
            match client.poll_some(cx, |_, _, bytes| bytes.len()) {
                Poll::Ready(Ok(read)) if read > 0 && read < left => left -= read,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    // After that it is closed, whatever it sends.
    let _ = timeout(LINGER, rest).await;
}

pub(super) enum Next {
    Head(Box<Came>),
    // The client has ended, or was idle for too long.
    Nothing,
    Refused(Reason),
}

// Waits for heads.
pub(super) struct Reader {
    limit: usize,
    // From then on it does not wait for another.
    ends: Option<Instant>,
    idle: Option<Pin<Box<Sleep>>>,
    // Whether there was a request since the idle timer was set.
    active: bool,
    // While a head is coming.
    head: Option<Pin<Box<Sleep>>>,
}

impl Reader {
    pub(super) fn new(limit: usize, ends: Option<Instant>) -> Self {
        Self { limit, ends, idle: None, active: false, head: None }
    }

    // How long nothing may come. A client that is about to send something when its connection has to end is told so with the response.
    fn patience(&self) -> Duration {
        let left = self.ends.map(|ends| ends.saturating_duration_since(Instant::now()));
        left.map_or(IDLE_TIMEOUT, |left| left.clamp(LAST_IDLE, IDLE_TIMEOUT))
    }

    pub(super) fn poll<IO: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, client: &mut Wire<IO>) -> Poll<Next> {
        // What came behind the request before.
        let mut fresh = !client.held().is_empty() && self.head.is_none();
        loop {
            if fresh && let Some(next) = self.read(client) {
                self.head = None;
                self.active = true;
                return Poll::Ready(next);
            }
            let came = client.poll_some(cx, |client, _, bytes| {
                // Only the end of a line can decide anything: a head that comes byte by byte is not read anew for each.
                fresh = bytes.contains(&b'\n') || client.held().len() + bytes.len() >= self.limit;
                client.hold(bytes);
                bytes.len()
            });
            match came {
                Poll::Ready(Ok(read)) if read > 0 => {}
                Poll::Ready(Ok(_)) if !client.held().is_empty() => {
                    return Poll::Ready(Next::Refused(Reason::MalformedRequest));
                }
                Poll::Ready(_) => return Poll::Ready(Next::Nothing),
                Poll::Pending => return self.poll_timers(cx, client.held().is_empty()),
            }
        }
    }

    // A head, or what is wrong with it; `None` if it is not whole.
    fn read<IO>(&self, client: &mut Wire<IO>) -> Option<Next> {
        if client.held() == b"\r\n" {
            // RFC 9112 section 2.2: old clients send an empty line behind a body. Nothing has begun.
            client.consume(2);
            return None;
        }
        let mut fields: Vec<Field> = Vec::with_capacity(16);
        let head: RequestHead = match read_request(client.held(), self.limit, &mut fields) {
            Ok(head) => head?,
            Err(reason) => return Some(Next::Refused(reason)),
        };
        let bytes = client.split(head.len);
        Some(Next::Head(Box::new(Came::new(bytes, head, fields))))
    }

    fn poll_timers(&mut self, cx: &mut Context<'_>, idle: bool) -> Poll<Next> {
        if !idle {
            let head = self.head.get_or_insert_with(|| Box::pin(sleep(HEAD_TIMEOUT)));
            return head.as_mut().poll(cx).map(|()| Next::Refused(Reason::RequestTimeout));
        }
        self.head = None;
        self.poll_idle(cx)
    }

    // One timer a connection, which looks whether there was a request since it was set.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        loop {
            if self.idle.is_none() {
                self.idle = Some(Box::pin(sleep(self.patience())));
            }
            let Some(timer) = &mut self.idle else { return Poll::Pending };
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if !self.active {
                return Poll::Ready(Next::Nothing);
            }
            self.active = false;
            self.idle = None;
        }
    }
}
