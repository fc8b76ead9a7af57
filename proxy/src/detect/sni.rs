//! The name that the client of an application's own TLS asks for.
//!
//! It is read where it decides something or is worth telling; the TLS itself passes as it is.

use std::io;
use std::sync::Arc;
use std::task::Poll;

use rustls::server::{Acceptor, ClientHello};
use tokio::net::TcpStream;

use super::{Prefixed, feed, whole_hello};

/// Reads the whole ClientHello and gives the name that it asks for: a host name (RFC 6066 section 3). The bytes stay in the prefix. `None`: it
/// asks for none, or is none that can be read.
///
/// # Errors
/// The connection broke, or took longer than [`super::HEAD_TIMEOUT`].
pub async fn server_name(stream: Prefixed<TcpStream>) -> io::Result<(Option<Arc<str>>, Prefixed<TcpStream>)> {
    let (name, stream) = whole_hello(stream, name_of).await?;
    Ok((name.flatten(), stream))
}

/// The same from the bytes that have come: most ClientHellos come whole.
pub fn server_name_in(prefix: &[u8]) -> Option<Arc<str>> {
    match feed(&mut Acceptor::default(), prefix, &name_of) {
        Poll::Ready(name) => name.flatten(),
        Poll::Pending => None,
    }
}

fn name_of(hello: &ClientHello<'_>) -> Option<Arc<str>> {
    hello.server_name().map(Arc::from)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    fn hello(name: &'static str) -> Vec<u8> {
        let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(name).unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of a few bytes each.
    fn in_records(hello: &[u8]) -> Vec<u8> {
        let pieces = hello[5..].chunks(7).map(|piece| [&[0x16, 3, 1, 0, piece.len() as u8], piece].concat());
        pieces.flatten().collect()
    }

    #[test]
    fn a_name_is_read_from_what_has_come() {
        let whole = hello("A.Example");
        assert_eq!(server_name_in(&whole).as_deref(), Some("a.example"));
        assert_eq!(server_name_in(&in_records(&whole)).as_deref(), Some("a.example"));
        assert_eq!(server_name_in(&whole[..whole.len() - 1]), None);
        assert_eq!(server_name_in(&hello("10.0.0.1")), None, "addresses are not asked for by name");
        assert_eq!(server_name_in(b"\x16\x03\x01\x00\x05\x01nonsense"), None);
        assert_eq!(server_name_in(b""), None);
    }

    async fn heard(bytes: &[u8], pieces: usize) -> io::Result<(Option<Arc<str>>, Prefixed<TcpStream>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let server = listener.accept().await.unwrap().0;
        let (first, rest) = bytes.split_at(6.min(bytes.len()));
        let sending = async {
            for piece in rest.chunks(rest.len().div_ceil(pieces).max(1)) {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            client.shutdown().await.unwrap();
        };
        let prefixed = Prefixed::with(BytesMut::from(first), server);
        tokio::join!(server_name(prefixed), sending).0
    }

    #[tokio::test]
    async fn a_hello_in_pieces_is_read_whole_and_kept() {
        for bytes in [hello("a.example"), in_records(&hello("a.example"))] {
            for pieces in [1, 3, 40] {
                let (name, stream) = heard(&bytes, pieces).await.unwrap();
                assert_eq!(name.as_deref(), Some("a.example"));
                assert!(bytes.starts_with(stream.prefix()));
            }
        }
        let (name, stream) = heard(b"\x16\x03\x01\x02\x00\x01and it ends", 1).await.unwrap();
        assert_eq!((name, stream.prefix().len()), (None, 17));
    }
}
