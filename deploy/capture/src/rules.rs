//! Which connections come to the sidecar.
//!
//! ```text
//! table inet weft
//!   output      what processes of the pod send
//!     not TCP                                        -> passes
//!     the sidecar's own (mark or uid), SO_PRIORITY 6 -> passes    (inbound side to the application)
//!     to loopback                                    -> passes
//!     the sidecar's own:
//!       over lo, that is to the pod's own address    -> inbound   (a pod that calls itself meets its own policy)
//!       else                                         -> passes
//!     to an excluded port or range, or the metadata address -> passes
//!     else                                           -> redirect to the outbound port
//!   prerouting  what comes to the pod
//!     over lo, or not TCP                            -> passes
//!     else                                           -> inbound
//!   inbound
//!     to a port of the sidecar or an excluded one    -> passes
//!     else                                           -> redirect to the inbound port
//! ```
//!
//! **Telling the sidecar's two sides apart.** When an application calls its own Service, the outbound side dials the pod's own
//! address, over lo: that must reach the inbound side. The inbound side then dials that same address and port, over lo again:
//! that must reach the application. Both have the sidecar's uid or mark. So the inbound side, and nobody else, gives the sockets
//! with which it calls the application the priority [`OWN_APP_PRIORITY`]: any process may set it (a second mark would need a
//! capability that a sidecar in a pod doesn't have), it is the same for IPv4 and IPv6, and source addresses stay as they are.

use crate::nfnetlink::{Base, Batch, Error as KernelError, Expr, Hook, Meta, Verdict, table_exists};
use ipnet::IpNet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The one table that is ours.
pub const TABLE: &str = "weft";
/// `SO_PRIORITY` of the sockets with which the inbound side calls the application (`TC_PRIO_INTERACTIVE`, needs no capability).
pub const OWN_APP_PRIORITY: u32 = 6;
/// Ports of the sidecar that are reached directly: metrics, health, and the metrics port that Istio's scrapers know.
pub const SIDECAR_PORTS: [u16; 3] = [15020, 15021, 15090];
/// At most so many excluded ports or ranges of one kind.
pub const MAX_EXCLUDED: usize = 64;

/// The addresses at which clouds serve instance metadata; they answer only the node, so they pass by.
const METADATA: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];

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
    /// Ports of the pod that are reached directly.
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports elsewhere that are called directly.
    pub exclude_outbound_ports: Vec<u16>,
    /// Addresses elsewhere that are called directly.
    pub exclude_cidrs: Vec<IpNet>,
}

impl Capture {
    /// Captures all on the conventional ports 15001 and 15006.
    pub fn new(exclude: Exclude) -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            exclude,
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_cidrs: Vec::new(),
        }
    }
}

/// Why rules could not be installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel said no.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The request makes no sense.
    #[error("network rules: {0}")]
    Invalid(String),
}

/// Installs the rules in the calling thread's network namespace, instead of those that were there before, in one step.
///
/// # Errors
/// If the kernel refuses, with the step it refused; the rules are then as they were.
pub fn install(capture: &Capture) -> Result<(), Error> {
    check(capture)?;
    let mut batch = Batch::new();
    // Adding first makes the deletion succeed whether or not there was a table.
    batch.add_table(TABLE);
    batch.delete_table(TABLE);
    batch.add_table(TABLE);
    batch.add_chain(TABLE, INBOUND);
    batch.add_nat_chain(TABLE, OUTPUT, Hook::Output);
    batch.add_nat_chain(TABLE, PREROUTING, Hook::Prerouting);
    for rule in rules(capture) {
        batch.add_rule(TABLE, rule.chain, &rule.comment, &rule.exprs);
    }
    Ok(batch.commit()?)
}

/// Removes the rules from the calling thread's network namespace; that there are none is fine.
///
/// # Errors
/// If the kernel refuses; the rules are then as they were.
pub fn remove() -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.add_table(TABLE);
    batch.delete_table(TABLE);
    Ok(batch.commit()?)
}

