//! Which proxies are asked to go to another replica: those of another's zone while it has room, some of those that are more than this one's share, and all
//! before it ends.
//!
//! A proxy that is asked keeps its tables, connects to another replica, and is sent nothing that it has. How many are asked in a second is bounded,
//! so that nobody is met by a crowd.
//!
//! Invariants
//! - Nobody is asked to move unless another replica serves, and says so.
//! - A replica has no more than clearly its share, and what it has is near as far as that goes: it is sent proxies of its zone until it has so
//!   many, and gives none away before it has more. So nobody is sent to and fro.
//! - One that was asked and came back is left alone for [`AGAIN`]: it may know no other.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::members::Serving;
use crate::distribute::Hub;
use crate::distribute::hub::Stream;
use crate::model::Name;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// A stream that is younger is left alone.
const YOUNG: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_mins(10);
/// So many are asked in a second, at most.
const MOST: usize = 100;
/// Before the end all are asked within so long.
const LEAVE: Duration = Duration::from_secs(10);
/// Between two groups of them.
const STEP: Duration = Duration::from_millis(50);
/// So long those that were asked have to go, and answers that were asked for to arrive.
const LAST: Duration = Duration::from_secs(1);
/// Replicas that a proxy is told of.
const NAMED: usize = 4;

/// Where this replica is, as far as it was told.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Its zone.
    pub zone: Option<String>,
    /// Else the zone is that of the pod with this address.
    pub ip: Option<IpAddr>,
}

/// All replicas to which proxies may be sent, as one of them sees them.
struct Shares<'s> {
    own: usize,
    zone: &'s str,
    others: Vec<Serving>,
}

/// Why a proxy is asked to move, as the metric has it.
type Why = &'static str;
/// Another replica is in its zone, and this one is not.
const NEAR: Why = "near";
/// This one has more than its share.
const SHARE: Why = "share";
/// This one is about to end.
const STOP: Why = "stop";

impl Shares<'_> {
    /// Proxies of each, if all had the same.
    fn share(&self) -> usize {
        let all = self.own + self.others.iter().map(|other| other.proxies).sum::<usize>();
        all.div_ceil(self.others.len() + 1)
    }

    /// How many proxies may be asked in the next second.
    fn most(&self) -> usize {
        (self.own / 50).clamp(1, MOST)
    }

    /// More than that is clearly more than a share.
    fn clear(&self) -> usize {
        let share = self.share();
        share + (share / 10).max(1)
    }

    /// How many are more than our share: nobody unless they clearly are.
    fn excess(&self) -> usize {
        if self.others.is_empty() || self.own <= self.clear() { 0 } else { self.own - self.share() }
    }

    /// Those that have less than their share, those with the most room first.
    fn with_room(&self) -> Vec<usize> {
        let share = self.share();
        let mut room: Vec<usize> = (0..self.others.len()).filter(|at| self.others[*at].proxies < share).collect();
        room.sort_by_key(|at| self.others[*at].proxies);
        room
    }

    /// Of those in a zone that is not ours the one with the fewest, if it would not have clearly more than its share: two that are full of each
    /// other's can exchange them.
    fn near(&self, zone: &str) -> Option<usize> {
        if zone.is_empty() || zone == self.zone {
            return None;
        }
        let clear = self.clear();
        let near = self.others.iter().enumerate().filter(|(_, other)| other.zone == zone && other.proxies < clear);
        near.min_by_key(|(_, other)| other.proxies).map(|(at, _)| at)
    }

    /// Whether anybody may have to move.
    fn moves(&self) -> bool {
        self.excess() > 0 || self.others.iter().any(|other| self.near(&other.zone).is_some())
    }

    /// One goes there, or to any other if that one does not take it.
    fn gives(&mut self, to: usize) {
        self.own = self.own.saturating_sub(1);
        if let Some(other) = self.others.get_mut(to) {
            other.proxies += 1;
        }
    }

    /// Who of these proxies, each with its zone, is asked to move now, why, and to whom.
    fn choose<'z, T: Copy>(&mut self, proxies: impl Iterator<Item = (T, &'z str)>) -> Vec<(T, Why, Vec<SocketAddr>)> {
        let (most, excess) = (self.most(), self.excess());
        let (mut chosen, mut left) = (Vec::new(), Vec::new());
        for (proxy, zone) in proxies {
            match self.near(zone).filter(|_| chosen.len() < most) {
                Some(at) => {
                    self.gives(at);
                    chosen.push((proxy, NEAR, vec![self.others[at].at]));
                }
                None => left.push((proxy, zone)),
            }
        }
        if excess == 0 {
            return chosen;
        }
        // Those of our own zone stay longest.
        left.sort_by_key(|(_, zone)| *zone == self.zone);
        for (proxy, _) in left {
            if chosen.len() >= most.min(excess) {
                break;
            }
            let room = self.with_room();
            let Some(first) = room.first() else { break };
            self.gives(*first);
            chosen.push((proxy, SHARE, room.iter().take(NAMED).map(|at| self.others[*at].at).collect()));
        }
        chosen
    }
}

