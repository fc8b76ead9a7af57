//! Happy eyeballs (RFC 8305): which of a name's addresses, when some of them may lead nowhere.
//!
//! Invariants
//! - An address that does not answer costs [`STAGGER`], not the time that TCP takes to give up; one that refuses costs nothing.
//! - While the first address answers, no other is troubled.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// So long an attempt has for itself before the next one begins (RFC 8305 section 5).
pub const STAGGER: Duration = Duration::from_millis(250);

/// Addresses as they are to be tried: IPv6 first, then by turns (RFC 8305 section 4). Those of one family are equals: which of them comes first is
/// `random`'s to say.
pub fn order(addresses: &[IpAddr], random: usize) -> Vec<IpAddr> {
    let mut families: [Vec<IpAddr>; 2] = Default::default();
    for ip in addresses {
        families[usize::from(ip.to_canonical().is_ipv4())].push(*ip);
    }
    for family in &mut families {
        let turns = random % family.len().max(1);
        family.rotate_left(turns);
    }
    let [six, four] = &families;
    let by_turns = |at: usize| six.get(at).into_iter().chain(four.get(at)).copied();
    (0..six.len().max(four.len())).flat_map(by_turns).collect()
}

/// What came of a race.
#[derive(Debug, PartialEq, Eq)]
pub struct Race<T> {
    /// The first attempt that succeeded, by its number.
    pub won: Option<(usize, T)>,
    /// Those that failed, or had more time than the winner and came to nothing.
    pub lost: Vec<usize>,
}

/// Makes attempts in their order, each [`STAGGER`] after the one before it, or at once when that has failed, until one succeeds; the others are
/// dropped.
pub async fn race<F, T, E>(attempts: Vec<F>) -> Race<T>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting = attempts.into_iter().enumerate().peekable();
    let mut running: Vec<(usize, Pin<Box<F>>)> = Vec::new();
    let mut lost = Vec::new();
    let mut turn = pin!(sleep(Duration::ZERO));
    let won = poll_fn(|cx| {
        loop {
            if waiting.peek().is_some()
                && (running.is_empty() || turn.as_mut().poll(cx).is_ready())
                && let Some((number, attempt)) = waiting.next()
            {
                running.push((number, Box::pin(attempt)));
                turn.as_mut().reset(Instant::now() + STAGGER);
            }
            let mut at = 0;
            let mut failed = false;
            while let Some((number, attempt)) = running.get_mut(at) {
                match attempt.as_mut().poll(cx) {
                    Poll::Ready(Ok(won)) => return Poll::Ready(Some((*number, won))),
                    Poll::Ready(Err(_)) => {
                        lost.push(*number);
                        drop(running.remove(at));
                        failed = true;
                    }
                    Poll::Pending => at += 1,
                }
            }
            if failed {
                turn.as_mut().reset(Instant::now());
            }
            if running.is_empty() && waiting.peek().is_none() {
                return Poll::Ready(None);
            }
            let begins = waiting.peek().is_some() && turn.as_mut().poll(cx).is_ready();
            if !begins {
                return Poll::Pending;
            }
        }
    })
    .await;
    if let Some((winner, _)) = &won {
        lost.extend(running.iter().map(|(number, _)| *number).filter(|number| number < winner));
    }
    Race { won, lost }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_equals_too() {
        for (addresses, random, ordered) in [
            ("", 7, ""),
            ("1.1.1.1", 7, "1.1.1.1"),
            ("1.1.1.1 2.2.2.2 3.3.3.3", 0, "1.1.1.1 2.2.2.2 3.3.3.3"),
            ("1.1.1.1 2.2.2.2 3.3.3.3", 4, "2.2.2.2 3.3.3.3 1.1.1.1"),
            ("1.1.1.1 ::1", 0, "::1 1.1.1.1"),
            ("1.1.1.1 2.2.2.2 3.3.3.3 ::1 ::2", 0, "::1 1.1.1.1 ::2 2.2.2.2 3.3.3.3"),
            ("1.1.1.1 2.2.2.2 3.3.3.3 ::1 ::2", 1, "::2 2.2.2.2 ::1 3.3.3.3 1.1.1.1"),
            ("::ffff:1.1.1.1 ::1", 0, "::1 ::ffff:1.1.1.1"),
        ] {
            assert_eq!(order(&ips(addresses), random), ips(ordered), "{addresses} {random}");
        }
    }

    // Attempts that take so many milliseconds, and whether they succeed; what came of them, and after how long.
    async fn tried(attempts: &[(u64, bool)]) -> (Race<usize>, u64) {
        let begun = Instant::now();
        let attempts = attempts.iter().enumerate().map(|(number, (takes, good))| async move {
            sleep(Duration::from_millis(*takes)).await;
            if *good { Ok(number) } else { Err(()) }
        });
        let race = race(attempts.collect()).await;
        (race, u64::try_from(begun.elapsed().as_millis()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_that_connects_wins() {
        for (attempts, winner, lost, after) in [
            (&[(10, true), (0, true)][..], Some(0), &[][..], 10),
            (&[(9000, false), (10, true)], Some(1), &[0], 260),
            (&[(0, false), (10, true)], Some(1), &[0], 10),
            (&[(100, false), (10, true)], Some(1), &[0], 110),
            // A slow one may win all the same; who came later has not lost.
            (&[(300, true), (100, true)], Some(0), &[], 300),
            (&[(400, true), (100, true)], Some(1), &[0], 350),
            (&[(9000, true), (9000, true), (5, true)], Some(2), &[0, 1], 505),
            // Each failure begins one more, and the next has its time again.
            (&[(9000, true), (100, false), (9000, true), (5, true)], Some(3), &[1, 0, 2], 605),
            (&[(300, false), (0, false), (20, false)], None, &[1, 2, 0], 300),
            (&[(0, false)], None, &[0], 0),
            (&[], None, &[], 0),
        ] {
            let (race, took) = tried(attempts).await;
            assert_eq!(race, Race { won: winner.map(|number| (number, number)), lost: lost.to_vec() }, "{attempts:?}");
            // The clock of tests goes by milliseconds, and rounds up.
            assert!((after..=after + 4).contains(&took), "{attempts:?}: {took}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_first_answers_no_other_is_asked() {
        let begun = std::cell::Cell::new(0);
        let begun = &begun;
        let attempts = (0..5).map(|_| async move {
            begun.set(begun.get() + 1);
            sleep(Duration::from_millis(200)).await;
            Ok::<_, ()>(())
        });
        assert_eq!(race(attempts.collect()).await.won, Some((0, ())));
        assert_eq!(begun.get(), 1);
    }
}
