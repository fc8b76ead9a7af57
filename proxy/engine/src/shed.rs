//! When a proxy sheds load because of the memory that it holds: new work is refused, so that what runs can go on.
//!
//! Invariants
//! - It begins at the budget, not before it; it ends below nine tenths of it, so that it does not flutter.
//! - It ends even if the memory does not come back: an allocator keeps what it was given, and refusing on its account would be for ever.
//!   Once most of the load is gone, or less than the budget is used, for [`SETTLE`], work is taken again; and after [`PATIENCE`] in any
//!   case that is below the [`ceiling`]. What was held above the budget is then borne with, and shedding begins a little above it.

use std::time::Duration;

/// How long calm must last before work is taken again.
pub const SETTLE: Duration = Duration::from_secs(10);
/// How long load that does not go may keep other work away: longer than any connection may take over its first request.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// So little load can hold no memory to speak of.
const FEW: usize = 64;

/// The share of a limit that is taken for a budget where nobody has said one: the rest is for what the kernel holds for us (sockets,
/// page tables), which counts against the limit and not in what we measure.
pub const fn default_budget(limit: u64) -> u64 {
    limit / 100 * 85
}

/// The most that may be used, with load that stays, and work still taken.
pub const fn ceiling(budget: u64) -> u64 {
    budget.saturating_add(budget / 10)
}

/// The state of shedding.
#[derive(Clone, Debug)]
pub struct Shedder {
    budget: u64,
    // Where shedding begins: the budget, or above what is borne with.
    begins_at: u64,
    shedding: Option<Shedding>,
}

#[derive(Clone, Copy, Debug)]
struct Shedding {
    since: Duration,
    quiet_since: Option<Duration>,
    // Of the time when it began.
    load: usize,
}

impl Shedder {
    /// One with this budget in bytes, which sheds nothing yet.
    pub const fn new(budget: u64) -> Self {
        Self { budget, begins_at: budget, shedding: None }
    }

    /// Takes a sample: bytes that are used at the time `now`, and the load, connections and requests together. Says whether to shed from
    /// now on.
    pub fn observe(&mut self, now: Duration, used: u64, load: usize) -> bool {
        if used < self.budget {
            self.begins_at = self.budget;
        }
        self.shedding = match self.shedding {
            None => (used >= self.begins_at).then_some(Shedding { since: now, quiet_since: None, load }),
            Some(_) if used < self.budget / 10 * 9 => None,
            Some(before) => self.go_on(before, now, used, load),
        };
        self.shedding.is_some()
    }

    fn go_on(&mut self, before: Shedding, now: Duration, used: u64, load: usize) -> Option<Shedding> {
        let quiet = used < self.budget || load <= FEW.max(before.load / 2);
        let quiet_since = quiet.then(|| before.quiet_since.unwrap_or(now));
        if quiet_since.is_some_and(|since| now.saturating_sub(since) >= SETTLE) {
            self.begins_at = self.budget.max(used.saturating_add(self.budget / 20));
            return None;
        }
        if now.saturating_sub(before.since) >= PATIENCE && used < ceiling(self.budget) {
            self.begins_at = ceiling(self.budget);
            return None;
        }
        Some(Shedding { quiet_since, ..before })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // (second, used, load) -> sheds, with a budget of 1000.
    fn table(name: &str, rows: &[((u64, u64, usize), bool)]) {
        let mut shedder = Shedder::new(1000);
        for ((second, used, load), sheds) in rows {
            let got = shedder.observe(Duration::from_secs(*second), *used, *load);
            assert_eq!(got, *sheds, "{name}: {used} at {second} s, load {load}");
        }
    }

    #[test]
    fn it_begins_at_the_budget_and_ends_well_below() {
        table(
            "band",
            &[
                ((0, 999, 500), false),
                ((1, 1000, 500), true),
                ((2, 950, 500), true),
                ((3, 900, 500), true),
                ((4, 899, 500), false),
                ((5, 950, 500), false),
                ((6, 1500, 0), true),
            ],
        );
    }

    #[test]
    fn what_the_allocator_keeps_is_not_shed_for_ever() {
        table(
            "below the budget for ten seconds",
            &[
                ((0, 1000, 500), true),
                ((1, 950, 500), true),
                ((10, 950, 500), true),
                ((11, 950, 500), false),
                ((12, 999, 500), false),
                ((13, 1000, 500), true),
            ],
        );
        table(
            "far above it, but most of the load is gone",
            &[
                ((0, 3000, 500), true),
                ((1, 3000, 251), true),
                ((2, 3000, 250), true),
                ((12, 3000, 250), false),
                // From here on a little more than what is kept, until it has once come back.
                ((13, 3049, 500), false),
                ((14, 3050, 500), true),
                ((15, 800, 500), false),
                ((16, 1000, 500), true),
            ],
        );
        table("few are no load", &[((0, 3000, 3), true), ((1, 3000, 64), true), ((11, 3000, 64), false)]);
    }

    #[test]
    fn load_that_stays_keeps_others_away_for_a_minute() {
        table(
            "below the ceiling",
            &[
                ((0, 1050, 500), true),
                ((59, 1050, 500), true),
                ((60, 1050, 500), false),
                ((61, 1099, 500), false),
                ((62, 1100, 500), true),
            ],
        );
        table(
            "above it",
            &[((0, 1200, 500), true), ((600, 1200, 500), true), ((601, 1099, 500), false), ((602, 1100, 500), true)],
        );
    }

    #[test]
    fn calm_must_last() {
        table(
            "interrupted",
            &[
                ((0, 1050, 500), true),
                ((1, 950, 500), true),
                ((9, 1050, 500), true),
                ((12, 950, 500), true),
                ((21, 950, 500), true),
                ((22, 950, 500), false),
            ],
        );
    }

    #[test]
    fn budgets_leave_room_for_the_kernel() {
        assert_eq!(default_budget(100 << 20), (100 << 20) / 100 * 85);
        assert!(ceiling(default_budget(100 << 20)) < 100 << 20);
        assert_eq!(ceiling(u64::MAX), u64::MAX);
    }
}
