//! A revoked identity loses what it has open, whatever it speaks, and gets nothing new until it is forgiven; its neighbours notice nothing. The
//! times are printed.
#![allow(clippy::print_stderr, reason = "the figures are what these tests are for")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weft::lab::Pod;
use weft_tests::client::{echo, get, run};
use weft_tests::mesh::write_by_rename;
use weft_tests::{Mesh, Service, Trial, test_that_waits};

use crate::{STRICT, grpc};

pub fn tests() -> Vec<Trial> {
    vec![test_that_waits("revoked_an_identity_loses_what_it_has_and_its_neighbours_nothing", loses_what_it_has)]
}

/// Control reads its list every second; from when a sidecar has heard of it a connection ends within another.
const AT_ONCE: Duration = Duration::from_secs(2);
/// What else there is to do on a busy machine.
const SLACK: Duration = Duration::from_secs(2);
/// Longer than the test waits for anything to end.
const STREAM: (u8, u16) = (100, 200);

const ENTRIES: &str = "weft_revoked_entries";
const RETIRED: &str = "weft_connections_retired_total";
const INBOUND: &[&str] = &["direction=\"inbound\"", "reason=\"revoked\""];
const REFUSED: &[&str] = &["direction=\"outbound\"", "reason=\"identity_revoked\""];

/// A client with a session of opaque bytes and a stream of gRPC.
struct Client {
    pod: Pod,
    session: TcpStream,
    // When the stream ended, and how.
    stream: JoinHandle<(Instant, Result<String, String>)>,
}

impl Client {
    fn start(mesh: &Mesh, name: &str) -> Self {
        let pod = mesh.pod(name).clone();
        assert_eq!(get(&pod, mesh.address("web"), "/").outcome().0, 200);
        let session = echo(&pod, mesh.address("echo"), "echo-0 v1", "first");
        let (calling, to) = (pod.clone(), mesh.address("say"));
        let (count, every) = STREAM;
        let stream = std::thread::spawn(move || {
            let answered = run(async {
                let mut sender = grpc::open(&calling, to).await?;
                let (_, status) = grpc::call(&mut sender, "Repeat", &grpc::repeat(count, every), None).await?;
                Ok(status)
            });
            (Instant::now(), answered)
        });
        Self { pod, session, stream }
    }

    /// Whether the session still carries words.
    fn says(&mut self, word: &str) -> bool {
        let mut heard = vec![0; word.len()];
        let said = self.session.write_all(word.as_bytes()).and_then(|()| self.session.read_exact(&mut heard));
        said.is_ok() && heard == word.as_bytes()
    }
}

/// How often the neighbour asks, at least.
const ASKED: usize = 51;

/// Asks until it is told to stop, and counts; gives what went wrong.
fn asks(mesh: &Mesh, client: &Client, stop: &Arc<AtomicBool>, asked: &Arc<AtomicUsize>) -> JoinHandle<Vec<String>> {
    let (pod, to, stop, asked) = (client.pod.clone(), mesh.address("web"), Arc::clone(stop), Arc::clone(asked));
    std::thread::spawn(move || {
        let mut wrong = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            asked.fetch_add(1, Ordering::Relaxed);
            let got = get(&pod, to, "/");
            if got.outcome().0 != 200 {
                wrong.push(format!("{:?}", got.outcome()));
            }
        }
        wrong
    })
}

fn meshed() -> (Mesh, PathBuf) {
    let mut mesh = Mesh::without_control();
    let file = mesh.lab.dir().join("revoked.yaml");
    std::fs::write(&file, "[]").unwrap();
    mesh.control_flags = vec![format!("--revoked={}", file.display()), "--debug-remote".to_owned()];
    mesh.start_control();
    mesh.write("namespace.yaml", STRICT);
    mesh.deploy(Service::http("web")).deploy(Service::tcp("echo")).deploy(Service::grpc("say"));
    mesh.client("ann").client("bob");
    (mesh, file)
}

fn loses_what_it_has() {
    let (mesh, file) = meshed();
    let (mut ann, mut bob) = (Client::start(&mesh, "ann-0"), Client::start(&mesh, "bob-0"));
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let bystander = asks(&mesh, &bob, &stop, &asked);
    std::thread::sleep(Duration::from_millis(500));
    assert!(ann.says("again") && bob.says("again") && !ann.stream.is_finished());

    let told = Instant::now();
    write_by_rename(&file, "- identity: spiffe://cluster.local/ns/shop/sa/ann\n  reason: its node was broken into\n");
    // Nobody speaks on it.
    let ended = ann.session.read(&mut [0; 16]);
    let session = told.elapsed();
    assert!(matches!(&ended, Err(error) if error.kind() == ErrorKind::ConnectionReset), "{ended:?}");
    let (at, how) = ann.stream.join().unwrap();
    let stream = at - told;
    assert!(how.as_ref().map_or(true, |status| status != "\"0\""), "{how:?}");
    eprintln!("revoked: the opaque session ended after {session:?}, the stream after {stream:?}: {how:?}");
    assert!(session.max(stream) < AT_ONCE + SLACK);
    // HTTP/1, HTTP/2 and opaque bytes, each at its server.
    for pod in ["web-0", "say-0", "echo-0"] {
        mesh.counts(pod, RETIRED, INBOUND, |count| count > 0.5);
        mesh.counts(pod, ENTRIES, &[], |count| count > 0.5);
    }

    // Nothing new, and it is said why.
    assert_eq!(get(&ann.pod, mesh.address("web"), "/").outcome(), (503, "identity_revoked"));
    assert!(run(grpc::open(&ann.pod, mesh.address("say"))).is_ok(), "its own sidecar is there");
    assert!(grpc_status(&mesh, &ann.pod).is_err());
    let mut refused = ann.pod.connect(mesh.address("echo")).unwrap();
    assert!(refused.read(&mut [0; 16]).map_or(true, |read| read == 0));
    mesh.counts("ann-0", "weft_refused_total", REFUSED, |count| count > 2.5);

    // The others have noticed nothing.
    assert!(bob.says("still") && !bob.stream.is_finished());
    mesh.until("the neighbour to have asked often enough", || match asked.load(Ordering::Relaxed) {
        ASKED.. => Ok(()),
        asked => Err(format!("{asked} times")),
    });
    stop.store(true, Ordering::Relaxed);
    let wrong = bystander.join().unwrap();
    assert!(wrong.is_empty(), "{wrong:?}");

    write_by_rename(&file, "[]\n");
    let forgiven = Instant::now();
    mesh.until("ann to be believed again", || {
        let outcome = get(&ann.pod, mesh.address("web"), "/");
        if outcome.outcome().0 == 200 { Ok(()) } else { Err(format!("{:?}", outcome.outcome())) }
    });
    eprintln!("revoked: forgiven after {:?}", forgiven.elapsed());
    grpc_status(&mesh, &ann.pod).unwrap();
    echo(&ann.pod, mesh.address("echo"), "echo-0 v1", "again");
    assert!(bob.says("last"));
}

fn grpc_status(mesh: &Mesh, pod: &Pod) -> Result<String, String> {
    run(grpc::say(pod, mesh.address("say"), None))
}
