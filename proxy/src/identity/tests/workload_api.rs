//! The Workload API over real sockets: ours as the server, and ours as the client of it.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Streaming};
use weft_api::wire::spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use weft_api::wire::spiffe::{X509BundlesRequest, X509svid, X509svidRequest, X509svidResponse};

use super::*;
use crate::Shared;
use crate::discovery::snapshot::Snapshot;
use crate::identity::trust::Bundles;
use crate::identity::workload_api::follow::follow;
use crate::identity::workload_api::serve::{HOLD, WorkloadApi, bundle};
use crate::identity::workload_api::socket;

/// Leaves of this life are renewed every three seconds or so.
const SHORT: Duration = Duration::from_secs(4);
const SOON: Duration = Duration::from_secs(20);

type FakeNow = FakeCa<fn() -> SystemTime>;

/// Our own trust domain.
const OWN: &str = "spiffe://cluster.local";

/// A sidecar with a certificate of its own, as far as its application sees it.
struct Sidecar {
    shared: Arc<Shared>,
    ca: Arc<FakeNow>,
    bundles: watch::Sender<Bundles>,
    path: PathBuf,
    // Of its own, so that it ends with all its connections.
    runtime: Option<Runtime>,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Sidecar {
    /// Its CA answers for the application by this script; an empty one means that nobody asks.
    fn start(script: &[Answer], hold: Duration) -> Self {
        let ca = Arc::new(fake(SystemTime::now as fn() -> SystemTime, script));
        let shared = crate::testing::shared(web(), Snapshot::default());
        let own = ca.svid(&web(), HOUR, SystemTime::now());
        shared.identity.install(Arc::new(Current::new(Arc::new(own), ca.ca.roots()).unwrap()));
        let path = ca.dir.path().join("api.sock");
        let own = (OWN.to_owned(), bundle(ca.ca.root_pem()));
        let mut sidecar = Self { shared, ca, bundles: watch::Sender::new([own].into()), path, runtime: None };
        sidecar.serve(hold);
        if !script.is_empty() {
            let (shared, ca) = (Arc::clone(&sidecar.shared), Arc::clone(&sidecar.ca));
            let settings = Settings { token: Token::None, state_dir: None, ..ca.settings() };
            sidecar.runtime.as_ref().unwrap().spawn(async move {
                run(&shared.application, &shared.identity, &settings, &*ca, SystemTime::now).await;
            });
        }
        sidecar
    }

    fn serve(&mut self, hold: Duration) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = socket::listen(&self.path).unwrap();
        let api = WorkloadApi::new(Arc::clone(&self.shared), self.bundles.subscribe(), hold);
        runtime.spawn(async move { api.serve(listener).await.unwrap() });
        self.runtime = Some(runtime);
    }

    fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Tells it other roots; gives those of before.
    fn tell(&self, roots: Bytes) -> Bytes {
        let mut before = None;
        self.bundles.send_modify(|bundles| before = bundles.insert(OWN.to_owned(), roots));
        before.unwrap()
    }

    /// Gives the application a certificate of this life.
    fn give(&self, life: Duration) {
        let svid = self.ca.svid(&web(), life, SystemTime::now());
        let current = Current::new(Arc::new(svid), self.ca.ca.roots()).unwrap();
        self.shared.application.install(Arc::new(current));
    }

