//! The side of a connection that we opened: in the clear, or in mesh TLS.

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::scratch;
use crate::stream::{forward_read, forward_write};
use crate::tcp::relay::Joined;
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

impl Joined for Stream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self.socket())
    }

    fn read_bulk(&mut self, on: bool) {
        if let Self::Mesh(io) = self {
            io.get_mut().0.bulk(on);
        }
    }

    fn write_bulk(&mut self, on: bool) {
        if let Self::Mesh(io) = self {
            // Records are encrypted up to here before they are written, all at once.
            io.get_mut().1.set_buffer_limit(Some(if on { scratch::BULK } else { scratch::SIZE }));
        }
    }

    fn bare_reads(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(io) => io.bare_reads(),
            Self::Mesh(_) => None,
        }
    }

    fn bare_writes(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(io) => io.bare_writes(),
            Self::Mesh(_) => None,
        }
    }
}

forward_read!(Stream, io in Self::Plain(io), Self::Mesh(io));
forward_write!(Stream, io in Self::Plain(io), Self::Mesh(io));