/// Whether rules of ours are installed in the calling thread's network namespace.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn installed() -> Result<bool, Error> {
    Ok(table_exists(TABLE)?)
}

/// The rules in words, chain by chain, in the order in which they are tried.
pub fn describe(capture: &Capture) -> String {
    let mut out = String::new();
    let mut chain = "";
    for rule in rules(capture) {
        if rule.chain != chain {
            chain = rule.chain;
            let _ = writeln!(out, "{chain}:");
        }
        let _ = writeln!(out, "  {}", rule.comment);
    }
    out
}

fn check(capture: &Capture) -> Result<(), Error> {
    let invalid = |text: String| Err(Error::Invalid(text));
    if capture.outbound_port == 0 || capture.inbound_port == 0 || capture.outbound_port == capture.inbound_port {
        return invalid("the outbound and the inbound port must differ, and neither may be 0".to_owned());
    }
    match capture.exclude {
        Exclude::Mark(0) => return invalid("mark 0 is what every socket has: take another, such as 0x539".to_owned()),
        // Root's own processes would all pass by unseen.
        Exclude::Uid(0) => return invalid("uid 0 cannot be told from other processes of root: take 1337".to_owned()),
        Exclude::Mark(_) | Exclude::Uid(_) => {}
    }
    for (what, count) in [
        ("inbound ports", capture.exclude_inbound_ports.len()),
        ("outbound ports", capture.exclude_outbound_ports.len()),
        ("ranges", capture.exclude_cidrs.len()),
    ] {
        if count > MAX_EXCLUDED {
            return invalid(format!("{count} excluded {what}, at most {MAX_EXCLUDED} are taken"));
        }
    }
    Ok(())
}

const OUTPUT: &str = "output";
const PREROUTING: &str = "prerouting";
const INBOUND: &str = "inbound";

struct Rule {
    chain: &'static str,
    comment: String,
    exprs: Vec<Expr>,
}

fn rule(chain: &'static str, comment: impl Into<String>, tests: &[&[Expr]], action: Expr) -> Rule {
    let mut exprs = tests.concat();
    exprs.push(action);
    Rule { chain, comment: comment.into(), exprs }
}

fn rules(capture: &Capture) -> Vec<Rule> {
    const PASS: Expr = Expr::Verdict(Verdict::Return);
    let own = own(capture.exclude);
    let not_tcp = [Expr::Meta(Meta::Protocol), Expr::NotEqual(vec![6])];
    let to_app = [Expr::Meta(Meta::Priority), Expr::Equal(OWN_APP_PRIORITY.to_ne_bytes().to_vec())];
    let mut rules = vec![rule(OUTPUT, "not TCP: passes", &[&not_tcp], PASS)];

    rules.push(rule(OUTPUT, "sidecar to its application: passes", &[&own, &to_app], PASS));
    for net in loopback() {
        rules.push(rule(OUTPUT, format!("to loopback {net}: passes"), &[&destination(&net)], PASS));
    }
    let to_self = interface(Meta::OutputName);
    let inbound = Expr::Verdict(Verdict::Goto(INBOUND));
    rules.push(rule(OUTPUT, "sidecar to this pod's address: inbound", &[&own, &to_self], inbound.clone()));
    rules.push(rule(OUTPUT, "sidecar's own: passes", &[&own], PASS));
    for port in &capture.exclude_outbound_ports {
        rules.push(rule(OUTPUT, format!("excluded outbound port {port}: passes"), &[&port_is(*port)], PASS));
    }
    for net in METADATA.map(IpNet::from).iter().chain(&capture.exclude_cidrs) {
        rules.push(rule(OUTPUT, format!("excluded range {net}: passes"), &[&destination(net)], PASS));
    }
    let to = capture.outbound_port;
    rules.push(rule(OUTPUT, format!("all other: redirect to {to}"), &[], Expr::Redirect(to)));

    rules.push(rule(PREROUTING, "not TCP: passes", &[&not_tcp], PASS));
    rules.push(rule(PREROUTING, "over lo: passes", &[&interface(Meta::InputName)], PASS));
    rules.push(rule(PREROUTING, "all other: inbound", &[], inbound));

    for port in SIDECAR_PORTS {
        rules.push(rule(INBOUND, format!("sidecar's port {port}: passes"), &[&port_is(port)], PASS));
    }
    for port in &capture.exclude_inbound_ports {
        rules.push(rule(INBOUND, format!("excluded inbound port {port}: passes"), &[&port_is(*port)], PASS));
    }
    let to = capture.inbound_port;
    rules.push(rule(INBOUND, format!("all other: redirect to {to}"), &[&[TCP_KEY, tcp()]], Expr::Redirect(to)));
    rules
}

