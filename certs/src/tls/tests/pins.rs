//! Pins of what goes over the wire: an upgrade that changes a default must fail here.
//!
//! ClientHello and ServerHello are read byte by byte, because a parser of rustls's own would show what rustls means, not what it sends.
//! These tests are built with rustls's TLS 1.2 (see Cargo.toml), which the mesh itself is built without: should another crate turn
//! it on in a binary of ours one day, our configurations still do not speak it.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::kx_group::SECP384R1;
use rustls::server::ServerSessionMemoryCache;
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, ClientConnection, ConnectionCommon, Error, PeerIncompatible, RootCertStore, ServerConnection,
    SignatureScheme, SupportedProtocolVersion,
};

use super::*;

/// TLS 1.3 in `supported_versions`.
const TLS13: u16 = 0x0304;
const SUITES: [u16; 3] = [0x1301, 0x1302, 0x1303];
/// X25519MLKEM768, x25519, secp256r1.
const GROUPS: [u16; 3] = [0x11ec, 0x001d, 0x0017];

/// Extensions by their numbers at IANA.
mod ext {
    pub const SERVER_NAME: u16 = 0;
    pub const STATUS_REQUEST: u16 = 5;
    pub const GROUPS: u16 = 10;
    pub const POINT_FORMATS: u16 = 11;
    pub const SIGNATURE_ALGORITHMS: u16 = 13;
    pub const ALPN: u16 = 16;
    pub const EXTENDED_MASTER_SECRET: u16 = 23;
    pub const SUPPORTED_VERSIONS: u16 = 43;
    pub const PSK_MODES: u16 = 45;
    pub const KEY_SHARE: u16 = 51;
}

/// All that a ClientHello of ours carries. What is not here, among it: session ticket (35), pre-shared key (41), early data (42).
const SENT: [u16; 10] = [
    ext::SERVER_NAME,
    ext::STATUS_REQUEST,
    ext::GROUPS,
    ext::POINT_FORMATS,
    ext::SIGNATURE_ALGORITHMS,
    ext::ALPN,
    ext::EXTENDED_MASTER_SECRET,
    ext::SUPPORTED_VERSIONS,
    ext::PSK_MODES,
    ext::KEY_SHARE,
];

/// Signatures that are taken, in the order in which they are offered.
const SCHEMES: [SignatureScheme; 13] = {
    use SignatureScheme as S;
    [
        S::ECDSA_NISTP384_SHA384,
        S::ECDSA_NISTP256_SHA256,
        S::ECDSA_NISTP521_SHA512,
        S::ED25519,
        S::RSA_PSS_SHA512,
        S::RSA_PSS_SHA384,
        S::RSA_PSS_SHA256,
        S::RSA_PKCS1_SHA512,
        S::RSA_PKCS1_SHA384,
        S::RSA_PKCS1_SHA256,
        S::ML_DSA_44,
        S::ML_DSA_65,
        S::ML_DSA_87,
    ]
};

/// Bytes, read from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn number(&mut self, bytes: usize) -> usize {
        self.take(bytes).iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    }

    /// What a length of so many bytes counts.
    fn list(&mut self, bytes: usize) -> &'a [u8] {
        let count = self.number(bytes);
        self.take(count)
    }
}

fn pairs(bytes: &[u8]) -> Vec<u16> {
    assert_eq!(bytes.len() % 2, 0);
    bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}

/// A ClientHello or a ServerHello.
struct Hello {
    record_version: usize,
    version: usize,
    session: Vec<u8>,
    /// Offered, or the one that was chosen.
    suites: Vec<u16>,
    extensions: BTreeMap<u16, Vec<u8>>,
}

impl Hello {
    /// Reads the first message of the first record; `kind` 1 is the client's, 2 the server's.
    fn read(flight: &[u8], kind: usize) -> Self {
        let mut records = Reader(flight);
        assert_eq!(records.number(1), 22, "no handshake record");
        let record_version = records.number(2);
        let mut messages = Reader(records.list(2));
        assert_eq!(messages.number(1), kind);
        let mut body = Reader(messages.list(3));
        let version = body.number(2);
        body.take(32);
        let session = body.list(1).to_vec();
        let suites = if kind == 1 { pairs(body.list(2)) } else { pairs(body.take(2)) };
        let compression = if kind == 1 { body.list(1) } else { body.take(1) };
        assert_eq!(compression, [0]);
        let mut list = Reader(body.list(2));
        assert!(body.0.is_empty());
        let mut extensions = BTreeMap::new();
        while !list.0.is_empty() {
            let number = list.number(2) as u16;
            assert!(extensions.insert(number, list.list(2).to_vec()).is_none(), "extension {number} comes twice");
        }
        Self { record_version, version, session, suites, extensions }
    }

