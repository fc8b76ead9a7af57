//! What a handshake of the mesh costs: in memory and in one thread, so that nothing is counted but TLS, and each side for itself.
//!
//! Full handshakes are made with weft-certs' own configurations. Resumption is off in the mesh; here the same configurations have it
//! turned on, as rustls offers it (the peer's chain is restored and not looked at), and as it would have to be (the restored chain is
//! verified again, on both sides). docs/identity.md says what was decided by these figures.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, ServerSessionMemoryCache};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
};
use weft_certs::ca::Ca;
use weft_certs::svid::{KeyPair, Svid};
use weft_certs::tls::{self, ClientAuth};
use weft_engine::identity::Identity;

use super::Error;
use super::account::Machine;
use super::table::{Metric, OTHERS, Results};

/// The name of the case.
pub const CASE: &str = "handshakes";
/// The column: there is no other peer in memory.
pub const PEER: &str = "weft";

/// Handshakes that make one figure, and how many figures each repetition makes of each way, one way after the other.
const BATCH: u32 = 100;
const BATCHES: usize = 10;
/// What is made before, unmeasured.
const WARM_UP: u32 = 50;
/// Sessions kept: each resumption uses one up and leaves one.
const SESSIONS: usize = 64;
const TRUST_DOMAIN: &str = "cluster.local";
const ALPN: &[&[u8]] = &[b"weft1-h1"];

/// The figures of one way: each side's CPU, and how many of them a core makes in a second.
type Figures = [Metric; 4];

macro_rules! figures {
    ($way:literal) => {
        [
            Metric::less(concat!("cpu client's side, ", $way), "us"),
            Metric::less(concat!("cpu server's side, ", $way), "us"),
            Metric::more(concat!("client's sides a core, ", $way), "1/s"),
            Metric::more(concat!("server's sides a core, ", $way), "1/s"),
        ]
    };
}

const FULL: Figures = figures!("full");
const RESUMED: Figures = figures!("resumed");
const STRICT: Figures = figures!("resumed and verified again");
/// Of the CPU of both sides of a full handshake.
const SAVED: Metric = Metric::more("saved by resuming", "share");
const SAVED_STRICT: Metric = Metric::more("saved by resuming and verifying again", "share");

/// CPU time of both sides.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    client: Duration,
    server: Duration,
}

/// A client and a server of the mesh.
struct Pair {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// Whether their handshakes resume a session.
    kind: HandshakeKind,
    /// By which a restored chain is verified again, if it is.
    again: Option<Again>,
}

