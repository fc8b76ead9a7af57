//! The rules, one after another, as expressions and in words.

use crate::nfnetlink::{Base, Expr, Family, Meta, Verdict};
use crate::rules::{CHECK_PRIORITY, Capture, Exclude, OWN_APP_PRIORITY, SIDECAR_PORTS};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What processes of the pod send.
pub const OUTPUT: &str = "output";
/// What comes to the pod.
pub const PREROUTING: &str = "prerouting";
/// What may go to the sidecar's inbound side.
pub const INBOUND: &str = "inbound";
/// What may go to its outbound side.
pub const OUTBOUND: &str = "outbound";
/// What goes there, if its address is included.
pub const INCLUDED: &str = "included";

/// The addresses at which clouds serve instance metadata; they answer only the node, so they pass by.
const METADATA: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];
const DNS_PORT: u16 = 53;
const TCP: u8 = 6;
const UDP: u8 = 17;
const PASS: Expr = Expr::Verdict(Verdict::Return);

/// A rule and its chain.
pub struct Rule {
    /// Where it stands.
    pub chain: &'static str,
    /// It in words.
    pub comment: String,
    /// It for the kernel.
    pub exprs: Vec<Expr>,
}

/// All rules, in the order in which they are tried within each chain.
pub fn rules(capture: &Capture, family: Family) -> Vec<Rule> {
    let mut list = List { rules: Vec::new(), family };
    list.output(capture);
    list.outbound(capture);
    list.inbound(capture);
    list.rules
}

struct List {
    rules: Vec<Rule>,
    family: Family,
}

impl List {
    fn add(&mut self, chain: &'static str, comment: impl Into<String>, tests: &[&[Expr]], action: Expr) {
        let mut exprs = tests.concat();
        exprs.push(action);
        self.rules.push(Rule { chain, comment: comment.into(), exprs });
    }

    fn range(&mut self, chain: &'static str, what: &str, net: &IpNet, action: Expr, words: &str) {
        if self.family == Family::Inet || matches!(net, IpNet::V4(_)) {
            self.add(chain, format!("{what} {net}: {words}"), &[&destination(net)], action);
        }
    }

    fn output(&mut self, capture: &Capture) {
        let own = own(capture.exclude);
        let priority = |value: u32| [Expr::Meta(Meta::Priority), Expr::Equal(value.to_ne_bytes().to_vec())];
        let to_self = interface(Meta::OutputName);
        for net in loopback() {
            self.range(OUTPUT, "to loopback", &net, PASS, "passes");
        }
        if has_dns(capture) {
            self.add(OUTPUT, "DNS by UDP: outbound", &[&port_is(UDP, DNS_PORT)], goto(OUTBOUND));
        }
        self.add(OUTPUT, "not TCP: passes", &[&not_tcp()], PASS);
        self.add(
            OUTPUT,
            "a check to this pod's address: inbound",
            &[&priority(CHECK_PRIORITY), &to_self],
            goto(INBOUND),
        );
        self.add(OUTPUT, "sidecar to its application: passes", &[&own, &priority(OWN_APP_PRIORITY)], PASS);
        self.add(OUTPUT, "sidecar to this pod's address: inbound", &[&own, &to_self], goto(INBOUND));
        self.add(OUTPUT, "sidecar's own: passes", &[&own], PASS);
        self.add(OUTPUT, "all other: outbound", &[], goto(OUTBOUND));
    }

    fn outbound(&mut self, capture: &Capture) {
        let dns = capture.dns_port.filter(|_| has_dns(capture));
        if dns.is_some() {
            // By UDP; what it sends by TCP has passed before.
            self.add(OUTBOUND, "sidecar's own: passes", &[&own(capture.exclude)], PASS);
        }
        for net in METADATA.map(IpNet::from).iter().chain(&capture.exclude_cidrs) {
            self.range(OUTBOUND, "excluded range", net, PASS, "passes");
        }
        if let Some(to) = dns {
            for (name, transport) in [("UDP", UDP), ("TCP", TCP)] {
                let words = format!("DNS by {name}: redirect to {to}");
                self.add(OUTBOUND, words, &[&port_is(transport, DNS_PORT)], Expr::Redirect(to));
            }
        }
        for port in &capture.exclude_outbound_ports {
            self.add(OUTBOUND, format!("excluded outbound port {port}: passes"), &[&port_is(TCP, *port)], PASS);
        }
        for port in &capture.include_outbound_ports {
            self.add(
                OUTBOUND,
                format!("included outbound port {port}: included"),
                &[&port_is(TCP, *port)],
                goto(INCLUDED),
            );
        }
        let chain = if capture.include_outbound_ports.is_empty() { OUTBOUND } else { INCLUDED };
        let to = capture.outbound_port;
        let words = format!("redirect to {to}");
        for net in &capture.include_cidrs {
            self.range(chain, "included range", net, Expr::Redirect(to), &words);
        }
        if capture.include_cidrs.is_empty() {
            self.add(chain, format!("all other: {words}"), &[], Expr::Redirect(to));
        }
    }

    fn inbound(&mut self, capture: &Capture) {
        self.add(PREROUTING, "not TCP: passes", &[&not_tcp()], PASS);
        self.add(PREROUTING, "over lo: passes", &[&interface(Meta::InputName)], PASS);
        self.add(PREROUTING, "all other: inbound", &[], goto(INBOUND));
        for port in SIDECAR_PORTS {
            self.add(INBOUND, format!("sidecar's port {port}: passes"), &[&port_is(TCP, port)], PASS);
        }
        for port in &capture.exclude_inbound_ports {
            self.add(INBOUND, format!("excluded inbound port {port}: passes"), &[&port_is(TCP, *port)], PASS);
        }
        let to = capture.inbound_port;
        for port in &capture.include_inbound_ports {
            let words = format!("included inbound port {port}: redirect to {to}");
            self.add(INBOUND, words, &[&port_is(TCP, *port)], Expr::Redirect(to));
        }
        if capture.include_inbound_ports.is_empty() {
            self.add(INBOUND, format!("all other: redirect to {to}"), &[&protocol(TCP)], Expr::Redirect(to));
        }
    }
}

