//! Which proxies are asked to go to another replica: some of those that are more than this one's share, and all before it ends.
//!
//! A proxy that is asked keeps its tables, connects to another replica, and is sent nothing that it has. How many are asked in a second is bounded,
//! so that nobody is met by a crowd.
//!
//! Invariants
//! - Nobody is asked to move unless another replica serves, and says so.
//! - One that was asked and came back is left alone for [`AGAIN`]: it may know no other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::distribute::Hub;
use crate::distribute::hub::Stream;
use crate::model::Name;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// A stream that is younger is left alone.
const YOUNG: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_mins(10);
/// For their share so many are asked in a second, at most.
const MOST: usize = 100;
/// Before the end all are asked within so long.
const LEAVE: Duration = Duration::from_secs(10);
/// Between two groups of them.
const STEP: Duration = Duration::from_millis(50);
/// So long those that were asked have to go, and answers that were asked for to arrive.
const LAST: Duration = Duration::from_secs(1);

/// How many of `own` proxies to ask in the next second, where the other replicas have so many: nobody unless they are clearly more than a share.
fn excess(own: usize, others: &[usize]) -> usize {
    let share = (own + others.iter().sum::<usize>()).div_ceil(others.len() + 1);
    let clear = share + (share / 10).max(1);
    if others.is_empty() || own <= clear { 0 } else { (own - share).min((own / 50).max(1)).min(MOST) }
}

/// Gives away what is more than our share, for ever.
pub async fn keep(hub: &Hub) {
    let mut asked: HashMap<Name, Instant> = HashMap::new();
    loop {
        sleep(LOOK).await;
        asked.retain(|_, since| since.elapsed() < AGAIN);
        let others = hub.replicas.serving();
        let own = usize::try_from(hub.metrics.streams.get()).unwrap_or_default();
        let many = excess(own, &others);
        if many == 0 || hub.replicas.is_stopping() {
            continue;
        }
        let streams = hub.streams();
        let free =
            |stream: &&Arc<Stream>| stream.since.elapsed() >= YOUNG && !asked.contains_key(&stream.client.workload);
        let chosen: Vec<&Arc<Stream>> = streams.iter().filter(free).take(many).collect();
        for stream in &chosen {
            stream.send_away();
            hub.metrics.replicas.moved(false);
        }
        if let Some(first) = chosen.first() {
            let example = &first.client.workload;
            tracing::info!(own, ?others, asked = chosen.len(), %example, "proxies are asked to go to another replica");
        }
        asked.extend(chosen.into_iter().map(|stream| (stream.client.workload.clone(), Instant::now())));
    }
}

/// Sends all away, a few at a time, if there is another replica for them; new ones are refused from now on.
pub async fn leave(hub: &Hub) {
    hub.replicas.stop();
    let all = hub.streams().len();
    if all == 0 || hub.replicas.serving().is_empty() {
        return;
    }
    tracing::info!(proxies = all, "the proxies are asked to go to another replica");
    let steps = usize::try_from(LEAVE.as_millis() / STEP.as_millis()).unwrap_or(1);
    let group = all.div_ceil(steps).max(5);
    loop {
        let streams = hub.streams();
        let left: Vec<_> = streams.into_iter().filter(|stream| !stream.is_sent_away()).take(group).collect();
        for stream in &left {
            stream.send_away();
            hub.metrics.replicas.moved(true);
        }
        if left.is_empty() {
            break;
        }
        sleep(STEP).await;
    }
    let gone = async {
        while !hub.streams().is_empty() {
            sleep(STEP).await;
        }
    };
    let _ = tokio::time::timeout(LAST, gone).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_clearly_more_than_a_share_is_given_away_a_little_at_a_time() {
        for (own, others, asked) in [
            (0, &[][..], 0),
            (10_000, &[], 0),
            (2, &[0], 0),
            (3, &[0], 0),
            (4, &[0], 1),
            (6, &[0], 1),
            (4, &[2], 0),
            (105, &[95], 0),
            (200, &[0], 4),
            (10_000, &[0], 100),
            (10_000, &[10_000, 0], 100),
            (5_200, &[5_000], 0),
            (6_000, &[5_000], 0),
            (6_200, &[5_000], 100),
            (0, &[10_000], 0),
        ] {
            assert_eq!(excess(own, others), asked, "{own} {others:?}");
        }
    }

    #[test]
    fn a_mesh_of_any_size_comes_to_rest() {
        for all in [1_usize, 2, 3, 5, 10, 100, 999] {
            let mut replicas = [all, 0, 0];
            for _ in 0..1000 {
                for at in 0..3 {
                    let others: Vec<_> = (0..3).filter(|other| *other != at).map(|other| replicas[other]).collect();
                    let many = excess(replicas[at], &others);
                    replicas[at] -= many;
                    // Whoever moves goes anywhere else.
                    replicas[(at + 1) % 3] += many / 2;
                    replicas[(at + 2) % 3] += many - many / 2;
                }
            }
            let most = *replicas.iter().max().unwrap();
            assert!(most <= all.div_ceil(3) + (all / 30).max(1), "{replicas:?}");
        }
    }
}
