//! The rules in a real kernel: what `nft` reads back, and where real connections end up.
//!
//! Runs without libtest, because an ordinary user must enter a user namespace before any thread exists.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unnecessary_wraps,
    reason = "a test binary of its own"
)]

mod pod;
mod proof;

use ipnet::IpNet;
use libtest_mimic::{Arguments, Failed, Trial};
use pod::{Caller, MARK, Pod, WAIT, arrives, connect, inside};
use socket2::SockRef;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;
use weft_capture::netns::{NetNs, enter_user_namespace};
use weft_capture::nfnetlink::{Batch, Error as KernelError, Expr, Family, Verdict, table_exists};
use weft_capture::rules::{Capture, Error, Exclude, install, install_in, installed, remove};

/// So often, and after so long without an answer, a question by datagram is asked.
const ASKED: usize = 20;
const AGAIN: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let root = rustix::process::geteuid().is_root();
    if let Err(error) = enter_user_namespace() {
        eprintln!("these tests need namespaces: {error}");
        return ExitCode::from(3);
    }
    let nft = nft().is_file();
    let strict = std::env::var_os("WEFT_SKIP_IS_FAILURE").is_some();
    // An absent program or right makes a test ignored, which the summary counts; in CI it fails instead.
    let needs = |trial: Trial, met: bool| trial.with_ignored_flag(!met && !strict);
    let trials = vec![
        needs(Trial::test("nft_reads_back_every_rule", nft_reads_back_every_rule), nft),
        Trial::test("rules_are_replaced_whole_and_only_ours", rules_are_replaced_whole_and_only_ours),
        Trial::test("a_refused_step_is_named_and_changes_nothing", a_refused_step_is_named_and_changes_nothing),
        Trial::test("without_rights_the_reason_says_so", without_rights_the_reason_says_so),
        Trial::test("connections_v4", || connections(false)),
        Trial::test("connections_v6", || connections(true)),
        Trial::test("only_what_is_included_is_captured_v4", || included(false)),
        Trial::test("only_what_is_included_is_captured_v6", || included(true)),
        Trial::test("a_kernel_without_ipv6_captures_ipv4", a_kernel_without_ipv6_captures_ipv4),
        Trial::test("dns_of_the_application_alone_is_captured_v4", || dns(false)),
        Trial::test("dns_of_the_application_alone_is_captured_v6", || dns(true)),
        Trial::test("a_captured_pod_proves_it_v4", || proof::proves(false)),
        Trial::test("a_captured_pod_proves_it_v6", || proof::proves(true)),
        Trial::test("what_is_repaired_meanwhile_passes", proof::what_is_repaired_meanwhile_passes),
        // Only real root can be another uid: an ordinary user has one uid mapped, so there is nothing to skip to.
        Trial::test("the_sidecar_is_known_by_uid", the_sidecar_is_known_by_uid).with_ignored_flag(!root),
    ];
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    conclusion.exit_code()
}

/// The machine's, or that of `tests/tools/get` (which `weft_tests::tools` finds in the same way).
fn nft() -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let unpacked = std::env::var_os("WEFT_TOOLS").map_or(unpacked, PathBuf::from).join("bin/nft");
    let installed = ["/usr/sbin/nft", "/usr/bin/nft", "/sbin/nft"].map(PathBuf::from);
    installed.into_iter().find(|path| path.is_file()).unwrap_or(unpacked)
}

fn sample() -> Capture {
    Capture {
        exclude_inbound_ports: vec![9100],
        exclude_outbound_ports: vec![2379],
        exclude_cidrs: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
        ..Capture::new(Exclude::Mark(MARK))
    }
}

