//! Applications that speak first, and those that bring TLS of their own, without a word of configuration: nobody waits for detection, and
//! nobody hears a greeting who may not.
//!
//! On this machine a round trip takes microseconds, so what shows is whether anybody waited: 100 ms on either side, had a silence been sat
//! out; 20 ms for the first words of a client to an address that was never called before. What is left is work: a lookup at control for that
//! first one, and a connection and a handshake for each, unoptimised. (A client that speaks first: `interop_redis`.)
#![allow(clippy::print_stderr, reason = "the figures are what these tests are for")]

mod greeters;
mod ssh;
mod tls;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use weft::lab::Pod;
use weft_certs::ca::Ca;
use weft_tests::mesh::SOON;
use weft_tests::sniff::{Sniffer, contains};
use weft_tests::{Mesh, Service, Trial, test, test_alone, test_alone_with};

pub use self::greeters::{App, MYSQL, mysql_greeting};
use self::greeters::{Protocol, SMTP};
use self::tls::Bank;
pub use self::tls::{ByHand, issue, sidecar};
use crate::STRICT;
use crate::attacks::audited;

pub fn tests() -> Vec<Trial> {
    // An ordinary user has one uid, and sshd wants another to shut itself in.
    let ssh = if crate::wire::was_root() {
        test_alone_with("opaque_ssh", &["sshd", "ssh", "ssh-keygen"], ssh::session)
    } else {
        test("opaque_ssh", ssh::session).with_ignored_flag(true)
    };
    vec![
        test_alone("opaque_a_server_that_speaks_first_on_permissive_ports", || speaks_first(false)),
        test_alone("opaque_a_server_that_speaks_first_on_strict_ports", || speaks_first(true)),
        test("opaque_meshed_and_plain_clients_of_one_port", meshed_and_plain),
        test("opaque_a_sidecar_that_is_late_is_none_that_waits", late_sidecar),
        test("opaque_who_may_not_call_hears_no_greeting", who_may_not),
        test("opaque_another_trust_domain", another_trust_domain),
        test("opaque_a_strict_port_greets_no_plain_client", strict_greets_no_plain_client),
        test("opaque_tls_of_the_applications_own", own_tls),
        ssh,
    ]
}

const MTLS: &[&str] = &["direction=\"inbound\"", "tls=\"mtls\""];
const PLAIN: &[&str] = &["direction=\"inbound\"", "tls=\"plain\""];
const OPENED: &str = "weft_tcp_connections_opened_total";

/// How long proxies wait in silence where they must; whoever is greeted sooner than that has met nobody who did.
const SILENCE: Duration = Duration::from_millis(100);
/// The first connection to an address may take so long: the longer of a lookup at control and 20 ms for the client's first words, and the work;
/// all of it less than one silence.
const COLD: Duration = SILENCE;
/// Half of the connections that follow take less.
const KNOWN: Duration = Duration::from_millis(20);

/// Half of these connections to an address that was called before are greeted in less than [`KNOWN`].
fn known(what: &str, round: impl Fn() -> Vec<Duration>) {
    known_within(KNOWN, what, round);
}

/// Half of these are greeted in less than that. Others may use this machine: the best of three rounds counts, and what waits does so in each.
fn known_within(bound: Duration, what: &str, round: impl Fn() -> Vec<Duration>) {
    let mut medians = Vec::new();
    while medians.len() < 3 && medians.last().is_none_or(|last| *last >= bound) {
        medians.push(median(round()));
    }
    eprintln!("opaque: {what}, greeted after {medians:?}");
    assert!(medians.last().is_some_and(|median| *median < bound), "{what}: {medians:?}");
}

fn median(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() / 2]
}

fn deploy(mesh: &mut Mesh, protocol: Protocol) -> App {
    mesh.deploy(Service::own(protocol.name).ports(protocol.port, protocol.port));
    App::start(mesh.pod(&format!("{}-0", protocol.name)), protocol.port, protocol.serve)
}

/// The one pod's own address, which is nobody else's.
fn direct(mesh: &Mesh, protocol: Protocol) -> SocketAddr {
    (mesh.pod(&format!("{}-0", protocol.name)).ip(), protocol.port).into()
}

