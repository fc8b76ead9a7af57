//! Bodies: what goes to an endpoint ([`ReqBody`]) and what comes back to the client ([`ResBody`]).
//!
//! Invariants
//! - A body is passed on frame by frame, trailers included; nobody waits for its end.
//! - What is kept for another attempt is bounded by [`REPLAY_BYTES`]; a longer body is passed on all the same, and is then not sent again.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::relay::Relay;

/// Most bytes of a request body that are kept for another attempt.
pub const REPLAY_BYTES: usize = 64 << 10;

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// hyper's own error, of either side.
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    /// Another attempt has taken the body over.
    #[error("another attempt has taken this request's body over")]
    Superseded,
    /// The time of the request is over.
    #[error("the request did not end in its time")]
    Deadline,
}

/// The body of a request to an endpoint.
#[derive(Debug)]
pub enum ReqBody {
    /// None.
    Empty,
    /// The client's, kept as far as it may be sent again.
    Replay(ReplayBody),
}

impl Body for ReqBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Replay(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Replay(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Replay(body) => body.size_hint(),
        }
    }
}

/// A client's body, from which one attempt at a time reads.
#[derive(Debug)]
pub struct Replay<B = Incoming>(Arc<Mutex<Source<B>>>);

/// One attempt's reading of it.
#[derive(Debug)]
pub struct ReplayBody<B = Incoming> {
    source: Arc<Mutex<Source<B>>>,
    attempt: u32,
    // Frames given so far.
    next: usize,
    trailers_given: bool,
    left: Option<u64>,
}

#[derive(Debug)]
struct Source<B> {
    // `None` once it has ended or failed.
    body: Option<B>,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    // Whether what passes is still kept.
    keeping: bool,
    // Whether nothing was lost: all that passed is in `kept`.
    whole: bool,
    attempt: u32,
    length: Option<u64>,
}

impl<B: Body<Data = Bytes>> Replay<B> {
    /// Wraps a body that is not at its end.
    pub fn new(body: B) -> Self {
        let length = body.size_hint().exact();
        Self(Arc::new(Mutex::new(Source {
            body: Some(body),
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            keeping: true,
            whole: true,
            attempt: 0,
            length,
        })))
    }

    /// Whether another attempt would get the whole body.
    pub fn is_whole(&self) -> bool {
        self.0.lock().whole
    }

    /// The body for a new attempt; whoever read before gets an error. `None` if a part of it is gone.
    pub fn attempt(&self) -> Option<ReplayBody<B>> {
        let mut source = self.0.lock();
        if !source.whole {
            return None;
        }
        source.attempt += 1;
        Some(ReplayBody {
            source: Arc::clone(&self.0),
            attempt: source.attempt,
            next: 0,
            trailers_given: false,
            left: source.length,
        })
    }

    /// No further attempt will be made: nothing more is kept.
    pub fn commit(&self) {
        let mut source = self.0.lock();
        source.keeping = false;
        source.whole = false;
    }
}

impl<B: Body<Data = Bytes> + Unpin> Source<B> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = match Pin::new(body).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(ended) => {
                self.body = None;
                // A body that broke off is the client's doing: nothing to try again with.
                self.whole &= ended.is_none();
                return Poll::Ready(ended);
            }
        };
        if self.keeping {
            self.keep(&frame);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            if self.kept_bytes + data.len() > REPLAY_BYTES {
                self.keeping = false;
                self.whole = false;
                self.kept = Vec::new();
            } else {
                self.kept_bytes += data.len();
                self.kept.push(data.clone());
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    BodyError: From<B::Error>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let mut source = this.source.lock();
        if source.attempt != this.attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        // What an earlier attempt has read comes first.
        if let Some(data) = source.kept.get(this.next).cloned() {
            this.next += 1;
            this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let frame = match source.poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(frame)) => frame?,
            Poll::Ready(None) => {
                // Its trailers are given once to each attempt.
                let trailers = if this.trailers_given { None } else { source.trailers.clone() };
                this.trailers_given = true;
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            }
        };
        this.next = source.kept.len();
        if let Some(data) = frame.data_ref() {
            this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
        } else {
            this.trailers_given = true;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.lock();
        self.next >= source.kept.len()
            && (self.trailers_given || source.trailers.is_none())
            && source.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The body of a response to the client.
pub enum ResBody {
    /// None.
    Empty,
    /// One of our own.
    Text(Bytes),
    /// An endpoint's.
    Relay(Box<Relay>),
}

impl Body for ResBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::Relay(body) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(text) => text.is_empty(),
            Self::Relay(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Text(text) => SizeHint::with_exact(text.len() as u64),
            Self::Relay(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;

    use http_body_util::BodyExt;

    use super::*;

    impl From<Infallible> for BodyError {
        fn from(never: Infallible) -> Self {
            match never {}
        }
    }

    #[derive(Debug)]
    struct Frames(VecDeque<Frame<Bytes>>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }
    }

    fn replay(parts: &[&'static [u8]], trailer: bool) -> Replay<Frames> {
        let mut frames: VecDeque<_> = parts.iter().map(|part| Frame::data(Bytes::from_static(part))).collect();
        if trailer {
            let mut fields = HeaderMap::new();
            fields.insert("x-sum", "1".parse().unwrap());
            frames.push_back(Frame::trailers(fields));
        }
        Replay::new(Frames(frames))
    }

    #[tokio::test]
    async fn a_second_attempt_gets_what_the_first_had_read_and_the_rest() {
        let replay = replay(&[b"ab", b"cd", b"ef"], true);
        let mut first = replay.attempt().unwrap();
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        let second = replay.attempt().unwrap();
        assert!(matches!(first.frame().await.unwrap(), Err(BodyError::Superseded)));
        let whole = second.collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["x-sum"], "1");
        assert_eq!(whole.to_bytes(), "abcdef");
        // The source has ended: a third attempt lives from memory alone.
        let whole = replay.attempt().unwrap().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["x-sum"], "1");
        assert_eq!(whole.to_bytes(), "abcdef");
    }

    #[tokio::test]
    async fn what_is_too_long_passes_and_is_not_sent_again() {
        static BIG: [u8; REPLAY_BYTES] = [b'x'; REPLAY_BYTES];
        let replay = replay(&[&BIG, b"y"], false);
        let mut first = replay.attempt().unwrap();
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap().len(), REPLAY_BYTES);
        assert!(replay.is_whole());
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "y");
        assert!(first.is_end_stream());
        assert!(!replay.is_whole());
        assert!(replay.attempt().is_none());
        assert!(first.frame().await.is_none());
    }

    #[tokio::test]
    async fn after_commit_nothing_is_kept() {
        let replay = replay(&[b"ab", b"cd"], false);
        let mut body = replay.attempt().unwrap();
        body.frame().await.unwrap().unwrap();
        replay.commit();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "cd");
        assert_eq!(replay.0.lock().kept_bytes, 2);
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_known_length_stays_known() {
        let replay = Replay::new(http_body_util::Full::new(Bytes::from_static(b"abcd")));
        let mut body = replay.attempt().unwrap();
        assert_eq!(body.size_hint().exact(), Some(4));
        body.frame().await.unwrap().unwrap();
        assert!(body.is_end_stream());
        assert_eq!(replay.attempt().unwrap().size_hint().exact(), Some(4));
    }
}
