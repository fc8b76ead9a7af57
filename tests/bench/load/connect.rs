//! New connections: so many at once, each carries one exchange and is closed by the server, then the next is opened. The time of each
//! counts from before the connect.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::connection::{Connection, State, is_ok_response, ready};
use super::{Report, request};

/// What is exchanged where it is no HTTP: the first byte is none that HTTP or TLS begins with.
pub const OPAQUE: [u8; 16] = *b"\x00weft-bench-ping";
/// How long an exchange may take.
const LATE: Duration = Duration::from_secs(5);
/// So many failures end the load.
const MAX_FAILED: u64 = 1_000;

/// `load connect`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where to
    #[arg(long)]
    to: SocketAddr,
    /// For so long
    #[arg(long)]
    seconds: u32,
    /// So many at once
    #[arg(long)]
    connections: usize,
    /// 16 bytes that come back, instead of an HTTP request
    #[arg(long)]
    opaque: bool,
}

struct Exchange {
    connection: Connection,
    since: Instant,
    sent: bool,
}

impl Exchange {
    fn start(to: SocketAddr) -> io::Result<Self> {
        Ok(Self { since: Instant::now(), connection: Connection::start(to)?, sent: false })
    }

    /// Goes on with what is ready; says whether it is over.
    fn step(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if !self.sent {
            self.connection.send(bytes)?;
            self.sent = true;
            return Ok(false);
        }
        // The end of the connection is waited for: the server closes.
        Ok(self.connection.receive(|_| Ok(false))? == State::Ended)
    }
}

/// Sends the load.
pub fn run(args: &Args) -> io::Result<Report> {
    let bytes = if args.opaque { OPAQUE.to_vec() } else { request(args.to, true) };
    let whole = |received: &[u8]| if args.opaque { Ok(received == OPAQUE) } else { is_ok_response(received) };
    let mut report = Report::default();
    let start = Instant::now();
    let end = start + Duration::from_secs(args.seconds.into());
    let mut exchanges: Vec<Exchange> = Vec::new();
    while exchanges.len() < args.connections {
        exchanges.push(Exchange::start(args.to)?);
    }
    // The rate is that of what has ended in time; what is then under way ends too, so that the server's work is all counted.
    while !exchanges.is_empty() {
        let wanted = exchanges.iter().map(|exchange| if exchange.sent { PollFlags::IN } else { PollFlags::OUT });
        let wanted = exchanges.iter().zip(wanted).map(|(exchange, flags)| exchange.connection.poll_fd(flags));
        let mut over = ready(wanted.enumerate(), LATE / 50)?;
        over.retain(|index| {
            let Some(exchange) = exchanges.get_mut(*index) else { return false };
            let ended = match exchange.step(&bytes) {
                Ok(false) => return false,
                Ok(true) => whole(exchange.connection.received()),
                Err(error) => Err(error),
            };
            if matches!(ended, Ok(true)) {
                report.completed += 1;
                report.times.push(exchange.since.elapsed().as_nanos() as u64);
            } else {
                report.failed += 1;
            }
            true
        });
        let now = Instant::now();
        if report.failed > MAX_FAILED || now > end + LATE {
            report.failed += exchanges.len() as u64;
            break;
        }
        // From the back, so that removing one moves none that is still to be looked at.
        for index in over.into_iter().rev() {
            if now < end
                && let Some(exchange) = exchanges.get_mut(index)
            {
                *exchange = Exchange::start(args.to)?;
            } else {
                exchanges.swap_remove(index);
            }
        }
    }
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn every_exchange_has_a_connection_of_its_own() {
        let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        std::thread::spawn(move || super::super::echo::serve(port));
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        while std::net::TcpStream::connect(to).is_err() {
            std::thread::yield_now();
        }
        let report = run(&Args { to, seconds: 1, connections: 4, opaque: true }).unwrap();
        assert!(report.completed > 10 && report.failed == 0, "{report:?}");
        assert_eq!(report.times.len() as u64, report.completed);
        // What is no echo has failed.
        let report = run(&Args { to, seconds: 1, connections: 1, opaque: false }).unwrap();
        assert!(report.completed == 0 && report.failed > 0, "{report:?}");
    }
}
