//! Clients built on gRPC's C library (Python, Ruby, PHP, C++, C#) put the socket's path into `:authority`, with `%2F` for each slash; old
//! ones in Go put it there as it is. Neither is a host, and h2 resets such streams with PROTOCOL_ERROR before anybody can look.
//!
//! Nothing here depends on the authority, so its bytes are mended on their way in: `%` and `/` become `-`, one byte for one byte, so that
//! frames and HPACK's tables keep their sizes. Those clients write the name and the value plainly, without Huffman's code; what is coded
//! otherwise passes as it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;

use crate::stream::forward_write;

/// The name as a literal of HPACK: its length, then itself.
const NAME: &[u8] = b"\x0a:authority";
/// A length of as much or more goes on in the next byte.
const MORE: u8 = 0x7f;

#[derive(Clone, Copy)]
enum State {
    /// So many bytes of the name were seen.
    Name(usize),
    Length,
    LongLength,
    /// So many bytes of the value are to come.
    Value(usize),
}

/// A connection whose clients may name a path where a host belongs.
pub struct AnyHost {
    inner: UnixStream,
    state: State,
}

impl AnyHost {
    /// Nothing of it was read yet.
    pub fn new(inner: UnixStream) -> Self {
        Self { inner, state: State::Name(0) }
    }
}

impl State {
    fn mend(mut self, bytes: &mut [u8]) -> Self {
        for byte in bytes {
            self = match self {
                Self::Name(seen) if *byte == NAME[seen] && seen + 1 == NAME.len() => Self::Length,
                Self::Name(seen) if *byte == NAME[seen] => Self::Name(seen + 1),
                // Its first byte occurs nowhere else in it.
                Self::Name(_) => Self::Name(usize::from(*byte == NAME[0])),
                Self::Length => match *byte {
                    MORE => Self::LongLength,
                    length @ 1..MORE => Self::Value(length.into()),
                    _ => Self::Name(0),
                },
                // One byte more is enough for any path of a socket.
                Self::LongLength if *byte <= MORE => Self::Value(usize::from(MORE) + usize::from(*byte)),
                Self::LongLength => Self::Name(0),
                Self::Value(left) => {
                    if matches!(byte, b'%' | b'/') {
                        *byte = b'-';
                    }
                    if left > 1 { Self::Value(left - 1) } else { Self::Name(0) }
                }
            };
        }
        self
    }
}

impl AsyncRead for AnyHost {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.state = self.state.mend(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

forward_write!(AnyHost, inner in Self { inner, .. });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_a_host_of_the_same_length_wherever_reads_end() {
        let long = [b"\x7f\x05".to_vec(), b"tmp%2Fa".repeat(19)[..132].to_vec()].concat();
        let mended = [b"\x7f\x05".to_vec(), b"tmp-2Fa".repeat(19)[..132].to_vec()].concat();
        for (value, expected) in [
            (b"\x0etmp%2Fapi.sock".to_vec(), b"\x0etmp-2Fapi.sock".to_vec()),
            (b"\x0e/tmp/api.socks".to_vec(), b"\x0e-tmp-api.socks".to_vec()),
            (long, mended),
            // Coded by Huffman.
            (b"\x83%/%".to_vec(), b"\x83%/%".to_vec()),
        ] {
            let of = |value: &[u8]| [b"@\x05:path\x05/a/%b@\n\n:authority", value, b"@\x02te/%"].concat();
            for cut in 0..of(&value).len() {
                let mut bytes = of(&value);
                let (first, second) = bytes.split_at_mut(cut);
                State::Name(0).mend(first).mend(second);
                let wanted = of(&expected);
                assert_eq!(bytes, wanted, "cut at {cut}: {:?}", String::from_utf8_lossy(&wanted));
            }
        }
    }
}
