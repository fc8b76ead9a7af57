//! Where an HTTP/1 body ends, so that the next head on the connection can be found and checked.
//!
//! Keeps no byte: it is fed what comes and says how much of it is body, and what of that is content. It stops before a trailer section,
//! which is a section of fields and read as one ([`crate::head::read_trailers`]). As strict as RFC 9112 section 7.1 lets it be; whatever
//! the proxy and the other end could frame differently is an error.

use crate::reason::Reason;

/// What a head says about the body that follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// So many bytes; 0 without a body.
    Known(u64),
    /// Chunks (RFC 9112 section 7.1).
    Chunked,
}

/// A place in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body(At);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// So many bytes until the end.
    Known(u64),
    /// In a chunk's size, of which so many digits have come.
    Size {
        size: u64,
        digits: u8,
    },
    /// In the space behind a size: hidden digits behind it are read by some parsers and not by others.
    Space(u64),
    /// In what follows a size on its line, of which so many bytes may come.
    Extension {
        size: u64,
        left: u16,
    },
    /// Before the LF of a size's line.
    SizeLf(u64),
    /// So many bytes of a chunk are to come.
    Data(u64),
    DataCr,
    DataLf,
    /// Behind the line of the last chunk.
    Trailers,
}

/// Digits of a chunk's size at most: no chunk is 2^60 bytes long.
const SIZE_DIGITS: u8 = 15;
/// Bytes behind a chunk's size at most: signatures of uploads take about 90.
const MAX_EXTENSION: u16 = 1024;

impl Body {
    /// No body, or one that has ended.
    pub const ENDED: Self = Self(At::Known(0));

    /// The beginning of a body.
    pub const fn new(length: BodyLength) -> Self {
        Self(match length {
            BodyLength::Known(bytes) => At::Known(bytes),
            BodyLength::Chunked => At::Size { size: 0, digits: 0 },
        })
    }

    /// Whether the next byte is no part of it.
    pub fn ended(&self) -> bool {
        *self == Self::ENDED
    }

    /// Whether the line of the last chunk has ended and the trailer section comes next, be it only its empty line.
    pub fn at_trailers(&self) -> bool {
        self.0 == At::Trailers
    }

    /// The caller has read the trailer section itself ([`crate::head::read_trailers`]): the body has ended. Nothing happens anywhere
    /// else than [`Self::at_trailers`].
    pub fn end_trailers(&mut self) {
        if self.at_trailers() {
            *self = Self::ENDED;
        }
    }

    /// Moves on by as many of `bytes` as belong to the body, and says how many. Stops before the trailer section: [`Self::at_trailers`].
    ///
    /// # Errors
    /// [`Reason::MalformedRequest`]: the chunks are not framed as they must be.
    pub fn skip_to_trailers(&mut self, bytes: &[u8]) -> Result<usize, Reason> {
        self.content(bytes, |_| ())
    }

