//! A CA that speaks CreateCertificate and does what it is told.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Code, Request, Response, Status};
use weft_api::wire::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use weft_api::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use weft_certs::jwt::Unproved;

/// What it does for workloads; to control it is always good.
#[derive(Clone, Debug)]
pub enum Act {
    Well,
    Identity(&'static str),
    TwoNames,
    OtherKey,
    Authority,
    TooLong,
    OtherRoot,
    Garbage,
    Huge,
    Nothing,
    Silence,
    Refuse(Code),
}

pub struct Root {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Root {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, key.serialize_pem()[130..150].to_owned());
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn sign(&self, csr: &str, seconds: u64, identity: &str, change: impl FnOnce(&mut CertificateParams)) -> String {
        let csr = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let mut params = CertificateParams::default();
        params.not_before = (SystemTime::now() - Duration::from_mins(1)).into();
        params.not_after = (SystemTime::now() + Duration::from_secs(seconds)).into();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        params.signed_by(&csr.public_key, &self.issuer).unwrap().pem()
    }
}

pub struct State {
    pub act: Act,
    pub root: Arc<Root>,
    pub asked: usize,
    pub tokens: Vec<String>,
}

#[derive(Clone)]
pub struct FakeCa {
    pub addr: SocketAddr,
    pub state: Arc<Mutex<State>>,
}

impl FakeCa {
    /// Listens; the roots of its own certificate are written to a file.
    pub async fn start(tls_roots: &Path) -> Self {
        let state = State { act: Act::Well, root: Arc::new(Root::new()), asked: 0, tokens: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let acceptor = acceptor(tls_roots);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (out, connections) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                if let Ok(tls) = acceptor.accept(tcp).await {
                    let _ = out.send(Ok::<_, io::Error>(Connection(tls))).await;
                }
            }
        });
        let this = Self { addr, state };
        let service = IstioCertificateServiceServer::new(this.clone());
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(ReceiverStream::new(connections)));
        this
    }

    pub fn acts(&self, act: Act) {
        self.state.lock().act = act;
    }

    pub fn asked(&self) -> usize {
        self.state.lock().asked
    }
}

fn acceptor(roots: &Path) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(roots, cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], private).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

#[tonic::async_trait]
impl IstioCertificateService for FakeCa {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let token = request
            .metadata()
            .get("authorization")
            .unwrap()
            .to_str()
            .unwrap()
            .strip_prefix("Bearer ")
            .unwrap()
            .to_owned();
        let subject = Unproved::read(&token).unwrap().claims().text("sub").unwrap().to_owned();
        let mut parts = subject.rsplit(':');
        let (account, namespace) = (parts.next().unwrap(), parts.next().unwrap());
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        let (mut act, root) = {
            let mut state = self.state.lock();
            state.asked += 1;
            state.tokens.push(token);
            (state.act.clone(), Arc::clone(&state.root))
        };
        if account == "weft-control" && !matches!(act, Act::Refuse(Code::Unavailable)) {
            act = Act::Well;
        }
        let csr = request.get_ref().csr.as_str();
        let life = u64::try_from(request.get_ref().validity_duration).unwrap();
        let sign =
            |change: &dyn Fn(&mut CertificateParams)| vec![root.sign(csr, life, &identity, change), root.pem.clone()];
        let chain = match act {
            Act::Well => sign(&|_| {}),
            Act::Identity(other) => vec![root.sign(csr, life, other, |_| {}), root.pem.clone()],
            Act::TwoNames => {
                sign(&|params| params.subject_alt_names.push(SanType::DnsName("db.shop".try_into().unwrap())))
            }
            Act::OtherKey => vec![root.sign(&super::request("web"), life, &identity, |_| {}), root.pem.clone()],
            Act::Authority => sign(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            Act::TooLong => sign(&|params| params.not_after = (SystemTime::now() + Duration::from_hours(24)).into()),
            Act::OtherRoot => {
                let other = Root::new();
                vec![other.sign(csr, life, &identity, |_| {}), other.pem]
            }
            Act::Garbage => vec!["-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n".to_owned()],
            Act::Huge => vec!["x".repeat(1 << 20)],
            Act::Nothing => Vec::new(),
            Act::Silence => std::future::pending().await,
            Act::Refuse(code) => return Err(Status::new(code, "that\u{7} is not\nfor you")),
        };
        Ok(Response::new(IstioCertificateResponse { cert_chain: chain }))
    }
}

struct Connection(TlsStream<TcpStream>);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
