//! A request's body, which may have to be sent again.
//!
//! Invariant: what is kept for another attempt is bounded by [`REPLAY_BYTES`] and [`REPLAY_PIECES`], and by [`WAITING_BYTES`] once the endpoint
//! takes no more for now, unless a route insists; a longer body is passed on all the same, and is then not sent again.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;

use super::mirror::Whole;
use super::pipe::{Piece, Source};
use crate::http::attempt::REPLAY_BYTES;

/// Most frames that are kept, since each costs more than its bytes.
const REPLAY_PIECES: usize = 64;

/// Most bytes that are kept of a body which waits for its endpoint: what waits behind them is held too.
const WAITING_BYTES: usize = 16 << 10;

/// A client's body, and what is kept of it.
#[derive(Debug)]
pub struct Replay<S> {
    body: S,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    // Whether what passes is still kept.
    keeping: bool,
    // Whether it is kept although the endpoint takes no more for now.
    insists: bool,
    // Whether nothing was lost: all that passed is kept.
    whole: bool,
    ended: bool,
    // Of this attempt: pieces given, and whether the trailers were.
    next: usize,
    trailers_given: bool,
}

impl<S: Source> Replay<S> {
    /// Wraps a body of which nothing was read.
    pub fn new(body: S) -> Self {
        let ended = body.is_end();
        Self {
            body,
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            keeping: true,
            insists: false,
            whole: true,
            ended,
            next: 0,
            trailers_given: false,
        }
    }

    /// Keeps as much of a body that waits as of another.
    pub fn insist(&mut self) {
        self.insists = true;
    }

    /// Whether another attempt would get the whole body.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The whole body, if it has ended and nothing of it was lost.
    pub fn copied(&self) -> Option<Whole> {
        let trailers = self.trailers.clone();
        (self.whole && self.ended).then(|| Whole { pieces: self.kept.iter().cloned().collect(), trailers })
    }

    /// Begins another attempt.
    pub fn rewind(&mut self) {
        self.next = 0;
        self.trailers_given = false;
    }

    /// No further attempt will be made: nothing more is kept.
    pub fn commit(&mut self) {
        self.keeping = false;
        self.whole = false;
        if self.next >= self.kept.len() {
            self.kept = Vec::new();
            self.next = 0;
        }
    }

    fn keep(&mut self, data: &Bytes) {
        if self.kept_bytes + data.len() > REPLAY_BYTES || self.kept.len() >= REPLAY_PIECES {
            self.give_up();
        } else {
            self.kept_bytes += data.len();
            self.kept.push(data.clone());
        }
        self.next = self.kept.len();
    }

    fn give_up(&mut self) {
        self.keeping = false;
        self.whole = false;
        self.kept = Vec::new();
        self.next = 0;
    }
}

impl<S: Source> Source for Replay<S> {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, h2::Error>>> {
        // What an earlier attempt has read comes first.
        if let Some(data) = self.kept.get(self.next).cloned() {
            self.next += 1;
            return Poll::Ready(Some(Ok(Piece::Data(data))));
        }
        if self.ended {
            let given = std::mem::replace(&mut self.trailers_given, true);
            let trailers = self.trailers.clone().filter(|_| !given);
            return Poll::Ready(trailers.map(|fields| Ok(Piece::Trailers(fields))));
        }
        let piece = ready!(self.body.poll_piece(cx));
        match &piece {
            Some(Ok(Piece::Data(data))) => {
                if self.keeping {
                    self.keep(data);
                }
                self.ended = self.body.is_end();
            }
            Some(Ok(Piece::Trailers(fields))) => {
                self.ended = true;
                self.trailers_given = true;
                self.trailers = self.keeping.then(|| fields.clone());
            }
            // A body that broke off is the client's doing: nothing to try again with.
            Some(Err(_)) => self.whole = false,
            None => self.ended = true,
        }
        Poll::Ready(piece)
    }

    fn is_end(&self) -> bool {
        self.ended && self.next >= self.kept.len() && (self.trailers_given || self.trailers.is_none())
    }

