//! How many connections each source address has open to our application, so that one client cannot take all the room there is.
//!
//! Invariants
//! - The table holds open connections and nothing else: an address without one is forgotten. It is as bounded as they are.
//! - A host of IPv6 has a whole /64 to call from: that counts as one source.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Open connections by source; clones share it.
#[derive(Clone, Debug)]
pub struct Sources {
    // Held for the time of one look-up, once when a connection is accepted and once when it ends.
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    max: usize,
}

/// One open connection of a source; it counts until it is dropped.
#[derive(Debug)]
pub struct Place {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    source: IpAddr,
}

impl Sources {
    /// At most `max` connections of each.
    pub fn new(max: usize) -> Self {
        Self { open: Arc::default(), max }
    }

    /// A place for one more; `None` if the source has its fill.
    pub fn take(&self, client: IpAddr) -> Option<Place> {
        let source = source_of(client);
        let mut open = self.open.lock();
        let count = open.entry(source).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        drop(open);
        Some(Place { open: Arc::clone(&self.open), source })
    }

    /// Sources with open connections.
    pub fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.open.lock().entry(self.source) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

fn source_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        ip @ IpAddr::V4(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_fill_and_is_forgotten() {
        let sources = Sources::new(2);
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let first = sources.take(one).unwrap();
        let _second = sources.take(one).unwrap();
        assert!(sources.take(one).is_none());
        assert!(sources.take("::ffff:10.0.0.1".parse().unwrap()).is_none());
        assert!(sources.take(other).is_some());
        assert_eq!(sources.len(), 1, "the other's connection has ended");
        drop(first);
        assert!(sources.take(one).is_some());
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let sources = Sources::new(1);
        let at = |text: &str| text.parse().unwrap();
        let place = sources.take(at("2001:db8:0:1::1"));
        assert!(place.is_some());
        assert!(sources.take(at("2001:db8:0:1:ffff::2")).is_none());
        assert!(sources.take(at("2001:db8:0:2::1")).is_some());
        drop(place);
        assert!(sources.is_empty());
    }

    #[test]
    fn none_at_all_may_be_said() {
        let sources = Sources::new(0);
        assert!(sources.take("10.0.0.1".parse().unwrap()).is_none());
    }
}
