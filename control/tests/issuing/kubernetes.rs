//! Service-account tokens, by the API server's keys and by TokenReview.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tonic::Code;
use weft_api::names::ResourceType as _;
use weft_api::wire::v1;
use weft_api::wire::v1::drain_client::DrainClient;
use weft_certs::svid::{KeyPair, Svid};
use weft_control::model::Name;

use super::support::{Audit, Signer, api_server, now};
use super::{refused, request};
use crate::common::{Mesh, Proxy, pod};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A token of `shop/POD`, as the API server writes it.
pub fn claims(pod: &str, uid: &str, account: &str) -> Value {
    json!({
        "iss": ISSUER, "aud": ["weft"], "sub": format!("system:serviceaccount:shop:{account}"),
        "iat": now(), "nbf": now(), "exp": now() + 3600, "jti": "a1b2",
        "kubernetes.io": {
            "namespace": "shop", "node": {"name": "n1", "uid": "n"}, "pod": {"name": pod, "uid": uid},
            "serviceaccount": {"name": account, "uid": "s"},
        },
    })
}

fn with_uid(name: &str, account: &str, last: u8, uid: &str) -> String {
    pod(name, account, last).replace("namespace: shop,", &format!("namespace: shop, uid: {uid},"))
}

/// Puts these pods in force.
async fn pods(mesh: &Mesh, text: &str, until: impl Fn(&weft_control::model::Model) -> bool) {
    mesh.edit("pods.yaml", text);
    for _ in 0..200 {
        if mesh.hub.compiled(|compiled| until(compiled.model())) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the pods did not come into force");
}

async fn web_1_is(mesh: &Mesh, uid: &str) {
    let name = Name::new("shop", "web-1");
    let text = with_uid("web-1", "web", 1, uid) + &with_uid("cart-1", "cart", 3, "u3") + &pod("web-2", "web", 2);
    pods(mesh, &text, |model| model.workloads.get(&name).is_some_and(|pod| pod.uid == uid)).await;
}

async fn by_keys(signer: &Signer) -> Mesh {
    let mesh = Mesh::with(|config| {
        let path = config.ca_dir.with_file_name("keys.json");
        signer.write(&path);
        config.issuing.kubernetes_jwks = Some(path.display().to_string());
    })
    .await;
    web_1_is(&mesh, "u1").await;
    mesh
}

#[tokio::test]
async fn a_token_of_a_live_pod_gets_its_service_accounts_identity() {
    let (audit, signer) = (Audit::begin(), Signer::new("k"));
    let mesh = by_keys(&signer).await;
    let token = signer.sign(&claims("web-1", "u1", "web"));
    let chain = mesh.certificate(None, Some(&token), &request("web"), 60).await.unwrap();
    let line = audit.last();
    assert_eq!(line["message"], "certificate issued", "{line}");
    assert_eq!(line["method"], "kubernetes");
    assert_eq!(line["identity"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((&line["pod"], &line["pod_uid"]), (&json!("shop/web-1"), &json!("u1")));
    assert_eq!(line["serial"].as_str(), weft_certs::ca::leaf_of(&chain[0]).map(|leaf| leaf.serial).as_deref());
    assert!(line["addr"].as_str().unwrap().starts_with("127.0.0.1:"));
    // The kubelet keeps one token in the file for most of an hour: it may be shown again.
    mesh.certificate(None, Some(&token), &request("web"), 60).await.unwrap();
    let text = mesh.get("/metrics").await;
    assert!(text.contains("weft_control_certificates_issued_total{method=\"kubernetes\"} 2"), "{text}");
}

#[tokio::test]
async fn tokens_that_prove_something_else_or_nothing_are_refused() {
    let (audit, signer) = (Audit::begin(), Signer::new("k"));
    let mesh = by_keys(&signer).await;
    let csr = request("web");
    let good = || claims("web-1", "u1", "web");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut claims = good();
        change(&mut claims);
        signer.sign(&claims)
    };
    let cases: Vec<(&str, String)> = vec![
        ("token_audience", with(&|c| c["aud"] = json!(["https://kubernetes.default.svc"]))),
        ("token_expired", with(&|c| c["exp"] = json!(now() - 1))),
        ("token_not_yet", with(&|c| c["nbf"] = json!(now() + 600))),
        ("token_issuer", with(&|c| c["iss"] = json!("https://elsewhere"))),
        ("pod_unknown", signer.sign(&claims("web-9", "u9", "web"))),
        // Its manifest says no uid.
        ("pod_unknown", signer.sign(&claims("web-2", "u2", "web"))),
        ("pod_replaced", signer.sign(&claims("web-1", "u0", "web"))),
        ("service_account", signer.sign(&claims("web-1", "u1", "admin"))),
        ("token_claims", with(&|c| c["sub"] = json!("system:serviceaccount:shop:admin"))),
        ("token_claims", with(&|c| c["kubernetes.io"]["pod"] = Value::Null)),
        ("token_claims", with(&|c| c["kubernetes.io"] = Value::Null)),
        ("token_claims", with(&|c| c["exp"] = json!(now() + 25 * 3600))),
        ("token_claims", with(&|c| c["exp"] = Value::Null)),
        ("token_algorithm", signer.unsigned(&good())),
        ("token_algorithm", signer.confused(&good())),
        ("token_key", Signer::new("other").sign(&good())),
        ("token_signature", Signer::new("k").sign(&good())),
        ("token_malformed", "nonsense".to_owned()),
    ];
    for (cause, token) in &cases {
        refused(&mesh, &audit, token, &csr, cause).await;
    }
    // Another identity's request with this pod's token.
    let line = refused(&mesh, &audit, &signer.sign(&good()), &request("admin"), "request_names").await;
    assert_eq!((&line["method"], &line["pod_uid"]), (&json!("kubernetes"), &json!("u1")));
    let text = mesh.get("/metrics").await;
    let counted = "weft_control_certificates_refused_total{cause=\"token_claims\",method=\"kubernetes\"} 5";
    assert!(text.contains(counted), "{text}");
}

#[tokio::test]
async fn a_deleted_pods_token_is_refused_while_it_has_not_expired() {
    let (audit, signer) = (Audit::begin(), Signer::new("k"));
    let mesh = by_keys(&signer).await;
    let token = signer.sign(&claims("web-1", "u1", "web"));
    mesh.certificate(None, Some(&token), &request("web"), 60).await.unwrap();
    let name = Name::new("shop", "web-1");
    pods(&mesh, &pod("web-2", "web", 2), |model| !model.workloads.contains_key(&name)).await;
    let line = refused(&mesh, &audit, &token, &request("web"), "pod_unknown").await;
    assert_eq!((&line["pod"], &line["pod_uid"]), (&json!("shop/web-1"), &json!("u1")));
    // A new pod of the same name has another uid.
    web_1_is(&mesh, "u7").await;
    refused(&mesh, &audit, &token, &request("web"), "pod_replaced").await;
    // Nor is a token good for a pod that has ended.
    let ended = with_uid("web-1", "web", 1, "u7").replace("podIP:", "phase: Succeeded, podIP:");
    pods(&mesh, &ended, |model| model.workloads.get(&name).is_some_and(|pod| pod.uid.is_empty())).await;
    refused(&mesh, &audit, &signer.sign(&claims("web-1", "u7", "web")), &request("web"), "pod_unknown").await;
}

/// What is had by a pod's token is that pod's, and stays so through renewals.
#[tokio::test]
async fn a_certificate_of_one_pod_opens_no_stream_of_another_of_its_service_account() {
    let (audit, signer) = (Audit::begin(), Signer::new("k"));
    let mesh = by_keys(&signer).await;
    let name = Name::new("shop", "web-1");
    let both = |uid: &str| with_uid("web-1", "web", 1, uid) + &with_uid("web-2", "web", 2, "u2");
    pods(&mesh, &both("u1"), |model| !model.workloads.contains_key(&Name::new("shop", "cart-1"))).await;
    let token = signer.sign(&claims("web-1", "u1", "web"));
    let web = Mesh::identity("web");
    let get = async |svid: Option<&Svid>, token: Option<&str>| {
        let key = KeyPair::generate().unwrap();
        let chain = mesh.certificate(svid, token, &key.csr(&web).unwrap(), 600).await?;
        Ok::<_, tonic::Status>(Svid::new(key, &chain).unwrap())
    };
    let first = get(None, Some(&token)).await.unwrap();
    let renewed = get(Some(&first), None).await.unwrap();
    let line = audit.last();
    let told = (&line["method"], &line["pod"], &line["pod_uid"]);
    assert_eq!(told, (&json!("certificate"), &json!("shop/web-1"), &json!("u1")), "{line}");

    let mut own = Vec::new();
    for svid in [&first, &renewed] {
        let channel = mesh.channel(Some(svid)).await;
        let mut stream = Proxy::open(channel.clone(), "web-1", &[]).await.unwrap();
        assert_eq!(stream.next().await, ["mesh-extent"]);
        own.push(stream);
        let mut others = Proxy::open(channel.clone(), "web-2", &[]).await.unwrap();
        let status = others.hear().await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("shop/web-2 is not the pod u1"), "{status}");
        let leaves = v1::DrainRequest { workload: "shop/web-2".into(), deadline_ms: 10, instance: None };
        assert_eq!(DrainClient::new(channel).begin(leaves).await.unwrap_err().code(), Code::PermissionDenied);
    }
    // Who was proved by something that names no pod may speak for each of its service account, as ever.
    let mut any = mesh.proxy("web-2", "web").await.unwrap();
    assert_eq!(any.next().await, ["mesh-extent"]);
    let (of_web_2, csr) = (signer.sign(&claims("web-2", "u2", "web")), request("web"));
    let both_shown = mesh.certificate(Some(&renewed), Some(&of_web_2), &csr, 60);
    assert!(both_shown.await.unwrap_err().message().contains("two pods"));

    // Another pod of that name: the streams end, and the certificate of the one that is gone is not renewed.
    pods(&mesh, &both("u7"), |model| model.workloads.get(&name).is_some_and(|pod| pod.uid == "u7")).await;
    for mut stream in own {
        assert_eq!(stream.hear().await.unwrap_err().code(), Code::PermissionDenied);
    }
    let refused = get(Some(&renewed), None).await.unwrap_err();
    assert!(refused.message().contains("u1 that the certificate was issued to is gone"), "{refused}");
    assert_eq!((&audit.last()["cause"], &audit.last()["method"]), (&json!("pod_unknown"), &json!("certificate")));
    any.ask(v1::Address::TYPE_URL, &["10.96.0.1:80"]).await;
    assert_eq!(any.next().await[0], "10.96.0.1:80", "the stream of the other pod goes on");
}

fn secret(dir: &Path) -> PathBuf {
    let path = dir.join("own-token");
    std::fs::write(&path, "ours\n").unwrap();
    path
}

#[tokio::test]
async fn the_api_server_reviews_tokens() {
    let (audit, signer) = (Audit::begin(), Signer::new("k"));
    let dir = tempfile::tempdir().unwrap();
    let (roots, asked) = (dir.path().join("roots.pem"), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    let (good, gone) = (signer.sign(&claims("web-1", "u1", "web")), signer.sign(&claims("web-1", "u1", "deleted")));
    let (takes, not) = (good.clone(), gone.clone());
    let api = api_server(&roots, move |path, bearer, review| {
        count.fetch_add(1, Ordering::Relaxed);
        assert_eq!((path, bearer), ("/apis/authentication.k8s.io/v1/tokenreviews", "Bearer ours"));
        assert_eq!(review["spec"]["audiences"], json!(["weft"]));
        let extra = json!({
            "authentication.kubernetes.io/pod-name": ["web-1"], "authentication.kubernetes.io/pod-uid": ["u1"],
        });
        let token = review["spec"]["token"].as_str().unwrap();
        if token == takes {
            let user = json!({"username": "system:serviceaccount:shop:web", "extra": extra});
            Some(json!({"status": {"authenticated": true, "audiences": ["weft"], "user": user}}))
        } else if token == not {
            Some(json!({"status": {"authenticated": false, "error": "[service account token has been invalidated]"}}))
        } else {
            None
        }
    })
    .await;
    let own = secret(dir.path());
    let mesh = Mesh::with(|config| {
        config.issuing.kubernetes_api = Some(format!("https://{api}"));
        (config.issuing.kubernetes_ca, config.issuing.kubernetes_token) = (Some(roots.clone()), Some(own));
    })
    .await;
    web_1_is(&mesh, "u1").await;
    for _ in 0..5 {
        mesh.certificate(None, Some(&good), &request("web"), 60).await.unwrap();
    }
    assert_eq!(audit.last()["pod_uid"], "u1");
    assert_eq!(asked.load(Ordering::Relaxed), 1, "what was answered a moment ago is not asked again");
    let line = refused(&mesh, &audit, &gone, &request("web"), "token_revoked").await;
    assert!(line["reason"].as_str().unwrap().contains("has been invalidated"), "{line}");
    // It was reviewed a moment ago, but the pod is looked for each time.
    web_1_is(&mesh, "u7").await;
    refused(&mesh, &audit, &good, &request("web"), "pod_replaced").await;
    // What cannot be right is not asked about; what the server does not answer is no "yes".
    let before = asked.load(Ordering::Relaxed);
    let mut other = claims("web-1", "u1", "web");
    other["aud"] = json!("other");
    refused(&mesh, &audit, &signer.sign(&other), &request("web"), "token_audience").await;
    assert_eq!(asked.load(Ordering::Relaxed), before);
    refused(&mesh, &audit, &signer.sign(&claims("web-1", "u7", "web")), &request("web"), "unavailable").await;
}

#[tokio::test]
async fn keys_come_from_the_api_server_whose_certificate_is_verified() {
    let (audit, signer) = (Audit::begin(), Signer::new("k"));
    let dir = tempfile::tempdir().unwrap();
    let (roots, keys) = (dir.path().join("roots.pem"), signer.key_set());
    let api = api_server(&roots, move |path, bearer, _| {
        (path == "/openid/v1/jwks" && bearer == "Bearer ours").then(|| serde_json::from_str(&keys).unwrap())
    })
    .await;
    let own = secret(dir.path());
    let token = signer.sign(&claims("web-1", "u1", "web"));
    let start = async |roots: PathBuf| {
        let mesh = Mesh::with(|config| {
            config.issuing.kubernetes_jwks = Some(format!("https://{api}/openid/v1/jwks"));
            (config.issuing.kubernetes_ca, config.issuing.kubernetes_token) = (Some(roots), Some(own.clone()));
        })
        .await;
        web_1_is(&mesh, "u1").await;
        mesh
    };
    let mesh = start(roots.clone()).await;
    mesh.certificate(None, Some(&token), &request("web"), 60).await.unwrap();
    // Somebody else's roots: the keys are not taken.
    let other = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&other).unwrap();
    std::fs::write(&roots, cert.pem()).unwrap();
    let mesh = start(roots).await;
    refused(&mesh, &audit, &token, &request("web"), "unavailable").await;
}
