//! The side of a connection that we opened: in the clear, or in mesh TLS.

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::stream::{forward_read, forward_write};
use crate::tcp::wide::Wide;

/// A connection to an endpoint or to the application.
#[derive(Debug)]
pub enum Stream {
    /// To our own application, or out of the mesh.
    Plain(TcpStream),
    /// To another sidecar that has proved who it is.
    Mesh(Box<TlsStream<Wide<TcpStream>>>),
}

impl Stream {
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(io) => io,
            Self::Mesh(io) => io.get_ref().0.get_ref(),
        }
    }
}

forward_read!(Stream, io in Self::Plain(io), Self::Mesh(io));
forward_write!(Stream, io in Self::Plain(io), Self::Mesh(io));