/// DNS is captured where it is asked for, unless its port is excluded.
fn has_dns(capture: &Capture) -> bool {
    capture.dns_port.is_some() && !capture.exclude_outbound_ports.contains(&DNS_PORT)
}

/// Whether a DNS question of the application to this server comes to the sidecar's resolver.
pub fn takes_dns(capture: &Capture, server: IpAddr) -> bool {
    has_dns(capture) && !passes_by(capture, server)
}

fn passes_by(capture: &Capture, ip: IpAddr) -> bool {
    ip.is_loopback() || METADATA.contains(&ip) || capture.exclude_cidrs.iter().any(|net| net.contains(&ip))
}

/// Whether a TCP connection of the application to this address and port comes to the sidecar's outbound side: the rules above once more, in
/// words of Rust, for who must know it without asking the kernel.
pub fn takes_outbound(capture: &Capture, to: SocketAddr) -> bool {
    let (ip, port) = (to.ip(), to.port());
    let included = capture.include_outbound_ports.is_empty() || capture.include_outbound_ports.contains(&port);
    let ranged = capture.include_cidrs.is_empty() || capture.include_cidrs.iter().any(|net| net.contains(&ip));
    let dns = port == DNS_PORT && has_dns(capture);
    included && ranged && !dns && !passes_by(capture, ip) && !capture.exclude_outbound_ports.contains(&port)
}

/// Whether a connection to this port of the pod comes to the sidecar's inbound side.
pub fn takes_inbound(capture: &Capture, port: u16) -> bool {
    let included = capture.include_inbound_ports.is_empty() || capture.include_inbound_ports.contains(&port);
    included && !capture.exclude_inbound_ports.contains(&port) && !SIDECAR_PORTS.contains(&port)
}

fn goto(chain: &'static str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain))
}

fn protocol(number: u8) -> [Expr; 2] {
    [Expr::Meta(Meta::Protocol), Expr::Equal(vec![number])]
}

fn not_tcp() -> [Expr; 2] {
    [Expr::Meta(Meta::Protocol), Expr::NotEqual(vec![TCP])]
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

/// The destination port stands at the same place for TCP and UDP.
fn port_is(transport: u8, port: u16) -> Vec<Expr> {
    let mut exprs = protocol(transport).to_vec();
    exprs.extend([Expr::Payload(Base::Transport, 2, 2), Expr::Equal(port.to_be_bytes().to_vec())]);
    exprs
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

    fn words(capture: &Capture) -> Vec<String> {
        rules(capture, Family::Inet).into_iter().map(|rule| format!("{}: {}", rule.chain, rule.comment)).collect()
    }

    #[test]
    fn the_sidecars_own_traffic_is_decided_before_any_redirect() {
        let all = words(&Capture { dns_port: Some(15053), ..Capture::new(Exclude::Uid(1337)) });
        let place = |text: &str| all.iter().position(|rule| rule.contains(text)).unwrap();
        assert!(place("output: sidecar to its application") < place("output: sidecar to this pod's"));
        assert!(place("output: to loopback") < place("output: DNS by UDP"));
        assert!(place("output: sidecar's own") < place("output: all other"));
        assert!(place("outbound: sidecar's own") < place("outbound: DNS by UDP: redirect to 15053"));
    }

    #[test]
    fn what_is_excluded_is_decided_before_what_is_included() {
        let all = words(&Capture {
            include_inbound_ports: vec![80],
            exclude_inbound_ports: vec![80],
            include_outbound_ports: vec![443],
            exclude_outbound_ports: vec![443],
            include_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
            exclude_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
            ..Capture::new(Exclude::Uid(1337))
        });
        let place = |text: &str| all.iter().position(|rule| rule.contains(text)).unwrap();
        assert!(place("excluded inbound port 80") < place("included inbound port 80: redirect to 15006"));
        assert!(place("excluded outbound port 443") < place("outbound: included outbound port 443: included"));
        assert!(place("excluded range 10.1.0.0/16") < place("included: included range 10.0.0.0/8: redirect to 15001"));
        assert!(!all.iter().any(|rule| rule.contains("all other: redirect")), "{all:?}");
    }

    #[test]
    fn an_excluded_dns_port_wins_over_the_capture_of_dns() {
        let capture =
            Capture { dns_port: Some(15053), exclude_outbound_ports: vec![53], ..Capture::new(Exclude::Uid(1337)) };
        assert!(!words(&capture).iter().any(|rule| rule.contains("DNS")));
    }

    #[test]
    fn a_kernel_without_ipv6_gets_no_rule_of_it() {
        let capture =
            Capture { exclude_cidrs: vec!["2001:db8::/32".parse().unwrap()], ..Capture::new(Exclude::Uid(1337)) };
        let count = |family| rules(&capture, family).len();
        // Loopback, metadata, and the range.
        assert_eq!(count(Family::Ipv4) + 3, count(Family::Inet));
    }

    #[test]
    fn comments_fit_into_the_kernels_user_data() {
        let longest: IpNet = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().unwrap();
        let capture =
            Capture { exclude_cidrs: vec![longest], include_cidrs: vec![longest], ..Capture::new(Exclude::Mark(1)) };
        assert!(rules(&capture, Family::Inet).iter().all(|rule| rule.comment.len() < 128));
    }
}
