//! What is counted while traffic flows: clients write lines, the view and the checks read.
//!
//! Invariants: an interval that a client reports counts in the phase that runs when its line comes (a client reports each tenth of a
//! second, so at most that is told late); space is bounded by flows times phases.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::app::client::tally::Tally;

use super::shop::Flow;

/// What the demo does to the shop, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseName {
    /// Nothing.
    Steady,
    /// A policy file is edited, and edited back.
    PolicyEdit,
    /// A pod dies by SIGKILL.
    KillEndpoint,
    /// Control dies by SIGKILL.
    KillControl,
}

impl PhaseName {
    /// In the order in which they run.
    pub const ALL: [Self; 4] = [Self::Steady, Self::PolicyEdit, Self::KillEndpoint, Self::KillControl];

    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::PolicyEdit => "policy_edit",
            Self::KillEndpoint => "kill_endpoint",
            Self::KillControl => "kill_control",
        }
    }
}

/// A phase that has begun.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Which.
    pub name: PhaseName,
    /// Since traffic began.
    pub start: Duration,
    /// What each flow did in it, in the order of the flows.
    pub flows: Vec<Tally>,
}

/// Seconds over which the view says how fast and how slow.
const WINDOW: usize = 3;

/// One flow's counts.
#[derive(Clone, Debug)]
pub struct Lane {
    /// The flow.
    pub flow: Flow,
    /// Since traffic began.
    pub total: Tally,
    /// The last seconds, the newest last.
    recent: VecDeque<Tally>,
    /// When its first and its last line came, since traffic began.
    pub span: Option<(Duration, Duration)>,
    /// The last answer of the server that says "let through" and the last that says "denied", since traffic began.
    pub last_ok: Option<Duration>,
    /// See `last_ok`.
    pub last_denied: Option<Duration>,
    /// Connections that the servers' sidecars counted: with a verified peer, and all. For flows whose servers say nothing.
    pub at_server: (u64, u64),
}

impl Lane {
    /// Requests a second and the latencies of the last seconds.
    pub fn recent(&self) -> (f64, Tally) {
        let mut sum = Tally::default();
        for tally in &self.recent {
            sum.add(tally);
        }
        let seconds = self.recent.len().clamp(1, WINDOW);
        (sum.sent as f64 / seconds as f64, sum)
    }

    /// Of what was served, the share whose peer was verified at the server: 1.0 is all. `None` if nothing could be verified.
    pub fn mtls_share(&self) -> Option<f64> {
        let (verified, all) = if self.seen_by_app() {
            let who = format!("URI=spiffe://cluster.local/ns/{}", self.flow.client().replace('/', "/sa/"));
            let verified = |seen: &str| seen.split([';', ',']).any(|field| field == who);
            let verified = self.total.seen.iter().filter(|(seen, _)| verified(seen)).map(|(_, count)| count).sum();
            (verified, self.total.ok)
        } else {
            self.at_server
        };
        (all > 0).then(|| verified as f64 / all as f64)
    }

    /// Whether the application itself says which peer it was shown. Else the sidecar's counters do.
    pub fn seen_by_app(&self) -> bool {
        self.flow.is_http() && self.total.ok > 0
    }
}

/// All counts.
#[derive(Clone, Debug)]
pub struct Board {
    /// When traffic began.
    start: Instant,
    /// The flows.
    pub lanes: Vec<Lane>,
    /// The phases that have begun.
    pub phases: Vec<Phase>,
    /// What happened, for people: time since traffic began, and a sentence. Bounded.
    pub events: VecDeque<(Duration, String)>,
    second: u64,
}

/// Events kept for the view.
const MAX_EVENTS: usize = 6;
/// Phases kept: without an end, old ones are dropped.
const MAX_PHASES: usize = 64;

impl Board {
    /// Traffic begins now, in the steady phase.
    pub fn new(flows: Vec<Flow>, start: Instant) -> Self {
        let lanes = flows
            .into_iter()
            .map(|flow| Lane {
                flow,
                total: Tally::default(),
                recent: VecDeque::from([Tally::default()]),
                span: None,
                last_ok: None,
                last_denied: None,
                at_server: (0, 0),
            })
            .collect::<Vec<_>>();
        let mut board = Self { start, lanes, phases: Vec::new(), events: VecDeque::new(), second: 0 };
        board.begin(PhaseName::Steady, start);
        board
    }

    /// Time since traffic began.
    pub fn at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }

    /// Begins a phase.
    pub fn begin(&mut self, name: PhaseName, now: Instant) {
        if self.phases.len() >= MAX_PHASES {
            self.phases.remove(0);
        }
        let flows = vec![Tally::default(); self.lanes.len()];
        self.phases.push(Phase { name, start: self.at(now), flows });
    }

    /// Notes what happened.
    pub fn note(&mut self, text: impl Into<String>, now: Instant) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back((self.at(now), text.into()));
    }

    /// Counts an interval of the flow `index`.
    pub fn count(&mut self, index: usize, tally: &Tally, now: Instant) {
        let at = self.at(now);
        let turned = at.as_secs().saturating_sub(self.second);
        self.second = self.second.max(at.as_secs());
        for lane in &mut self.lanes {
            for _ in 0..turned.min(WINDOW as u64) {
                if lane.recent.len() >= WINDOW {
                    lane.recent.pop_front();
                }
                lane.recent.push_back(Tally::default());
            }
        }
        let Some(lane) = self.lanes.get_mut(index) else { return };
        lane.total.add(tally);
        if let Some(recent) = lane.recent.back_mut() {
            recent.add(tally);
        }
        lane.span = Some(lane.span.map_or((at, at), |(first, _)| (first, at)));
        if tally.ok > 0 {
            lane.last_ok = Some(at);
        }
        if tally.denied > 0 {
            lane.last_denied = Some(at);
        }
        if let Some(counted) = self.phases.last_mut().and_then(|phase| phase.flows.get_mut(index)) {
            counted.add(tally);
        }
    }

    /// The lane of a flow.
    pub fn lane(&self, name: &str) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.flow.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shop;
    use super::*;

    #[test]
    fn an_interval_counts_once_in_its_phase() {
        let start = Instant::now();
        let mut board = Board::new(shop::flows(20.0), start);
        let tally = Tally { sent: 3, ok: 2, failed: 1, ..Tally::default() };
        board.count(1, &tally, start + Duration::from_millis(100));
        board.begin(PhaseName::KillControl, start + Duration::from_secs(5));
        board.count(1, &tally, start + Duration::from_secs(6));
        assert_eq!(board.lanes[1].total.sent, 6);
        assert_eq!(board.phases[0].flows[1].failed, 1);
        assert_eq!(board.phases[1].flows[1].sent, 3);
        assert_eq!(board.phases[1].start, Duration::from_secs(5));
        assert_eq!(board.lanes[1].recent().1.sent, 3, "the first second is out of the window");
    }

    #[test]
    fn a_share_counts_the_right_peer_only() {
        let mut lane = Board::new(shop::flows(20.0), Instant::now()).lanes[0].clone();
        lane.total.ok = 4;
        let seen = [
            ("By=spiffe://cluster.local/ns/shop/sa/catalog;URI=spiffe://cluster.local/ns/shop/sa/web", 1),
            ("By=spiffe://cluster.local/ns/shop/sa/catalog;URI=spiffe://cluster.local/ns/shop/sa/web2", 1),
            ("", 2),
        ];
        lane.total.seen = seen.map(|(seen, count)| (seen.to_owned(), count)).into();
        assert_eq!(lane.mtls_share(), Some(0.25));
    }
}
