//! Who holds a Lease, as seen from here, and what to do about it. Pure.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use tokio::time::Instant;

use super::Timing;

/// What a Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty: nobody.
    pub holder: String,
    /// For how long after it was written.
    pub lasts: Duration,
    /// Its `resourceVersion`: another one with each write.
    pub version: String,
}

impl From<&Lease> for Record {
    fn from(lease: &Lease) -> Self {
        let spec = lease.spec.as_ref();
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        Self {
            holder: spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default(),
            lasts: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
            version: lease.metadata.resource_version.clone().unwrap_or_default(),
        }
    }
}

/// A Lease, and since when it has been as it is, by our own clock.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// What it says.
    pub record: Record,
    since: Instant,
}

impl Sighting {
    /// Seen for the first time.
    pub fn new(record: Record, now: Instant) -> Self {
        Self { record, since: now }
    }

    /// Seen again. Another version means that it was renewed; since when is not known any better than from now on.
    pub fn see(&mut self, record: Record, now: Instant) {
        if self.record != record {
            *self = Self::new(record, now);
        }
    }

    /// Whether somebody holds it.
    pub fn is_held(&self, now: Instant) -> bool {
        !self.left(now).is_zero()
    }

    /// Whether nobody has held it for so long, nor touched it.
    pub fn is_forgotten(&self, after: Duration, now: Instant) -> bool {
        !self.is_held(now) && now.saturating_duration_since(self.since) >= self.record.lasts + after
    }

    /// For how long somebody holds it yet, if it is not renewed.
    pub fn left(&self, now: Instant) -> Duration {
        let lasts = if self.record.holder.is_empty() { Duration::ZERO } else { self.record.lasts };
        lasts.saturating_sub(now.saturating_duration_since(self.since))
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read it.
    Read,
    /// There is none: make it.
    Make,
    /// It is free: take it.
    Take,
    /// It is ours: write it again.
    Renew,
    /// Somebody else holds it.
    Wait,
}

/// One who wants to hold a Lease.
#[derive(Debug)]
pub struct Claim {
    me: String,
    timing: Timing,
    seen: Option<Sighting>,
    /// Until when it is ours.
    until: Option<Instant>,
}

impl Claim {
    /// Of somebody by this name, which nobody else has.
    pub fn new(me: String, timing: Timing) -> Self {
        Self { me, timing, seen: None, until: None }
    }

    /// Until when the Lease is ours, if nothing more happens.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// What to begin with: who holds it knows the version that it has written.
    pub fn next(&self, now: Instant) -> Step {
        let held = self.until.is_some_and(|until| now < until);
        if held { Step::Renew } else { Step::Read }
    }

    /// It was read. What to do then.
    pub fn found(&mut self, record: Option<Record>, now: Instant) -> Step {
        let Some(record) = record else {
            (self.seen, self.until) = (None, None);
            return Step::Make;
        };
        let seen = match &mut self.seen {
            Some(seen) => {
                seen.see(record, now);
                seen
            }
            none => none.insert(Sighting::new(record, now)),
        };
        if seen.record.holder == self.me {
            return Step::Renew;
        }
        // Somebody has taken it, or it was given to somebody by hand.
        self.until = None;
        if seen.is_held(now) { Step::Wait } else { Step::Take }
    }

    /// A write of ours that was sent at `sent` was done.
    pub fn written(&mut self, record: Record, sent: Instant) {
        self.until = (record.holder == self.me).then(|| sent + self.timing.deadline);
        self.seen = Some(Sighting::new(record, sent));
    }

    /// It is given back, or was not where it was looked for.
    pub fn forget(&mut self) {
        (self.seen, self.until) = (None, None);
    }

    /// How long until the next look, by a byte of chance: a little longer than [`Timing::every`], so that those who wait do not come together; or
    /// when another's time is over.
    pub fn pause(&self, now: Instant, chance: u8) -> Duration {
        let pause = self.timing.every + self.timing.every / 5 * u32::from(chance) / 256;
        let others = self.seen.as_ref().filter(|seen| seen.record.holder != self.me && seen.is_held(now));
        others.map_or(pause, |seen| pause.min(seen.left(now)))
    }
}
