//! Every head of an HTTP/1 connection, checked before hyper sees a byte of it.
//!
//! Invariants
//! - hyper gets a head whole or not at all, and only one that [`weft_engine::head`] passes; bodies pass as they come.
//! - In place of a head that is refused hyper gets [`stand_in`], a request without `Host`, which no client can get past the check: it is
//!   answered when its turn comes, with the reason, and ends the connection. Nothing behind it is read.
//! - What is held is one unfinished head, bounded by the limit of heads and one read.

use std::io;

use bytes::{Buf as _, BytesMut};
use tokio::io::ReadBuf;
use weft_engine::framing::Body;
use weft_engine::head::read_head;
use weft_engine::reason::Reason;

/// The heads of one connection.
#[derive(Debug)]
pub struct Heads {
    limit: usize,
    body: Body,
    // The beginning of a head.
    unfinished: BytesMut,
    // Checked, for hyper to read.
    checked: BytesMut,
    refused: bool,
}

/// What becomes of bytes: so many pass, what is behind them is the beginning of a head, or of one that is refused.
struct Scan {
    pass: usize,
    refused: Option<Reason>,
}

impl Heads {
    /// At the beginning of a connection whose heads are at most `limit` bytes long.
    pub fn new(limit: usize) -> Self {
        Self { limit, body: Body::ENDED, unfinished: BytesMut::new(), checked: BytesMut::new(), refused: false }
    }

    /// Whether a head has begun and not ended.
    pub fn unfinished(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Whether nothing is read any more.
    pub fn refused(&self) -> bool {
        self.refused
    }

    /// The connection has left HTTP: what is held passes unseen.
    pub fn leave_http(&mut self) {
        self.checked.unsplit(self.unfinished.split());
    }

    /// Gives checked bytes to the reader; false if there are none.
    pub fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        if self.checked.is_empty() {
            return false;
        }
        let n = self.checked.len().min(buf.remaining());
        buf.put_slice(&self.checked[..n]);
        self.checked.advance(n);
        if self.checked.is_empty() {
            // Its memory is given back.
            self.checked = BytesMut::new();
        }
        true
    }

    /// Looks at what was read into `buf` behind `before`, in place; what may not pass yet is taken out again.
    ///
    /// # Errors
    /// A body is framed in a way that could be read differently.
    pub fn came(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        let bytes = &buf.filled()[before..];
        let scan = self.scan(bytes)?;
        if scan.refused.is_none() {
            self.unfinished.extend_from_slice(&bytes[scan.pass..]);
        }
        buf.set_filled(before + scan.pass);
        self.settle(scan.refused);
        Ok(())
    }

    /// Looks at `bytes`, which continue the head that is held.
    ///
    /// # Errors
    /// As [`Self::came`].
    pub fn continued(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.unfinished.extend_from_slice(bytes);
        // Only the end of a line can decide anything: a head that comes byte by byte is not read anew for each.
        if !bytes.contains(&b'\n') && self.unfinished.len() < self.limit {
            return Ok(());
        }
        let held = self.unfinished.split();
        let scan = self.scan(&held)?;
        self.checked.extend_from_slice(&held[..scan.pass]);
        if scan.refused.is_none() {
            self.unfinished.extend_from_slice(&held[scan.pass..]);
        }
        self.settle(scan.refused);
        Ok(())
    }

    fn settle(&mut self, refused: Option<Reason>) {
        if let Some(reason) = refused {
            self.refused = true;
            self.checked.extend_from_slice(stand_in(reason).as_bytes());
        }
    }

    fn scan(&mut self, bytes: &[u8]) -> io::Result<Scan> {
        let mut pass = 0;
        loop {
            pass += self.body.skip(&bytes[pass..]).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            if pass == bytes.len() {
                return Ok(Scan { pass, refused: None });
            }
            match read_head(&bytes[pass..], self.limit) {
                Ok(Some(head)) => {
                    pass += head.len;
                    self.body = Body::new(head.body);
                }
                Ok(None) => return Ok(Scan { pass, refused: None }),
                Err(reason) => return Ok(Scan { pass, refused: Some(reason) }),
            }
        }
    }
}

/// A head that only we can write, since it has no `Host`: [`super::respond::head_refused`] knows it.
fn stand_in(reason: Reason) -> String {
    format!("GET / HTTP/1.1\r\nconnection: close\r\n{}: {}\r\n\r\n", super::headers::REASON, reason.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 256;
    const GOOD: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";

    // What hyper would get of `input`, read `step` bytes at a time.
    fn passed(input: &str, step: usize) -> io::Result<String> {
        let mut heads = Heads::new(LIMIT);
        let mut out = Vec::new();
        for piece in input.as_bytes().chunks(step) {
            if heads.refused() {
                break;
            }
            let mut memory = [0; 1024];
            let mut buf = ReadBuf::new(&mut memory);
            if heads.unfinished() {
                heads.continued(piece)?;
            } else {
                buf.put_slice(piece);
                heads.came(&mut buf, 0)?;
            }
            while heads.give(&mut buf) {}
            out.extend_from_slice(buf.filled());
        }
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn heads_and_bodies_pass_however_they_come() {
        let input = format!("{GOOD}GET / HTTP/1.1\r\nHost: a\r\n\r\n{GOOD}");
        for step in 1..=input.len() {
            assert_eq!(passed(&input, step).unwrap(), input, "{step} at a time");
        }
    }

    #[test]
    fn a_head_that_is_refused_is_replaced_and_nothing_follows() {
        for (bad, reason) in [
            ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), Reason::MalformedRequest),
            (GOOD.replace("chunked", "chunked\r\nContent-Length: 1"), Reason::MalformedRequest),
            (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(LIMIT)), Reason::HeaderTooLarge),
        ] {
            let input = format!("{GOOD}{bad}{GOOD}");
            for step in 1..=input.len() {
                assert_eq!(passed(&input, step).unwrap(), format!("{GOOD}{}", stand_in(reason)), "{step} at a time");
            }
        }
        assert!(passed(&GOOD.replace("2\r\n", "2\n"), 1024).is_err());
    }

    #[test]
    fn a_stand_in_cannot_be_forged() {
        let mut heads = Heads::new(LIMIT);
        let scan = heads.scan(stand_in(Reason::HeaderTooLarge).as_bytes()).unwrap();
        assert_eq!((scan.pass, scan.refused), (0, Some(Reason::MalformedRequest)));
    }
}
