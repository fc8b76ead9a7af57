//! A body on its way from one stream to another: frame by frame, trailers included, at the pace of the slower side.
//!
//! Invariants
//! - No more is handed on than the other side has a window for, but for a small first frame. At most one frame is held meanwhile and nothing more
//!   is read, and what was read opens the sender's window only when all of it has been handed on. A reader that stops thus stops the sender,
//!   and costs the window of one stream.
//! - Empty frames in the middle are not passed on.
//! - A stream that has begun before the client knew our window is not left without one: see [`Incoming::new`].

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;

/// A first frame that is not worth asking for room.
const SMALL: usize = 4 << 10;

/// A part of a body.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// Its end.
    Trailers(HeaderMap),
}

/// What gives a body.
pub trait Source {
    /// The next part; `None` at its end. The parts before it have been handed on.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, h2::Error>>>;

    /// Whether nothing more will come.
    fn is_end(&self) -> bool;

    /// The receiver takes no more for now.
    fn waits(&mut self) {}
}

/// Comes once the peer has acknowledged our settings.
pub type Settles = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// A stream's body.
pub struct Incoming {
    stream: RecvStream,
    // Given out last; its window is opened when the next is asked for.
    owed: usize,
    data_ended: bool,
    settles: Option<Settles>,
}

impl Incoming {
    /// The body of a stream; with `settles` if it may have begun before that, with the window that HTTP/2 gives to all (65,535 bytes). Ours
    /// is smaller, so that the acknowledgement takes from the stream what it had more. If nothing is left of it then, the library (h2 0.4.20)
    /// opens it only when something is read next, which cannot come. It looks again when told that no byte more was read.
    pub fn new(stream: RecvStream, settles: Option<Settles>) -> Self {
        Self { stream, owed: 0, data_ended: false, settles }
    }

    fn open_window(&mut self, read: usize) {
        // It fails only for more than was given.
        let _ = self.stream.flow_control().release_capacity(read);
    }

    fn poll_settled(&mut self, cx: &mut Context<'_>) {
        if let Some(settles) = &mut self.settles
            && settles.as_mut().poll(cx).is_ready()
        {
            self.settles = None;
            self.open_window(0);
        }
    }
}

impl Source for Incoming {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, h2::Error>>> {
        if self.owed > 0 {
            let read = std::mem::take(&mut self.owed);
            self.open_window(read);
        }
        self.poll_settled(cx);
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.owed = data.len();
                    return Poll::Ready(Some(Ok(Piece::Data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        self.stream.poll_trailers(cx).map(|trailers| trailers.map(|fields| fields.map(Piece::Trailers)).transpose())
    }

    fn is_end(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// Which side broke.
#[derive(Debug)]
pub enum Fault {
    /// The one that gives the body.
    From(h2::Error),
    /// The one that takes it: it has reset the stream, or its connection has ended.
    To,
}

/// One body being moved.
#[derive(Debug, Default)]
pub struct Pipe {
    begun: bool,
    held: Option<Bytes>,
    done: bool,
}

impl Pipe {
    /// One that has nothing to move: the message ended with its head.
    pub fn ended() -> Self {
        Self { done: true, ..Self::default() }
    }

    /// Whether the whole body was handed on.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Moves what can be moved; ready when the whole body was handed on.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Source,
        to: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), Fault>> {
        while !self.done {
            if self.held.is_some() {
                let Poll::Ready(room) = poll_room(cx, to)? else {
                    from.waits();
                    return Poll::Pending;
                };
                if let Some(mut data) = self.held.take() {
                    if room < data.len() {
                        to.send_data(data.split_to(room), false).map_err(|_| Fault::To)?;
                        to.reserve_capacity(data.len());
                        self.held = Some(data);
                    } else {
                        self.send(data, from, to)?;
                    }
                }
                continue;
            }
            match ready!(from.poll_piece(cx)) {
                Some(Ok(Piece::Data(data))) if data.is_empty() && !from.is_end() => {}
                // A small first frame waits for its window inside the library: a body of one such asks for nothing. For another one room
                // is asked only when it is there, so that an idle stream claims nothing of the connection's window. An end without a byte
                // needs no room: the other side, which has all, may never make any.
                Some(Ok(Piece::Data(data))) if (self.begun || data.len() > SMALL) && !data.is_empty() => {
                    to.reserve_capacity(data.len());
                    self.held = Some(data);
                }
                Some(Ok(Piece::Data(data))) => self.send(data, from, to)?,
                Some(Ok(Piece::Trailers(fields))) => {
                    to.send_trailers(fields).map_err(|_| Fault::To)?;
                    self.done = true;
                }
                Some(Err(error)) => return Poll::Ready(Err(Fault::From(error))),
                None => self.send(Bytes::new(), from, to)?,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, data: Bytes, from: &impl Source, to: &mut SendStream<Bytes>) -> Result<(), Fault> {
        self.begun = true;
        self.done = from.is_end();
        to.send_data(data, self.done).map_err(|_| Fault::To)
    }
}

// Until the other side takes at least a byte; how many it takes.
fn poll_room(cx: &mut Context<'_>, to: &mut SendStream<Bytes>) -> Poll<Result<usize, Fault>> {
    loop {
        let room = to.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        match ready!(to.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(Err(Fault::To)),
        }
    }
}