/// Gives away who is nearer to another, and what is more than our share, for ever.
pub async fn keep(hub: &Hub, place: &Place) {
    let mut asked: HashMap<Name, Instant> = HashMap::new();
    loop {
        sleep(LOOK).await;
        // Who is elsewhere knows another, and may be asked again when it comes.
        asked.retain(|name, since| since.elapsed() < AGAIN && !hub.replicas.have(name));
        let zone = hub.compiled(|compiled| zone(place, |ip| compiled.zone_at(ip)));
        hub.replicas.is_in(&zone);
        let own = usize::try_from(hub.metrics.streams.get()).unwrap_or_default();
        let mut shares = Shares { own, zone: &zone, others: hub.replicas.serving() };
        if hub.replicas.is_stopping() || !shares.moves() {
            continue;
        }
        let streams = hub.streams();
        let free =
            |stream: &&Arc<Stream>| stream.since.elapsed() >= YOUNG && !asked.contains_key(&stream.client.workload);
        let chosen = hub.compiled(|compiled| {
            let free = streams.iter().filter(free);
            shares.choose(free.map(|stream| (stream, compiled.zone_of(&stream.client.workload))))
        });
        if let Some((first, why, to)) = chosen.first() {
            let example = &first.client.workload;
            tracing::info!(own, why, ?to, asked = chosen.len(), %example, "proxies are asked to go to another replica");
        }
        for (stream, why, to) in chosen {
            stream.send_away(to);
            hub.metrics.replicas.moved(why);
            asked.insert(stream.client.workload.clone(), Instant::now());
        }
    }
}

/// Where we are: as we were told, or where the pod with our address is.
fn zone<'z>(place: &'z Place, at: impl FnOnce(IpAddr) -> &'z str) -> String {
    place.zone.as_deref().or_else(|| place.ip.map(at)).unwrap_or_default().to_owned()
}

