//! The choice: two draws by weight among the near ones, the cheaper one wins; if none of those is fit, among all.

use std::ops::Deref;
use std::time::Duration;

use super::load::Load;

/// An endpoint that can be chosen.
pub trait Candidate {
    /// What was learnt of it.
    fn load(&self) -> &Load;
    /// Its share, relative to the others'; 0 counts as 1.
    fn weight(&self) -> u32;
    /// Leaving: chosen only if nothing better is left.
    fn draining(&self) -> bool;
}

/// Members looked at for one choice. Smaller sets are looked at whole, so that weights are exact; of larger ones so many are drawn.
const WINDOW: usize = 16;
/// Of two candidates the second draw wins only if the first costs this much more: noise in the estimates shall not
/// override weights, nor send all idle traffic to one of two equals.
const CLEARLY: f64 = 1.2;

/// How the members of a set are to be chosen from: see [`super::arrange`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// The first so many are preferred; none: all are alike.
    pub near: usize,
    /// The first that is fit is taken, whatever its load.
    pub sticky: bool,
}

/// Chooses a member, by weight and load. `random` is uniform over all of `u64`.
///
/// Members named in `tried` (indexes of earlier attempts in the same slice) are never chosen: `None` means that none is left, or that
/// there are no members. A caller that may try the same endpoint again passes fewer.
pub fn choose<C: Candidate>(
    members: &[impl Deref<Target = C>],
    order: Order,
    now: Duration,
    random: u64,
    tried: &[usize],
) -> Option<usize> {
    let mut random = Draws(random);
    let fit = |index: usize| {
        let member = &*members[index];
        !tried.contains(&index) && !member.draining() && member.load().usable(now)
    };
    if order.sticky {
        let first = (0..members.len()).find(|&index| fit(index) && members[index].load().claim(now));
        return first.or_else(|| last_resort(members, now, &mut random, tried));
    }
    let near = &members[..order.near.min(members.len())];
    let nearby = if near.is_empty() { None } else { draw(near, now, &mut random, fit) };
    nearby.or_else(|| draw(members, now, &mut random, fit)).or_else(|| last_resort(members, now, &mut random, tried))
}

fn draw<C: Candidate>(
    members: &[impl Deref<Target = C>],
    now: Duration,
    random: &mut Draws,
    fit: impl Fn(usize) -> bool,
) -> Option<usize> {
    let mut window = Window::draw(members, random, fit);
    // Two candidates, and a third if the winner's only probe has just been given to another request.
    let mut first = window.take(random);
    while let Some(one) = first {
        let second = window.take(random);
        let (winner, loser) = match second {
            Some(other) if cost(members, other, now) * CLEARLY < cost(members, one, now) => (other, Some(one)),
            other => (one, other),
        };
        if members[winner].load().claim(now) {
            return Some(winner);
        }
        first = loser;
    }
    None
}

fn cost<C: Candidate>(members: &[impl Deref<Target = C>], index: usize, now: Duration) -> f64 {
    let member = &*members[index];
    member.load().cost(now, member.weight())
}

/// Nothing fit was drawn: the first from a random place on, the best kind there is. Linear, but only when most members are unfit.
fn last_resort<C: Candidate>(
    members: &[impl Deref<Target = C>],
    now: Duration,
    random: &mut Draws,
    tried: &[usize],
) -> Option<usize> {
    let start = random.below(members.len() as u64) as usize;
    (start..members.len()).chain(0..start).filter(|index| !tried.contains(index)).min_by_key(|&index| {
        let member = &*members[index];
        (!member.load().usable(now), member.draining())
    })
}

/// The members that one choice is made from, with what is left of their weights.
struct Window {
    entries: [(u32, u32); WINDOW],
    len: usize,
    sum: u64,
}

impl Window {
    fn draw<C: Candidate>(members: &[impl Deref<Target = C>], random: &mut Draws, fit: impl Fn(usize) -> bool) -> Self {
        let mut window = Self { entries: [(0, 0); WINDOW], len: 0, sum: 0 };
        for place in 0..members.len().min(WINDOW) {
            let index = if members.len() <= WINDOW { place } else { random.below(members.len() as u64) as usize };
            let repeated = members.len() > WINDOW && window.entries[..window.len].iter().any(|e| e.0 as usize == index);
            if repeated || !fit(index) {
                continue;
            }
            let weight = members[index].weight().max(1);
            window.entries[window.len] = (index as u32, weight);
            window.len += 1;
            window.sum += u64::from(weight);
        }
        window
    }

    /// Draws one by weight and takes it out.
    fn take(&mut self, random: &mut Draws) -> Option<usize> {
        let mut at = random.below(self.sum);
        for entry in &mut self.entries[..self.len] {
            let weight = u64::from(entry.1);
            if at < weight {
                self.sum -= weight;
                entry.1 = 0;
                return Some(entry.0 as usize);
            }
            at -= weight;
        }
        None
    }
}

/// Further draws from one drawn number (splitmix64, Steele et al. 2014).
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..bound`; 0 if the bound is 0.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}
