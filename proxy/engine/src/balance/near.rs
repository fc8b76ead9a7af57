//! Which endpoints of a service a client uses, by where both are: the rules of kube-proxy, whose answers people know
//! (KEP-2086 internalTrafficPolicy, KEP-2433 and KEP-3015 hints).
//!
//! Invariants: hints count only if every endpoint that stays has one and some endpoint is for this client: else the client uses all, since
//! those for others have been counted on to carry others. A preferred endpoint that is unfit is passed over for one that is not
//! preferred ([`super::choose`]); with `node_local` there is no other.

use std::hash::Hasher as _;
use std::sync::Arc;

use super::choose::{Candidate, Order};

/// Where a proxy is. Empty: not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Name of its node.
    pub node: Arc<str>,
    /// Name of its zone.
    pub zone: Arc<str>,
}

/// What is said of an endpoint's place (EndpointSlice `nodeName` and `hints`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// The node that it runs on; empty if not known.
    pub node: Arc<str>,
    /// Clients on these nodes are to prefer it.
    pub for_nodes: Vec<Arc<str>>,
    /// Clients in these zones are to prefer it.
    pub for_zones: Vec<Arc<str>>,
}

/// What a service says of its endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// `internalTrafficPolicy: Local`: endpoints of the client's own node only.
    pub node_local: bool,
    /// `sessionAffinity: ClientIP`: one client keeps to one endpoint.
    pub sticky: bool,
}

/// An endpoint that stands somewhere.
pub trait Placed: Candidate {
    /// Its name, the same for all clients.
    fn name(&self) -> &str;
    /// Where, and for whom.
    fn hints(&self) -> &Hints;
}

/// Puts the members that a client at `place` uses into the order in which [`super::choose`] wants them, and takes the others out. `client` is
/// any name that stays the same for as long as the client does.
pub fn arrange<C: Placed>(members: &mut Vec<Arc<C>>, place: &Place, client: &str, spread: Spread) -> Order {
    if spread.node_local {
        members.retain(|member| !place.node.is_empty() && member.hints().node == place.node);
    }
    let preferred = if spread.node_local { None } else { preferred(members, place) };
    let is_near = |member: &C| preferred.is_none_or(|wanted| wanted.names(member.hints()));
    if spread.sticky {
        // Highest random weight (Thaler and Ravishankar 1998): of the others nobody moves when one comes or goes.
        members.sort_by_cached_key(|member| (!is_near(member), std::cmp::Reverse(rank(client, member.name()))));
    } else if preferred.is_some() {
        members.sort_by_cached_key(|member| !is_near(member));
    }
    let near = if preferred.is_some() { members.iter().take_while(|member| is_near(member)).count() } else { 0 };
    Order { near, sticky: spread.sticky }
}

/// Whose hints are looked for.
#[derive(Clone, Copy)]
enum Wanted<'p> {
    Node(&'p str),
    Zone(&'p str),
}

impl Wanted<'_> {
    fn names(self, hints: &Hints) -> bool {
        match self {
            Self::Node(node) => hints.for_nodes.iter().any(|one| **one == *node),
            Self::Zone(zone) => hints.for_zones.iter().any(|one| **one == *zone),
        }
    }

    fn all(self, hints: &Hints) -> bool {
        match self {
            Self::Node(_) => !hints.for_nodes.is_empty(),
            Self::Zone(_) => !hints.for_zones.is_empty(),
        }
    }
}

fn preferred<'p, C: Placed>(members: &[Arc<C>], place: &'p Place) -> Option<Wanted<'p>> {
    let stay = || members.iter().filter(|member| !member.draining()).map(|member| member.hints());
    let named = [(&place.node, Wanted::Node(&place.node)), (&place.zone, Wanted::Zone(&place.zone))];
    let mut known = named.into_iter().filter(|(name, _)| !name.is_empty()).map(|(_, wanted)| wanted);
    known.find(|wanted| stay().all(|hints| wanted.all(hints)) && stay().any(|hints| wanted.names(hints)))
}

// FNV-1a: the same in every build, so that a client keeps its endpoint when it is upgraded.
struct Fnv(u64);