fn nft_reads_back_every_rule() -> Result<(), Failed> {
    let net = NetNs::create()?;
    let listed = inside(&net, || {
        install(&sample()).unwrap();
        Command::new(nft()).args(["list", "ruleset"]).output().unwrap()
    });
    let text = String::from_utf8(listed.stdout)?;
    for line in [
        "table inet weft {",
        "type nat hook output priority",
        "type nat hook prerouting priority",
        "meta l4proto != tcp return comment \"not TCP: passes\"",
        "meta mark 0x00000539 meta priority",
        "ip daddr 127.0.0.0/8 return",
        "ip6 daddr ::1 return",
        "meta mark 0x00000539 oifname \"lo\" goto inbound",
        "meta mark 0x00000539 return",
        "tcp dport 2379 return",
        "ip daddr 169.254.169.254 return",
        "ip6 daddr fd00:ec2::254 return",
        "ip daddr 192.0.2.0/24 return",
        "ip6 daddr 2001:db8::/32 return",
        "redirect to :15001",
        "iifname \"lo\" return",
        "goto inbound comment \"all other: inbound\"",
        "tcp dport 15020 return",
        "tcp dport 15021 return",
        "tcp dport 15090 return",
        "tcp dport 9100 return",
        "meta l4proto tcp redirect to :15006",
        "goto outbound comment \"all other: outbound\"",
    ] {
        if !text.contains(line) {
            return Err(format!("nft does not show `{line}` in\n{text}").into());
        }
    }
    Ok(())
}

fn rules_are_replaced_whole_and_only_ours() -> Result<(), Failed> {
    inside(&NetNs::create()?, || {
        let mut other = Batch::new(Family::Inet);
        other.add_table("someone_else");
        other.commit().unwrap();
        assert!(!installed().unwrap());
        remove().unwrap();
        for _ in 0..2 {
            install(&sample()).unwrap();
            assert!(installed().unwrap());
        }
        remove().unwrap();
        assert!(!installed().unwrap());
        assert!(table_exists(Family::Inet, "someone_else").unwrap());
    });
    Ok(())
}

fn a_refused_step_is_named_and_changes_nothing() -> Result<(), Failed> {
    inside(&NetNs::create()?, || {
        let mut batch = Batch::new(Family::Inet);
        batch.add_table("half");
        batch.add_rule("half", "nowhere", "a rule in a chain that is not there", &[Expr::Verdict(Verdict::Return)]);
        let error = batch.commit().unwrap_err();
        assert!(matches!(&error, KernelError::Refused { step, .. } if step.contains("nowhere")), "{error}");
        assert!(!table_exists(Family::Inet, "half").unwrap());
    });
    Ok(())
}

fn without_rights_the_reason_says_so() -> Result<(), Failed> {
    let error = inside(&NetNs::create()?, || {
        // This thread alone gives up its rights.
        let none = rustix::thread::CapabilitySet::empty();
        let none = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, none).unwrap();
        install(&sample()).unwrap_err()
    });
    assert!(matches!(error, Error::Kernel(_)), "{error}");
    assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    Ok(())
}

fn connections(v6: bool) -> Result<(), Failed> {
    let pod = Pod::new(v6);
    inside(&pod.net, || install(&sample()).unwrap());
    check_paths(&pod, true);

    // UDP passes by.
    let receiver = inside(&pod.net, || UdpSocket::bind((pod.address, 5353)).unwrap());
    receiver.set_read_timeout(Some(WAIT)).unwrap();
    inside(&pod.net, || UdpSocket::bind((pod.address, 0)).unwrap().send_to(b"dns", (pod.address, 5353)).unwrap());
    assert_eq!(receiver.recv_from(&mut [0; 8]).unwrap().0, 3);

    // After removal nothing is captured.
    inside(&pod.net, || remove().unwrap());
    let app = pod.listen(8081);
    let to = SocketAddr::new(pod.address, 8081);
    arrives(inside(&pod.net, || connect(to, Caller::App, true)), &app, to);
    Ok(())
}

