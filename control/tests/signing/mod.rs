//! Certificates of a CA elsewhere, over real TLS and gRPC: another Weft's control, and CAs that misbehave.

mod fake;
mod misbehaving;
mod roots;
mod upstream;

use std::time::Duration;

use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};
use weft_api::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use weft_api::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use weft_certs::svid::{KeyPair, Svid};
use weft_certs::tls::{CONTROL_SERVER_NAME, Roots, control_client_config};
use weft_control::Config;

use crate::common::{Mesh, TD};
use crate::issuing::support::{Signer, now};

const SOON: Duration = Duration::from_secs(30);

/// A token of a pod, as the API server writes it.
fn token(signer: &Signer, namespace: &str, pod: &str, account: &str) -> String {
    signer.sign(&json!({
        "iss": "https://kubernetes.default.svc.cluster.local", "aud": ["weft"],
        "sub": format!("system:serviceaccount:{namespace}:{account}"),
        "iat": now(), "nbf": now(), "exp": now() + 3600, "jti": "a1b2",
        "kubernetes.io": {
            "namespace": namespace, "pod": {"name": pod, "uid": format!("u-{pod}")}, "serviceaccount": {"name": account, "uid": "s"},
        },
    }))
}

fn pod(namespace: &str, name: &str, account: &str, last: u8) -> String {
    crate::common::pod(name, account, last)
        .replace("namespace: shop,", &format!("namespace: {namespace}, uid: u-{name},"))
}

/// The pods of every control here, and the keys of the API server.
fn cluster(signer: &Signer, config: &mut Config) {
    let dir = config.ca_dir.parent().unwrap().to_owned();
    signer.write(&dir.join("keys.json"));
    config.issuing.kubernetes_jwks = Some(dir.join("keys.json").display().to_string());
    crate::common::write(&dir, "pods.yaml", &(pod("shop", "web-1", "web", 1) + &pod("shop", "web-2", "web", 2)));
    crate::common::write(
        &dir,
        "own.yaml",
        &pod("weft-system", "control-1", "weft-control", 9).replace("\"true\"", "\"false\""),
    );
    std::fs::write(dir.join("own-token"), token(signer, "weft-system", "control-1", "weft-control")).unwrap();
    let _ = std::fs::remove_file(dir.join("files/cart.yaml"));
}

/// Asks a control; the answer has metadata.
async fn ask(
    mesh: &Mesh,
    roots: &Roots,
    svid: Option<&Svid>,
    token: Option<&str>,
    csr: &str,
) -> Result<Response<IstioCertificateResponse>, Status> {
    let tls = TlsConnector::from(control_client_config(svid, roots, TD).unwrap());
    let listen = mesh.listen;
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let tcp = TcpStream::connect(listen).await?;
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(CONTROL_SERVER_NAME.try_into().unwrap(), tcp).await?))
        }
    });
    let channel = Endpoint::from_static("http://weft-control").connect_with_connector(connector).await;
    let channel = channel.map_err(|error| Status::unavailable(format!("{error:?}")))?;
    let mut request = Request::new(IstioCertificateRequest { csr: csr.to_owned(), ..Default::default() });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    IstioCertificateServiceClient::new(channel).create_certificate(request).await
}

/// A certificate of `shop/web` by a token.
async fn svid(mesh: &Mesh, roots: &Roots, token: &str) -> Result<Svid, Status> {
    let key = KeyPair::generate().unwrap();
    let answer = ask(mesh, roots, None, Some(token), &key.csr(&Mesh::identity("web")).unwrap()).await?;
    Ok(Svid::new(key, &answer.into_inner().cert_chain).unwrap())
}

fn request(account: &str) -> String {
    KeyPair::generate().unwrap().csr(&Mesh::identity(account)).unwrap()
}

/// Waits until something holds.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let held = tokio::time::timeout(SOON, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(held.await.is_ok(), "{what}");
}

/// What `weft certs status` sees.
async fn report(mesh: &Mesh) -> Value {
    let text = mesh.get("/debug/certificates").await;
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap()
}