struct Again {
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Measures all ways.
pub fn measure(repetitions: usize, results: &mut Results) -> Result<(), Error> {
    let dir = std::env::temp_dir().join(format!("weft-bench-handshakes-{}", std::process::id()));
    let ways = pairs(&dir);
    // Whatever came of it: there are keys in there.
    let _ = std::fs::remove_dir_all(&dir);
    let ways = ways?;
    for (pair, _) in &ways {
        batch(pair, WARM_UP)?;
    }
    for _ in 0..repetitions {
        let before = Machine::now()?;
        for _ in 0..BATCHES {
            let mut costs = [Cost::default(); 3];
            for ((pair, figures), cost) in ways.iter().zip(&mut costs) {
                *cost = batch(pair, BATCH)?;
                add(results, figures, *cost);
            }
            let [full, resumed, strict] = costs.map(|cost| (cost.client + cost.server).as_secs_f64());
            results.add(CASE, PEER, SAVED, 1.0 - resumed / full);
            results.add(CASE, PEER, SAVED_STRICT, 1.0 - strict / full);
        }
        results.add(CASE, PEER, OTHERS, Machine::now()?.others_since(before));
    }
    Ok(())
}

fn add(results: &mut Results, figures: &Figures, cost: Cost) {
    let [client, server] = [cost.client, cost.server].map(|all| all.as_secs_f64() * 1e6 / f64::from(BATCH));
    for (metric, value) in figures.iter().zip([client, server, 1e6 / client, 1e6 / server]) {
        results.add(CASE, PEER, *metric, value);
    }
}

/// The three ways, by certificates of one CA.
fn pairs(dir: &std::path::Path) -> Result<[(Pair, &'static Figures); 3], Error> {
    let ca = Ca::open(dir, TRUST_DOMAIN).map_err(Error::certs)?;
    let (web, cart) = (svid(&ca, "web")?, svid(&ca, "cart")?);
    let client = tls::client_config(Some(&web), ca.roots(), ALPN, TRUST_DOMAIN).map_err(Error::certs)?;
    let server =
        tls::server_config(&cart, ca.roots(), ALPN, ClientAuth::Required, TRUST_DOMAIN).map_err(Error::certs)?;
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(ca.root_pem().as_bytes()).map_err(Error::certs)?;
    roots.add(root).map_err(Error::certs)?;
    let algorithms = client.crypto_provider().signature_verification_algorithms;
    let resuming = |again| {
        let mut client = ClientConfig::clone(&client);
        client.resumption = Resumption::in_memory_sessions(SESSIONS);
        let mut server = ServerConfig::clone(&server);
        server.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        server.send_tls13_tickets = 1;
        Pair { client: Arc::new(client), server: Arc::new(server), kind: HandshakeKind::Resumed, again }
    };
    let (resumed, strict) = (resuming(None), resuming(Some(Again { roots, algorithms })));
    for pair in [&resumed, &strict] {
        // The first one has nothing to resume.
        shake(&Pair {
            client: Arc::clone(&pair.client),
            server: Arc::clone(&pair.server),
            kind: HandshakeKind::Full,
            again: None,
        })?;
    }
    Ok([
        (Pair { client, server, kind: HandshakeKind::Full, again: None }, &FULL),
        (resumed, &RESUMED),
        (strict, &STRICT),
    ])
}

fn svid(ca: &Ca, account: &str) -> Result<Svid, Error> {
    let identity = Identity::new(TRUST_DOMAIN, "bench", account).map_err(Error::certs)?;
    let key = KeyPair::generate().map_err(Error::certs)?;
    let csr = key.csr(&identity).map_err(Error::certs)?;
    let chain = ca.issue(&csr, &identity, Duration::from_hours(1), SystemTime::now()).map_err(Error::certs)?;
    Svid::new(key, &chain).map_err(Error::certs)
}

/// What so many handshakes cost.
fn batch(pair: &Pair, count: u32) -> Result<Cost, Error> {
    let mut sum = Cost::default();
    for _ in 0..count {
        let cost = shake(pair)?;
        sum = Cost { client: sum.client + cost.client, server: sum.server + cost.server };
    }
    Ok(sum)
}

/// One handshake: the client's hello, the server's flight, the client's, the server's ticket if it gives one.
fn shake(pair: &Pair) -> Result<Cost, Error> {
    let mut cost = Cost::default();
    let name = ServerName::try_from("cart.bench.80.weft").map_err(Error::certs)?;
    let (mut client, hello) = timed(&mut cost.client, || {
        let mut client = ClientConnection::new(Arc::clone(&pair.client), name).map_err(Error::certs)?;
        let hello = written(&mut client)?;
        Ok((client, hello))
    })?;
    let (mut server, flight) = timed(&mut cost.server, || {
        let mut server = ServerConnection::new(Arc::clone(&pair.server)).map_err(Error::certs)?;
        give(&mut server, &hello)?;
        let flight = written(&mut server)?;
        Ok((server, flight))
    })?;
    let flight = timed(&mut cost.client, || {
        give(&mut client, &flight)?;
        let flight = written(&mut client)?;
        know(pair, client.peer_certificates())?;
        Ok(flight)
    })?;
    let ticket = timed(&mut cost.server, || {
        give(&mut server, &flight)?;
        know(pair, server.peer_certificates())?;
        written(&mut server)
    })?;
    timed(&mut cost.client, || give(&mut client, &ticket))?;
    if client.is_handshaking() || server.is_handshaking() || server.handshake_kind() != Some(pair.kind) {
        return Err(Error::certs(format!("a handshake was {:?}, not {:?}", server.handshake_kind(), pair.kind)));
    }
    Ok(cost)
}

/// What a sidecar does after a handshake: it reads who the peer is. And, to be strict, it verifies a restored chain again.
fn know(pair: &Pair, chain: Option<&[CertificateDer<'_>]>) -> Result<(), Error> {
    tls::peer_identity(chain).map_err(Error::certs)?;
    if let (Some(again), Some([leaf, between @ ..])) = (&pair.again, chain) {
        let leaf = ParsedCertificate::try_from(leaf).map_err(Error::certs)?;
        let all = again.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &again.roots, between, UnixTime::now(), all)
            .map_err(Error::certs)?;
    }
    Ok(())
}

fn timed<T>(sum: &mut Duration, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let before = cpu();
    let done = work()?;
    *sum += cpu().saturating_sub(before);
    Ok(done)
}

/// CPU time of this thread: what others take of the machine does not count, only how warm they leave the caches.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn written<S>(connection: &mut ConnectionCommon<S>) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).map_err(Error::certs)?;
    }
    Ok(bytes)
}

fn give<S>(connection: &mut ConnectionCommon<S>, mut bytes: &[u8]) -> Result<(), Error> {
    while !bytes.is_empty() {
        connection.read_tls(&mut bytes).map_err(Error::certs)?;
        connection.process_new_packets().map_err(Error::certs)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_goes_as_it_says() {
        let dir = std::env::temp_dir().join(format!("weft-bench-test-{}", std::process::id()));
        let ways = pairs(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        for (pair, figures) in ways {
            // As many as use up more sessions than are kept.
            let cost = batch(&pair, SESSIONS as u32 + 8).unwrap();
            assert!(cost.client > Duration::ZERO && cost.server > Duration::ZERO, "{figures:?}");
        }
    }
}