    fn of(client: &mut ClientConnection) -> Self {
        Self::read(&written(client), 1)
    }

    fn sent(&self) -> BTreeSet<u16> {
        self.extensions.keys().copied().collect()
    }

    /// The inside of an extension that is a list with a length of `bytes`.
    fn list(&self, number: u16, bytes: usize) -> &[u8] {
        let mut reader = Reader(&self.extensions[&number]);
        let list = reader.list(bytes);
        assert!(reader.0.is_empty());
        list
    }
}

/// What a side has to say.
pub(super) fn written<S>(connection: &mut ConnectionCommon<S>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Lets a side read. It may stop before the end: it has refused what came before.
pub(super) fn give<S>(connection: &mut ConnectionCommon<S>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        assert_ne!(connection.read_tls(&mut bytes).unwrap(), 0);
    }
}

fn dial(config: &Arc<ClientConfig>, name: &'static str) -> ClientConnection {
    ClientConnection::new(Arc::clone(config), name.try_into().unwrap()).unwrap()
}

/// Lets both shake hands. The error is that of the side which found it; what the other one says follows from it.
fn shake(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), Error> {
    for _ in 0..4 {
        give(server, &written(client));
        server.process_new_packets()?;
        give(client, &written(server));
        client.process_new_packets()?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

#[test]
fn a_client_hello_says_exactly_this() {
    let mesh = mesh(TD);
    let web = mesh.svid("web");
    let cart = mesh.identity("cart");
    for (config, alpn) in [
        (mesh.client(Some(&web)), &b"weft1-h1"[..]),
        (mesh.client(None), b"weft1-h1"),
        (client_config_for(&cart, Some(&web), mesh.ca.roots(), ALPN).unwrap(), b"weft1-h1"),
        (control_client_config(Some(&web), mesh.ca.roots(), TD).unwrap(), b"h2"),
    ] {
        let hello = Hello::of(&mut dial(&config, "web.shop.80.weft"));
        // Both are what TLS 1.3 writes for middleboxes (RFC 8446 sections 4.1.2 and 5.1).
        assert_eq!((hello.record_version, hello.version), (0x0301, 0x0303));
        assert_eq!(hello.suites, SUITES);
        assert_eq!(hello.sent(), BTreeSet::from(SENT));
        assert_eq!(pairs(hello.list(ext::SUPPORTED_VERSIONS, 1)), [TLS13]);
        assert_eq!(pairs(hello.list(ext::GROUPS, 2)), GROUPS);
        assert_eq!(pairs(hello.list(ext::SIGNATURE_ALGORITHMS, 2)), SCHEMES.map(u16::from));
        let mut shares = Reader(hello.list(ext::KEY_SHARE, 2));
        let shares: Vec<_> =
            std::iter::from_fn(|| (!shares.0.is_empty()).then(|| (shares.number(2) as u16, shares.list(2).len())))
                .collect();
        // ML-KEM-768's key and X25519's; the latter again alone, which costs nothing, for a server that has no ML-KEM.
        assert_eq!(shares, [(GROUPS[0], 1184 + 32), (GROUPS[1], 32)]);
        assert_eq!(Reader(hello.list(ext::ALPN, 2)).list(1), alpn);
        // A resumed session would do the key exchange again: never by the old key alone.
        assert_eq!(hello.list(ext::PSK_MODES, 1), [1]);
    }
}

#[test]
fn a_server_hello_says_exactly_this() {
    let mesh = mesh(TD);
    let mut client = dial(&mesh.client(Some(&mesh.svid("web"))), "web.shop.80.weft");
    let mut server = ServerConnection::new(mesh.server(&mesh.svid("cart"), ClientAuth::Required)).unwrap();
    give(&mut server, &written(&mut client));
    server.process_new_packets().unwrap();
    let hello = Hello::read(&written(&mut server), 2);
    assert_eq!((hello.record_version, hello.version), (0x0303, 0x0303));
    assert_eq!(hello.suites, [SUITES[0]]);
    assert_eq!(hello.sent(), BTreeSet::from([ext::SUPPORTED_VERSIONS, ext::KEY_SHARE]));
    assert_eq!(pairs(&hello.extensions[&ext::SUPPORTED_VERSIONS]), [TLS13]);
    let mut share = Reader(&hello.extensions[&ext::KEY_SHARE]);
    // The server's half: ML-KEM-768's ciphertext and X25519's key.
    assert_eq!((share.number(2) as u16, share.list(2).len()), (GROUPS[0], 1088 + 32));
}

/// Keeps what the server's request for a certificate said.
#[derive(Debug)]
struct Asked {
    key: Arc<CertifiedKey>,
    heard: Mutex<Option<(usize, Vec<SignatureScheme>)>>,
}

impl ResolvesClientCert for Asked {
    fn resolve(&self, hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        *self.heard.lock() = Some((hints.len(), schemes.to_vec()));
        Some(Arc::clone(&self.key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[test]
fn a_server_asks_for_these_signatures_and_names_no_authority() {
    let mesh = mesh(TD);
    let asked = Arc::new(Asked { key: mesh.svid("web").certified(), heard: Mutex::default() });
    let mut config = ClientConfig::clone(&mesh.client(None));
    config.client_auth_cert_resolver = asked.clone();
    let mut server = ServerConnection::new(mesh.server(&mesh.svid("cart"), ClientAuth::Required)).unwrap();
    shake(&mut dial(&Arc::new(config), "web.shop.80.weft"), &mut server).unwrap();
    // rustls leaves out for us what TLS 1.3 knows for certificates alone.
    let pkcs1 =
        [SignatureScheme::RSA_PKCS1_SHA512, SignatureScheme::RSA_PKCS1_SHA384, SignatureScheme::RSA_PKCS1_SHA256];
    let usable: Vec<_> = SCHEMES.into_iter().filter(|scheme| !pkcs1.contains(scheme)).collect();
    assert_eq!(asked.heard.lock().take(), Some((0, usable)));
}

#[test]
fn a_server_takes_no_other_group() {
    let mesh = mesh(TD);
    let server = mesh.server(&mesh.svid("cart"), ClientAuth::Optional);
    let offering = |group| {
        let provider = CryptoProvider { kx_groups: vec![group], ..default_provider() };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider));
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap().dangerous();
        let verifier = MeshVerifier::new(super::super::provider(), mesh.ca.roots(), TD);
        let mut config = builder.with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
        config.alpn_protocols = vec![ALPN[0].to_vec()];
        let mut server = ServerConnection::new(Arc::clone(&server)).unwrap();
        shake(&mut dial(&Arc::new(config), "web.shop.80.weft"), &mut server)
    };
    for group in [kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1] {
        offering(group).unwrap();
    }
    assert_eq!(offering(SECP384R1), Err(Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon)));
}

/// A client and a server of rustls as it comes, of one version alone, that trust the mesh's root. The server is control, because its
/// certificate has a DNS name, which is what rustls itself verifies.
fn plain_rustls(mesh: &Mesh, version: &'static SupportedProtocolVersion) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(x509::certificates(mesh.ca.root_pem()).unwrap().remove(0)).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[version]).unwrap();
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    let control = mesh.ca.issue_control(&[], HOUR, SystemTime::now()).unwrap().remove(0);
    let server = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    let key = SingleCertAndKey::from(control.certified());
    let mut server = server.with_no_client_auth().with_cert_resolver(Arc::new(key));
    client.alpn_protocols = vec![ALPN[0].to_vec()];
    server.alpn_protocols = vec![ALPN[0].to_vec()];
    (Arc::new(client), Arc::new(server))
}

#[test]
fn tls_1_2_is_refused_by_both_sides() {
    let mesh = mesh(TD);
    let (old_client, old_server) = plain_rustls(&mesh, &rustls::version::TLS12);
    let (new_client, new_server) = plain_rustls(&mesh, &rustls::version::TLS13);
    let ours = mesh.server(&mesh.ca.issue_control(&[], HOUR, SystemTime::now()).unwrap()[0], ClientAuth::Optional);
    let our_client = mesh.client(None);
    let try_both = |client: &Arc<ClientConfig>, server: &Arc<ServerConfig>| {
        let mut client = dial(client, CONTROL_SERVER_NAME);
        let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
        let said = shake(&mut client, &mut server);
        (said, written(&mut server), client, server)
    };
    // The peers do speak it, and would be let in but for the version.
    let (said, _, client, _) = try_both(&old_client, &old_server);
    said.unwrap();
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    try_both(&new_client, &ours).0.unwrap();
    try_both(&our_client, &new_server).0.unwrap();

    let (said, answer, mut client, _) = try_both(&old_client, &ours);
    assert_eq!(said, Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled)));
    give(&mut client, &answer);
    assert_eq!(client.process_new_packets(), Err(Error::AlertReceived(AlertDescription::ProtocolVersion)));

    // A server that has nothing better refuses our ClientHello, which offers 1.3 alone.
    let (said, ..) = try_both(&our_client, &old_server);
    assert_eq!(said, Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled)));
}

