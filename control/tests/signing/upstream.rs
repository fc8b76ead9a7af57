//! The control of another Weft as the CA.

use weft_certs::svid::{KeyPair, Svid};
use weft_certs::token::sign;

use super::{ask, cluster, report, request, svid, token, until};
use crate::common::{Mesh, Proxy};
use crate::issuing::support::{Audit, Signer};

/// A control, and the one that signs for it.
async fn pair(signer: &Signer) -> (Mesh, Mesh) {
    let upstream = Mesh::with(|config| cluster(signer, config)).await;
    let front = Mesh::with(|config| {
        cluster(signer, config);
        let dir = config.ca_dir.parent().unwrap();
        std::fs::write(dir.join("roots.pem"), upstream.ca.root_pem()).unwrap();
        config.signing.issue_by = Some(format!("https://{}", upstream.listen));
        config.signing.issue_by_ca = Some(dir.join("roots.pem"));
        config.signing.issue_by_name = Some("weft-control".to_owned());
        config.signing.issue_by_token = Some(dir.join("own-token"));
        config.signing.roots = Some(dir.join("roots.pem"));
    })
    .await;
    until("the front is ready", async || front.get("/healthz/ready").await.contains("200 OK")).await;
    (front, upstream)
}

#[tokio::test]
async fn its_certificates_are_the_meshs_and_serve_as_ever() {
    let (audit, signer) = (Audit::begin(), Signer::new("k"));
    let (front, upstream) = pair(&signer).await;
    let roots = upstream.ca.roots().clone();
    let web = token(&signer, "shop", "web-1", "web");
    let key = KeyPair::generate().unwrap();
    let answer = ask(&front, &roots, None, Some(&web), &key.csr(&Mesh::identity("web")).unwrap()).await.unwrap();
    assert_eq!(answer.metadata().get("weft-renew-by").unwrap(), "token", "the sidecar is told how to renew");
    let chain = answer.into_inner().cert_chain;
    assert_eq!((chain.len(), chain[2].trim()), (3, upstream.ca.root_pem().trim()));
    let line = audit.last();
    assert_eq!((&line["message"], &line["pod"]), (&"certificate issued".into(), &"shop/web-1".into()), "{line}");
    // It opens a stream: control itself was verified by its SPIFFE ID, and has no name of the DNS.
    let held = Svid::new(key, &chain).unwrap();
    let mut front = front;
    front.ca = std::sync::Arc::clone(&upstream.ca);
    let mut stream = Proxy::open(front.channel(Some(&held)).await, "web-1", &[]).await.unwrap();
    assert_eq!(stream.next().await, ["mesh-extent"]);
    let seen = report(&front).await;
    assert_eq!((&seen["elsewhere"], &seen["rotation"]), (&true.into(), &serde_json::Value::Null), "{seen}");
    assert!(seen["issuing"].as_str().unwrap().starts_with("https://127.0.0.1:"), "{seen}");
    let root = &seen["authorities"][0];
    assert_eq!((&root["role"], &root["published"]), (&"root".into(), &true.into()));
    let proxies = seen["proxies"].as_array().unwrap();
    let web_1 = proxies.iter().find(|proxy| proxy["workload"] == "shop/web-1").unwrap();
    assert_eq!((&web_1["issuer"], &web_1["serial"]), (&root["id"], &held.serial().into()), "{seen}");

    // Renewal: a certificate alone is no token. With a token it is good.
    let status = ask(&front, &roots, Some(&held), None, &request("web")).await.unwrap_err();
    assert_eq!(status.metadata().get("weft-renew-by").unwrap(), "token");
    let line = audit.last();
    assert_eq!((&line["cause"], &line["method"]), (&"token_needed".into(), &"certificate".into()), "{line}");
    ask(&front, &roots, Some(&held), Some(&web), &request("web")).await.unwrap();
    // Whom control refuses itself, it does not forward.
    let status = ask(&front, &roots, None, Some(&web), &request("admin")).await.unwrap_err();
    assert!(status.message().contains("sa/admin"), "{status}");
    svid(&front, &roots, "nonsense").await.unwrap_err();
    assert_eq!(audit.last()["cause"], "token_malformed");
}

#[tokio::test]
async fn join_tokens_are_refused_with_a_sentence() {
    let (audit, signer) = (Audit::begin(), Signer::new("k"));
    let (front, upstream) = pair(&signer).await;
    let (web, life) = (Mesh::identity("web"), std::time::Duration::from_mins(1));
    let joins = sign(&upstream.dir.path().join("ca"), &web, life, std::time::SystemTime::now()).unwrap();
    let status = svid(&front, upstream.ca.roots(), &joins).await.unwrap_err();
    assert!(status.message().contains("join tokens"), "{status}");
    assert_eq!((&audit.last()["cause"], &audit.last()["method"]), (&"token_issuer".into(), &"join".into()));
}