fn speaks_first(strict: bool) {
    let mut mesh = Mesh::new();
    if strict {
        mesh.write("namespace.yaml", STRICT);
    }
    let _apps = [MYSQL, SMTP].map(|protocol| deploy(&mut mesh, protocol));
    mesh.client("client");
    let client = mesh.pod("client-0");
    let sniffer = Sniffer::start(&mesh.lab);
    let mut first = Vec::new();
    for protocol in [MYSQL, SMTP] {
        // Nobody has called either before.
        for to in [mesh.address(protocol.name), direct(&mesh, protocol)] {
            let call = || protocol.call(client, to).unwrap();
            first.push(call());
            known(&format!("{} at {to}, strict: {strict}", protocol.name), || (0..20).map(|_| call()).collect());
        }
        let pod = format!("{}-0", protocol.name);
        mesh.counts(&pod, OPENED, MTLS, |count| count > 41.5);
        mesh.counts(&pod, OPENED, PLAIN, |count| count < 0.5);
    }
    eprintln!("opaque: first of all greeted after {first:?}");
    // The best of four, for the same reason.
    assert!(first.iter().min().is_some_and(|took| *took < COLD), "{first:?}");
    let seen = sniffer.stop();
    assert!(seen.len() > 1000, "nothing was sniffed");
    for protocol in [MYSQL, SMTP] {
        assert!(!contains(&seen, protocol.mark), "{} in the clear between meshed pods", protocol.name);
    }
}

fn meshed_and_plain() {
    const EACH: u32 = 20;
    let mut mesh = Mesh::new();
    let _app = deploy(&mut mesh, MYSQL);
    mesh.client("client").deploy(Service::own("stranger").unmeshed());
    let (meshed, plain) = (mesh.pod("client-0"), mesh.pod("stranger-0"));
    let (service, pod) = (mesh.address(MYSQL.name), direct(&mesh, MYSQL));
    let call = |from, to| -> Vec<_> { (0..EACH).map(|_| MYSQL.call(from, to).unwrap()).collect() };
    let sniffer = Sniffer::start(&mesh.lab);
    std::thread::scope(|scope| {
        for (from, to) in [(meshed, service), (plain, pod)] {
            scope.spawn(move || call(from, to));
        }
    });
    // The plain ones' is seen, of the others nothing.
    assert!(contains(&sniffer.stop(), MYSQL.mark), "the sniffer is blind");
    let counted = |count: f64| (count - f64::from(EACH)).abs() < f64::EPSILON;
    mesh.counts("mysql-0", OPENED, MTLS, counted);
    mesh.counts("mysql-0", OPENED, PLAIN, counted);
    // A plain client of the mesh's addresses is known for what it is, so that its silence is not sat out.
    known("a plain client", || call(plain, pod));
}

/// A pod whose sidecar is that slow, and an address of which control knows nothing, as of a node that many pods share.
fn late_sidecar() {
    let mut mesh = Mesh::new();
    let app = deploy(&mut mesh, MYSQL);
    mesh.client("client");
    let to = direct(&mesh, MYSQL);
    let ca = Ca::open(mesh.control.as_ref().unwrap().ca_dir(), "cluster.local").unwrap();
    let config = sidecar(Some(&issue(&ca, "client")), &ca);
    let greeting = mysql_greeting();
    let mut served = 0.0;
    let pod = mesh.pod("client-0").net();
    for (known, net, delays) in
        [(true, pod, &[0, 20, 40, 60, 80, 500][..]), (false, mesh.lab.node(), &[0, 20, 40, 60, 80])]
    {
        for late in delays {
            let by_hand = ByHand::new(config.clone(), Duration::from_millis(*late));
            // What was later than that, because this machine had other things to do, was not what is asked here.
            let in_time = Duration::from_millis(90);
            let mut heard = (0..10).map(|_| by_hand.call(net, to, greeting.len()));
            let heard = heard.find(|heard| known || heard.spoke_after < in_time);
            let heard = heard.expect("this machine is too busy");
            match heard.words {
                Ok(words) => assert!(words == greeting, "{}", words.escape_ascii()),
                Err((_, error)) => panic!("{late} ms late, known: {known}: {error}"),
            }
            served += 1.0;
        }
    }
    mesh.counts("mysql-0", OPENED, MTLS, |count| count >= served);
    assert!(app.called() > 0);
}

/// Whether a client that does not wait to be greeted is refused.
fn hears_nothing(pod: &Pod, to: SocketAddr) -> Result<(), String> {
    let mut stream = pod.connect(to).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    let _ = stream.write_all(b"\0");
    match stream.read(&mut [0]) {
        Ok(1..) => Err("it is greeted".to_owned()),
        _ => Ok(()),
    }
}