/// Sends all away, a few at a time, if there is another replica for them; new ones are refused from now on.
pub async fn leave(hub: &Hub) {
    hub.replicas.stop();
    let (all, others) = (hub.streams().len(), hub.replicas.serving());
    if all == 0 || others.is_empty() {
        return;
    }
    tracing::info!(proxies = all, "the proxies are asked to go to another replica");
    let steps = usize::try_from(LEAVE.as_millis() / STEP.as_millis()).unwrap_or(1);
    let group = all.div_ceil(steps).max(5);
    loop {
        let streams = hub.streams();
        let left: Vec<_> = streams.into_iter().filter(|stream| stream.sent_away().is_none()).take(group).collect();
        for stream in &left {
            stream.send_away(hub.compiled(|compiled| in_zone(&others, compiled.zone_of(&stream.client.workload))));
            hub.metrics.replicas.moved(STOP);
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

/// The replicas of a zone, in any order: nobody is sent to one alone.
fn in_zone(others: &[Serving], zone: &str) -> Vec<SocketAddr> {
    let near = others.iter().filter(|other| !zone.is_empty() && other.zone == zone);
    near.map(|other| other.at).take(NAMED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, u8::try_from(number).unwrap()], 15012))
    }

    fn shares<'s>(own: usize, zone: &'s str, others: &[(usize, &str)]) -> Shares<'s> {
        let other = |(number, (proxies, zone)): (usize, &(usize, &str))| Serving {
            at: at(number),
            zone: (*zone).to_owned(),
            proxies: *proxies,
        };
        Shares { own, zone, others: others.iter().enumerate().map(other).collect() }
    }

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
            let others: Vec<_> = others.iter().map(|proxies| (*proxies, "")).collect();
            let mut shares = shares(own, "", &others);
            assert_eq!(shares.moves(), asked > 0, "{own} {others:?}");
            let chosen = shares.choose((0..own).map(|proxy| (proxy, "")));
            assert_eq!(chosen.len(), asked, "{own} {others:?}");
            assert!(chosen.iter().all(|(_, why, to)| *why == SHARE && !to.is_empty()));
        }
    }

    #[test]
    fn who_is_nearer_to_another_goes_there_while_it_has_room() {
        // Of our own 9 in zone a, 6 are of b and c.
        let proxies = ["a", "b", "c", "a", "b", "c", "a", "b", "c"].into_iter().enumerate();
        let mut all = shares(9, "a", &[(1, "b"), (9, "c")]);
        let chosen = all.choose(proxies.clone());
        assert_eq!(chosen, [(1, NEAR, vec![at(0)])], "one in a second; there is no room in c");
        // Two that have their share of each other's exchange them.
        let mut all = shares(9, "a", &[(9, "b"), (9, "c")]);
        assert_eq!(all.choose(proxies.clone()), [(1, NEAR, vec![at(0)])]);
        let mut all = shares(9, "a", &[(10, "b"), (8, "")]);
        assert_eq!(all.choose(proxies.clone()), []);
        // Of more than a share those go first who are far.
        let mut all = shares(9, "a", &[(1, "d"), (2, "")]);
        assert_eq!(all.choose(proxies.clone()), [(1, SHARE, vec![at(0), at(1)])]);
        for (own, others) in [("a", [(0, "a"), (0, "a")]), ("", [(0, ""), (9, "b")]), ("a", [(10, "b"), (0, "")])] {
            let mut all = shares(8, own, &others);
            assert!(all.choose(proxies.clone().take(8)).iter().all(|(_, why, _)| *why != NEAR), "{own} {others:?}");
        }
        assert_eq!(in_zone(&shares(0, "a", &[(1, "b"), (9, "c"), (1, "b")]).others, "b"), [at(0), at(2)]);
        assert_eq!(in_zone(&shares(0, "a", &[(1, ""), (9, "c")]).others, ""), []);
    }

    #[test]
    fn we_are_where_we_were_told_or_where_our_pod_is() {
        let ip = Some([10, 0, 0, 1].into());
        for (said, ip, expected) in [(Some("a"), ip, "a"), (None, ip, "b"), (None, None, "")] {
            assert_eq!(zone(&Place { zone: said.map(str::to_owned), ip }, |_| "b"), expected);
        }
    }

    /// Replicas with the zones of their proxies; who moves goes to the first that was named, or anywhere else if `lost`.
    fn step(replicas: &mut [(&str, Vec<&str>)], lost: bool) -> usize {
        let mut moved = 0;
        for one in 0..replicas.len() {
            let others: Vec<usize> = (0..replicas.len()).filter(|other| *other != one).collect();
            let sizes: Vec<_> = others.iter().map(|other| (replicas[*other].1.len(), replicas[*other].0)).collect();
            let mut shares = shares(replicas[one].1.len(), replicas[one].0, &sizes);
            let chosen = shares.choose(replicas[one].1.clone().into_iter().enumerate());
            moved += chosen.len();
            let mut gone: Vec<_> = chosen.into_iter().map(|(proxy, _, to)| (proxy, to)).collect();
            gone.sort_by_key(|(proxy, _)| std::cmp::Reverse(*proxy));
            for (proxy, to) in gone {
                let zone = replicas[one].1.remove(proxy);
                let to = (0..others.len()).find(|other| at(*other) == to[0]).unwrap();
                let to = if lost { (to + proxy) % others.len() } else { to };
                replicas[others[to]].1.push(zone);
            }
        }
        moved
    }

    #[test]
    fn a_mesh_of_any_size_comes_to_rest_near_and_in_shares() {
        for all in [1_usize, 2, 3, 5, 10, 100, 999] {
            for zones in [[""; 3], ["a"; 3], ["a", "b", "c"], ["a", "a", "b"]] {
                // Where nobody is near, who moves may go anywhere.
                for lost in [false, zones[0].is_empty()] {
                    let proxies = (0..all).map(|proxy| zones[proxy % 3]).collect::<Vec<_>>();
                    let mut replicas = [("a", proxies), ("b", Vec::new()), ("c", Vec::new())];
                    let mut last = 1;
                    for _ in 0..2000 {
                        last = step(&mut replicas, lost);
                    }
                    let most = replicas.iter().map(|(_, proxies)| proxies.len()).max().unwrap();
                    assert!(most <= all.div_ceil(3) + (all / 30).max(1), "{replicas:?}");
                    if lost {
                        continue;
                    }
                    assert_eq!(last, 0, "nobody goes to and fro: {replicas:?}");
                    let near: usize =
                        replicas.iter().map(|(at, of)| of.iter().filter(|zone| *zone == at).count()).sum();
                    // What a zone has more than a share is elsewhere.
                    let fit: usize = ["a", "b", "c"]
                        .map(|zone| zones.iter().filter(|other| **other == zone).count() * all / 3)
                        .iter()
                        .map(|many| (*many).min(all / 3))
                        .sum();
                    assert!(near + 3 + all / 10 >= fit, "{near} of {fit} are near: {all} {zones:?}");
                }
            }
        }
    }
}
