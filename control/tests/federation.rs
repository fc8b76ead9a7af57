//! Meshes that believe each other: two controls that read each other's bundle endpoint over a rotation, and endpoints that lie.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::common::{Mesh, Proxy};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use prost::Message as _;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use weft_api::names::{self, ResourceType};
use weft_api::wire::v1;
use weft_certs::bundle::{Bundle, document};
use weft_certs::ca::Ca;
use weft_certs::ca::rotation::Kind;
use weft_certs::svid::{KeyPair, Svid};
use weft_certs::tls::public_server_config;
use weft_control::federation::reader::Reader;
use weft_control::federation::{Known, Pace, file};
use weft_control::metrics::Metrics;
use weft_control::{Config, Control};
use weft_engine::identity::Identity;

const SOON: Duration = Duration::from_secs(30);
const PARTNER: &str = "partner.example";
const FAST: Pace =
    Pace { least: Duration::from_millis(100), usual: Duration::from_millis(200), most: Duration::from_millis(200) };

fn list(domain: &str, url: &str, bundle: &str) -> String {
    json!([{
        "domain": domain, "url": url, "profile": "https_spiffe", "bundle": bundle,
        "endpoint_id": format!("spiffe://{domain}/ns/weft-system/sa/weft-control"),
    }])
    .to_string()
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn publishing(config: &mut Config) {
    config.bundle_endpoint = Some(any_port());
    config.bundle_refresh = Duration::from_secs(1);
    config.leaf_ttl = Duration::from_secs(1);
    config.pace = FAST;
}

/// Roots by trust domain, as a proxy is told, once `wanted` holds of them.
async fn told(proxy: &mut Proxy, wanted: impl Fn(&BTreeMap<String, usize>) -> bool) -> BTreeMap<String, usize> {
    let mut last = BTreeMap::new();
    let heard = tokio::time::timeout(SOON, async {
        loop {
            let Ok(Some(response)) = proxy.incoming.message().await else { panic!("the stream ended") };
            proxy.ack(&response).await;
            for resource in response.resources.iter().filter(|resource| resource.name == names::TRUST) {
                let trust = v1::Trust::decode(&*resource.resource.as_ref().unwrap().value).unwrap();
                last = trust.bundles.into_iter().map(|bundle| (bundle.trust_domain, bundle.roots.len())).collect();
                if wanted(&last) {
                    return;
                }
            }
        }
    });
    let found = heard.await.is_ok();
    assert!(found, "{last:?}");
    last
}

/// What another mesh's control publishes.
async fn published(by: SocketAddr) -> Value {
    let tcp = tokio::net::TcpStream::connect(by).await.unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tls = tls.connect("weft-control".try_into().unwrap(), tcp).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::builder().uri("/").header("host", "x").body(Full::<Bytes>::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_of_one_mesh_reaches_the_other_and_back_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("files")).unwrap();
    std::fs::write(path("files/services.yaml"), crate::common::service("theirs", 9)).unwrap();
    let theirs = Ca::open(&path("ca"), PARTNER).unwrap();
    std::fs::write(path("theirs.pem"), theirs.root_pem()).unwrap();
    let mut config = Config::new(vec![path("files")], path("ca"));
    publishing(&mut config);
    (config.listen, config.metrics, config.trust_domain) = (any_port(), any_port(), PARTNER.to_owned());
    let control = Control::start(config.clone()).await.unwrap();
    let endpoint = control.bundle_endpoint.unwrap();
    let _serving = AbortOnDropHandle::new(tokio::spawn(control.until(std::future::pending())));
    let alone = published(endpoint).await;
    assert_eq!((alone["keys"].as_array().unwrap().len(), &alone["spiffe_refresh_hint"]), (1, &json!(1)));

    std::fs::write(path("list.json"), list(PARTNER, &format!("https://{endpoint}/"), "theirs.pem")).unwrap();
    let mesh = Mesh::with(|config| {
        publishing(config);
        (config.federation, config.state_dir) = (Some(path("list.json")), Some(path("state")));
    })
    .await;
    let mut proxy = mesh.proxy("web-1", "web").await.unwrap();
    proxy.ask(v1::Workload::TYPE_URL, &[&names::workload("shop", "web-1")]).await;
    // At once, by the roots to begin with.
    let first = told(&mut proxy, |told| told.len() == 2).await;
    assert_eq!(first[PARTNER], 1);

    theirs.begin(Kind::Root, SystemTime::now()).unwrap();
    told(&mut proxy, |told| told[PARTNER] == 2).await;
    let both = published(endpoint).await;
    assert_eq!(both["keys"].as_array().unwrap().len(), 2);
    assert!(both["spiffe_sequence"].as_u64() > alone["spiffe_sequence"].as_u64(), "{both} {alone}");
    // The endpoint's own certificate is of the new root at the end, and still it is believed.
    told(&mut proxy, |told| told[PARTNER] == 1).await;
    let new = Ca::load(&path("ca")).unwrap();
    assert!(!new.root_pem().contains(theirs.root_pem()));
    assert!(mesh.get("/metrics").await.contains("weft_control_federation_reads_total{outcome=\"ok\"}"));

    // And the other way round: ours are read by theirs.
    let (mut reader, known) = reader_of(&mesh, &path("ours.json"));
    reader.read(SystemTime::now()).await;
    assert_eq!(known.borrow()[crate::common::TD].len(), 1);
}

/// Roots by trust domain, and what the metrics say, as the list is edited.
#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_followed() {
    let scene = Scene::new();
    let other = Ca::open(&scene.dir.path().join("other"), "other.example").unwrap();
    std::fs::write(scene.dir.path().join("other.pem"), other.root_pem()).unwrap();
    let endpoint = Endpoint::new(scene.control(), scene.says(1)).await;
    let url = format!("https://{}/", endpoint.address);
    let path = scene.dir.path().join("list.json");
    let entry = |domain: &str, url: &str, bundle: &str| list(domain, url, bundle)[1..].trim_end_matches(']').to_owned();
    let write = |entries: &[String]| std::fs::write(&path, format!("[{}]", entries.join(","))).unwrap();
    write(&[]);
    let mesh = Mesh::with(|config| {
        publishing(config);
        (config.federation, config.state_dir) = (Some(path.clone()), Some(scene.dir.path().join("state")));
    })
    .await;
    let mut proxy = mesh.proxy("web-1", "web").await.unwrap();
    proxy.ask(v1::Workload::TYPE_URL, &[&names::workload("shop", "web-1")]).await;
    told(&mut proxy, |told| told.len() == 1).await;

    let partner = entry(PARTNER, &url, "seed.pem");
    write(std::slice::from_ref(&partner));
    told(&mut proxy, |told| told.get(PARTNER) == Some(&1)).await;
    let (good, read) = ("federation_broken 0", "federation_read_timestamp_seconds{trust_domain=\"partner.example\"} 1");
    says(&mesh, |text| text.contains(good) && text.contains(read)).await;
    let reads = || async { count(&mesh.get("/metrics").await) };

    // An entry beside it, whose endpoint is away: the first goes on, and is not even read anew.
    write(&[partner.clone(), entry("other.example", "https://127.0.0.1:1/", "other.pem")]);
    told(&mut proxy, |told| told.len() == 3).await;
    // A list that is wrong changes nothing, and it is said.
    for broken in ["", "[", "[{\"domain\": \"partner.example\"}]"] {
        std::fs::write(&path, broken).unwrap();
        says(&mesh, |text| text.contains("federation_broken 1")).await;
        let before = reads().await;
        says(&mesh, |text| count(text) > before).await;
    }
    // Another endpoint of theirs, which has more to say; of the other nothing is left.
    let both =
        format!("{}{}", scene.ca.root_pem(), Ca::open(&scene.dir.path().join("next"), PARTNER).unwrap().root_pem());
    let moved = Endpoint::new(scene.control(), document(&both, 1, Duration::from_mins(1)).unwrap()).await;
    write(&[entry(PARTNER, &format!("https://{}/", moved.address), "seed.pem")]);
    let told = told(&mut proxy, |told| told.get(PARTNER) == Some(&2)).await;
    assert_eq!(told.len(), 2);
    says(&mesh, |text| text.contains(good) && text.contains(read) && !text.contains("other.example")).await;
}

