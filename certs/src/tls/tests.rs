//! Handshakes in memory: who is let in, and who is not.

mod failures;
mod names;
mod pins;
mod revoked;

mod federation;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, SanType};
use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::ca::Ca;
use crate::svid::KeyPair;

const TD: &str = "cluster.local";
const ALPN: &[&[u8]] = &[b"weft1-h1"];
const HOUR: Duration = Duration::from_hours(1);

struct Mesh {
    _dir: tempfile::TempDir,
    ca: Ca,
}

fn mesh(trust_domain: &str) -> Mesh {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(dir.path(), trust_domain).unwrap();
    Mesh { _dir: dir, ca }
}

impl Mesh {
    fn identity(&self, account: &str) -> Identity {
        Identity::new(self.ca.trust_domain(), "shop", account).unwrap()
    }

    fn svid(&self, account: &str) -> Svid {
        self.svid_at(account, SystemTime::now())
    }

    fn svid_at(&self, account: &str, now: SystemTime) -> Svid {
        let key = KeyPair::generate().unwrap();
        let identity = self.identity(account);
        let chain = self.ca.issue(&key.csr(&identity).unwrap(), &identity, HOUR, now).unwrap();
        Svid::new(key, &chain).unwrap()
    }

    fn server(&self, svid: &Svid, auth: ClientAuth) -> Arc<ServerConfig> {
        server_config(svid, self.ca.roots(), ALPN, auth, TD).unwrap()
    }

    fn client(&self, svid: Option<&Svid>) -> Arc<ClientConfig> {
        client_config(svid, self.ca.roots(), ALPN, TD).unwrap()
    }
}

/// What each side saw of a connection on which one byte went each way.
#[derive(Debug)]
struct Seen {
    server: Result<Identity, TlsError>,
    client: Result<Identity, TlsError>,
    kind: HandshakeKind,
    version: ProtocolVersion,
    suite: CipherSuite,
    group: NamedGroup,
    tickets: u32,
}

