//! Which connections come to the sidecar.
//!
//! ```text
//! table inet weft
//!   output      what processes of the pod send
//!     to loopback                                    -> passes
//!     UDP to port 53, where DNS is captured          -> outbound
//!     not TCP                                        -> passes
//!     a check of these rules (SO_PRIORITY 5), over lo -> inbound
//!     the sidecar's own:
//!       SO_PRIORITY 6                                -> passes    (inbound side to the application)
//!       over lo, that is to the pod's own address    -> inbound   (a pod that calls itself meets its own policy)
//!       else                                         -> passes
//!     else                                           -> outbound
//!   outbound
//!     the sidecar's own DNS by UDP                   -> passes
//!     to an excluded range, or the metadata address  -> passes
//!     to port 53, where DNS is captured              -> redirect to the DNS port
//!     to an excluded port                            -> passes
//!     to a port and a range that are included        -> redirect to the outbound port
//!     else                                           -> passes
//!   prerouting  what comes to the pod
//!     over lo, or not TCP                            -> passes
//!     else                                           -> inbound
//!   inbound
//!     to a port of the sidecar or an excluded one    -> passes
//!     to a port that is included                     -> redirect to the inbound port
//!     else                                           -> passes
//! ```
//!
//! Where no port or range is named as included, all are. The sidecar's other ports (15000, 15001, 15006, 15053) are no exception: who calls
//! them from elsewhere meets the inbound side, whose own call to them the sidecar refuses.
//!
//! A kernel that was built without IPv6 has no tables of family `inet`: there, and only there, the table is `ip weft`.
//!
//! **Telling the sidecar's two sides apart.** When an application calls its own Service, the outbound side dials the pod's own
//! address, over lo: that must reach the inbound side. The inbound side then dials that same address and port, over lo again:
//! that must reach the application. Both have the sidecar's uid or mark. So the inbound side, and nobody else, gives the sockets
//! with which it calls the application the priority [`OWN_APP_PRIORITY`]: any process may set it (a second mark would need a
//! capability that a sidecar in a pod doesn't have), it is the same for IPv4 and IPv6, and source addresses stay as they are.

use crate::nfnetlink::{Batch, Error as KernelError, Family, Hook, table_exists};
use ipnet::IpNet;
use std::fmt::Write as _;

mod list;

pub use list::{takes_dns, takes_inbound, takes_outbound};

/// The one table that is ours.
pub const TABLE: &str = "weft";
/// `SO_PRIORITY` of the sockets with which the inbound side calls the application (`TC_PRIO_INTERACTIVE`, needs no capability).
pub const OWN_APP_PRIORITY: u32 = 6;
/// `SO_PRIORITY` of the sockets with which [`crate::validate`] calls the pod's own address as if it came from elsewhere. Whoever else
/// sets it meets the pod's own inbound policy.
pub const CHECK_PRIORITY: u32 = 5;
/// Ports of the sidecar that are reached directly: metrics, health, and the metrics port that Istio's scrapers know.
pub const SIDECAR_PORTS: [u16; 3] = [15020, 15021, 15090];
/// At most so many ports or ranges in one list.
pub const MAX_LISTED: usize = 64;

/// How the sidecar's own traffic is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclude {
    /// By `SO_MARK` on its sockets: where the sidecar has `CAP_NET_ADMIN`, as in the demo and the tests.
    Mark(u32),
    /// By the uid that it runs as: in a pod.
    Uid(u32),
}

/// What is captured in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// Where connections that the application opens go (convention: 15001).
    pub outbound_port: u16,
    /// Where connections to the application go (convention: 15006).
    pub inbound_port: u16,
    /// The sidecar's own traffic, which passes.
    pub exclude: Exclude,
    /// Ports of the pod that are captured; empty: all.
    pub include_inbound_ports: Vec<u16>,
    /// Ports of the pod that are reached directly.
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports elsewhere that are captured; empty: all.
    pub include_outbound_ports: Vec<u16>,
    /// Ports elsewhere that are called directly.
    pub exclude_outbound_ports: Vec<u16>,
    /// Addresses elsewhere that are captured; empty: all.
    pub include_cidrs: Vec<IpNet>,
    /// Addresses elsewhere that are called directly.
    pub exclude_cidrs: Vec<IpNet>,
    /// Where the application's DNS goes, if anywhere (convention: 15053).
    pub dns_port: Option<u16>,
}

impl Capture {
    /// Captures all on the conventional ports 15001 and 15006.
    pub fn new(exclude: Exclude) -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            exclude,
            include_inbound_ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            include_outbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            include_cidrs: Vec::new(),
            exclude_cidrs: Vec::new(),
            dns_port: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |text: String| Err(Error::Invalid(text));
        let ports = [Some(self.outbound_port), Some(self.inbound_port), self.dns_port];
        let mut taken: Vec<u16> = ports.into_iter().flatten().collect();
        taken.sort_unstable();
        if taken.first() == Some(&0) || taken.windows(2).any(|pair| pair[0] == pair[1]) {
            return invalid("the ports of the sidecar must differ, and none may be 0".to_owned());
        }
        match self.exclude {
            Exclude::Mark(0) => {
                return invalid("mark 0 is what every socket has: take another, such as 0x539".to_owned());
            }
            // Root's own processes would all pass by unseen.
            Exclude::Uid(0) => {
                return invalid("uid 0 cannot be told from other processes of root: take 1337".to_owned());
            }
            Exclude::Mark(_) | Exclude::Uid(_) => {}
        }
        for (what, ports) in [
            ("included inbound ports", &self.include_inbound_ports),
            ("excluded inbound ports", &self.exclude_inbound_ports),
            ("included outbound ports", &self.include_outbound_ports),
            ("excluded outbound ports", &self.exclude_outbound_ports),
        ] {
            if ports.contains(&0) {
                return invalid(format!("port 0 among the {what} is no port"));
            }
            if ports.len() > MAX_LISTED {
                return invalid(format!("{} {what}, at most {MAX_LISTED} are taken", ports.len()));
            }
        }
        for (what, ranges) in [("included ranges", &self.include_cidrs), ("excluded ranges", &self.exclude_cidrs)] {
            if ranges.len() > MAX_LISTED {
                return invalid(format!("{} {what}, at most {MAX_LISTED} are taken", ranges.len()));
            }
        }
        Ok(())
    }
}

