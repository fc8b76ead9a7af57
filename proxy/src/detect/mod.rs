//! Which protocol a connection speaks, from its first bytes, without making anybody wait.
//!
//! Invariants
//! - What was read is given back by [`Prefixed`]: detection is invisible to both ends.
//! - It ends: after [`SILENCE`] without a byte it says so, and whoever asked lets the server speak meanwhile; an unfinished beginning is
//!   waited for [`UNFINISHED`] more; no more than [`MAX_HEAD`] bytes are held.
//! - The decision is the engine's ([`weft_engine::detect`]); this is only its I/O.

mod downstream;
mod habit;
mod prefixed;
mod sni;

use std::io;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use rustls::server::{Acceptor, ClientHello};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
pub use weft_engine::detect::Detected;

pub use self::downstream::Downstream;
pub use self::habit::{HESITATION, Habit};
pub use self::prefixed::Prefixed;
pub use self::sni::{server_name, server_name_in};

/// A client that has said nothing for so long may be waiting for the server to speak.
pub const SILENCE: Duration = Duration::from_millis(100);
/// How long the rest of a beginning that could still be several protocols is waited for.
pub const UNFINISHED: Duration = Duration::from_secs(1);
/// How long a head, or a ClientHello, that has begun may take.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes that are held while looking.
pub const MAX_HEAD: usize = 64 << 10;
/// Read at a time: most heads and every hybrid ClientHello fit.
const READ: usize = 4 << 10;
/// What the ALPN names of the mesh begin with.
const MESH_ALPN: &[u8] = b"weft1-";

/// Waits for the first bytes, `silence` at most, and says what they are; [`Detected::NeedMore`] if none came.
///
/// # Errors
/// The connection broke. Its mere end is no error: it may be a client that only listens.
pub async fn first_bytes<IO: AsyncRead + Unpin>(
    mut stream: IO,
    silence: Duration,
) -> io::Result<(Detected, Prefixed<IO>)> {
    let mut prefix = BytesMut::with_capacity(READ);
    let Ok(mut read) = timeout(silence, stream.read_buf(&mut prefix)).await else {
        return Ok((Detected::NeedMore, Prefixed::new(stream)));
    };
    // One time for all of it: bytes that trickle do not buy more.
    let settled_at = Instant::now() + UNFINISHED;
    loop {
        let found = match weft_engine::detect::detect(&prefix) {
            Detected::NeedMore if read? > 0 && prefix.len() < MAX_HEAD => {
                read = timeout_at(settled_at, stream.read_buf(&mut prefix)).await.unwrap_or(Ok(0));
                continue;
            }
            Detected::NeedMore => Detected::Opaque,
            settled => settled,
        };
        return Ok((found, Prefixed::with(prefix, stream)));
    }
}

/// Whose TLS a ClientHello begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// Another sidecar's: for us.
    Mesh,
    /// The application's own, or not TLS after all: passes as it is.
    Foreign,
}

/// Reads the whole ClientHello and says whose it is. The bytes stay in the prefix.
///
/// # Errors
/// The connection broke, ended, or took longer than [`HEAD_TIMEOUT`].
pub async fn client_hello(stream: Prefixed<TcpStream>) -> io::Result<(Hello, Prefixed<TcpStream>)> {
    let is_ours = |hello: &ClientHello<'_>| hello.alpn().into_iter().flatten().any(|name| name.starts_with(MESH_ALPN));
    let (ours, stream) = whole_hello(stream, is_ours).await?;
    Ok((if ours == Some(true) { Hello::Mesh } else { Hello::Foreign }, stream))
}

/// What `read` says of the whole ClientHello; `None` if it is none after all, or too long. The bytes stay in the prefix.
async fn whole_hello<T>(
    stream: Prefixed<TcpStream>,
    read: impl Fn(&ClientHello<'_>) -> T,
) -> io::Result<(Option<T>, Prefixed<TcpStream>)> {
    let (mut prefix, mut stream) = stream.into_parts();
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    let reading = async {
        loop {
            if let Poll::Ready(found) = feed(&mut acceptor, &prefix[fed..], &read) {
                return Ok::<_, io::Error>(found);
            }
            fed = prefix.len();
            if fed >= MAX_HEAD {
                return Ok(None);
            }
            prefix.reserve(READ);
            if stream.read_buf(&mut prefix).await? == 0 {
                return Ok(None);
            }
        }
    };
    let found = timeout(HEAD_TIMEOUT, reading).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok((found, Prefixed::with(prefix, stream)))
}

/// Gives more bytes to an acceptor. Pending: the ClientHello is not whole; `None`: it is none.
fn feed<T>(acceptor: &mut Acceptor, mut more: &[u8], read: &impl Fn(&ClientHello<'_>) -> T) -> Poll<Option<T>> {
    while !more.is_empty() {
        if acceptor.read_tls(&mut more).is_err() {
            return Poll::Ready(None);
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => return Poll::Ready(Some(read(&accepted.client_hello()))),
            Err(_) => return Poll::Ready(None),
        }
    }
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_beginning_that_trickles_is_not_waited_for_any_longer() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b"PROPFIND /").await.unwrap();
        let begun = Instant::now();
        let trickle = async {
            loop {
                sleep(UNFINISHED * 9 / 10).await;
                far.write_all(b"a").await.unwrap();
            }
        };
        let (found, stream) = tokio::select! {
            found = first_bytes(near, SILENCE) => found.unwrap(),
            () = trickle => unreachable!(),
        };
        assert_eq!(found, Detected::Opaque);
        assert_eq!(stream.prefix(), b"PROPFIND /a");
        assert_eq!(begun.elapsed().as_secs(), UNFINISHED.as_secs());
    }
}