    /// As [`Self::skip_to_trailers`], and appends the content, without the framing of chunks, to `out`: no more than `bytes` are.
    ///
    /// # Errors
    /// As [`Self::skip_to_trailers`]; what came before the fault has been appended.
    pub fn decode(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, Reason> {
        self.content(bytes, |run| out.extend_from_slice(run))
    }

    #[inline]
    fn content(&mut self, bytes: &[u8], mut found: impl FnMut(&[u8])) -> Result<usize, Reason> {
        let mut at = 0;
        while at < bytes.len() && !self.ended() && !self.at_trailers() {
            let (taken, content) = self.step(&bytes[at..])?;
            if content {
                found(&bytes[at..at + taken]);
            }
            at += taken;
        }
        Ok(at)
    }

    // Moves on by a run of content or by one byte of framing: how many bytes, and whether they are content. `bytes` are some.
    #[inline]
    fn step(&mut self, bytes: &[u8]) -> Result<(usize, bool), Reason> {
        let (At::Known(left) | At::Data(left)) = &mut self.0 else {
            self.0 = self.0.after(bytes[0])?;
            return Ok((1, false));
        };
        let run = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
        *left -= run as u64;
        if self.0 == At::Data(0) {
            self.0 = At::DataCr;
        }
        Ok((run, true))
    }
}

impl At {
    // One byte of framing.
    fn after(self, byte: u8) -> Result<Self, Reason> {
        let malformed = Err(Reason::MalformedRequest);
        Ok(match (self, byte) {
            (Self::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < SIZE_DIGITS => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                Self::Size { size: size << 4 | digit, digits: digits + 1 }
            }
            (Self::Size { digits: 0, .. }, _) => return malformed,
            (Self::Size { size, .. } | Self::Space(size) | Self::Extension { size, .. }, b'\r') => Self::SizeLf(size),
            (Self::Size { size, .. } | Self::Space(size), b' ' | b'\t') => Self::Space(size),
            (Self::Size { size, .. } | Self::Space(size), b';') => Self::Extension { size, left: MAX_EXTENSION },
            (Self::Extension { size, left: left @ 1.. }, byte) if byte == b'\t' || byte >= b' ' && byte != 0x7f => {
                Self::Extension { size, left: left - 1 }
            }
            (Self::SizeLf(0), b'\n') => Self::Trailers,
            (Self::SizeLf(size), b'\n') => Self::Data(size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size { size: 0, digits: 0 },
            _ => return malformed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // As far as the trailers.
    const CHUNKS: &str = "4;x=\"y\"\r\n\r\n\r\n\r\n0A \r\n0123456789\r\n0\r\n";

    // In two pieces: how much is body before the trailers, its content, and where that leaves it.
    fn decoded(length: BodyLength, bytes: &[u8], split: usize) -> (usize, Vec<u8>, Body) {
        let (some, more) = bytes.split_at(split);
        let (mut place, mut out) = (Body::new(length), b"kept".to_vec());
        let mut skipped = place;
        let first = place.decode(some, &mut out).unwrap();
        assert_eq!((skipped.skip_to_trailers(some), skipped), (Ok(first), place));
        assert!(first == split || place.ended() || place.at_trailers());
        let second = place.decode(&bytes[first..split.max(first)], &mut out).unwrap();
        assert_eq!(second, 0, "nothing more to be had there");
        let second = if first == split { place.decode(more, &mut out).unwrap() } else { 0 };
        assert_eq!(out[..4], *b"kept");
        (first + second, out.split_off(4), place)
    }

    #[test]
    fn a_body_ends_where_it_ends_however_it_comes() {
        for (length, body, content, trailers) in [
            (BodyLength::Known(0), "", "", ""),
            (BodyLength::Known(5), "a\r\n\r\n", "a\r\n\r\n", ""),
            (BodyLength::Chunked, "0\r\n", "", "\r\n"),
            (BodyLength::Chunked, CHUNKS, "\r\n\r\n0123456789", "\r\n"),
            (BodyLength::Chunked, CHUNKS, "\r\n\r\n0123456789", "T: u\r\nV: w\r\n\r\n"),
        ] {
            let bytes = format!("{body}{trailers}GET");
            for split in 0..bytes.len() {
                let (taken, found, mut place) = decoded(length, bytes.as_bytes(), split);
                assert_eq!((taken, &*found), (body.len(), content.as_bytes()), "{body:?} in two pieces, {split}");
                assert_eq!((place.at_trailers(), place.ended()), (!trailers.is_empty(), trailers.is_empty()));
                place.end_trailers();
                assert!(place.ended() && !place.at_trailers());
                assert_eq!(place.skip_to_trailers(&bytes.as_bytes()[taken..]), Ok(0), "{body:?} has ended");
            }
        }
    }

    #[test]
    fn a_body_has_not_ended_before_its_end() {
        for (length, body) in [(BodyLength::Known(5), "a\r\n\r\n"), (BodyLength::Chunked, CHUNKS)] {
            for part in 0..body.len() {
                let mut place = Body::new(length);
                assert_eq!(place.skip_to_trailers(&body.as_bytes()[..part]), Ok(part));
                assert!(!place.ended() && !place.at_trailers(), "{body:?} after {part}");
                // There are no trailers to end yet.
                let before = place;
                place.end_trailers();
                assert_eq!(place, before, "{body:?} after {part}");
            }
        }
    }

    // Of trailers: see the tests of `crate::head::read_trailers`.
    #[test]
    fn chunks_that_could_be_read_two_ways_are_refused() {
        for body in [
            "\r\n",
            ";\r\n",
            "-1\r\n",
            "0x1\r\n",
            "g\r\n",
            "1\na\r\n",
            "1;x\na\r\n",
            "1\r\rab",
            "1\r\nab",
            "1\r\na\n",
            "1\r\na\rb",
            "1000000000000000\r\n",
            "1 1\r\n",
            "1 x\r\n",
            "1;\0",
            "1;\x7f",
            "1 \n",
        ] {
            let mut place = Body::new(BodyLength::Chunked);
            assert_eq!(place.skip_to_trailers(body.as_bytes()), Err(Reason::MalformedRequest), "{body:?}");
        }
    }

    #[test]
    fn extensions_are_bounded() {
        let mut place = Body::new(BodyLength::Chunked);
        let longest = format!("1;{}", "x".repeat(usize::from(MAX_EXTENSION)));
        assert_eq!(place.skip_to_trailers(longest.as_bytes()), Ok(longest.len()));
        let mut longer = place;
        assert_eq!(longer.skip_to_trailers(b"x"), Err(Reason::MalformedRequest));
        assert_eq!(place.skip_to_trailers(b"\r\na\r\n0\r\n\r\nG"), Ok(8));
    }

    proptest! {
        #[test]
        fn never_panics_and_all_ways_agree(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..60),
                "([0-9a-f]{0,2}[ ;]?\r?\n[a-z\r\n]{0,4}\r?\n?){0,4}(0\r\n)?(T: u)?".prop_map(String::into_bytes),
            ],
            known in prop_oneof![Just(None), (0u64..80).prop_map(Some)],
        ) {
            let length = known.map_or(BodyLength::Chunked, BodyLength::Known);
            let (mut whole, mut parts, mut out, mut pieces) = (Body::new(length), Body::new(length), Vec::new(), Vec::new());
            let at_once = whole.decode(&bytes, &mut out);
            let mut taken = Ok(0);
            for byte in &bytes {
                match (parts.decode(&[*byte], &mut pieces), &mut taken) {
                    (Ok(more), Ok(sum)) => *sum += more,
                    (more, _) => taken = more,
                }
                if taken.is_err() {
                    break;
                }
            }
            prop_assert_eq!(at_once, taken);
            prop_assert_eq!(&out, &pieces);
            let mut skipped = Body::new(length);
            prop_assert_eq!(skipped.skip_to_trailers(&bytes), at_once);
            if let Ok(taken) = at_once {
                prop_assert!(out.len() <= taken && taken <= bytes.len());
                prop_assert!(taken == bytes.len() || whole.ended() || whole.at_trailers());
            }
        }
    }
}