/// Why rules could not be installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel said no.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// What was asked for makes no sense, or could not be read.
    #[error("network rules: {0}")]
    Invalid(String),
}

/// Installs the rules in the calling thread's network namespace, instead of those that were there before, in one step.
///
/// # Errors
/// If the kernel refuses, with the step it refused; the rules are then as they were.
pub fn install(capture: &Capture) -> Result<(), Error> {
    capture.check()?;
    Ok(in_the_family(|family| batch(capture, family).commit())?)
}

/// As [`install`], in a table of this family whatever the kernel has.
///
/// # Errors
/// As [`install`].
pub fn install_in(family: Family, capture: &Capture) -> Result<(), Error> {
    capture.check()?;
    Ok(batch(capture, family).commit()?)
}

fn batch(capture: &Capture, family: Family) -> Batch {
    let mut batch = Batch::new(family);
    // Adding first makes the deletion succeed whether or not there was a table.
    batch.add_table(TABLE);
    batch.delete_table(TABLE);
    batch.add_table(TABLE);
    for chain in [list::INBOUND, list::OUTBOUND, list::INCLUDED] {
        batch.add_chain(TABLE, chain);
    }
    batch.add_nat_chain(TABLE, list::OUTPUT, Hook::Output);
    batch.add_nat_chain(TABLE, list::PREROUTING, Hook::Prerouting);
    for rule in list::rules(capture, family) {
        batch.add_rule(TABLE, rule.chain, &rule.comment, &rule.exprs);
    }
    batch
}

/// Removes the rules from the calling thread's network namespace; that there are none is fine.
///
/// # Errors
/// If the kernel refuses; the rules are then as they were.
pub fn remove() -> Result<(), Error> {
    Ok(in_the_family(|family| {
        let mut batch = Batch::new(family);
        batch.add_table(TABLE);
        batch.delete_table(TABLE);
        batch.commit()
    })?)
}

/// Whether rules of ours are installed in the calling thread's network namespace.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn installed() -> Result<bool, Error> {
    Ok(in_the_family(|family| table_exists(family, TABLE))?)
}

// IPv4 alone only where the kernel knows nothing else.
fn in_the_family<T>(mut act: impl FnMut(Family) -> Result<T, KernelError>) -> Result<T, KernelError> {
    match act(Family::Inet) {
        Err(error) if error.no_such_family() => act(Family::Ipv4).map_err(|_| error),
        done => done,
    }
}

/// The rules in words, chain by chain, in the order in which they are tried.
pub fn describe(capture: &Capture) -> String {
    let mut out = String::new();
    let mut chain = "";
    for rule in list::rules(capture, Family::Inet) {
        if rule.chain != chain {
            chain = rule.chain;
            let _ = writeln!(out, "{chain}:");
        }
        let _ = writeln!(out, "  {}", rule.comment);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfnetlink::MAX_BATCH;

    #[test]
    fn what_cannot_work_is_refused_with_a_reason() {
        let refused = |capture: &Capture| capture.check().unwrap_err().to_string();
        assert!(refused(&Capture::new(Exclude::Mark(0))).contains("0x539"));
        assert!(refused(&Capture::new(Exclude::Uid(0))).contains("1337"));
        let same = Capture { inbound_port: 15001, ..Capture::new(Exclude::Mark(1)) };
        assert!(refused(&same).contains("must differ"));
        let same = Capture { dns_port: Some(15006), ..Capture::new(Exclude::Mark(1)) };
        assert!(refused(&same).contains("must differ"));
        let many = Capture { exclude_inbound_ports: vec![1; 65], ..Capture::new(Exclude::Mark(1)) };
        assert!(refused(&many).contains("at most 64"));
    }

    #[test]
    fn as_much_as_may_be_listed_fits_into_one_transaction() {
        let longest: IpNet = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().unwrap();
        let (ports, ranges) = (vec![65535; MAX_LISTED], vec![longest; MAX_LISTED]);
        let capture = Capture {
            include_inbound_ports: ports.clone(),
            exclude_inbound_ports: ports.clone(),
            include_outbound_ports: ports.clone(),
            exclude_outbound_ports: ports,
            include_cidrs: ranges.clone(),
            exclude_cidrs: ranges,
            dns_port: Some(15053),
            ..Capture::new(Exclude::Mark(1))
        };
        capture.check().unwrap();
        let size = batch(&capture, Family::Inet).size();
        assert!(size <= MAX_BATCH, "{size}");
    }
}
