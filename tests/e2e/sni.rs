//! An application's own TLS passes through both sidecars: what it asks for by name (SNI) says where it goes, and nobody else reads it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use weft::explain::{Connection, Verdict, explain_connection};
use weft::lab::Pod;
use weft_engine::identity::Identity;
use weft_tests::mesh::SOON;
use weft_tests::{Mesh, Service, Trial, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("sni_an_applications_own_tls_goes_by_its_name", goes_by_its_name),
        test("sni_a_tcp_route_splits_connections", a_tcp_route_splits_connections),
    ]
}

/// The application's own certificate authority: the mesh has never heard of it.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut roots = RootCertStore::empty();
        roots.add(params.self_signed(&key).unwrap().der().clone()).unwrap();
        Self { issuer: Issuer::new(params, key), roots: Arc::new(roots) }
    }

    /// A certificate for these names, with its key.
    fn server(&self, names: &[&str]) -> (CertificateDer<'static>, Arc<ServerConfig>) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![leaf.clone()], key).unwrap();
        (leaf, Arc::new(config))
    }

    /// A client that trusts nobody else.
    fn client(&self, name: &str) -> ClientConnection {
        let config = ClientConfig::builder().with_root_certificates(Arc::clone(&self.roots)).with_no_client_auth();
        ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap()
    }
}

/// Answers each line over TLS with its name and the line, until the client ends. Runs as long as the test does.
fn serve(listener: TcpListener, name: &'static str, config: Arc<ServerConfig>) {
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
            std::thread::spawn(move || {
                let mut io = rustls::StreamOwned::new(tls, stream);
                let mut byte = [0];
                let mut line = format!("{name} ").into_bytes();
                while let Ok(1) = io.read(&mut byte) {
                    line.push(byte[0]);
                    if byte[0] == b'\n' && io.write_all(&line).is_ok() {
                        line.truncate(name.len() + 1);
                    }
                }
            });
        }
    });
}

/// A connection of the application's own, and the certificate that it saw.
struct Call {
    io: rustls::StreamOwned<ClientConnection, TcpStream>,
}

impl Call {
    /// Connects and shakes hands; `Err` says how it was refused.
    fn to(authority: &Authority, pod: &Pod, to: SocketAddr, name: &str) -> Result<Self, std::io::Error> {
        let mut stream = pod.connect(to)?;
        stream.set_read_timeout(Some(SOON))?;
        let mut tls = authority.client(name);
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        Ok(Self { io: rustls::StreamOwned::new(tls, stream) })
    }

    fn certificate(&self) -> CertificateDer<'static> {
        self.io.conn.peer_certificates().unwrap()[0].clone().into_owned()
    }

    /// Sends a line; who answered.
    fn say(&mut self, line: &str) -> Result<String, std::io::Error> {
        self.io.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while answer.last() != Some(&b'\n') {
            self.io.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer).unwrap();
        let (by, heard) = answer.trim_end().split_once(' ').unwrap();
        assert_eq!(heard, line);
        Ok(by.to_owned())
    }
}

/// TLSRoutes on Service `vault`: by these hostnames to the Services a and b.
fn routes(to_a: &str, to_b: &str) -> String {
    let route = |to: &str, hostnames: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {{name: to-{to}, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: vault}}]
  hostnames: [{hostnames}]
  rules: [{{backendRefs: [{{name: {to}, port: 443}}]}}]
"
        )
    };
    route("a", to_a) + "---\n" + &route("b", to_b)
}

