//! The real client against a real TLS listener that speaks the CA's protocol.

use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};
use tower::ServiceExt;
use weft_api::names::{RENEW_BY, TOKEN};
use weft_api::wire::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use weft_api::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use weft_certs::tls::ClientAuth;
use weft_certs::token;

use super::*;
use crate::control_channel::Target;
use crate::identity::authority::ControlAuthority;
use crate::resolver::resolver;

/// Control's CA as it is: proves the caller by certificate or token, then issues.
struct Service {
    ca: Arc<Ca>,
    verifier: token::Verifier,
    peer: Option<Identity>,
    life: Duration,
    /// As if it issued by a CA elsewhere.
    wants_token: bool,
    seen: Arc<Mutex<Vec<&'static str>>>,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let (identity, by) = match (&self.peer, bearer.and_then(|value| value.strip_prefix("Bearer "))) {
            (Some(peer), _) => (peer.clone(), "certificate"),
            (None, Some(token)) => {
                let proved = self.verifier.verify(token, SystemTime::now());
                (proved.map_err(|e| Status::unauthenticated(e.to_string()))?, "token")
            }
            (None, None) => return Err(Status::unauthenticated("neither token nor certificate")),
        };
        self.seen.lock().push(by);
        if self.wants_token && by == "certificate" {
            let mut status = Status::unauthenticated("the CA has to be shown a token");
            status.metadata_mut().insert(RENEW_BY, TOKEN.parse().unwrap());
            return Err(status);
        }
        let chain = self.ca.issue(&request.get_ref().csr, &identity, self.life, SystemTime::now());
        let cert_chain = chain.map_err(|e| Status::invalid_argument(e.to_string()))?;
        let mut response = Response::new(IstioCertificateResponse { cert_chain });
        if self.wants_token {
            response.metadata_mut().insert(RENEW_BY, TOKEN.parse().unwrap());
        }
        Ok(response)
    }
}

struct Control {
    _dir: tempfile::TempDir,
    ca: Arc<Ca>,
    address: String,
    seen: Arc<Mutex<Vec<&'static str>>>,
    token: String,
}

/// A control that listens with its own certificate, or with that of a workload.
async fn control(life: Duration, genuine: bool) -> Control {
    control_that(life, genuine, false).await
}

async fn control_that(life: Duration, genuine: bool, wants_token: bool) -> Control {
    let dir = tempfile::tempdir().unwrap();
    let ca = Arc::new(Ca::open(dir.path(), "cluster.local").unwrap());
    let svid = if genuine {
        ca.issue_control(&[], HOUR, SystemTime::now()).unwrap().remove(0)
    } else {
        let key = KeyPair::generate().unwrap();
        let chain = ca.issue(&key.csr(&web()).unwrap(), &web(), HOUR, SystemTime::now()).unwrap();
        Svid::new(key, &chain).unwrap()
    };
    let tls = tls::server_config(&svid, ca.roots(), &[b"h2"], ClientAuth::Optional, "cluster.local").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let token = token::sign(dir.path(), &web(), HOUR, SystemTime::now()).unwrap();
    tokio::spawn(serve(listener, TlsAcceptor::from(tls), Arc::clone(&ca), life, wants_token, Arc::clone(&seen)));
    Control { _dir: dir, ca, address, seen, token }
}

async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    ca: Arc<Ca>,
    life: Duration,
    wants_token: bool,
    seen: Arc<Mutex<Vec<&'static str>>>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let Ok(stream) = tls.accept(stream).await else { continue };
        let peer = tls::peer_identity(stream.get_ref().1.peer_certificates()).ok();
        let verifier = token::Verifier::from_ca(&ca);
        let service = Service { ca: Arc::clone(&ca), verifier, peer, life, wants_token, seen: Arc::clone(&seen) };
        let service = IstioCertificateServiceServer::new(service);
        let answer = hyper::service::service_fn(move |request| service.clone().oneshot(request));
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(server.serve_connection(TokioIo::new(stream), answer));
    }
}

