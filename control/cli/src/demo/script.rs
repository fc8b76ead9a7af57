//! When the demo does what: plain data and time, no process.

use std::time::Duration;

use super::board::PhaseName;

/// One round of the script when it runs without an end.
pub const ROUND: Duration = Duration::from_mins(1);

/// What to do to the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A phase begins.
    Begin(PhaseName),
    /// Give the auditor the right to read.
    GiveRight,
    /// Take it back.
    TakeRight,
    /// Kill the endpoint.
    KillPod,
    /// Start it again.
    RevivePod,
    /// Kill control.
    KillControl,
    /// Start it again.
    ReviveControl,
}

/// Parts of a round at which each thing happens.
const ROUND_SCRIPT: &[(f64, Action)] = &[
    (0.35, Action::Begin(PhaseName::PolicyEdit)),
    (0.35, Action::GiveRight),
    (0.48, Action::TakeRight),
    (0.60, Action::Begin(PhaseName::KillEndpoint)),
    (0.60, Action::KillPod),
    (0.80, Action::Begin(PhaseName::KillControl)),
    (0.80, Action::KillControl),
];
/// What follows a round, before the next.
const MEND: &[Action] = &[Action::ReviveControl, Action::RevivePod, Action::Begin(PhaseName::Steady)];

/// The actions still to come.
#[derive(Clone, Debug)]
pub struct Script {
    round: Duration,
    endless: bool,
    start: Duration,
    next: usize,
}

impl Script {
    /// One round over all of `length`, or rounds without an end.
    pub fn new(length: Option<Duration>) -> Self {
        Self { round: length.unwrap_or(ROUND), endless: length.is_none(), start: Duration::ZERO, next: 0 }
    }

    /// The actions that are due at this time since traffic began.
    pub fn due(&mut self, at: Duration) -> Vec<Action> {
        let mut due = Vec::new();
        while let Some((part, action)) = ROUND_SCRIPT.get(self.next) {
            if at < self.start + self.round.mul_f64(*part) {
                break;
            }
            due.push(*action);
            self.next += 1;
        }
        if self.endless && at >= self.start + self.round {
            due.extend(MEND);
            self.start += self.round;
            self.next = 0;
        }
        due
    }

    /// The time that is left; `None` without an end.
    pub fn left(&self, at: Duration) -> Option<Duration> {
        (!self.endless).then(|| self.round.saturating_sub(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_does_everything_once() {
        let mut script = Script::new(Some(Duration::from_secs(20)));
        let mut done = Vec::new();
        for tenth in 0..200 {
            done.extend(script.due(Duration::from_millis(tenth * 100)));
        }
        assert_eq!(done, ROUND_SCRIPT.iter().map(|(_, action)| *action).collect::<Vec<_>>());
        assert_eq!(script.left(Duration::from_secs(20)), Some(Duration::ZERO));
    }

    #[test]
    fn rounds_repeat_and_mend() {
        let mut script = Script::new(None);
        let mut done = Vec::new();
        for second in 0..=121 {
            done.extend(script.due(Duration::from_secs(second)));
        }
        let count = |wanted| done.iter().filter(|action| **action == wanted).count();
        assert_eq!((count(Action::KillPod), count(Action::RevivePod), count(Action::ReviveControl)), (2, 2, 2));
    }
}
