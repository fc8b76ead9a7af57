//! The side of a connection that somebody opened to us: in the clear, or out of mesh TLS. One type, so that everything above is compiled
//! once.

use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::Prefixed;
use crate::stream::{forward_read, forward_write};
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

forward_read!(Downstream, io in Self::Plain(io), Self::Mesh(io));
forward_write!(Downstream, io in Self::Plain(io), Self::Mesh(io));