fn goes_by_its_name() {
    let authority = Authority::new();
    let mut mesh = Mesh::new();
    mesh.write("namespace.yaml", crate::STRICT);
    for name in ["vault", "a", "b"] {
        mesh.deploy(Service::own(name).ports(443, 8443));
    }
    mesh.client("client");
    let names = ["a.example", "b.example", "x.b.example", "late.example", "vault.shop"];
    let mut leaves = BTreeMap::new();
    for name in ["vault", "a", "b"] {
        let (leaf, config) = authority.server(&names);
        leaves.insert(name, leaf);
        serve(mesh.pod(&format!("{name}-0")).listen(8443).unwrap(), name, config);
    }
    let (pod, to) = (mesh.pod("client-0").clone(), mesh.address("vault"));
    let by = |name: &str| Call::to(&authority, &pod, to, name).and_then(|mut call| call.say("who is there"));

    // Without a route the service itself answers, whatever name it is asked for.
    assert_eq!(by("a.example").unwrap(), "vault");
    mesh.write("routes.yaml", &routes("a.example", "b.example, '*.b.example'"));
    mesh.until("the routes to take effect", || match by("a.example") {
        Ok(by) if by == "a" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    mesh.until("both routes to take effect", || match by("vault.shop") {
        Err(_) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    for (name, wanted) in [("a.example", "a"), ("b.example", "b"), ("x.b.example", "b"), ("A.EXAMPLE", "a")] {
        let mut call = Call::to(&authority, &pod, to, name).unwrap();
        assert_eq!(call.certificate(), leaves[wanted], "{name}: the certificate is the application's own");
        assert_eq!(call.say("words").unwrap(), wanted, "{name}");
    }

    // No route is for it: a reset before any endpoint was called, with its reason.
    let before = mesh.metric("client-0", "weft_refused_total", &["reason=\"no_route\""]);
    let refused = by("late.example").unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{refused:?}");
    mesh.counts("client-0", "weft_refused_total", &["reason=\"no_route\""], |count| count >= before + 1.0);
    mesh.until("the refusal to be logged with the name", || {
        let log = mesh.sidecar("client-0").process.log();
        let found = log.lines().find(|line| line.contains("\"sni\":\"late.example\"") && line.contains("no_route"));
        found.map(drop).ok_or(log)
    });

    // Between the sidecars it is mesh TLS; what matched is a label, what was asked for is not.
    let opened = "weft_tcp_connections_opened_total";
    mesh.counts("a-0", opened, &["direction=\"inbound\"", "tls=\"mtls\"", "shop/client"], |count| count >= 1.0);
    mesh.counts("client-0", opened, &["sni=\"a.example\"", "shop/a"], |count| count >= 2.0);
    mesh.counts("client-0", opened, &["sni=\"*.b.example\"", "tls=\"mtls\""], |count| count >= 1.0);
    let page = mesh.sidecar("client-0").metrics().unwrap();
    assert!(!page.contains("x.b.example") && !page.contains("late.example"), "{page}");

    explained(&mesh, &by);

    // An edit closes no connection; the next one goes by the new names.
    let mut open = Call::to(&authority, &pod, to, "a.example").unwrap();
    assert_eq!(open.say("before").unwrap(), "a");
    mesh.write("routes.yaml", &routes("late.example", "a.example"));
    mesh.until("the edit to take effect", || match (by("late.example"), by("a.example")) {
        (Ok(late), Ok(a)) if late == "a" && a == "b" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(open.say("after").unwrap(), "a");
}

/// What `weft explain` says of names is what the live proxy does.
fn explained(mesh: &Mesh, by: &impl Fn(&str) -> Result<String, std::io::Error>) {
    let loaded = weft_control::sources::files::load(std::slice::from_ref(&mesh.files), "cluster.local");
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let compiled = weft_control::compile::compile(&loaded.model);
    let from = Identity::new("cluster.local", "shop", "client").unwrap();
    for name in ["a.example", "b.example", "x.b.example", "late.example", "vault.shop"] {
        let asked = Connection { host: "vault.shop".into(), port: 443, tls: true, sni: Some(name.into()) };
        let told = explain_connection(&compiled, &from, &asked);
        let live = by(name);
        match &live {
            Ok(by) => {
                assert_eq!(told.verdict, Verdict::Allowed, "{name}: {live:?}, {told:?}");
                assert_eq!(*told.outcomes[0].backend, *format!("service/shop/{by}:443"), "{name}: {told:?}");
            }
            Err(_) => assert_eq!(told.verdict, Verdict::Refused, "{name}: {live:?}, {told:?}"),
        }
    }
}

fn a_tcp_route_splits_connections() {
    const CONNECTIONS: usize = 300;
    let mut mesh = Mesh::new();
    mesh.deploy(Service::tcp("db")).deploy(Service::tcp("left")).deploy(Service::tcp("right")).client("client");
    mesh.write(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: db, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: db}]
  rules: [{backendRefs: [{name: left, port: 7000, weight: 90}, {name: right, port: 7000, weight: 10}]}]
",
    );
    let (pod, to) = (mesh.pod("client-0"), mesh.address("db"));
    // The server speaks first, and says who it is.
    let greeted = || -> std::io::Result<String> {
        let mut stream = pod.connect(to)?;
        stream.set_read_timeout(Some(SOON))?;
        let mut greeting = [0; "hello ".len()];
        stream.read_exact(&mut greeting)?;
        let mut name = [0; 4];
        stream.read_exact(&mut name)?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    };
    mesh.until("the route to take effect", || match greeted() {
        Ok(by) if by != "db-0" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let mut by = BTreeMap::<String, usize>::new();
    for _ in 0..CONNECTIONS {
        *by.entry(greeted().unwrap()).or_default() += 1;
    }
    let share = by["righ"] as f64 / CONNECTIONS as f64;
    // 300 draws at 0.1: five standard deviations are 0.087.
    assert!((share - 0.1).abs() < 0.087 && by.len() == 2, "{by:?}");
    mesh.counts("left-0", "weft_tcp_connections_opened_total", &["tls=\"mtls\""], |count| count >= 200.0);
}
