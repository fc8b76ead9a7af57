//! A message on its way from one side to the other: its head and its body.
//!
//! Invariants
//! - Of a body no byte passes that is not framed as [`weft_engine::framing`] wants it, and chunks are framed anew, without extensions:
//!   whoever reads behind us ends it where we do.
//! - Head and the part of the body that is there already leave in one write.
//! - What the receiver does not take is held, one read at most, here or by its TLS, and nothing more is read meanwhile. For a request that
//!   may have to be sent again the beginning is kept, [`REPLAY_BYTES`] at most.
//! - Trailers pass but for those that only a head may say (RFC 9110 section 6.5.1).

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use weft_engine::framing::{Body, BodyLength};
use weft_engine::head::{Field, ResponseBody, forbidden_in_trailers, read_trailers};
use weft_engine::reason::Reason;

use super::wire::Wire;
use crate::stream::Resting;

/// Most bytes of a request, its head included, that are kept for another attempt.
pub const REPLAY_BYTES: usize = 64 << 10;
/// Room that a message keeps while nothing of it waits.
const SPARE: usize = 1 << 10;
/// Bytes of a trailer section.
const TRAILER_BYTES: usize = 16 << 10;
/// Moves in one poll, after which others get their turn.
const MOVES: usize = 16;

// Where a body ends.
#[derive(Clone, Copy, Debug)]
enum End {
    // As its head says.
    Framed(Body),
    // With the connection.
    Close,
}

// How what is read of a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    // As it is.
    Raw,
    // Its content in chunks of ours.
    Chunks,
    // Its content: the receiver does not know chunks.
    Content,
}

/// What ended a message before its end.
#[derive(Debug)]
pub enum Fault {
    /// The sender went away.
    From,
    /// The sender framed its body in a way that could be read differently.
    Malformed,
    /// The receiver went away.
    To(io::Error),
}

/// A message under way.
#[derive(Debug)]
pub struct Pump {
    // The head, then what is staged of the body.
    out: Vec<u8>,
    // So much of `out` is written.
    at: usize,
    end: End,
    // Everything so far stays in `out`, to be sent again.
    keep: bool,
    // Bytes that the receiver was given, and in how many writes.
    sent: usize,
    writes: u32,
    form: Form,
    ended: bool,
    // The sender's framing makes no sense: nothing behind it does either.
    malformed: bool,
    done: bool,
}

impl Pump {
    /// A message that begins with `head`.
    pub fn new(head: Vec<u8>, length: ResponseBody) -> Self {
        let (end, form) = match length {
            ResponseBody::None => (End::Framed(Body::ENDED), Form::Raw),
            ResponseBody::Known(bytes) => (End::Framed(Body::new(BodyLength::Known(bytes))), Form::Raw),
            ResponseBody::Chunked => (End::Framed(Body::new(BodyLength::Chunked)), Form::Chunks),
            ResponseBody::UntilClose => (End::Close, Form::Raw),
        };
        let ended = matches!(end, End::Framed(body) if body.ended());
        Self { out: head, at: 0, end, keep: false, sent: 0, writes: 0, form, ended, malformed: false, done: false }
    }

    /// The same, kept to be sent again.
    #[must_use]
    pub fn kept(self) -> Self {
        Self { keep: true, ..self }
    }

    /// The same, with the content of chunks instead of chunks.
    #[must_use]
    pub fn decoded(self) -> Self {
        let form = if self.form == Form::Chunks { Form::Content } else { self.form };
        Self { form, ..self }
    }

    /// Whether all of it that was read is at hand, to be sent from its beginning.
    pub fn is_whole(&self) -> bool {
        self.keep || self.is_unsent()
    }

    /// Begins anew with another receiver; false, and nothing happens, if a part of it is gone.
    #[must_use]
    pub fn rewind(&mut self) -> bool {
        if self.is_whole() {
            self.at = 0;
            (self.sent, self.writes) = (0, 0);
            self.done = false;
        }
        self.is_whole()
    }

    /// It will not be sent again.
    pub fn commit(&mut self) {
        if self.keep {
            self.keep = false;
            self.out.drain(..self.at);
            self.out.shrink_to(SPARE);
            self.at = 0;
        }
    }

    /// The whole message, if it was sent whole and is kept.
    pub fn copied(&self) -> Option<&[u8]> {
        (self.keep && self.done).then_some(&*self.out)
    }

    /// Whether nothing of it was given to the receiver.
    pub fn is_unsent(&self) -> bool {
        self.sent == 0
    }

    /// How many bytes the receiver was given, if that was in one write.
    pub fn sent_at_once(&self) -> Option<usize> {
        (self.writes == 1).then_some(self.sent)
    }

    /// Whether its last byte was read from the sender.
    pub fn is_read(&self) -> bool {
        self.ended
    }