/// Handshakes, then one byte each way: a client learns only by reading that the server refused its certificate.
async fn connect(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<Seen, String> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let mut tls = TlsAcceptor::from(server).accept(far).await?;
        let byte = tls.read_u8().await?;
        tls.write_u8(byte).await?;
        tls.flush().await?;
        // Held open until the client has read all.
        let _ = tls.read_u8().await;
        Ok::<_, std::io::Error>(peer_identity(tls.get_ref().1.peer_certificates()))
    };
    let call = async {
        let name = "web.shop.80.weft".try_into().unwrap();
        let mut tls = TlsConnector::from(client).connect(name, near).await?;
        tls.write_u8(7).await?;
        tls.flush().await?;
        tls.read_u8().await?;
        let c = tls.get_ref().1;
        Ok::<_, std::io::Error>(Seen {
            server: peer_identity(c.peer_certificates()),
            client: Err(TlsError::NoCertificate),
            kind: c.handshake_kind().unwrap(),
            version: c.protocol_version().unwrap(),
            suite: c.negotiated_cipher_suite().unwrap().suite(),
            group: c.negotiated_key_exchange_group().unwrap().name(),
            tickets: c.tls13_tickets_received(),
        })
    };
    let (served, called) = tokio::join!(serve, call);
    match (served, called) {
        (Ok(client), Ok(seen)) => Ok(Seen { client, ..seen }),
        (served, called) => Err(format!("server: {:?}; client: {:?}", served.err(), called.err())),
    }
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let mesh = mesh(TD);
    let (web, cart) = (mesh.svid("web"), mesh.svid("cart"));
    let seen = connect(mesh.client(Some(&web)), mesh.server(&cart, ClientAuth::Required)).await.unwrap();
    assert_eq!(seen.server.unwrap(), mesh.identity("cart"));
    assert_eq!(seen.client.unwrap(), mesh.identity("web"));
    assert_eq!(seen.version, ProtocolVersion::TLSv1_3);
    assert_eq!(seen.suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(seen.group, NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn a_client_without_certificate_passes_only_where_that_is_optional() {
    let mesh = mesh(TD);
    let cart = mesh.svid("cart");
    let seen = connect(mesh.client(None), mesh.server(&cart, ClientAuth::Optional)).await.unwrap();
    assert!(matches!(seen.client, Err(TlsError::NoCertificate)));
    let error = connect(mesh.client(None), mesh.server(&cart, ClientAuth::Required)).await.unwrap_err();
    assert!(error.contains("CertificateRequired"), "{error}");
}

#[tokio::test]
async fn optional_still_refuses_a_bad_certificate() {
    let (ours, theirs) = (mesh(TD), mesh(TD));
    let stranger = theirs.svid("web");
    let client = client_config(Some(&stranger), ours.ca.roots(), ALPN, TD).unwrap();
    let error = connect(client, ours.server(&ours.svid("cart"), ClientAuth::Optional)).await.unwrap_err();
    assert!(error.contains("UnknownIssuer") || error.contains("BadSignature"), "{error}");
}

#[tokio::test]
async fn another_ca_of_the_same_name_is_refused_by_the_client_too() {
    let (ours, theirs) = (mesh(TD), mesh(TD));
    let server = theirs.server(&theirs.svid("cart"), ClientAuth::Optional);
    let error = connect(ours.client(None), server).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn another_trust_domain_is_refused_on_both_sides_though_its_root_is_trusted() {
    let (ours, theirs) = (mesh(TD), mesh("other.example"));
    let both = Roots::from_pem(&format!("{}{}", ours.ca.root_pem(), theirs.ca.root_pem())).unwrap();
    let (web, foreign) = (ours.svid("web"), theirs.svid("web"));

    let client = client_config(Some(&foreign), &both, ALPN, TD).unwrap();
    let server = server_config(&web, &both, ALPN, ClientAuth::Required, TD).unwrap();
    let error = connect(client, server).await.unwrap_err();
    assert!(error.contains("not of trust domain"), "{error}");

    let client = client_config(Some(&web), &both, ALPN, TD).unwrap();
    let server = server_config(&foreign, &both, ALPN, ClientAuth::Required, TD).unwrap();
    let error = connect(client, server).await.unwrap_err();
    assert!(error.contains("other.example/ns/shop/sa/web is not of trust domain"), "{error}");
}

#[tokio::test]
async fn expired_and_future_leaves_are_refused_on_both_sides() {
    let mesh = mesh(TD);
    let good = mesh.svid("web");
    let now = SystemTime::now();
    for (bad, word) in
        [(mesh.svid_at("web", now - 2 * HOUR), "Expired"), (mesh.svid_at("web", now + 2 * HOUR), "NotValidYet")]
    {
        let error = connect(mesh.client(Some(&bad)), mesh.server(&good, ClientAuth::Required)).await.unwrap_err();
        assert!(error.contains(word), "{error}");
        let error = connect(mesh.client(Some(&good)), mesh.server(&bad, ClientAuth::Required)).await.unwrap_err();
        assert!(error.contains(word), "{error}");
    }
}

#[tokio::test]
async fn a_client_that_expects_one_server_takes_no_other() {
    let mesh = mesh(TD);
    let (web, cart) = (mesh.svid("web"), mesh.svid("cart"));
    let server = mesh.server(&cart, ClientAuth::Required);
    let client = client_config_for(&mesh.identity("cart"), Some(&web), mesh.ca.roots(), ALPN).unwrap();
    connect(client, Arc::clone(&server)).await.unwrap();
    let client = client_config_for(&mesh.identity("admin"), Some(&web), mesh.ca.roots(), ALPN).unwrap();
    let error = connect(client, server).await.unwrap_err();
    assert!(error.contains("the server is") && error.contains("sa/admin"), "{error}");
}

#[tokio::test]
async fn only_control_is_control() {
    let mesh = mesh(TD);
    let control = mesh.ca.issue_control(&[], HOUR, SystemTime::now()).unwrap().remove(0);
    let client = control_client_config(Some(&mesh.svid("web")), mesh.ca.roots(), TD).unwrap();
    let listen = |svid: &Svid| server_config(svid, mesh.ca.roots(), &[b"h2"], ClientAuth::Optional, TD).unwrap();
    connect(Arc::clone(&client), listen(&control)).await.unwrap();
    let error = connect(client, listen(&mesh.svid("cart"))).await.unwrap_err();
    assert!(error.contains("the server is"), "{error}");
}

/// A certificate by the mesh's root with names that the CA would never issue.
fn odd_svid(mesh: &Mesh, names: Vec<SanType>) -> SingleCertAndKey {
    // The test's own issuer under a root of the test: what matters is that the chain is good and the name is not.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let chain = mesh.ca.sign_for_test(&params, &key);
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).unwrap();
    SingleCertAndKey::from(rustls::sign::CertifiedKey::new(chain, signer))
}

#[tokio::test]
async fn a_certificate_names_exactly_one_spiffe_id() {
    let mesh = mesh(TD);
    let good = mesh.svid("web");
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = || SanType::DnsName("web.shop.80.weft".try_into().unwrap());
    let id = mesh.identity("web").to_string();
    for (names, wanted) in [
        (vec![dns()], Some("0 URI names")),
        (vec![uri(&id), uri("spiffe://cluster.local/ns/shop/sa/admin")], Some("2 URI names")),
        (vec![uri(&id), uri(&id)], Some("2 URI names")),
        (vec![uri("https://cluster.local/ns/shop/sa/web")], Some("is not of the form")),
        (vec![uri("spiffe://cluster.local/other/form")], Some("is not of the form")),
        (vec![uri("spiffe://cluster.local/ns/shop/sa/*")], Some("URI name")),
        (vec![uri("spiffe://*/ns/shop/sa/web")], Some("URI name")),
        (vec![uri("spiffe://cluster.local./ns/shop/sa/web")], Some("not of trust domain")),
        (vec![uri("spiffe://cluster.local/ns/shop/sa/w%65b")], Some("URI name")),
        (vec![uri("spiffe://CLUSTER.local/ns/shop/sa/web")], Some("URI name")),
        (vec![uri("spiffe://other.example/ns/shop/sa/web")], Some("not of trust domain")),
        (vec![uri(&id)], None),
        (vec![uri(&id), dns()], None),
    ] {
        let odd = Arc::new(odd_svid(&mesh, names.clone()));
        let mut client = ClientConfig::clone(&mesh.client(Some(&good)));
        client.client_auth_cert_resolver = odd.clone();
        let as_client = connect(Arc::new(client), mesh.server(&good, ClientAuth::Required)).await;
        let mut server = ServerConfig::clone(&mesh.server(&good, ClientAuth::Required));
        server.cert_resolver = odd;
        let as_server = connect(mesh.client(Some(&good)), Arc::new(server)).await;
        for result in [as_client, as_server] {
            match (wanted, result) {
                (None, Ok(_)) => {}
                (Some(word), Err(error)) if error.contains(word) => {}
                (_, result) => panic!("{names:?}: {result:?}"),
            }
        }
    }
}

#[tokio::test]
async fn no_session_is_resumed() {
    let mesh = mesh(TD);
    let client = mesh.client(Some(&mesh.svid("web")));
    let server = mesh.server(&mesh.svid("cart"), ClientAuth::Required);
    for _ in 0..3 {
        let seen = connect(Arc::clone(&client), Arc::clone(&server)).await.unwrap();
        assert_eq!(seen.kind, HandshakeKind::Full);
        assert_eq!(seen.tickets, 0);
    }
    assert!(!client.enable_early_data);
    assert_eq!(server.max_early_data_size, 0);
    assert_eq!(server.send_tls13_tickets, 0);
    assert!(!server.ticketer.enabled());
    assert!(!server.session_storage.can_cache());

    // The test can tell: with both sides' defaults the second handshake is a resumption.
    let mut client = ClientConfig::clone(&client);
    client.resumption = Resumption::in_memory_sessions(4);
    let mut server = ServerConfig::clone(&server);
    server.session_storage = rustls::server::ServerSessionMemoryCache::new(4);
    server.send_tls13_tickets = 2;
    let (client, server) = (Arc::new(client), Arc::new(server));
    connect(Arc::clone(&client), Arc::clone(&server)).await.unwrap();
    let seen = connect(client, server).await.unwrap();
    assert_eq!(seen.kind, HandshakeKind::Resumed);
}

#[tokio::test]
async fn a_foreign_alpn_is_refused() {
    let mesh = mesh(TD);
    let client = client_config(Some(&mesh.svid("web")), mesh.ca.roots(), &[b"h2"], TD).unwrap();
    let error = connect(client, mesh.server(&mesh.svid("cart"), ClientAuth::Required)).await.unwrap_err();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
}

#[test]
fn roots_must_all_be_good() {
    let mesh = mesh(TD);
    assert!(Roots::from_pem("").is_err());
    assert!(Roots::from_pem("nonsense").is_err());
    let cut = &mesh.ca.root_pem()[..mesh.ca.root_pem().len() / 2];
    assert!(Roots::from_pem(&format!("{}{cut}", mesh.ca.root_pem())).is_err());
}