impl Control {
    fn authority(&self) -> ControlAuthority {
        let resolver = resolver(&["127.0.0.1:53".parse().unwrap()], None).unwrap();
        let target = Target::new(std::slice::from_ref(&self.address), None, resolver).unwrap();
        ControlAuthority::new(target, trusting(&self.ca), "cluster.local".into())
    }

    fn settings(&self, token: &str) -> Settings {
        let token = Token::Text(token.into());
        Settings { identity: web(), trust: trusting(&self.ca), token, state_dir: None }
    }
}

#[tokio::test]
async fn first_by_token_then_by_certificate() {
    let control = control(Duration::from_secs(2), true).await;
    let store = IdentityStore::default();
    let settings = control.settings(&control.token);
    run_until(&store, &settings, &control.authority(), SystemTime::now, |store| store.counters.issued() == 2).await;
    assert_eq!(*control.seen.lock(), ["token", "certificate"]);
    assert_eq!(failures(&store), 0);
    assert_eq!(store.current().unwrap().identity, web());
}

#[tokio::test]
async fn a_control_that_wants_a_token_each_time_is_shown_one_and_refuses_nothing() {
    let control = control_that(Duration::from_secs(3), true, true).await;
    let (store, state) = (IdentityStore::default(), tempfile::tempdir().unwrap());
    let settings = Settings { state_dir: Some(state.path().to_owned()), ..control.settings(&control.token) };
    run_until(&store, &settings, &control.authority(), SystemTime::now, |store| store.counters.issued() == 3).await;
    assert_eq!(*control.seen.lock(), ["token", "token", "token"]);
    assert_eq!(failures(&store), 0);
    // One that was started anew shows its saved certificate once, and then the token in the same attempt.
    control.seen.lock().clear();
    let store = IdentityStore::default();
    run_until(&store, &settings, &control.authority(), SystemTime::now, |store| store.counters.issued() == 2).await;
    assert_eq!(*control.seen.lock(), ["certificate", "token", "token"]);
    assert_eq!(failures(&store), 0);
    // The application's, proved by the sidecar's certificate elsewhere, takes the token here and there only.
    let token = Token::IfWanted(Box::new(settings.token.clone()));
    assert!(token.wanted(false).read().await.unwrap().is_none());
    assert_eq!(token.wanted(true).read().await.unwrap().as_deref(), Some(&*control.token));
}

#[tokio::test]
async fn a_bad_token_is_refused_with_the_reason() {
    let control = control(HOUR, true).await;
    let store = IdentityStore::default();
    let settings = control.settings("not.a.token");
    let refused = |store: &IdentityStore| store.counters.failed(Failure::Refused) > 0;
    run_until(&store, &settings, &control.authority(), SystemTime::now, refused).await;
    assert!(store.current().is_err());

    let key = KeyPair::generate().unwrap();
    let bad = Credential::Token("not.a.token".into());
    let error = control.authority().create(key.csr(&web()).unwrap(), bad).await.unwrap_err();
    assert!(error.message.contains("the join token is not taken"), "{error}");
}

#[tokio::test]
async fn a_workload_that_poses_as_control_gets_no_token() {
    let control = control(HOUR, false).await;
    let key = KeyPair::generate().unwrap();
    let token = Credential::Token(control.token.as_str().into());
    let error = control.authority().create(key.csr(&web()).unwrap(), token).await.unwrap_err();
    assert_eq!(error.failure, Failure::Unreachable);
    assert!(error.message.contains("sa/web, not spiffe://cluster.local/ns/weft-system/sa/weft-control"), "{error}");
    assert!(control.seen.lock().is_empty());
}

#[tokio::test]
async fn nobody_there_is_unreachable_with_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let control = Control { address: address.clone(), ..control(HOUR, true).await };
    let key = KeyPair::generate().unwrap();
    let token = Credential::Token("t".into());
    let error = control.authority().create(key.csr(&web()).unwrap(), token).await.unwrap_err();
    assert_eq!(error.failure, Failure::Unreachable);
    assert!(error.message.contains(&address), "{error}");
}
