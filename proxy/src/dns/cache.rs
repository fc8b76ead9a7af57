//! Answers, for as long as they say; and for [`STALE`] beyond that, to be used while no name server answers (RFC 8767).
//!
//! Time is an argument. Bound: [`MAX_ENTRIES`] names and types; the one that is nearest to its end makes room.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

/// Names and types at most.
pub const MAX_ENTRIES: usize = 4096;
/// Records of one answer that are kept; a longer one is asked for each time.
pub const MAX_RECORDS: usize = 128;
/// How long an answer may be used beyond its time.
pub const STALE: Duration = Duration::from_mins(10);
/// What a stale answer says of its time, in seconds.
pub const STALE_TTL: u32 = 5;
/// Longest times that are believed, in seconds: of what is there, and of what is not.
const LONGEST: u32 = 3600;
const LONGEST_NEGATIVE: u32 = 60;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// In small letters.
    pub name: Name,
    /// Type; the class is IN.
    pub kind: RecordType,
    /// Whether signatures are wanted.
    pub dnssec: bool,
}

/// What a name server said.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Also NXDOMAIN.
    pub code: ResponseCode,
    /// The answer section.
    pub records: Vec<Record>,
    /// The authority section, of an answer that names nothing.
    pub authority: Vec<Record>,
}

impl Answer {
    /// That nobody could be asked.
    pub fn failure() -> Self {
        Self { code: ResponseCode::ServFail, records: Vec::new(), authority: Vec::new() }
    }

    /// For how many seconds it may be kept; `None`: not at all.
    pub fn lifetime(&self) -> Option<u32> {
        let known = matches!(self.code, ResponseCode::NoError | ResponseCode::NXDomain);
        if !known || self.records.len() + self.authority.len() > MAX_RECORDS {
            return None;
        }
        let least = self.records.iter().map(|record| record.ttl).min();
        // A chain of names that ends in nothing is negative too, for the time of the zone's SOA (RFC 2308).
        let soa = self.authority.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum).min(LONGEST_NEGATIVE)),
            _ => None,
        });
        let seconds = match (least, soa) {
            (Some(least), Some(soa)) => least.min(soa),
            (Some(least), None) if self.code == ResponseCode::NoError => least.min(LONGEST),
            (None, Some(soa)) => soa,
            _ => return None,
        };
        (seconds > 0).then_some(seconds)
    }

    /// With all times no longer than this.
    #[must_use]
    pub fn within(&self, seconds: u32) -> Self {
        let shorten = |records: &[Record]| {
            records
                .iter()
                .cloned()
                .map(|mut record| {
                    record.ttl = record.ttl.min(seconds);
                    record
                })
                .collect()
        };
        Self { code: self.code, records: shorten(&self.records), authority: shorten(&self.authority) }
    }
}

struct Entry {
    answer: Arc<Answer>,
    until: Instant,
}

/// What the cache has.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// Within its time, which is what it says.
    Fresh(Answer),
    /// Beyond it, for use if nobody answers.
    Stale(Answer),
    /// None.
    Nothing,
}

/// The cache.
#[derive(Default)]
pub struct Cache(HashMap<Key, Entry>);

impl Cache {
    /// What there is.
    pub fn get(&self, key: &Key, now: Instant) -> Found {
        let Some(entry) = self.0.get(key) else { return Found::Nothing };
        let left = entry.until.saturating_duration_since(now);
        if !left.is_zero() {
            return Found::Fresh(entry.answer.within(left.as_secs().max(1) as u32));
        }
        if now < entry.until + STALE { Found::Stale(entry.answer.within(STALE_TTL)) } else { Found::Nothing }
    }

    /// Keeps an answer for as long as it says.
    pub fn put(&mut self, key: Key, answer: Arc<Answer>, now: Instant) {
        let Some(seconds) = answer.lifetime() else { return };
        if self.0.len() >= MAX_ENTRIES && !self.0.contains_key(&key) {
            self.0.retain(|_, entry| now < entry.until + STALE);
            // Still full: the nearest to its end goes.
            if self.0.len() >= MAX_ENTRIES
                && let Some(first) = self.0.iter().min_by_key(|(_, entry)| entry.until).map(|(key, _)| key.clone())
            {
                self.0.remove(&first);
            }
        }
        self.0.insert(key, Entry { answer, until: now + Duration::from_secs(seconds.into()) });
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None are.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