/// What is heard on a connection until its end.
fn listen(mut stream: TcpStream, words: &[u8]) -> Vec<u8> {
    stream.set_read_timeout(Some(SOON)).unwrap();
    // It may be closed already.
    let _ = stream.write_all(words);
    let mut heard = Vec::new();
    let ended = stream.read_to_end(&mut heard);
    if let Err(error) = &ended {
        assert!(!matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "still open after {SOON:?}");
    }
    heard
}

fn refusals(mesh: &Mesh, reason: &str) -> f64 {
    let labels = ["direction=\"inbound\"", &format!("reason=\"{reason}\"")];
    mesh.metric("mysql-0", "weft_refused_total", &labels)
}

/// Lets these call `mysql` and nobody else.
fn only(from: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: only, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: mysql}}]
  action: Allow
  rules:
    - from: [{from}]
"
    )
}

fn who_may_not() {
    let mut mesh = Mesh::new();
    let app = deploy(&mut mesh, MYSQL);
    mesh.client("friend").client("enemy").deploy(Service::own("stranger").unmeshed());
    mesh.write("only.yaml", &only("{identities: [shop/friend]}"));
    let (service, pod) = (mesh.address(MYSQL.name), direct(&mesh, MYSQL));
    let [friend, enemy, stranger] = ["friend-0", "enemy-0", "stranger-0"].map(|name| mesh.pod(name));
    mesh.until("the policy to take effect", || hears_nothing(stranger, pod));
    MYSQL.call(friend, service).unwrap();
    let count = || ["not_allowed", "identity_mismatch"].map(|reason| refusals(&mesh, reason));
    let (called, before) = (app.called(), count());

    let ca = Ca::open(mesh.control.as_ref().unwrap().ca_dir(), "cluster.local").unwrap();
    let forged = Ca::open(&mesh.lab.dir().join("forged"), "cluster.local").unwrap();
    let by_hand = |svid: Option<&_>| ByHand::new(sidecar(svid, &ca), Duration::ZERO);
    let [enemys, forgers] = [issue(&ca, "enemy"), issue(&forged, "friend")];
    std::thread::scope(|scope| {
        // One whom the policy does not name, by its own sidecar and by hand; one whom nobody knows, and who shows nothing.
        let meshed = scope.spawn(|| listen(enemy.connect(service).unwrap(), b""));
        let hands = [Some(&enemys), Some(&forgers), None].map(|svid| {
            let by_hand = by_hand(svid);
            scope.spawn(move || by_hand.call(enemy.net(), pod, 1).words)
        });
        // Without the mesh: one that waits to be greeted, one that does not.
        let plain = [&b""[..], b"\0"].map(|words| scope.spawn(move || listen(stranger.connect(pod).unwrap(), words)));
        assert_eq!(meshed.join().unwrap(), b"");
        for hand in hands {
            match hand.join().unwrap() {
                Ok(words) => panic!("{}", words.escape_ascii()),
                Err((words, error)) => assert_eq!(words, b"", "{error}"),
            }
        }
        for words in plain {
            assert_eq!(words.join().unwrap(), b"");
        }
    });
    // Four that are known, or plain, are not allowed; two have proved nothing.
    mesh.until("the refusals to be counted", || match count() {
        after if (after[0] - before[0] - 4.0).abs() + (after[1] - before[1] - 2.0).abs() < f64::EPSILON => Ok(()),
        after => Err(format!("{before:?}, then {after:?}")),
    });
    // The application was not even called.
    assert_eq!(app.called(), called);
    MYSQL.call(friend, service).unwrap();
}

