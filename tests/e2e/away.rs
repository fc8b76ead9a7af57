//! The CA is away for ten lives of a leaf, and the rest of control with it: what is still valid serves, every refusal afterwards says why, and
//! all come back within one back-off without storming the CA. The figures are printed.
#![allow(clippy::print_stderr, reason = "the figures are what this test is for")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::{join_all, select};
use http::Method;
use tokio::sync::watch;
use weft::lab::{NODE, Pod, sum};
use weft_capture::netns::NetNs;
use weft_certs::tls::Roots;
use weft_certs::token::{self, Uses};
use weft_engine::identity::Identity;
use weft_proxy::control_channel::Target;
use weft_proxy::identity::IdentityStore;
use weft_proxy::identity::authority::{ControlAuthority, Token};
use weft_proxy::identity::renew::{self, Settings};
use weft_proxy::identity::trust::Trust;
use weft_proxy::resolver::resolver;
use weft_tests::client::{Got, Session, echo, get, request, run};
use weft_tests::mesh::SOON;
use weft_tests::{Mesh, Service, Trial, test_that_waits};

use crate::STRICT;

pub fn tests() -> Vec<Trial> {
    vec![test_that_waits("away_the_ca_for_ten_lives_of_a_leaf", the_ca_for_ten_lives)]
}

const LEAF: Duration = Duration::from_secs(5);
/// The longest wait between two attempts, as docs/identity.md has it.
const LONGEST: Duration = Duration::from_secs(10);
/// Renewing clients beside the sidecars: the sidecar's own code, without a data path.
const RENEWING: usize = 30;
const SIDECARS: [&str; 6] = ["web-0", "web-1", "echo-0", "ann-0", "bob-0", "cay-0"];
const AT_ONCE: usize = 12;
/// How long their refusals may take together on a busy machine: nothing is waited for.
const AT_ONCE_TAKE: Duration = Duration::from_secs(2);
/// Between two rounds of them: an expired leaf is no more expired for being asked about all the time.
const ROUND: Duration = Duration::from_millis(250);
const CLIENTS: [&str; 3] = ["ann-0", "bob-0", "cay-0"];

/// What sidecars run to have certificates, many times over.
struct Renewing {
    stores: Arc<Vec<IdentityStore>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Renewing {
    fn start(mesh: &Mesh) -> Self {
        let ca_dir = mesh.control.as_ref().unwrap().ca_dir().to_owned();
        let stores: Arc<Vec<_>> = Arc::new((0..RENEWING).map(|_| IdentityStore::default()).collect());
        let pem = std::fs::read_to_string(ca_dir.join("root.pem")).unwrap();
        let settings = (0..RENEWING).map(|number| {
            let identity = Identity::new("cluster.local", "shop", &format!("waiting-{number}")).unwrap();
            let token = token::sign_for(&ca_dir, &identity, Uses::Many, Duration::from_mins(10), SystemTime::now());
            let trust = Trust::new("cluster.local".into(), Roots::from_pem(&pem).unwrap(), Bytes::default());
            Settings { identity, trust: trust.into(), token: Token::Text(token.unwrap().into()), state_dir: None }
        });
        let settings: Vec<_> = settings.collect();
        let (stop, mut stopped) = watch::channel(false);
        let (node, shared): (NetNs, _) = (mesh.lab.node().clone(), Arc::clone(&stores));
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let names = resolver(&[SocketAddr::from((NODE, 53))], None).unwrap();
                let target = Target::new(&[format!("{NODE}:15012")], None, names).unwrap();
                let one = |(store, settings): (_, &Settings)| {
                    let domain = Arc::clone(&settings.identity.trust_domain);
                    let authority = ControlAuthority::new(target.clone(), Arc::clone(&settings.trust), domain);
                    let settings = settings.clone();
                    async move { renew::run(store, store, &settings, &authority, SystemTime::now).await }
                };
                let all = join_all(shared.iter().zip(&settings).map(one));
                select(all, Box::pin(stopped.wait_for(|stop| *stop))).await;
            });
        };
        let thread = std::thread::spawn(move || node.run(work).unwrap());
        Self { stores, stop, thread: Some(thread) }
    }

    fn valid(&self) -> usize {
        self.stores.iter().filter(|store| store.current().is_ok()).count()
    }
}