#[test]
fn a_server_that_answers_by_tls_1_2_all_the_same_is_refused() {
    let mesh = mesh(TD);
    let mut client = dial(&mesh.client(Some(&mesh.svid("web"))), "web.shop.80.weft");
    let session = Hello::of(&mut client).session;
    // A ServerHello without `supported_versions`: TLS 1.2, with ECDHE-ECDSA-AES128-GCM.
    let mut body = [&[3, 3][..], &[7; 32], &[session.len() as u8], &session, &[0xc0, 0x2b, 0, 0, 0]].concat();
    let mut message = vec![2, 0, 0, body.len() as u8];
    message.append(&mut body);
    give(&mut client, &[&[22, 3, 3, 0, message.len() as u8], &message[..]].concat());
    let error = client.process_new_packets().unwrap_err();
    assert_eq!(error, Error::PeerIncompatible(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig));
}

#[test]
fn a_client_never_comes_back_with_a_ticket_or_early_data() {
    let mesh = mesh(TD);
    let config = mesh.client(Some(&mesh.svid("web")));
    // A server that gives tickets and would take early data.
    let mut generous = ServerConfig::clone(&mesh.server(&mesh.svid("cart"), ClientAuth::Required));
    generous.session_storage = ServerSessionMemoryCache::new(16);
    generous.send_tls13_tickets = 2;
    generous.max_early_data_size = 1024;
    let generous = Arc::new(generous);
    for _ in 0..3 {
        let mut client = dial(&config, "web.shop.80.weft");
        let flight = written(&mut client);
        assert_eq!(Hello::read(&flight, 1).sent(), BTreeSet::from(SENT));
        assert!(client.early_data().is_none());
        let mut server = ServerConnection::new(Arc::clone(&generous)).unwrap();
        give(&mut server, &flight);
        server.process_new_packets().unwrap();
        give(&mut client, &written(&mut server));
        client.process_new_packets().unwrap();
        shake(&mut client, &mut server).unwrap();
        assert_eq!(client.tls13_tickets_received(), 2);
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn a_server_gives_no_ticket_to_a_client_that_would_take_one() {
    let mesh = mesh(TD);
    let mut eager = ClientConfig::clone(&mesh.client(Some(&mesh.svid("web"))));
    eager.resumption = Resumption::in_memory_sessions(16);
    eager.enable_early_data = true;
    let eager = Arc::new(eager);
    let config = mesh.server(&mesh.svid("cart"), ClientAuth::Required);
    for _ in 0..3 {
        let mut client = dial(&eager, "web.shop.80.weft");
        let mut server = ServerConnection::new(Arc::clone(&config)).unwrap();
        shake(&mut client, &mut server).unwrap();
        assert_eq!(client.tls13_tickets_received(), 0);
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
        assert!(server.early_data().is_none());
    }
}

#[test]
fn rustls_own_defaults_are_what_they_were_when_ours_were_chosen() {
    let defaults = default_provider();
    let groups: Vec<_> = defaults.kx_groups.iter().map(|group| group.name()).collect();
    use NamedGroup as G;
    assert_eq!(groups, [G::X25519MLKEM768, G::X25519, G::secp256r1, G::secp384r1]);
    let suites: Vec<_> = defaults.cipher_suites.iter().map(rustls::SupportedCipherSuite::suite).collect();
    assert_eq!(
        suites[..3],
        [
            CipherSuite::TLS13_AES_256_GCM_SHA384,
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        ]
    );
}