/// Every way through the rules, once.
fn check_paths(pod: &Pod, by_mark: bool) {
    let [outbound, inbound, app, health, excluded] = [15001, 15006, 8080, 15021, 9100].map(|port| pod.listen(port));
    let dial = |address: SocketAddr, caller: Caller| {
        inside(&pod.net, || {
            if !by_mark && caller != Caller::App {
                become_sidecar();
            }
            connect(address, caller, by_mark)
        })
    };
    let service = SocketAddr::new(pod.service, 80);
    let own = SocketAddr::new(pod.address, 8080);
    let loopback: IpAddr = if pod.address.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };

    arrives(dial(service, Caller::App), &outbound, service);
    // A pod that calls its own address goes out, comes in, and then reaches the application.
    arrives(dial(own, Caller::App), &outbound, own);
    arrives(dial(own, Caller::Sidecar), &inbound, own);
    arrives(dial(own, Caller::SidecarToApp), &app, own);
    let local = SocketAddr::new(loopback, 8080);
    arrives(dial(local, Caller::App), &app, local);
    arrives(dial(local, Caller::Sidecar), &app, local);
    let own_health = SocketAddr::new(pod.address, 15021);
    arrives(dial(own_health, Caller::Sidecar), &health, own_health);

    // From elsewhere.
    let from_peer = |port| inside(&pod.peer, || connect(SocketAddr::new(pod.address, port), Caller::App, true));
    arrives(from_peer(8080), &inbound, own);
    arrives(from_peer(15021), &health, own_health);
    arrives(from_peer(9100), &excluded, SocketAddr::new(pod.address, 9100));

    // To elsewhere and past the sidecar: the sidecar itself, excluded ports and ranges, the metadata address.
    let peer: IpNet =
        if pod.address.is_ipv6() { "fd77::1/128".parse().unwrap() } else { "10.77.0.1/32".parse().unwrap() };
    let elsewhere = inside(&pod.peer, || TcpListener::bind((peer.addr(), 2379)).unwrap());
    let to = SocketAddr::new(peer.addr(), 2379);
    arrives(dial(to, Caller::App), &elsewhere, to);
    let elsewhere = inside(&pod.peer, || TcpListener::bind((peer.addr(), 8080)).unwrap());
    let to = SocketAddr::new(peer.addr(), 8080);
    arrives(dial(to, Caller::App), &outbound, to);
    arrives(dial(to, Caller::Sidecar), &elsewhere, to);
    inside(&pod.net, || install(&Capture { exclude_cidrs: vec![peer], ..Capture::new(exclude(by_mark)) }).unwrap());
    arrives(dial(to, Caller::App), &elsewhere, to);
}

/// Each include list alone, both together, and what is excluded all the same.
fn included(v6: bool) -> Result<(), Failed> {
    let pod = Pod::new(v6);
    let [outbound, inbound, app, other] = [15001, 15006, 8080, 8081].map(|port| pod.listen(port));
    let peer = if v6 { "fd77::1" } else { "10.77.0.1" }.parse::<IpAddr>().unwrap();
    let elsewhere = [80, 443].map(|port| (port, inside(&pod.peer, || TcpListener::bind((peer, port)).unwrap())));
    let range: IpNet = if v6 { "fd77::/64".parse().unwrap() } else { "10.77.0.0/24".parse().unwrap() };
    let base = Capture::new(exclude(true));
    let direct = |captured: [bool; 2]| {
        for ((port, listener), captured) in elsewhere.iter().zip(captured) {
            let to = SocketAddr::new(peer, *port);
            let client = inside(&pod.net, || connect(to, Caller::App, true));
            arrives(client, if captured { &outbound } else { listener }, to);
        }
    };
    let set = |capture: &Capture| inside(&pod.net, || install(capture).unwrap());

    set(&Capture { include_outbound_ports: vec![80], ..base.clone() });
    direct([true, false]);
    set(&Capture { include_outbound_ports: vec![80, 443], exclude_outbound_ports: vec![80], ..base.clone() });
    direct([false, true]);
    set(&Capture { include_cidrs: vec![range], ..base.clone() });
    direct([true, true]);
    let service = SocketAddr::new(pod.service, 80);
    set(&Capture { include_cidrs: vec![IpNet::from(pod.service)], include_outbound_ports: vec![80], ..base.clone() });
    direct([false, false]);
    arrives(inside(&pod.net, || connect(service, Caller::App, true)), &outbound, service);
    set(&Capture { include_cidrs: vec![range], exclude_cidrs: vec![IpNet::from(peer)], ..base.clone() });
    direct([false, false]);

    set(&Capture { include_inbound_ports: vec![8080, 8081], exclude_inbound_ports: vec![8081], ..base.clone() });
    for (port, listener) in [(8080, &inbound), (8081, &other)] {
        let to = SocketAddr::new(pod.address, port);
        arrives(inside(&pod.peer, || connect(to, Caller::App, true)), listener, to);
    }
    set(&Capture { include_inbound_ports: vec![8081], ..base });
    for (port, listener) in [(8080, &app), (8081, &inbound)] {
        let to = SocketAddr::new(pod.address, port);
        arrives(inside(&pod.peer, || connect(to, Caller::App, true)), listener, to);
    }
    Ok(())
}