impl Drop for Renewing {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// When a sidecar's leaf ends, in seconds since 1970.
fn expiry(mesh: &Mesh, pod: &str) -> f64 {
    mesh.metric(pod, "weft_certificate_expiry_timestamp_seconds", &["certificate=\"leaf\""])
}

fn renewals(mesh: &Mesh, pod: &str, result: &str) -> f64 {
    mesh.metric(pod, "weft_certificate_renewals_total", &[&format!("result=\"{result}\"")])
}

fn left(until: f64) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Duration::try_from_secs_f64(until - now.as_secs_f64()).unwrap_or_default()
}

fn the_ca_for_ten_lives() {
    let mut mesh = Mesh::with_control(&[&format!("--leaf-ttl={}s", LEAF.as_secs())]);
    mesh.write("namespace.yaml", STRICT);
    mesh.deploy(Service::http("web").pods(2)).deploy(Service::tcp("echo"));
    mesh.client("ann").client("bob").client("cay");
    // What was never called cannot be known without control.
    for name in CLIENTS {
        assert_eq!(get(mesh.pod(name), mesh.address("web"), "/").outcome(), (200, ""));
    }
    let mut long: Vec<_> = CLIENTS.iter().map(|name| session(&mesh, name)).collect();
    let renewing = Renewing::start(&mesh);
    mesh.until("all to have certificates", || match renewing.valid() {
        RENEWING => Ok(()),
        valid => Err(format!("{valid} of {RENEWING} have")),
    });

    mesh.until("no leaf to be about to end", || {
        let ends = SIDECARS.map(|pod| left(expiry(&mesh, pod)));
        if ends.iter().all(|end| *end > LEAF / 4) { Ok(()) } else { Err(format!("{ends:?}")) }
    });
    mesh.control.as_mut().unwrap().process.kill();
    let gone = Instant::now();
    let served = while_valid(&mesh);
    let mut refused = once_expired(&mesh, &mut long);
    while gone.elapsed() < 10 * LEAF {
        refused += CLIENTS.iter().map(|name| all_refused(&mesh, name)).sum::<usize>();
        std::thread::sleep(ROUND);
    }
    for pod in SIDECARS {
        let asked = renewals(&mesh, pod, "unreachable");
        assert!((8.0..=25.0).contains(&asked), "{pod} has asked {asked} times in ten lives");
    }
    assert_eq!(renewing.valid(), 0);
    let before = SIDECARS.map(|pod| renewals(&mesh, pod, "issued"));

    // Long enough for nobody to ask twice while they are counted.
    mesh.control_flags = vec!["--leaf-ttl=1m".to_owned()];
    mesh.start_control();
    let (took, asked) = until_all_are_back(&mesh, &renewing, before);
    for name in CLIENTS {
        assert_eq!(get(mesh.pod(name), mesh.address("web"), "/").outcome(), (200, ""));
        session(&mesh, name);
    }
    long.iter_mut().for_each(exchange);
    let most = asked.iter().map(|(from, ..)| within_a_second(&asked, *from)).max().unwrap_or_default();
    let all = asked.last().unwrap().1;
    eprintln!(
        "{served} requests served on valid leaves, {refused} refused with their reason; {} back in {took:?} by {all} requests to the CA, \
         {most} of them in the busiest second",
        SIDECARS.len() + RENEWING
    );
    // Each waits for between half of the longest wait and the whole; what is asserted leaves room for chance.
    let average = (SIDECARS.len() + RENEWING) as f64 / (LONGEST / 2).as_secs_f64();
    assert!((most as f64) < 2.0 * average, "{most} requests in one second: {asked:?}");
    assert!(took < LONGEST + Duration::from_secs(2), "it took {took:?}");
}

/// Sends while every leaf is valid; how many requests.
fn while_valid(mesh: &Mesh) -> usize {
    let first = SIDECARS.map(|pod| expiry(mesh, pod)).into_iter().fold(f64::MAX, f64::min);
    let mut served = 0;
    while left(first) > Duration::from_millis(200) {
        for name in CLIENTS {
            assert_eq!(get(mesh.pod(name), mesh.address("web"), "/").outcome(), (200, ""), "{served} were served");
            served += 1;
        }
    }
    assert!(served > 0, "the first leaf had expired before control was gone");
    served
}

