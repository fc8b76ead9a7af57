//! A handshake of a new certificate with itself, in memory: whatever would refuse it on the wire refuses it here first.

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};
use weft_certs::tls::{self, TlsError};

use super::Current;

/// Flights of a TLS 1.3 handshake are three; more rounds than this are none.
const MAX_ROUNDS: usize = 10;
/// More than a handshake's bytes in one direction.
const BUFFER: usize = 64 * 1024;

/// Why the certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// One side refused the other.
    #[error(
        "the new certificate does not pass a handshake with itself: {0}; compare --control-ca with the CA that issued it, and the clocks"
    )]
    Refused(#[from] rustls::Error),
    /// The handshake stopped short.
    #[error("a handshake of the new certificate with itself does not end")]
    Unfinished,
    /// A side did not learn whom it talks to.
    #[error(transparent)]
    Peer(#[from] TlsError),
    /// Both proved somebody else.
    #[error("the new certificate proves {0}")]
    Identity(String),
    /// Bytes could not be moved in memory.
    #[error("the handshake of the new certificate with itself failed: {0}")]
    Io(#[from] std::io::Error),
}

/// Lets the certificate's server and client configurations shake hands, and compares whom each side proved to be.
pub fn check(current: &Current) -> Result<(), CheckError> {
    let name = ServerName::try_from("self.weft").map_err(|_| CheckError::Unfinished)?;
    let mut client = ClientConnection::new(current.client_h1.clone(), name)?;
    let mut server = ServerConnection::new(current.server.clone())?;
    for _ in 0..MAX_ROUNDS {
        move_bytes(&mut client, &mut server)?;
        server.process_new_packets()?;
        move_bytes(&mut server, &mut client)?;
        client.process_new_packets()?;
        if !client.is_handshaking() && !server.is_handshaking() {
            for chain in [client.peer_certificates(), server.peer_certificates()] {
                let proved = tls::peer_identity(chain)?;
                if proved != current.identity {
                    return Err(CheckError::Identity(proved.to_string()));
                }
            }
            return Ok(());
        }
    }
    Err(CheckError::Unfinished)
}

fn move_bytes<A, B>(
    from: &mut rustls::ConnectionCommon<A>,
    to: &mut rustls::ConnectionCommon<B>,
) -> Result<(), CheckError> {
    let mut buffer = Vec::new();
    while from.wants_write() && buffer.len() < BUFFER {
        from.write_tls(&mut buffer)?;
    }
    let mut rest = &buffer[..];
    while !rest.is_empty() {
        if to.read_tls(&mut rest)? == 0 {
            return Err(CheckError::Unfinished);
        }
    }
    Ok(())
}
