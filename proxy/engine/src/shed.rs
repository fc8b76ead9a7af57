//! When a proxy sheds load because of the memory that it holds: new work is refused, so that what runs can go on.
//!
//! Invariants
//! - It begins at the budget, not before it; it ends below nine tenths of it, so that it does not flutter.
//! - It ends even if the memory does not come back: an allocator keeps what it was given, and refusing on its account would be for ever.
//!   Where nothing is in flight, or less than the budget is used, for [`SETTLE`], work is taken again; above the budget only up to
//!   [`ceiling`] until what is used has once been below the budget again.

use std::time::Duration;

/// How long calm must last inside the band, or with nothing in flight, before work is taken again.
pub const SETTLE: Duration = Duration::from_secs(10);

/// The share of a limit that is taken for a budget where nobody has said one: the rest is for what the kernel holds for us (sockets,
/// page tables), which counts against the limit and not in what we measure.
pub const fn default_budget(limit: u64) -> u64 {
    limit / 100 * 85
}

/// The most that may be used with work still taken.
pub const fn ceiling(budget: u64) -> u64 {
    budget.saturating_add(budget / 10)
}

/// The state of shedding.
#[derive(Clone, Debug)]
pub struct Shedder {
    budget: u64,
    // Where shedding begins: the budget, or the ceiling.
    begins_at: u64,
    shedding: bool,
    quiet_since: Option<Duration>,
}

impl Shedder {
    /// One with this budget in bytes, which sheds nothing yet.
    pub const fn new(budget: u64) -> Self {
        Self { budget, begins_at: budget, shedding: false, quiet_since: None }
    }

    /// Takes a sample: bytes that are used at the time `now`, and whether nothing is in flight. Says whether to shed from now on.
    pub fn observe(&mut self, now: Duration, used: u64, idle: bool) -> bool {
        if used < self.budget {
            self.begins_at = self.budget;
        }
        if !self.shedding {
            self.shedding = used >= self.begins_at;
            self.quiet_since = None;
            return self.shedding;
        }
        let quiet = used < self.budget || (idle && used < ceiling(self.budget));
        self.quiet_since = quiet.then(|| self.quiet_since.unwrap_or(now));
        let settled = self.quiet_since.is_some_and(|since| now.saturating_sub(since) >= SETTLE);
        if used < self.budget / 10 * 9 || settled {
            self.shedding = false;
            if used >= self.budget {
                self.begins_at = ceiling(self.budget);
            }
        }
        self.shedding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // (second, used, idle) -> sheds, with a budget of 1000.
    fn table(name: &str, rows: &[((u64, u64, bool), bool)]) {
        let mut shedder = Shedder::new(1000);
        for ((second, used, idle), sheds) in rows {
            let got = shedder.observe(Duration::from_secs(*second), *used, *idle);
            assert_eq!(got, *sheds, "{name}: {used} at {second} s, idle {idle}");
        }
    }

    #[test]
    fn it_begins_at_the_budget_and_ends_well_below() {
        table(
            "band",
            &[
                ((0, 999, false), false),
                ((1, 1000, false), true),
                ((2, 950, false), true),
                ((3, 900, false), true),
                ((4, 899, false), false),
                ((5, 950, false), false),
                ((6, 1500, true), true),
            ],
        );
    }

    #[test]
    fn what_the_allocator_keeps_is_not_shed_for_ever() {
        table(
            "below the budget for ten seconds",
            &[
                ((0, 1000, false), true),
                ((1, 950, false), true),
                ((10, 950, false), true),
                ((11, 950, false), false),
                ((12, 999, false), false),
                ((13, 1000, false), true),
            ],
        );
        table(
            "above it, but nothing is in flight",
            &[
                ((0, 1050, false), true),
                ((1, 1050, true), true),
                ((11, 1050, true), false),
                // From here on up to the ceiling, until the memory has once come back.
                ((12, 1099, false), false),
                ((13, 1100, false), true),
                ((14, 800, false), false),
                ((15, 1000, false), true),
            ],
        );
    }

    #[test]
    fn calm_must_last() {
        table(
            "interrupted",
            &[
                ((0, 1050, false), true),
                ((1, 950, false), true),
                ((9, 1050, false), true),
                ((12, 950, false), true),
                ((21, 950, false), true),
                ((22, 950, false), false),
            ],
        );
        table("idle above the ceiling", &[((0, 1200, true), true), ((60, 1200, true), true), ((61, 899, true), false)]);
    }

    #[test]
    fn budgets_leave_room_for_the_kernel() {
        assert_eq!(default_budget(100 << 20), (100 << 20) / 100 * 85);
        assert!(ceiling(default_budget(100 << 20)) < 100 << 20);
        assert_eq!(ceiling(u64::MAX), u64::MAX);
    }
}
