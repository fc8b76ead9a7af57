//! Connections that carry some requests each and are then held open; says `held` when they are, and `closed` should one end.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::connection::{Connection, State, is_ok_response, ready};
use super::request;

/// So many requests are under way at once: an application with many clients, not a burst.
const AT_ONCE: usize = 32;
/// How long an answer may take.
const LATE: Duration = Duration::from_secs(5);

/// `load hold`
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where to
    #[arg(long)]
    to: SocketAddr,
    /// So many
    #[arg(long)]
    connections: usize,
    /// So many requests over each
    #[arg(long)]
    requests: usize,
    /// At most for so long, unless it is ended before
    #[arg(long)]
    seconds: u32,
}

/// Opens, sends, holds.
pub fn run(args: &Args) -> io::Result<()> {
    let bytes = request(args.to, false);
    let end = Instant::now() + Duration::from_secs(args.seconds.into());
    let mut connections: Vec<Connection> = Vec::new();
    for _ in 0..args.connections {
        connections.push(Connection::open(args.to)?);
    }
    for _ in 0..args.requests {
        for some in connections.chunks_mut(AT_ONCE) {
            for connection in &mut *some {
                connection.send(&bytes)?;
            }
            all_answered(some)?;
        }
    }
    writeln!(io::stdout(), "held {}", connections.len())?;
    while Instant::now() < end && !connections.is_empty() {
        let wanted = connections.iter().map(|connection| connection.poll_fd(PollFlags::IN)).enumerate();
        let ended = ready(wanted, Duration::from_millis(200))?;
        for index in ended.into_iter().rev() {
            connections.swap_remove(index);
            writeln!(io::stdout(), "one was closed, {} are left", connections.len())?;
        }
    }
    Ok(())
}

fn all_answered(connections: &mut [Connection]) -> io::Result<()> {
    let end = Instant::now() + LATE;
    let mut open: Vec<usize> = (0..connections.len()).collect();
    while !open.is_empty() {
        let wanted = open.iter().filter_map(|index| Some((*index, connections.get(*index)?.poll_fd(PollFlags::IN))));
        for index in ready(wanted, LATE / 50)? {
            let Some(connection) = connections.get_mut(index) else { continue };
            match connection.receive(is_ok_response)? {
                State::Waiting => {}
                State::Complete => open.retain(|other| *other != index),
                State::Ended => return Err(io::Error::other("closed before it was answered")),
            }
        }
        if Instant::now() > end {
            return Err(io::Error::other("an answer took more than 5 s"));
        }
    }
    Ok(())
}
