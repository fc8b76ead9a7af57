use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use weft_api::probe::Handlers;
use weft_engine::identity::Identity;

use super::*;
use crate::control_channel::Target;
use crate::discovery::snapshot::Snapshot;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn full(status: u16, text: &'static str) -> Answer {
    Response::builder().status(status).body(Full::from(text).boxed_unsync()).unwrap()
}

/// An application that answers each request so, on a port of its own.
async fn application(answer: fn(Request<Incoming>) -> Answer) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service = service_fn(move |request| async move { Ok::<_, Infallible>(answer(request)) });
                let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                builder.http1().keep_alive(false);
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    port
}

/// What the kubelet would be told by a sidecar with this one probe.
async fn probed(handler: &str) -> (u16, String) {
    let probes: Handlers = serde_json::from_str(&format!(r#"{{"web/livenessProbe":{handler}}}"#)).unwrap();
    let identity = Identity::new("cluster.local", "shop", "web").unwrap();
    let mut shared = crate::testing::shared(identity, Snapshot::default());
    Arc::get_mut(&mut shared).unwrap().config.app_probes = probes;
    let names = crate::resolver::resolver(&["127.0.0.1:1".parse().unwrap()], None).unwrap();
    let admin = Admin { shared, control: Target::new(&["127.0.0.1:1".to_owned()], None, names).unwrap() };
    let agent = HeaderValue::from_static("kube-probe/1.34");
    let here = "127.0.0.1".parse().unwrap();
    assert!(answer(&admin, here, None, "/app/web/readinessProbe").await.is_none());
    let response = answer(&admin, here, Some(&agent), "/app/web/livenessProbe").await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn http_is_asked_as_the_kubelet_asks() {
    let port = application(|request| {
        let field = |name: &str| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        let seen = (request.uri().to_string(), field("host"), field("user-agent"), field("x-a"));
        let want = ("/ok?a=b".to_owned(), "shop.example".to_owned(), "kube-probe/1.34".to_owned(), "1".to_owned());
        if seen == want { full(200, "fine") } else { full(500, "not as it was wanted") }
    })
    .await;
    let fields = r#"[{"name":"Host","value":"shop.example"},{"name":"X-A","value":"1"}]"#;
    let probe = format!(r#"{{"httpGet":{{"port":{port},"path":"ok?a=b","httpHeaders":{fields}}}}}"#);
    assert_eq!(probed(&probe).await, (200, "fine".to_owned()));
    let bare = format!(r#"{{"httpGet":{{"port":{port}}}}}"#);
    assert_eq!(probed(&bare).await, (500, "not as it was wanted".to_owned()));
    let (status, why) = probed(&format!(r#"{{"httpGet":{{"port":{port},"path":"/a b"}}}}"#)).await;
    assert_eq!((status, why.starts_with("web/livenessProbe: 127.0.0.1:")), (502, true), "{why}");
}

#[tokio::test]
async fn redirects_are_followed_within_the_host_and_are_success_beyond() {
    let port = application(|request| match request.uri().path() {
        "/in" => {
            Response::builder().status(302).header("location", "/there").body(Full::default().boxed_unsync()).unwrap()
        }
        "/out" => Response::builder()
            .status(302)
            .header("location", "http://elsewhere/")
            .body(Full::default().boxed_unsync())
            .unwrap(),
        "/round" => {
            Response::builder().status(302).header("location", "/round").body(Full::default().boxed_unsync()).unwrap()
        }
        "/there" => full(503, "not yet"),
        _ => full(404, ""),
    })
    .await;
    let probe = |path: &str| format!(r#"{{"httpGet":{{"port":{port},"path":"{path}"}}}}"#);
    assert_eq!(probed(&probe("/in")).await, (503, "not yet".to_owned()));
    assert_eq!(probed(&probe("/out")).await.0, 200);
    assert!(probed(&probe("/round")).await.1.contains("more than 10 times"));
}

#[tokio::test]
async fn https_takes_any_certificate_and_an_older_tls() {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["shop.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let tls = TlsAcceptor::from(Arc::new(config)).accept(listener.accept().await.unwrap().0).await.unwrap();
        let service = service_fn(|_| async { Ok::<_, Infallible>(full(204, "")) });
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await
    });
    assert_eq!(probed(&format!(r#"{{"httpGet":{{"port":{port},"scheme":"HTTPS"}}}}"#)).await.0, 204);
}

#[tokio::test]
async fn a_connection_is_enough_for_tcp_and_none_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let probe = format!(r#"{{"tcpSocket":{{"port":{port}}}}}"#);
    assert_eq!(probed(&probe).await.0, 200);
    drop(listener);
    let (status, why) = probed(&probe).await;
    assert_eq!((status, why.contains("refused")), (502, true), "{why}");
}

#[tokio::test]
async fn who_does_not_answer_in_time_has_failed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::time::pause();
    let (status, why) = probed(&format!(r#"{{"httpGet":{{"port":{port}}},"timeoutSeconds":2}}"#)).await;
    assert_eq!((status, why.contains("did not answer within 2 s")), (504, true), "{why}");
}

/// A health service whose servers are `` (serving) and `down` (not).
fn health(request: Request<Incoming>) -> Answer {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    let body = async move {
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        let (status, message): (&str, &[u8]) = match &asked[5..] {
            b"" => ("0", &[0, 0, 0, 0, 2, 8, 1]),
            b"\x0a\x04down" => ("0", &[0, 0, 0, 0, 2, 8, 2]),
            _ => ("5", &[]),
        };
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_str(status).unwrap())]);
        futures_util::stream::iter([Ok(Frame::data(Bytes::from(message))), Ok(Frame::trailers(trailers))])
    };
    let body = StreamBody::new(futures_util::FutureExt::flatten_stream(body));
    Response::builder().header("content-type", "application/grpc").body(body.boxed_unsync()).unwrap()
}

#[tokio::test]
async fn grpc_is_good_if_it_serves() {
    let port = application(health).await;
    let probe = |service: &str| format!(r#"{{"grpc":{{"port":{port},"service":"{service}"}}}}"#);
    assert_eq!(probed(&probe("")).await, (200, "serving\n".to_owned()));
    let (status, why) = probed(&probe("down")).await;
    assert_eq!((status, why.trim()), (502, "service `down` is not serving: 2"));
    assert!(probed(&probe("other")).await.1.contains("gRPC status 5"));
    let plain = application(|_| full(200, "hello")).await;
    assert_eq!(probed(&format!(r#"{{"grpc":{{"port":{plain}}}}}"#)).await.0, 502);
}