/// Sends after every leaf has expired: no request is served by one, and each says why. What was open stays open.
fn once_expired(mesh: &Mesh, long: &mut [TcpStream]) -> usize {
    let last = SIDECARS.map(|pod| expiry(mesh, pod)).into_iter().fold(0.0, f64::max);
    std::thread::sleep(left(last) + Duration::from_millis(200));
    let mut refused = 0;
    for name in CLIENTS {
        let labels = ["reason=\"identity_expired\""];
        let before = mesh.metric(name, "weft_refused_total", &labels);
        let told = all_refused(mesh, name);
        let mut stream = mesh.pod(name).connect(mesh.address("echo")).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        assert!(!matches!(stream.read(&mut [0; 16]), Ok(1..)), "a session was opened by an expired leaf");
        refused += told + 1;
        mesh.counts(name, "weft_refused_total", &labels, |count| count - before > told as f64 + 0.5);
        // A pod that can do nothing says so to whoever sends it traffic.
        assert!(!mesh.sidecar(name).is_ready());
        assert!(left(expiry(mesh, name)).is_zero(), "the metric tells of the one that has expired");
    }
    long.iter_mut().for_each(exchange);
    refused
}

/// Requests that need a certificate are refused at once, each with the reason, whatever connections were opened in time.
fn all_refused(mesh: &Mesh, client: &str) -> usize {
    let begun = Instant::now();
    let said = at_once(mesh.pod(client), mesh.address("web"));
    assert!(said.iter().all(|got| got.outcome() == (503, "identity_expired")), "{said:?}");
    assert!(begun.elapsed() < AT_ONCE_TAKE, "{:?} until they were refused", begun.elapsed());
    said.len()
}

/// Requests that are under way at one time, so that most need a connection of their own between the sidecars.
fn at_once(pod: &Pod, to: SocketAddr) -> Vec<Got> {
    run(async {
        let mut sessions = Vec::new();
        for _ in 0..AT_ONCE {
            sessions.push(Session::open(pod, to).await.unwrap());
        }
        let asked = || request(Method::GET, "web", "/delay/300", &[]);
        let answers = join_all(sessions.iter_mut().map(|session| session.send(asked()))).await;
        answers.into_iter().map(Result::unwrap).collect()
    })
}

/// Looks at the CA's counters until everybody has a certificate; how long it took, and when how many requests had come.
fn until_all_are_back(mesh: &Mesh, renewing: &Renewing, before: [f64; 6]) -> (Duration, Vec<(Duration, usize)>) {
    let (start, mut asked) = (Instant::now(), Vec::new());
    loop {
        let text = mesh.control_metrics();
        let names = ["weft_control_certificates_issued_total", "weft_control_certificates_refused_total"];
        let count = names.iter().map(|name| sum(&text, name, &[])).sum::<f64>() as usize;
        asked.push((start.elapsed(), count));
        let back = SIDECARS.iter().zip(before).filter(|(pod, before)| renewals(mesh, pod, "issued") > *before).count();
        if back == SIDECARS.len() && renewing.valid() == RENEWING {
            return (start.elapsed(), asked);
        }
        assert!(start.elapsed() < 2 * LONGEST, "{back} sidecars and {} others are back: {asked:?}", renewing.valid());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn within_a_second(asked: &[(Duration, usize)], from: Duration) -> usize {
    let count = |at: Duration| asked.iter().take_while(|(time, _)| *time <= at).last().map_or(0, |(_, count)| *count);
    count(from + Duration::from_secs(1)) - count(from)
}

/// A new session with the TCP service.
fn session(mesh: &Mesh, pod: &str) -> TcpStream {
    echo(mesh.pod(pod), mesh.address("echo"), "echo-0 v1", "begins")
}

/// A session that is open says something and hears it.
fn exchange(stream: &mut TcpStream) {
    let mut heard = [0; 7];
    stream.write_all(b"goes on").unwrap();
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"goes on");
}