    fn waits(&mut self) {
        if self.keeping && !self.insists && self.kept_bytes > WAITING_BYTES && self.next >= self.kept.len() {
            self.give_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use super::*;

    struct Pieces(VecDeque<Piece>);

    impl Source for Pieces {
        fn poll_piece(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Piece, h2::Error>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }

        fn is_end(&self) -> bool {
            self.0.is_empty()
        }
    }

    fn replay(parts: &[&'static [u8]], trailer: bool) -> Replay<Pieces> {
        let mut pieces: VecDeque<_> = parts.iter().map(|part| Piece::Data(Bytes::from_static(part))).collect();
        if trailer {
            let mut fields = HeaderMap::new();
            fields.insert("x-sum", "1".parse().unwrap());
            pieces.push_back(Piece::Trailers(fields));
        }
        Replay::new(Pieces(pieces))
    }

    /// The next part as text; trailers as `[trailers]`, the end as nothing.
    fn next(replay: &mut Replay<Pieces>) -> String {
        match replay.poll_piece(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(Piece::Data(data)))) => String::from_utf8(data.to_vec()).unwrap(),
            Poll::Ready(Some(Ok(Piece::Trailers(fields)))) if fields["x-sum"] == "1" => "[trailers]".to_owned(),
            Poll::Ready(None) => String::new(),
            other => panic!("{other:?}"),
        }
    }

    fn rest(replay: &mut Replay<Pieces>) -> String {
        let mut text = String::new();
        while !replay.is_end() {
            text += &next(replay);
        }
        text
    }

    #[test]
    fn a_second_attempt_gets_what_the_first_had_read_and_the_rest() {
        let mut replay = replay(&[b"ab", b"cd", b"ef"], true);
        assert_eq!(next(&mut replay), "ab");
        replay.rewind();
        assert_eq!(rest(&mut replay), "abcdef[trailers]");
        // The source has ended: a third attempt lives from memory alone.
        replay.rewind();
        assert!(!replay.is_end());
        assert_eq!(rest(&mut replay), "abcdef[trailers]");
        assert_eq!(next(&mut replay), "");
    }

    #[test]
    fn what_is_too_long_passes_and_is_not_sent_again() {
        static BIG: [u8; REPLAY_BYTES] = [b'x'; REPLAY_BYTES];
        let mut replay = replay(&[&BIG, b"y"], false);
        assert_eq!(next(&mut replay).len(), REPLAY_BYTES);
        assert!(replay.is_whole());
        assert_eq!(next(&mut replay), "y");
        assert!(replay.is_end() && !replay.is_whole() && replay.kept.is_empty());
    }

    #[test]
    fn of_a_body_that_waits_for_its_endpoint_little_is_kept() {
        static HALF: [u8; WAITING_BYTES / 2] = [b'x'; WAITING_BYTES / 2];
        let mut replay = replay(&[&HALF, &HALF, b"y", b"z"], false);
        next(&mut replay);
        next(&mut replay);
        replay.waits();
        assert!(replay.is_whole());
        next(&mut replay);
        replay.waits();
        assert!(!replay.is_whole() && replay.kept.is_empty());
        assert_eq!(rest(&mut replay), "z");
        let mut replay = self::replay(&[&HALF, &HALF, b"y", b"z"], false);
        replay.insist();
        (0..3).for_each(|_| drop(next(&mut replay)));
        replay.waits();
        assert!(replay.is_whole());
    }

    #[test]
    fn after_commit_nothing_is_kept() {
        let mut replay = replay(&[b"ab", b"cd"], false);
        next(&mut replay);
        replay.commit();
        assert_eq!(next(&mut replay), "cd");
        assert!(replay.is_end() && replay.kept.is_empty());
    }

    #[test]
    fn a_commit_in_the_middle_of_what_was_kept_loses_nothing() {
        let mut replay = replay(&[b"ab", b"cd", b"ef"], true);
        next(&mut replay);
        next(&mut replay);
        replay.rewind();
        assert_eq!(next(&mut replay), "ab");
        replay.commit();
        assert_eq!(rest(&mut replay), "cdef[trailers]");
    }

    #[test]
    fn a_body_without_bytes_is_at_its_end() {
        assert!(replay(&[], false).is_end());
    }
}