const TCP_KEY: Expr = Expr::Meta(Meta::Protocol);

fn tcp() -> Expr {
    Expr::Equal(vec![6])
}

fn own(exclude: Exclude) -> Vec<Expr> {
    let (key, value) = match exclude {
        Exclude::Mark(mark) => (Meta::Mark, mark),
        Exclude::Uid(uid) => (Meta::SocketUid, uid),
    };
    vec![Expr::Meta(key), Expr::Equal(value.to_ne_bytes().to_vec())]
}

fn loopback() -> [IpNet; 2] {
    [
        IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        IpNet::V6(ipnet::Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    ]
}

/// By way of the interface `lo`, whose name fills sixteen bytes.
fn interface(key: Meta) -> Vec<Expr> {
    let mut name = b"lo".to_vec();
    name.resize(16, 0);
    vec![Expr::Meta(key), Expr::Equal(name)]
}

fn port_is(port: u16) -> Vec<Expr> {
    let value = Expr::Equal(port.to_be_bytes().to_vec());
    vec![TCP_KEY, tcp(), Expr::Payload(Base::Transport, 2, 2), value]
}

fn destination(net: &IpNet) -> Vec<Expr> {
    let (family, offset, address, mask) = match net {
        IpNet::V4(net) => (2, 16, net.network().octets().to_vec(), net.netmask().octets().to_vec()),
        IpNet::V6(net) => (10, 24, net.network().octets().to_vec(), net.netmask().octets().to_vec()),
    };
    let load = Expr::Payload(Base::Network, offset, address.len() as u32);
    vec![Expr::Meta(Meta::Family), Expr::Equal(vec![family]), load, Expr::Mask(mask), Expr::Equal(address)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sidecars_own_traffic_is_decided_before_any_redirect() {
        let all = rules(&Capture::new(Exclude::Uid(1337)));
        let place = |text: &str| all.iter().position(|rule| rule.comment.contains(text)).unwrap();
        assert!(place("sidecar to its application") < place("sidecar to this pod's"));
        assert!(place("to loopback") < place("sidecar to this pod's"));
        assert!(place("sidecar's own") < place("redirect to 15001"));
    }

    #[test]
    fn what_cannot_work_is_refused_with_a_reason() {
        let refused = |capture: &Capture| check(capture).unwrap_err().to_string();
        assert!(refused(&Capture::new(Exclude::Mark(0))).contains("0x539"));
        assert!(refused(&Capture::new(Exclude::Uid(0))).contains("1337"));
        let same = Capture { inbound_port: 15001, ..Capture::new(Exclude::Mark(1)) };
        assert!(refused(&same).contains("must differ"));
        let many = Capture { exclude_inbound_ports: vec![1; 65], ..Capture::new(Exclude::Mark(1)) };
        assert!(refused(&many).contains("at most 64"));
    }

    #[test]
    fn comments_fit_into_the_kernels_user_data() {
        let longest: IpNet = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().unwrap();
        let capture = Capture { exclude_cidrs: vec![longest], ..Capture::new(Exclude::Mark(1)) };
        assert!(rules(&capture).iter().all(|rule| rule.comment.len() < 128));
    }
}