/// Somebody of another mesh: nobody, until control is told of that mesh's roots; from then on somebody, and nothing was started anew.
/// Its namespaces are not ours, whatever they are called.
fn another_trust_domain() {
    let mut mesh = Mesh::without_control();
    let dir = mesh.lab.dir().to_owned();
    let ca = |name: &str| Ca::open(&dir.join(name), "partner.example").unwrap();
    let (partner, former) = (ca("partner"), ca("former"));
    let file = dir.join("partner.pem");
    std::fs::write(&file, former.root_pem()).unwrap();
    mesh.control_flags = vec![format!("--federate=partner.example={}", file.display())];
    mesh.start_control();
    let _app = deploy(&mut mesh, MYSQL);
    mesh.client("client");
    let (pod, net) = (direct(&mesh, MYSQL), mesh.lab.node());
    let ours = Ca::open(mesh.control.as_ref().unwrap().ca_dir(), "cluster.local").unwrap();
    let by_hand = ByHand::new(sidecar(Some(&issue(&partner, "client")), &ours), Duration::ZERO);
    let greeting = mysql_greeting();
    let call = || match by_hand.call(net, pod, greeting.len()).words {
        Ok(words) if words == greeting => Ok(()),
        Ok(words) => panic!("{}", words.escape_ascii()),
        Err((words, error)) if words.is_empty() => Err(error.to_string()),
        Err((words, error)) => panic!("{} and {error}", words.escape_ascii()),
    };
    call().unwrap_err();
    mesh.counts("mysql-0", "weft_refused_total", &["reason=\"identity_mismatch\""], |count| count > 0.5);
    std::fs::write(&file, [former.root_pem(), partner.root_pem()].concat()).unwrap();
    mesh.until("the root to be believed", call);
    mesh.write("only.yaml", &only("{namespaces: [shop]}"));
    mesh.until("another mesh's namespace to be no neighbour", || match call() {
        Ok(()) => Err("it is greeted".to_owned()),
        Err(_) => Ok(()),
    });
    MYSQL.call(mesh.pod("client-0"), mesh.address(MYSQL.name)).unwrap();
}

fn strict_greets_no_plain_client() {
    let mut mesh = Mesh::new();
    mesh.write("namespace.yaml", STRICT);
    let app = deploy(&mut mesh, MYSQL);
    mesh.client("client").deploy(Service::own("stranger").unmeshed());
    let (stranger, pod) = (mesh.pod("stranger-0"), direct(&mesh, MYSQL));
    std::thread::scope(|scope| {
        let plain = [&b""[..], b"\0", b"\x16\x03\x01\x00\x05hello"];
        for words in plain.map(|words| scope.spawn(move || listen(stranger.connect(pod).unwrap(), words))) {
            assert_eq!(words.join().unwrap(), b"");
        }
    });
    mesh.until("the refusals to be counted", || match refusals(&mesh, "plaintext_refused") {
        count if (count - 3.0).abs() < f64::EPSILON => Ok(()),
        count => Err(format!("{count}")),
    });
    let peer = format!("peer={}:", stranger.ip());
    for why in ["it said nothing", "it sent no mesh TLS"] {
        audited(
            &mesh,
            "mysql-0",
            &["connection refused", "cause=\"plaintext_refused\"", "direction=\"inbound\"", &peer, why],
        );
    }
    assert_eq!(app.called(), 0);
    MYSQL.call(mesh.pod("client-0"), mesh.address(MYSQL.name)).unwrap();
}

fn own_tls() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::own("db").ports(5432, 5432)).client("client").deploy(Service::own("stranger").unmeshed());
    let bank = Bank::new(&mesh.lab.dir().join("bank"));
    let _app = App::start(mesh.pod("db-0"), 5432, bank.serve());
    let direct = (mesh.pod("db-0").ip(), 5432).into();
    let call = |pod: &str, to: SocketAddr, ask_first| bank.call(mesh.pod(pod).connect(to).unwrap(), ask_first);
    for ask_first in [true, false, true, false] {
        assert_eq!(call("client-0", mesh.address("db"), ask_first).unwrap(), Bank::answer(), "asked: {ask_first}");
        // On a permissive port it is as good without the mesh.
        assert_eq!(call("stranger-0", direct, ask_first).unwrap(), Bank::answer(), "asked: {ask_first}");
    }
    for labels in [MTLS, PLAIN] {
        mesh.counts("db-0", OPENED, labels, |count| (count - 4.0).abs() < f64::EPSILON);
    }
    // To a strict one it is no mesh TLS, whoever has signed it.
    mesh.write("namespace.yaml", STRICT);
    mesh.until("a stranger to be refused", || match call("stranger-0", direct, false) {
        Ok(_) => Err("it was answered".to_owned()),
        Err(_) => Ok(()),
    });
    for ask_first in [true, false] {
        assert_eq!(call("client-0", mesh.address("db"), ask_first).unwrap(), Bank::answer(), "asked: {ask_first}");
    }
}