/// The table that a kernel gets which knows no family `inet`.
fn a_kernel_without_ipv6_captures_ipv4() -> Result<(), Failed> {
    let pod = Pod::new(false);
    let [outbound, inbound] = [15001, 15006].map(|port| pod.listen(port));
    inside(&pod.net, || install_in(Family::Ipv4, &sample()).unwrap());
    let to = SocketAddr::new(pod.service, 80);
    arrives(inside(&pod.net, || connect(to, Caller::App, true)), &outbound, to);
    let to = SocketAddr::new(pod.address, 8080);
    arrives(inside(&pod.peer, || connect(to, Caller::App, true)), &inbound, to);
    Ok(())
}

/// UDP and TCP, to whatever name server; not the sidecar's, not to loopback, not to an excluded range; and the answers come back.
fn dns(v6: bool) -> Result<(), Failed> {
    let pod = Pod::new(v6);
    let loopback: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let peer: IpAddr = if v6 { "fd77::1".parse().unwrap() } else { "10.77.0.1".parse().unwrap() };
    let capture = Capture { dns_port: Some(15053), ..Capture::new(exclude(true)) };
    let bind = |net: &NetNs, at: (IpAddr, u16)| inside(net, || UdpSocket::bind(at).unwrap());
    let (sidecar, stub) = (bind(&pod.net, (loopback, 15053)), bind(&pod.net, (loopback, 53)));
    let upstream = bind(&pod.peer, (peer, 53));
    let ask = |to: IpAddr, mark: bool, answers: &UdpSocket| {
        inside(&pod.net, || {
            let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            let client = UdpSocket::bind((any, 0)).unwrap();
            if mark {
                SockRef::from(&client).set_mark(MARK).unwrap();
            }
            // Datagrams may be lost on a busy machine: asked again, as a resolver does.
            for socket in [&client, answers] {
                socket.set_read_timeout(Some(AGAIN)).unwrap();
            }
            let answered = || {
                client.send_to(b"who?", (to, 53)).unwrap();
                let (_, from) = answers.recv_from(&mut [0; 8]).ok()?;
                answers.send_to(b"me", from).unwrap();
                Some(client.recv_from(&mut [0; 8]).ok()?.1)
            };
            let from = (0..ASKED).find_map(|_| answered());
            // As from where it was asked.
            assert_eq!(from, Some(SocketAddr::new(to, 53)), "{to}, {mark}");
        });
    };
    inside(&pod.net, || install(&capture).unwrap());
    ask(peer, false, &sidecar);
    ask(pod.service, false, &sidecar);
    ask(peer, true, &upstream);
    ask(loopback, false, &stub);
    let (tcp, outbound) = (inside(&pod.net, || TcpListener::bind((loopback, 15053)).unwrap()), pod.listen(15001));
    let to = SocketAddr::new(peer, 53);
    arrives(inside(&pod.net, || connect(to, Caller::App, true)), &tcp, to);

    inside(&pod.net, || install(&Capture { exclude_cidrs: vec![IpNet::from(peer)], ..capture.clone() }).unwrap());
    ask(peer, false, &upstream);
    ask(pod.service, false, &sidecar);
    // Without its capture DNS is what it was: UDP passes, TCP goes as all TCP does.
    inside(&pod.net, || install(&Capture { dns_port: None, ..capture }).unwrap());
    ask(peer, false, &upstream);
    arrives(inside(&pod.net, || connect(to, Caller::App, true)), &outbound, to);
    Ok(())
}

const SIDECAR_UID: u32 = 1337;

fn exclude(by_mark: bool) -> Exclude {
    if by_mark { Exclude::Mark(MARK) } else { Exclude::Uid(SIDECAR_UID) }
}

/// The calling thread alone becomes the sidecar's user, without any capability.
fn become_sidecar() {
    let uid = rustix::process::Uid::from_raw(SIDECAR_UID);
    rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
}

fn the_sidecar_is_known_by_uid() -> Result<(), Failed> {
    for v6 in [false, true] {
        let pod = Pod::new(v6);
        let capture = Capture { exclude: exclude(false), ..sample() };
        inside(&pod.net, || install(&capture).unwrap());
        check_paths(&pod, false);
    }
    Ok(())
}
