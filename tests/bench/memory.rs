//! What a pair of proxies holds: when idle, with 1,000 connections that have each carried 10 requests and then been idle for 10 s, and
//! after a burst. In a lab of its own, because a process that has served other cases is not idle any more.

use std::time::Duration;

use weft::lab::until;

use super::Error;
use super::account::Memory;
use super::arena::{Arena, Both, HTTP};
use super::peers::Peer;
use super::programs::{self, Programs};
use super::table::{Metric, Results};

const CLIENT_RSS: Metric = Metric::less("client's proxy, RSS", "MiB");
const CLIENT_ANONYMOUS: Metric = Metric::less("client's proxy, anonymous", "MiB");
const SERVER_RSS: Metric = Metric::less("server's proxy, RSS", "MiB");
const SERVER_ANONYMOUS: Metric = Metric::less("server's proxy, anonymous", "MiB");
const PER_CONNECTION: Metric = Metric::less("both, anonymous, a connection", "KiB");

/// Connections that are held, and requests that each has carried.
const HELD: (u32, u32) = (1_000, 10);
/// How long a proxy is left alone before it counts as idle.
const IDLE: Duration = Duration::from_secs(2);
/// How long the connections are idle before they are weighed.
const HOLD: Duration = Duration::from_secs(10);
/// How long their requests may take, and some time to be weighed in.
const OPENS: Duration = Duration::from_secs(30);
/// Connections of the burst.
const BURST: u32 = 32;

/// Measures a peer once.
pub fn measure(peer: &Peer, programs: &Programs, span: Duration, results: &mut Results) -> Result<(), Error> {
    let arena = Arena::start(peer, programs)?;
    let mut add = |case: &'static str, memory: Both<Memory>| {
        for (metric, kib) in [
            (CLIENT_RSS, memory.client.rss),
            (CLIENT_ANONYMOUS, memory.client.anonymous),
            (SERVER_RSS, memory.server.rss),
            (SERVER_ANONYMOUS, memory.server.anonymous),
        ] {
            results.add(case, &peer.name, metric, kib / 1024.0);
        }
        memory.client.anonymous + memory.server.anonymous
    };
    // Nothing to wait for: that nothing happens is the condition.
    std::thread::sleep(IDLE);
    let idle = add("memory-idle", arena.memory()?);
    let held = hold(&arena, programs)?;
    let held = add("memory-1000-connections", held);
    programs::wrk(&arena.client, programs, arena.target(HTTP), BURST, span)?;
    std::thread::sleep(IDLE);
    add("memory-after-burst", arena.memory()?);
    results.add("memory-1000-connections", &peer.name, PER_CONNECTION, (held - idle) / f64::from(HELD.0));
    Ok(())
}

/// Opens the connections, waits, weighs, and closes them.
fn hold(arena: &Arena, programs: &Programs) -> Result<Both<Memory>, Error> {
    let limit = (OPENS + HOLD + HOLD).as_secs().to_string();
    let args = [
        "load".to_owned(),
        "hold".to_owned(),
        "--to".to_owned(),
        arena.target(HTTP).to_string(),
        "--connections".to_owned(),
        HELD.0.to_string(),
        "--requests".to_owned(),
        HELD.1.to_string(),
        "--seconds".to_owned(),
        limit,
    ];
    let mut holder = arena.client.spawn("hold", &programs.bench, args)?;
    let mut dead = None;
    until("1,000 connections", OPENS, || {
        dead = holder.check_alive().err();
        if dead.is_some() || holder.log().contains("held") { Ok(()) } else { Err(holder.log_tail()) }
    })?;
    if let Some(error) = dead {
        return Err(error.into());
    }
    std::thread::sleep(HOLD);
    let memory = arena.memory()?;
    // A proxy that has closed them meanwhile has not been weighed with them.
    if let Some(lost) = holder.log().lines().find(|line| line.contains("closed")) {
        return Err(Error::Program { name: holder.name().to_owned(), reason: lost.to_owned() });
    }
    holder.kill();
    Ok(memory)
}
