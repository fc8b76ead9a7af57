//! An open loop: each request has a time at which it is meant to be sent, and its latency counts from then, whether a connection was
//! free at that time or not. So a proxy that stalls is charged with all the requests that it kept waiting ("coordinated omission").

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::connection::{Connection, State, is_ok_response, ready};
use super::{Report, open_h2, request};

/// How long the last answers may take.
pub const LATE: Duration = Duration::from_secs(5);

/// `load open`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where to
    #[arg(long)]
    pub to: SocketAddr,
    /// Requests a second
    #[arg(long)]
    pub rate: u32,
    /// For so long
    #[arg(long)]
    pub seconds: u32,
    /// Over so many connections, in turn
    #[arg(long)]
    pub connections: usize,
    /// HTTP/2 by prior knowledge
    #[arg(long)]
    pub h2: bool,
}

impl Args {
    /// How many requests that is.
    pub fn total(&self) -> u64 {
        u64::from(self.rate) * u64::from(self.seconds)
    }

    /// When request number `number` is meant to be sent, from 0.
    pub fn due(&self, start: Instant, number: u64) -> Instant {
        start + Duration::from_nanos(number * 1_000_000_000 / u64::from(self.rate.max(1)))
    }
}

/// A connection and when its request was meant to be sent.
struct Slot {
    connection: Connection,
    since: Option<Instant>,
}

/// Sends the load.
pub fn run(args: &Args) -> io::Result<Report> {
    if args.h2 {
        return open_h2::run(args);
    }
    let bytes = request(args.to, false);
    let mut slots: Vec<Slot> = Vec::new();
    for _ in 0..args.connections {
        slots.push(Slot { connection: Connection::open(args.to)?, since: None });
    }
    let mut free: VecDeque<usize> = (0..slots.len()).collect();
    let mut waiting: VecDeque<Instant> = VecDeque::new();
    let total = args.total();
    let mut report = Report { times: Vec::with_capacity(total as usize), ..Report::default() };
    let start = Instant::now() + Duration::from_millis(10);
    let due = |number| args.due(start, number);
    let end = due(total) + LATE;
    let mut next = 0;
    loop {
        let now = Instant::now();
        while next < total && due(next) <= now {
            waiting.push_back(due(next));
            next += 1;
        }
        while !waiting.is_empty()
            && let Some(index) = free.pop_front()
        {
            let Some(slot) = slots.get_mut(index) else { continue };
            slot.since = waiting.pop_front();
            if slot.connection.send(&bytes).is_err() {
                fail(slot, args.to, &mut report)?;
                free.push_back(index);
            }
        }
        let done = report.completed + report.failed;
        if done == total || now > end {
            report.failed += total - done;
            report.seconds = start.elapsed().as_secs_f64();
            return Ok(report);
        }
        let pause = if next < total { due(next).saturating_duration_since(Instant::now()) } else { LATE / 50 };
        let busy = slots.iter().enumerate().filter(|(_, slot)| slot.since.is_some());
        let busy = busy.map(|(index, slot)| (index, slot.connection.poll_fd(PollFlags::IN)));
        for index in ready(busy, pause)? {
            let Some(slot) = slots.get_mut(index) else { continue };
            match slot.connection.receive(is_ok_response) {
                Ok(State::Waiting) => continue,
                Ok(State::Complete) => {
                    let took = slot.since.take().map(|since| since.elapsed()).unwrap_or_default();
                    report.times.push(took.as_nanos() as u64);
                    report.completed += 1;
                }
                Ok(State::Ended) | Err(_) => fail(slot, args.to, &mut report)?,
            }
            free.push_back(index);
        }
    }
}

/// Counts a failure, and goes on over a new connection.
fn fail(slot: &mut Slot, to: SocketAddr, report: &mut Report) -> io::Result<()> {
    report.failed += 1;
    *slot = Slot { connection: Connection::open(to)?, since: None };
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    /// Answers each request, but stands still once for `stall`.
    fn server(stall: Duration) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            for number in 0.. {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
                if number == 20 {
                    std::thread::sleep(stall);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
            }
        });
        address
    }

    #[test]
    fn a_stall_is_charged_with_all_that_it_kept_waiting() {
        let stall = Duration::from_millis(500);
        let args = Args { to: server(stall), rate: 200, seconds: 1, connections: 1, h2: false };
        let mut report = run(&args).unwrap();
        assert_eq!((report.completed, report.failed), (200, 0));
        report.times.sort_unstable();
        // The 100 requests that were due meanwhile waited from 500 ms down to none, so at least 40 of them over 200 ms. Measured from
        // when each was really sent, one would have.
        let late = report.times.iter().filter(|nanos| **nanos > 200_000_000).count();
        assert!((40..200).contains(&late), "{late} were late");
    }

    #[test]
    fn what_is_not_answered_has_failed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n");
            }
        });
        let report = run(&Args { to, rate: 50, seconds: 1, connections: 2, h2: false }).unwrap();
        assert_eq!((report.completed, report.failed), (0, 50));
    }
}