    /// Whether its last byte was given to the receiver.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Moves it on; ready once it is with the receiver whole.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn poll<A, B>(&mut self, cx: &mut Context<'_>, from: &mut Wire<A>, to: &mut Wire<B>) -> Poll<Result<(), Fault>>
    where
        A: Resting + Unpin,
        B: AsyncWrite + Unpin,
    {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        if self.malformed {
            return Poll::Ready(Err(Fault::Malformed));
        }
        for _ in 0..MOVES {
            if !from.held().is_empty() {
                self.stage_held(from)?;
            }
            // TLS takes more than its socket does: what it holds back waits as much as what is held here.
            let gone = match self.poll_out(cx, to) {
                Poll::Ready(Ok(())) => to.poll_flush(cx),
                other => other,
            };
            if gone.is_pending() {
                from.rest(cx);
            }
            ready!(gone).map_err(Fault::To)?;
            if self.ended {
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            match ready!(from.poll_some(cx, |from, cx, bytes| self.came(cx, from, to, bytes))) {
                Ok(came) => came?,
                Err(_) => return Poll::Ready(Err(Fault::From)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_out<B: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut Wire<B>) -> Poll<io::Result<()>> {
        while self.at < self.out.len() {
            let written = ready!(to.poll_write(cx, &self.out[self.at..]))?;
            self.at += written;
            self.count(written);
        }
        if !self.keep {
            self.out.clear();
            self.out.shrink_to(SPARE);
            self.at = 0;
        }
        Poll::Ready(Ok(()))
    }

    fn count(&mut self, written: usize) {
        self.sent += written;
        self.writes = self.writes.saturating_add(1);
    }

    // Bytes have just been read; what is no part of this body is held for whoever reads next.
    fn came<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Wire<A>,
        to: &mut Wire<B>,
        bytes: &[u8],
    ) -> Result<(), Fault>
    where
        A: AsyncRead + Unpin,
        B: AsyncWrite + Unpin,
    {
        if bytes.is_empty() {
            if matches!(self.end, End::Close) {
                self.ended = true;
                return Ok(());
            }
            return Err(Fault::From);
        }
        let used = if self.form == Form::Raw && self.out.is_empty() {
            self.pass(cx, to, bytes).map_err(Fault::To)?
        } else {
            self.stage(bytes)?
        };
        from.hold(&bytes[used..]);
        Ok(())
    }

    // Nothing waits and the body goes on as it is: so without being copied, as far as the receiver takes it.
    fn pass<B: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Wire<B>,
        bytes: &[u8],
    ) -> io::Result<usize> {
        let used = self.raw(bytes);
        let mut at = 0;
        while at < used {
            match to.poll_write(cx, &bytes[at..used]) {
                Poll::Ready(written) => {
                    let written = written?;
                    at += written;
                    self.count(written);
                }
                Poll::Pending => {
                    self.out.extend_from_slice(&bytes[at..used]);
                    break;
                }
            }
        }
        Ok(used)
    }

    // How much of `bytes` is body that goes on as it is.
    fn raw(&mut self, bytes: &[u8]) -> usize {
        match &mut self.end {
            End::Close => bytes.len(),
            End::Framed(body) => {
                // Chunks never go on as they are, and nothing else can be malformed.
                let used = body.skip_to_trailers(bytes).unwrap_or_default();
                self.ended = body.ended();
                used
            }
        }
    }

    fn stage_held<A: AsyncRead + Unpin>(&mut self, from: &mut Wire<A>) -> Result<(), Fault> {
        let used = self.stage(from.held())?;
        from.consume(used);
        let End::Framed(body) = &mut self.end else { return Ok(()) };
        if !body.at_trailers() {
            return Ok(());
        }
        let mut fields = Vec::new();
        let section = from.held();
        let Some(len) = read_trailers(section, TRAILER_BYTES, &mut fields).map_err(|_| {
            self.malformed = true;
            Fault::Malformed
        })?
        else {
            return Ok(());
        };
        body.end_trailers();
        self.ended = true;
        if self.form == Form::Chunks {
            self.out.extend_from_slice(b"0\r\n");
            copy_trailers(&mut self.out, section, &fields);
        }
        from.consume(len);
        Ok(())
    }

    // As much of `bytes` as is body goes out; how much that was. A trailer section stays.
    fn stage(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        if self.ended {
            return Ok(0);
        }
        let used = match (&mut self.end, self.form) {
            (End::Framed(body), Form::Content) => body.decode(bytes, &mut self.out),
            (End::Framed(body), Form::Chunks) => encode(body, bytes, &mut self.out),
            _ => {
                let used = self.raw(bytes);
                self.out.extend_from_slice(&bytes[..used]);
                Ok(used)
            }
        };
        let Ok(used) = used else {
            self.malformed = true;
            return Err(Fault::Malformed);
        };
        if self.keep && self.out.len() > REPLAY_BYTES {
            self.commit();
        }
        Ok(used)
    }
}

// One chunk for what one read has brought. What comes before a fault is not passed: it would be a chunk that nobody ends.
fn encode(body: &mut Body, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, Reason> {
    let at = out.len();
    let used = body.decode(bytes, out).inspect_err(|_| out.truncate(at))?;
    let content = out.len() - at;
    if content > 0 {
        out.splice(at..at, format!("{content:x}\r\n").into_bytes());
        out.extend_from_slice(b"\r\n");
    }
    Ok(used)
}

fn copy_trailers(out: &mut Vec<u8>, section: &[u8], fields: &[Field]) {
    for field in fields {
        let (name, value) = (field.name.of(section), field.value.of(section));
        if !forbidden_in_trailers(name, field.kind) {
            out.extend_from_slice(name);
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}