/// How often endpoints were read well.
fn count(metrics: &str) -> u64 {
    let name = "weft_control_federation_reads_total{outcome=\"ok\"} ";
    metrics.lines().find_map(|line| line.strip_prefix(name)).map_or(0, |count| count.parse().unwrap())
}

/// Waits until the metrics are so.
async fn says(mesh: &Mesh, wanted: impl Fn(&str) -> bool) {
    let looked = tokio::time::timeout(SOON, async {
        while !wanted(&mesh.get("/metrics").await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(looked.await.is_ok(), "{}", mesh.get("/metrics").await);
}

fn reader_of(mesh: &Mesh, list_file: &Path) -> (Reader, watch::Receiver<Known>) {
    let roots = list_file.with_extension("pem");
    std::fs::write(&roots, mesh.ca.root_pem()).unwrap();
    let url = format!("https://{}/", mesh.bundle_endpoint.unwrap());
    let text = list(crate::common::TD, &url, roots.to_str().unwrap());
    let partner = file::read(&text, list_file.parent().unwrap(), PARTNER, &BTreeSet::new()).unwrap().remove(0);
    let (out, known) = watch::channel(Known::new());
    (Reader::open(partner, None, Pace::default(), Arc::new(out), Arc::new(Metrics::new().unwrap())), known)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_root_does_not_issue_before_others_had_time_to_read_it() {
    let mesh = Mesh::with(|config| {
        publishing(config);
        config.bundle_refresh = Duration::from_mins(5);
    })
    .await;
    mesh.edit("pods.yaml", "");
    mesh.edit("web.yaml", "");
    mesh.edit("cart.yaml", "");
    Ca::load(&mesh.dir.path().join("ca")).unwrap().begin(Kind::Root, SystemTime::now()).unwrap();
    let waited = tokio::time::timeout(SOON, async {
        loop {
            let text = mesh.get("/debug/certificates").await;
            let report: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
            let rotation = &report["rotation"];
            if let (Some(since), Some(until)) = (rotation["since"].as_u64(), rotation["until"].as_u64()) {
                assert_eq!((&rotation["phase"], &rotation["waiting"]), (&json!("publishing"), &json!([])));
                assert!(until >= since + 600, "{report:#}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    waited.await.expect("the phase has an end");
}

/// An endpoint that shows a certificate and says whatever it is told.
struct Endpoint {
    address: SocketAddr,
    says: Arc<Mutex<Vec<u8>>>,
    _serving: AbortOnDropHandle<()>,
}

impl Endpoint {
    async fn new(config: Arc<ServerConfig>, says: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, says) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(says)));
        let body = Arc::clone(&says);
        let serving = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(tls) = TlsAcceptor::from(Arc::clone(&config)).accept(tcp).await else { continue };
                let body = Arc::clone(&body);
                let service = service_fn(move |_: Request<Incoming>| {
                    let body = Bytes::from(body.lock().clone());
                    async move { Ok::<_, std::convert::Infallible>(Response::new(Full::new(body))) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service));
            }
        });
        Self { address, says, _serving: AbortOnDropHandle::new(serving) }
    }

    fn say(&self, text: impl Into<Vec<u8>>) {
        *self.says.lock() = text.into();
    }
}

struct Scene {
    dir: TempDir,
    ca: Ca,
    metrics: Arc<Metrics>,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(&dir.path().join("ca"), PARTNER).unwrap();
        std::fs::write(dir.path().join("seed.pem"), ca.root_pem()).unwrap();
        Self { dir, ca, metrics: Arc::new(Metrics::new().unwrap()) }
    }

    fn says(&self, sequence: u64) -> Vec<u8> {
        document(self.ca.root_pem(), sequence, Duration::from_mins(1)).unwrap()
    }

    /// The partner's control.
    fn control(&self) -> Arc<ServerConfig> {
        let svid = self.ca.issue_control(&[], Duration::from_hours(1), SystemTime::now()).unwrap();
        public_server_config(&svid, &[b"http/1.1"], "").unwrap()
    }

    fn reader(&self, text: &str) -> (Reader, watch::Receiver<Known>) {
        let partner = file::read(text, self.dir.path(), crate::common::TD, &BTreeSet::new()).unwrap().remove(0);
        let (out, known) = watch::channel(Known::new());
        let (out, metrics) = (Arc::new(out), Arc::clone(&self.metrics));
        (Reader::open(partner, Some(&self.dir.path().join("state")), Pace::default(), out, metrics), known)
    }

    fn spiffe(&self, at: SocketAddr) -> (Reader, watch::Receiver<Known>) {
        self.reader(&list(PARTNER, &format!("https://{at}/"), "seed.pem"))
    }

    fn counted(&self, outcome: &str) -> u64 {
        self.metrics.federation_reads.with_label_values(&[outcome]).get()
    }
}

fn roots(known: &watch::Receiver<Known>) -> Vec<Bytes> {
    known.borrow().get(PARTNER).cloned().unwrap_or_default()
}

fn root_of(ca: &Ca) -> Vec<Bytes> {
    let bundle = Bundle::from_file(ca.root_pem().as_bytes()).unwrap();
    bundle.roots.iter().map(|root| Bytes::copy_from_slice(root)).collect()
}

#[tokio::test]
async fn an_endpoint_that_is_somebody_else_teaches_nothing() {
    let scene = Scene::new();
    let other = Ca::open(&scene.dir.path().join("other"), PARTNER).unwrap();
    let theirs = document(other.root_pem(), 100, Duration::from_mins(1)).unwrap();
    let web = Identity::new(PARTNER, "shop", "web").unwrap();
    let key = KeyPair::generate().unwrap();
    let chain = scene.ca.issue(&key.csr(&web).unwrap(), &web, Duration::from_hours(1), SystemTime::now()).unwrap();
    let workload = public_server_config(&[Svid::new(key, &chain).unwrap()], &[b"http/1.1"], "").unwrap();
    // The right name under a root that nobody told us of.
    let svid = other.issue_control(&[], Duration::from_hours(1), SystemTime::now()).unwrap();
    let stranger = public_server_config(&svid, &[b"http/1.1"], "").unwrap();
    for (server, reads) in [(workload, 1), (stranger, 2)] {
        let endpoint = Endpoint::new(server, theirs.clone()).await;
        let (mut reader, known) = scene.spiffe(endpoint.address);
        assert_eq!(reader.read(SystemTime::now()).await, Duration::from_secs(10));
        assert_eq!(roots(&known), root_of(&scene.ca));
        assert_eq!((scene.counted("ok"), scene.counted("failed")), (0, reads));
    }
    // The same words from the right one are believed.
    let endpoint = Endpoint::new(scene.control(), theirs).await;
    let (mut reader, known) = scene.spiffe(endpoint.address);
    assert_eq!(reader.read(SystemTime::now()).await, Duration::from_mins(1));
    assert_eq!(roots(&known), root_of(&other));
}

#[tokio::test]
async fn what_cannot_be_used_changes_nothing() {
    let scene = Scene::new();
    let next = Ca::open(&scene.dir.path().join("next"), PARTNER).unwrap();
    let both = format!("{}{}", scene.ca.root_pem(), next.root_pem());
    let endpoint = Endpoint::new(scene.control(), document(&both, 7, Duration::from_mins(1)).unwrap()).await;
    let (mut reader, known) = scene.spiffe(endpoint.address);
    reader.read(SystemTime::now()).await;
    let learnt = roots(&known);
    assert_eq!(learnt.len(), 2);
    let mut no_certificate: Value = serde_json::from_slice(&scene.says(9)).unwrap();
    no_certificate["keys"][0]["x5c"] = json!(["AAAA"]);
    let mut huge = scene.says(9);
    huge.resize(1 << 20, b' ');
    let mut waits = Vec::new();
    for bad in [
        Vec::new(),
        b"<html>".to_vec(),
        b"{\"keys\": []}".to_vec(),
        no_certificate.to_string().into_bytes(),
        huge,
        // From before the second root.
        scene.says(6),
    ] {
        endpoint.say(bad);
        waits.push(reader.read(SystemTime::now()).await.as_secs());
        assert_eq!(roots(&known), learnt);
    }
    assert_eq!((scene.counted("ok"), scene.counted("failed")), (1, 6));
    // It asks again after ever longer, up to what the endpoint has wished.
    assert_eq!(waits, [10, 20, 40, 60, 60, 60]);
    endpoint.say(scene.says(8));
    reader.read(SystemTime::now()).await;
    assert_eq!(roots(&known), root_of(&scene.ca));
}

#[tokio::test]
async fn an_endpoint_may_wish_but_not_for_everything() {
    let scene = Scene::new();
    let endpoint = Endpoint::new(scene.control(), Vec::new()).await;
    let (mut reader, _known) = scene.spiffe(endpoint.address);
    let good: Value = serde_json::from_slice(&scene.says(1)).unwrap();
    for (hint, want) in [(json!(1), 10), (json!(60), 60), (json!(u64::MAX), 3600), (json!(0), 10), (Value::Null, 300)] {
        let mut wished = good.clone();
        wished["spiffe_refresh_hint"] = hint;
        endpoint.say(wished.to_string());
        assert_eq!(reader.read(SystemTime::now()).await, Duration::from_secs(want));
    }
}

#[tokio::test]
async fn what_was_learnt_survives_a_restart_until_people_say_otherwise() {
    let scene = Scene::new();
    let next = Ca::open(&scene.dir.path().join("next"), PARTNER).unwrap();
    let learnt = document(next.root_pem(), 7, Duration::from_mins(1)).unwrap();
    let endpoint = Endpoint::new(scene.control(), learnt).await;
    let at = endpoint.address;
    let (mut reader, known) = scene.spiffe(at);
    reader.read(SystemTime::now()).await;
    assert_eq!(roots(&known), root_of(&next));
    drop(endpoint);
    let (mut reader, known) = scene.spiffe(at);
    reader.read(SystemTime::now()).await;
    assert_eq!(roots(&known), root_of(&next), "the endpoint is away, and control was restarted");

    // The partner made its CA anew: its people give us its roots, and an older sequence is taken again.
    let anew = Ca::open(&scene.dir.path().join("anew"), PARTNER).unwrap();
    std::fs::write(scene.dir.path().join("seed.pem"), anew.root_pem()).unwrap();
    reader.read(SystemTime::now()).await;
    assert_eq!(roots(&known), root_of(&anew));
    let (_, known) = scene.spiffe(at);
    assert_eq!(roots(&known), root_of(&anew));
    // What was saved is damaged: the roots to begin with.
    let saved = scene.dir.path().join("state/federation/bundle-partner.example");
    std::fs::write(&saved, "{}").unwrap();
    let (_, known) = scene.spiffe(at);
    assert_eq!(roots(&known), root_of(&anew));
}

#[tokio::test]
async fn a_web_server_is_known_by_its_host_name() {
    let scene = Scene::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let of = |name: &str| rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
    for (name, learns) in [("127.0.0.1", true), ("other.example", false)] {
        let certificate = of(name);
        std::fs::write(scene.dir.path().join("web.pem"), certificate.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let endpoint = Endpoint::new(Arc::new(server), scene.says(1)).await;
        let url = format!("https://{}/", endpoint.address);
        let entry = json!([{"domain": PARTNER, "url": url, "profile": "https_web", "ca": "web.pem"}]);
        let (mut reader, known) = scene.reader(&entry.to_string());
        assert!(roots(&known).is_empty(), "nothing to begin with");
        reader.read(SystemTime::now()).await;
        assert_eq!(roots(&known).is_empty(), !learns, "{name}");
    }
}