    fn bound_hits(&self, bound: &str) -> Option<u64> {
        let page = crate::telemetry::scrape::text(&self.shared).unwrap();
        let name = format!("weft_bound_hit_total{{bound=\"{bound}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
    }
}

fn client(path: &Path) -> SpiffeWorkloadApiClient<Channel> {
    let path: Arc<Path> = path.into();
    let connect = move |_: http::Uri| {
        let path = Arc::clone(&path);
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    let channel = Endpoint::from_static("http://api").connect_with_connector_lazy(tower::service_fn(connect));
    SpiffeWorkloadApiClient::new(channel)
}

/// A request as libraries send it.
fn meant<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    timeout(SOON, stream.message()).await.expect("a message in time").unwrap().expect("the stream goes on")
}

async fn svid(stream: &mut Streaming<X509svidResponse>) -> (X509svid, Svid) {
    let mut message = next(stream).await;
    let given = message.svids.pop().unwrap();
    assert!(message.svids.is_empty() && given.spiffe_id == web().to_string());
    let svid = Svid::from_der(&given.x509_svid_key, &given.x509_svid).unwrap();
    (given, svid)
}

#[tokio::test]
async fn the_first_comes_at_once_and_each_renewal_brings_another_key() {
    let sidecar = Sidecar::start(&[Answer::Issue(SHORT)], HOLD);
    let mut client = client(&sidecar.path);
    let mut stream = client.fetch_x509svid(meant(X509svidRequest {})).await.unwrap().into_inner();
    let (given, first) = svid(&mut stream).await;
    assert_eq!(given.bundle, bundle(sidecar.ca.ca.root_pem()));
    assert!(first.valid_at(SystemTime::now()));
    assert!(!given.x509_svid.ends_with(&given.bundle), "leaf and issuer, no root");
    // It stands for the same workload with another key than the sidecar's.
    let own = sidecar.shared.identity.current().unwrap();
    assert_eq!((first.identity(), first.key_id() == *own.key_id), (&own.identity, false));

    let (again, second) = svid(&mut stream).await;
    assert_ne!((first.serial(), first.key_id()), (second.serial(), second.key_id()));
    assert_ne!(given.x509_svid_key, again.x509_svid_key);
    // Who comes now has the newest at once.
    let mut late = client.fetch_x509svid(meant(X509svidRequest {})).await.unwrap().into_inner();
    assert_eq!(svid(&mut late).await.1.serial(), second.serial());
    assert!(sidecar.ca.asked().iter().all(|by| *by == "certificate"), "proved by the sidecar's own");

    for secret in [format!("{given:?}"), format!("{:?}", sidecar.shared.application.current())] {
        assert!(!secret.contains("key"), "{secret}");
    }
}

#[tokio::test]
async fn a_request_that_was_not_meant_is_refused() {
    let sidecar = Sidecar::start(&[], HOLD);
    sidecar.give(HOUR);
    let mut client = client(&sidecar.path);
    for value in [None, Some("false"), Some("True")] {
        let mut request = Request::new(X509svidRequest {});
        let mut other = Request::new(X509BundlesRequest {});
        if let Some(value) = value {
            request.metadata_mut().insert("workload.spiffe.io", value.parse().unwrap());
            other.metadata_mut().insert("workload.spiffe.io", value.parse().unwrap());
        }
        let answers =
            [client.fetch_x509svid(request).await.map(drop), client.fetch_x509_bundles(other).await.map(drop)];
        for answer in answers {
            let status = answer.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{value:?}");
            assert!(status.message().contains("workload.spiffe.io: true"), "{status}");
        }
    }
}

#[tokio::test]
async fn without_a_certificate_a_request_is_held_and_then_may_try_again() {
    let short = Duration::from_millis(300);
    let sidecar = Sidecar::start(&[], short);
    let mut client = client(&sidecar.path);
    let status = client.fetch_x509svid(meant(X509svidRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    // The roots are known all the same.
    let mut roots = client.fetch_x509_bundles(meant(X509BundlesRequest {})).await.unwrap().into_inner();
    assert!(next(&mut roots).await.bundles.contains_key(OWN));
    drop(sidecar);

    let sidecar = Sidecar::start(&[], SOON);
    let mut client = self::client(&sidecar.path);
    let (stream, ()) = tokio::join!(client.fetch_x509svid(meant(X509svidRequest {})), async {
        sleep(short).await;
        sidecar.give(HOUR);
    });
    svid(&mut stream.unwrap().into_inner()).await;
}

#[tokio::test]
async fn whom_control_refuses_has_no_identity() {
    let sidecar = Sidecar::start(&[Answer::Fail(Failure::Refused)], Duration::from_secs(1));
    let status = client(&sidecar.path).fetch_x509svid(meant(X509svidRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains(&web().to_string()), "{status}");
}

#[tokio::test]
async fn an_expired_certificate_is_not_given_out() {
    let sidecar = Sidecar::start(&[], Duration::from_millis(100));
    sidecar.give(Duration::from_secs(1));
    let mut client = client(&sidecar.path);
    let expired = async {
        while sidecar.shared.application.current().is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, expired).await.unwrap();
    let status = client.fetch_x509svid(meant(X509svidRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}

#[tokio::test]
async fn new_roots_are_sent_on_every_stream_and_nothing_twice() {
    let sidecar = Sidecar::start(&[], HOLD);
    sidecar.give(HOUR);
    let mut client = client(&sidecar.path);
    let mut svids = client.fetch_x509svid(meant(X509svidRequest {})).await.unwrap().into_inner();
    let mut roots = client.fetch_x509_bundles(meant(X509BundlesRequest {})).await.unwrap().into_inner();
    let (before, _) = svid(&mut svids).await;
    next(&mut roots).await;
    // A certificate is no news for who asked for roots.
    sidecar.give(HOUR);
    let (renewed, _) = svid(&mut svids).await;
    assert_ne!(renewed.x509_svid, before.x509_svid);
    let both = Bytes::from([&renewed.bundle[..], &renewed.bundle[..]].concat());
    sidecar.tell(both.clone());
    let (after, _) = svid(&mut svids).await;
    assert_eq!((&after.bundle, &after.x509_svid), (&both, &renewed.x509_svid));
    assert_eq!(next(&mut roots).await.bundles[OWN], both);
}

#[tokio::test]
async fn the_roots_of_other_trust_domains_come_and_go_beside_ours() {
    let sidecar = Sidecar::start(&[], HOLD);
    sidecar.give(HOUR);
    let mut client = client(&sidecar.path);
    let mut svids = client.fetch_x509svid(meant(X509svidRequest {})).await.unwrap().into_inner();
    let mut roots = client.fetch_x509_bundles(meant(X509BundlesRequest {})).await.unwrap().into_inner();
    assert!(next(&mut svids).await.federated_bundles.is_empty());
    assert_eq!(next(&mut roots).await.bundles.len(), 1);
    let partner = Bytes::from_static(b"partner's");
    let named = "spiffe://partner.example".to_owned();
    sidecar.bundles.send_modify(|bundles| drop(bundles.insert(named.clone(), partner.clone())));
    let message = next(&mut svids).await;
    assert_eq!(message.svids[0].bundle, bundle(sidecar.ca.ca.root_pem()));
    assert_eq!(message.federated_bundles, [(named.clone(), partner.clone())].into());
    let all = next(&mut roots).await.bundles;
    assert_eq!((all.len(), &all[&named], &all[OWN]), (2, &partner, &message.svids[0].bundle));
    sidecar.bundles.send_modify(|bundles| drop(bundles.remove(&named)));
    assert!(next(&mut svids).await.federated_bundles.is_empty());
    assert_eq!(next(&mut roots).await.bundles.len(), 1);
}

#[test]
fn what_control_says_is_what_bundles_are_made_of() {
    let trust = trusting(&fake(SystemTime::now, &[]).ca);
    let (mut bundles, root) = (trust.bundles(), trust.bundles().borrow()[OWN].clone());
    let der = |one: &Bytes| vec![one.clone()];
    let told = |domains: &[&str]| weft_api::convert::Trust {
        bundles: domains.iter().map(|domain| (Arc::from(*domain), der(&root))).collect(),
        own: "cluster.local".into(),
        aliases: Vec::new(),
        svid_roots: Vec::new(),
    };
    trust.tell(&told(&["cluster.local"])).unwrap();
    assert!(!bundles.has_changed().unwrap(), "nothing new");
    trust.tell(&told(&["cluster.local", "partner.example"])).unwrap();
    let two: Bundles = [OWN, "spiffe://partner.example"].map(|domain| (domain.to_owned(), root.clone())).into();
    assert_eq!(*bundles.borrow_and_update(), two);
    trust.tell(&told(&["cluster.local"])).unwrap();
    assert_eq!(bundles.borrow_and_update().len(), 1);
}

#[tokio::test]
async fn connections_and_streams_are_bounded() {
    let sidecar = Sidecar::start(&[], HOLD);
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut client = client(&sidecar.path);
        for _ in 0..32 {
            open.push(client.fetch_x509_bundles(meant(X509BundlesRequest {})).await.unwrap());
        }
    }
    let refused = client(&sidecar.path).fetch_x509_bundles(meant(X509BundlesRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(sidecar.bound_hits("workload_api_streams"), Some(1));
    // Those that end leave room.
    open.clear();
    let mut client = client(&sidecar.path);
    let room = async {
        while client.fetch_x509_bundles(meant(X509BundlesRequest {})).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, room).await.unwrap();

    let mut connections = Vec::new();
    let full = async {
        while sidecar.bound_hits("workload_api_connections").is_none() {
            connections.push(UnixStream::connect(&sidecar.path).await.unwrap());
        }
    };
    timeout(SOON, full).await.unwrap();
    assert!(connections.len() >= 200, "{}", connections.len());
    let mut last = UnixStream::connect(&sidecar.path).await.unwrap();
    assert_eq!(timeout(SOON, last.read(&mut [0])).await.unwrap().unwrap_or(0), 0, "closed at once");
}

/// Follows the sidecar's Workload API as another proxy of this identity would, until `done`.
async fn follow_until(
    store: &IdentityStore,
    settings: &Settings,
    path: &Path,
    mut done: impl FnMut(&IdentityStore) -> bool,
) {
    let watch = async {
        while !done(store) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let both = async {
        tokio::select! {
            () = follow(store, settings, path, SystemTime::now) => unreachable!("it never ends"),
            () = watch => {}
        }
    };
    timeout(SOON, both).await.expect("the condition never came");
}

/// As configured: nothing but who we are, and what control's certificate leads to.
fn configured(sidecar: &Sidecar) -> Settings {
    Settings { token: Token::None, state_dir: None, ..sidecar.ca.settings() }
}

#[tokio::test]
async fn ours_comes_from_another_and_every_renewal_is_taken() {
    let sidecar = Sidecar::start(&[Answer::Issue(SHORT)], HOLD);
    let store = IdentityStore::default();
    let mut keys = BTreeSet::new();
    follow_until(&store, &configured(&sidecar), &sidecar.path, |store| {
        keys.extend(store.current().ok().map(|current| current.key_id.clone()));
        keys.len() == 2
    })
    .await;
    assert_eq!((store.counters.issued(), failures(&store)), (2, 0));
    assert_eq!(store.current().unwrap().identity, web());
}

#[tokio::test]
async fn the_certificate_in_use_serves_on_while_the_other_is_away() {
    let mut sidecar = Sidecar::start(&[], HOLD);
    sidecar.give(HOUR);
    let (store, settings, path) = (IdentityStore::default(), configured(&sidecar), sidecar.path.clone());
    let mut first = None;
    let mut restarted = false;
    follow_until(&store, &settings, &path, |store| {
        let serial = store.current().ok().map(|current| current.serial.clone());
        match (&first, restarted) {
            (None, _) if serial.is_some() => {
                first = serial;
                sidecar.stop();
            }
            (Some(first), false) if store.counters.failed(Failure::Unreachable) >= 2 => {
                assert_eq!(serial.as_ref(), Some(first), "it serves on");
                // What is the same when it comes back is not taken again; the next one is.
                sidecar.serve(HOLD);
                restarted = true;
                sidecar.give(HOUR);
            }
            (Some(first), true) => return serial.as_ref() != Some(first),
            _ => {}
        }
        false
    })
    .await;
    assert_eq!(store.counters.issued(), 2);
}

#[tokio::test]
async fn what_is_not_ours_or_does_not_fit_is_never_used() {
    let sidecar = Sidecar::start(&[], Duration::from_millis(100));
    let settings = configured(&sidecar);
    let cart = Identity::new("cluster.local", "shop", "cart").unwrap();
    let store = IdentityStore::default();
    let failed = |failure| move |store: &IdentityStore| store.counters.failed(failure) > 0;
    // Nobody has an identity there yet.
    follow_until(&store, &settings, &sidecar.path, failed(Failure::Unreachable)).await;
    sidecar.give(HOUR);
    let other = Settings { identity: cart, ..settings.clone() };
    follow_until(&store, &other, &sidecar.path, failed(Failure::BadAnswer)).await;
    // Roots that its own certificate does not lead to.
    let stranger = fake(SystemTime::now, &[]);
    let good = sidecar.tell(bundle(stranger.ca.root_pem()));
    follow_until(&store, &settings, &sidecar.path, failed(Failure::SelfCheck)).await;
    let before = store.counters.failed(Failure::BadAnswer);
    sidecar.tell(Bytes::from_static(b"no certificates"));
    follow_until(&store, &settings, &sidecar.path, |store| store.counters.failed(Failure::BadAnswer) > before).await;
    assert_eq!((store.current().unwrap_err(), store.counters.issued()), (Reason::IdentityExpired, 0));
    sidecar.tell(good);
    follow_until(&store, &settings, &sidecar.path, |store| store.current().is_ok()).await;
}

#[tokio::test]
async fn new_roots_are_taken_with_the_certificate_in_use() {
    let sidecar = Sidecar::start(&[], HOLD);
    sidecar.give(HOUR);
    let store = IdentityStore::default();
    let stranger = fake(SystemTime::now, &[]);
    let mut sent = false;
    follow_until(&store, &configured(&sidecar), &sidecar.path, |store| {
        if store.counters.issued() == 1 && !sent {
            sent = true;
            let both = [sidecar.bundles.borrow()[OWN].to_vec(), bundle(stranger.ca.root_pem()).to_vec()].concat();
            sidecar.tell(both.into());
        }
        store.counters.issued() == 2
    })
    .await;
    // A peer of the other root is known now.
    let theirs = stranger.svid(&web(), HOUR, SystemTime::now());
    let theirs = Current::new(Arc::new(theirs), stranger.ca.roots()).unwrap();
    let ours = store.current().unwrap();
    assert_eq!(ours.serial, sidecar.shared.application.current().unwrap().serial);
    let mut server = rustls::ServerConnection::new(theirs.server.clone()).unwrap();
    let name = "peer.weft".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(ours.client_h1.clone(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    server.read_tls(&mut &bytes[..]).unwrap();
    server.process_new_packets().unwrap();
    bytes.clear();
    while server.wants_write() {
        server.write_tls(&mut bytes).unwrap();
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        client.read_tls(&mut rest).unwrap();
    }
    client.process_new_packets().unwrap();
    assert_eq!(tls::peer_identity(client.peer_certificates()).unwrap(), web());
}
