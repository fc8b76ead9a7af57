//! The side of a connection that somebody opened to us: in the clear, or out of mesh TLS. One type, so that everything above is compiled
//! once.

use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::Prefixed;
use crate::scratch;
use crate::stream::{forward_read, forward_write};
use crate::tcp::relay::Joined;
use crate::tcp::wide::Wide;

/// An accepted connection, classified.
#[derive(Debug)]
pub enum Downstream {
    /// As it came.
    Plain(Prefixed<TcpStream>),
    /// Out of mesh TLS.
    Mesh(Box<TlsStream<Wide<Prefixed<TcpStream>>>>),
}

impl Downstream {
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(io) => io.get_ref(),
            Self::Mesh(io) => io.get_ref().0.get_ref().get_ref(),
        }
    }
}

impl Joined for Downstream {
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

forward_read!(Downstream, io in Self::Plain(io), Self::Mesh(io));
forward_write!(Downstream, io in Self::Plain(io), Self::Mesh(io));