impl std::hash::Hasher for Fnv {
    fn finish(&self) -> u64 {
        // Its high bits hardly depend on the last bytes: mixed once more (the end of MurmurHash3).
        let mixed = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ (mixed >> 33)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn rank(client: &str, endpoint: &str) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    hasher.write(client.as_bytes());
    hasher.write(&[0]);
    hasher.write(endpoint.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Load;
    use super::*;

    struct Member {
        name: String,
        hints: Hints,
        draining: bool,
        load: Load,
    }

    impl Candidate for Member {
        fn load(&self) -> &Load {
            &self.load
        }
        fn weight(&self) -> u32 {
            1
        }
        fn draining(&self) -> bool {
            self.draining
        }
    }

    impl Placed for Member {
        fn name(&self) -> &str {
            &self.name
        }
        fn hints(&self) -> &Hints {
            &self.hints
        }
    }

    fn names(text: &str) -> Vec<Arc<str>> {
        text.split_whitespace().map(Into::into).collect()
    }

    /// `NAME@NODE`, then nodes and zones that it is for, separated by bars; a `-` before the name: draining.
    fn members(rows: &[&str]) -> Vec<Arc<Member>> {
        let member = |row: &&str| {
            let mut parts = row.split('|');
            let head = parts.next().unwrap().trim();
            let (name, node) = head.trim_start_matches('-').split_once('@').unwrap();
            let (for_nodes, for_zones) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            let hints = Hints { node: node.into(), for_nodes: names(for_nodes), for_zones: names(for_zones) };
            let load = Load::new(Duration::ZERO);
            Arc::new(Member { name: name.to_owned(), hints, draining: head.starts_with('-'), load })
        };
        rows.iter().map(member).collect()
    }

    /// The near ones, a bar, and the others.
    fn arranged(rows: &[&str], place: (&str, &str), spread: Spread) -> String {
        let mut members = members(rows);
        let place = Place { node: place.0.into(), zone: place.1.into() };
        let order = arrange(&mut members, &place, "shop/web-0", spread);
        let text = |members: &[Arc<Member>]| members.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(" ");
        format!("{}|{}", text(&members[..order.near]), text(&members[order.near..]))
    }

    #[test]
    fn hints_count_if_all_have_them_and_one_is_for_us() {
        let zones = ["a@n1||z1", "b@n2||z2", "c@n3||z1 z2"];
        let nodes = ["a@n1|n1|z1", "b@n2|n2|z1", "c@n3|n3|z2"];
        for (rows, place, wanted) in [
            (&zones[..], ("n1", "z1"), "a c|b"),
            (&zones, ("n1", "z2"), "b c|a"),
            (&zones, ("n9", "z9"), "|a b c"),
            (&zones, ("", ""), "|a b c"),
            (&nodes, ("n1", "z1"), "a|b c"),
            (&nodes, ("n9", "z1"), "a b|c"),
            (&nodes, ("n9", "z9"), "|a b c"),
            // One without: those who prefer others have not been counted.
            (&["a@n1||z1", "b@n2"], ("n1", "z1"), "|a b"),
            // One that leaves has none any more.
            (&["a@n1||z1", "-b@n2"], ("n1", "z1"), "a|b"),
            (&["-a@n1||z1", "b@n2||z2"], ("n1", "z1"), "|a b"),
            (&[], ("n1", "z1"), "|"),
        ] {
            assert_eq!(arranged(rows, place, Spread::default()), wanted, "{rows:?} {place:?}");
        }
    }

    #[test]
    fn node_local_takes_the_others_out() {
        let spread = Spread { node_local: true, sticky: false };
        let rows = ["a@n1||z1", "b@n2||z1", "-c@n1"];
        for (place, wanted) in [(("n1", "z1"), "|a c"), (("n2", "z2"), "|b"), (("n3", "z1"), "|"), (("", "z1"), "|")] {
            assert_eq!(arranged(&rows, place, spread), wanted, "{place:?}");
        }
        assert_eq!(arranged(&["a@"], ("", ""), spread), "|", "that neither is known makes them no neighbours");
    }

    #[test]
    fn a_sticky_client_moves_only_if_its_endpoint_goes() {
        let spread = Spread { node_local: false, sticky: true };
        let name = |number: usize| format!("e{number}@n{number}");
        let rows: Vec<String> = (0..50).map(name).collect();
        let order = |rows: &[String], client: &str| {
            let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
            let mut members = members(&rows);
            assert!(arrange(&mut members, &Place::default(), client, spread).sticky);
            members.iter().map(|one| one.name.clone()).collect::<Vec<_>>()
        };
        let mut firsts = std::collections::BTreeMap::<String, usize>::new();
        for client in 0..1000 {
            let client = format!("shop/web-{client}");
            let all = order(&rows, &client);
            *firsts.entry(all[0].clone()).or_default() += 1;
            let fewer: Vec<String> = rows.iter().filter(|row| !row.starts_with("e7@")).cloned().collect();
            let without = order(&fewer, &client);
            assert_eq!(without[0], if all[0] == "e7" { &all[1] } else { &all[0] }.as_str());
        }
        assert!(firsts.len() == 50 && firsts.values().all(|share| (5..50).contains(share)), "{firsts:?}");
    }
}
