//! A non-blocking connection, and just enough of HTTP/1.1 to know where a response ends.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd as _;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// The most of a response that is kept.
const MAX_RESPONSE: usize = 64 << 10;

/// A connection on which at most one request is under way.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

/// How a response stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// More is to come.
    Waiting,
    /// All of it has come.
    Complete,
    /// The connection has ended; whether that is right is for the caller to say.
    Ended,
}

impl Connection {
    /// Starts to connect; the first [`Connection::send`] may come once the socket is writable.
    pub fn start(to: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&SockAddr::from(to)) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(error),
            _ => Ok(Self { stream: socket.into(), received: Vec::with_capacity(2048) }),
        }
    }

    /// Connects.
    pub fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, std::time::Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, received: Vec::with_capacity(2048) })
    }

    /// Sends a request, which is small enough for any socket's buffer.
    pub fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.received.clear();
        self.stream.write_all(request)
    }

    /// Reads what has come.
    pub fn receive(&mut self, complete: impl Fn(&[u8]) -> io::Result<bool>) -> io::Result<State> {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(State::Ended),
                Ok(count) => {
                    self.received.extend_from_slice(chunk.get(..count).unwrap_or_default());
                    if self.received.len() > MAX_RESPONSE {
                        return Err(io::Error::other("the response is too large"));
                    }
                    if complete(&self.received)? {
                        return Ok(State::Complete);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(State::Waiting),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What has been received of the present response.
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// To wait for it with others.
    pub fn poll_fd(&self, flags: PollFlags) -> PollFd<'_> {
        PollFd::from_borrowed_fd(self.stream.as_fd(), flags)
    }
}

/// Waits until one of these is ready or the time is over, and says which are.
pub fn ready<'a>(
    wanted: impl Iterator<Item = (usize, PollFd<'a>)>,
    timeout: std::time::Duration,
) -> io::Result<Vec<usize>> {
    let (indexes, mut fds): (Vec<usize>, Vec<PollFd<'a>>) = wanted.unzip();
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    Ok(indexes.into_iter().zip(fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(index, _)| index).collect())
}

/// Whether these bytes are a whole response of 200 with `Content-Length`; an error if they are another one.
pub fn is_ok_response(bytes: &[u8]) -> io::Result<bool> {
    let Some(head_end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(false) };
    let head = String::from_utf8_lossy(bytes.get(..head_end).unwrap_or_default());
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    if first.split(' ').nth(1) != Some("200") {
        return Err(io::Error::other(format!("the answer is {first}")));
    }
    let mut fields = lines.filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the answer has no Content-Length"))?;
    Ok(bytes.len() >= head_end + 4 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_whole_when_its_body_is() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc";
        assert!(is_ok_response(whole).unwrap());
        assert!(!is_ok_response(&whole[..whole.len() - 1]).unwrap());
        assert!(!is_ok_response(b"HTTP/1.1 200 OK\r\n").unwrap());
        assert!(is_ok_response(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").is_err());
        assert!(is_ok_response(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
