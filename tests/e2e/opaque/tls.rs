//! TLS by the test's own hand: a sidecar's, which can be late or somebody that nobody trusts, and an application's own.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, Socket, Type};
use weft::lab::MARK;
use weft_capture::netns::NetNs;
use weft_certs::ca::Ca;
use weft_certs::svid::{KeyPair, Svid};
use weft_certs::tls::{ClientAuth, client_config, peer_identity, server_config};
use weft_engine::identity::Identity;
use weft_tests::mesh::SOON;

/// A certificate of this CA for `ns/shop/sa/ACCOUNT`.
pub fn issue(ca: &Ca, account: &str) -> Svid {
    let identity = Identity::new(ca.trust_domain(), "shop", account).unwrap();
    let key = KeyPair::generate().unwrap();
    let chain = ca.issue(&key.csr(&identity).unwrap(), &identity, Duration::from_hours(1), SystemTime::now()).unwrap();
    Svid::new(key, &chain).unwrap()
}

/// What a sidecar that has this certificate offers for opaque bytes.
pub fn sidecar(svid: Option<&Svid>, mesh: &Ca) -> Arc<ClientConfig> {
    client_config(svid, mesh.roots(), &[b"weft1-tcp"], mesh.trust_domain()).unwrap()
}

/// A connection of a sidecar's that was made by hand.
pub struct ByHand {
    config: Arc<ClientConfig>,
    /// Between the connection and the ClientHello.
    late: Duration,
}

/// What it came to.
pub struct Heard {
    /// How long after the connection had begun its ClientHello was sent.
    pub spoke_after: Duration,
    /// What the application said, as far as TLS let it out, and how that ended.
    pub words: Result<Vec<u8>, (Vec<u8>, io::Error)>,
}

impl ByHand {
    pub fn new(config: Arc<ClientConfig>, late: Duration) -> Self {
        Self { config, late }
    }

    /// Connects from this namespace as a sidecar does, which its pod's rules let through, and reads `enough` bytes, or to the end.
    pub fn call(&self, net: &NetNs, to: SocketAddr, enough: usize) -> Heard {
        let begun = Instant::now();
        let stream = net.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.set_mark(MARK)?;
            socket.connect_timeout(&to.into(), SOON)?;
            Ok::<TcpStream, io::Error>(socket.into())
        });
        let mut stream = stream.unwrap().unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        std::thread::sleep(self.late);
        let name = ServerName::from(to.ip());
        let mut session = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        let sent = session.write_tls(&mut stream);
        let spoke_after = begun.elapsed();
        let mut words = Vec::new();
        let mut tls = StreamOwned::new(session, stream);
        let outcome = sent.and_then(|_| {
            while words.len() < enough {
                let mut more = [0; 256];
                match tls.read(&mut more)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    n => words.extend_from_slice(&more[..n]),
                }
            }
            Ok(())
        });
        Heard {
            spoke_after,
            words: match outcome {
                Ok(()) => Ok(words),
                Err(error) => Err((words, error)),
            },
        }
    }
}

/// A bank's TLS: an authority, names and an ALPN that the mesh knows nothing of.
pub struct Bank {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    holder: Identity,
}

const SNI: &str = "db.bank.example";
const ALPN: &[u8] = b"postgresql";
/// With which a client of Postgres asks whether TLS may follow: length 8, and a number that no protocol version has.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

impl Bank {
    pub fn new(dir: &Path) -> Self {
        let ca = Ca::open(dir, "bank.example").unwrap();
        let svid = issue(&ca, "db");
        let server = server_config(&svid, ca.roots(), &[ALPN], ClientAuth::Optional, "bank.example").unwrap();
        let client = client_config(None, ca.roots(), &[ALPN], "bank.example").unwrap();
        Self { server, client, holder: svid.identity().clone() }
    }

    /// The server: TLS at once, or after it was asked for as Postgres is. It says what it was called, then what it heard.
    pub fn serve(&self) -> impl Fn(TcpStream) -> io::Result<()> + Send + Sync + use<> {
        let config = Arc::clone(&self.server);
        move |mut stream| {
            let mut first = [0];
            stream.peek(&mut first)?;
            if first == [0] {
                let mut request = [0; 8];
                stream.read_exact(&mut request)?;
                if request != SSL_REQUEST {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                stream.write_all(b"S")?;
            }
            let session = ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
            let mut tls = StreamOwned::new(session, stream);
            let mut words = [0; 6];
            tls.read_exact(&mut words)?;
            let (sni, alpn) =
                (tls.conn.server_name().unwrap_or_default(), tls.conn.alpn_protocol().unwrap_or_default());
            let said = [sni.as_bytes(), b" ", alpn, b" ", &words].concat();
            tls.write_all(&said)?;
            tls.conn.send_close_notify();
            tls.flush()
        }
    }

    /// The client: whom it met, by certificate, and what that said.
    pub fn call(&self, mut stream: TcpStream, ask_first: bool) -> io::Result<String> {
        stream.set_read_timeout(Some(SOON))?;
        if ask_first {
            stream.write_all(&SSL_REQUEST)?;
            let mut answer = [0];
            stream.read_exact(&mut answer)?;
            assert_eq!(&answer, b"S");
        }
        let name = ServerName::try_from(SNI).map_err(io::Error::other)?;
        let session = ClientConnection::new(Arc::clone(&self.client), name).map_err(io::Error::other)?;
        let mut tls = StreamOwned::new(session, stream);
        tls.write_all(b"canary")?;
        let mut said = String::new();
        tls.read_to_string(&mut said)?;
        assert_eq!(peer_identity(tls.conn.peer_certificates()).unwrap(), self.holder);
        Ok(said)
    }

    /// What [`Bank::call`] gives if nobody stands between.
    pub fn answer() -> String {
        format!("{SNI} {} canary", ALPN.escape_ascii())
    }
}
