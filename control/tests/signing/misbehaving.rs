//! A CA elsewhere that answers with something else, or not at all.

use std::path::Path;
use std::time::{Duration, Instant};

use tonic::Code;
use weft_certs::tls::Roots;
use weft_control::Config;

use super::fake::{Act, FakeCa};
use super::{ask, cluster, request, svid, token, until};
use crate::common::Mesh;
use crate::issuing::support::{Audit, Signer};

/// Has certificates issued by this CA.
pub fn by(ca: &FakeCa, dir: &Path, config: &mut Config) {
    std::fs::write(dir.join("roots.pem"), &ca.state.lock().root.pem).unwrap();
    config.signing.issue_by = Some(format!("https://{}", ca.addr));
    config.signing.issue_by_ca = Some(dir.join("ca-tls.pem"));
    config.signing.issue_by_token = Some(dir.join("own-token"));
    config.signing.roots = Some(dir.join("roots.pem"));
}

/// A control that has certificates issued by a fake CA.
pub async fn start(signer: &Signer, change: impl FnOnce(&mut Config)) -> (Mesh, FakeCa, Roots) {
    let elsewhere = tempfile::tempdir().unwrap();
    let ca = FakeCa::start(&elsewhere.path().join("ca-tls.pem")).await;
    let roots = Roots::from_pem(&ca.state.lock().root.pem).unwrap();
    let mesh = Mesh::with(|config| {
        cluster(signer, config);
        let dir = config.ca_dir.parent().unwrap().to_owned();
        std::fs::copy(elsewhere.path().join("ca-tls.pem"), dir.join("ca-tls.pem")).unwrap();
        by(&ca, &dir, config);
        change(config);
    })
    .await;
    until("control is ready", async || mesh.get("/healthz/ready").await.contains("200 OK")).await;
    (mesh, ca, roots)
}

#[tokio::test]
async fn what_nobody_asked_for_is_refused_with_its_cause_and_never_handed_on() {
    let (audit, signer) = (Audit::begin(), Signer::new("k"));
    let (mesh, ca, roots) = start(&signer, |_| {}).await;
    let web = token(&signer, "shop", "web-1", "web");
    svid(&mesh, &roots, &web).await.unwrap();
    assert_eq!(
        (&audit.last()["message"], &audit.last()["method"]),
        (&"certificate issued".into(), &"kubernetes".into())
    );
    for (act, cause, said) in [
        (Act::Identity("spiffe://cluster.local/ns/shop/sa/admin"), "ca_answer", "sa/admin, which was not asked for"),
        (Act::Identity("spiffe://other.example/ns/shop/sa/web"), "ca_answer", "which was not asked for"),
        (Act::TwoNames, "ca_answer", "db.shop"),
        (Act::OtherKey, "ca_answer", "another key"),
        (Act::Authority, "ca_answer", "a CA's"),
        (Act::TooLong, "ca_answer", "3600 s were asked for"),
        (Act::OtherRoot, "ca_answer", "does not lead to a certificate that is trusted"),
        (Act::Garbage, "ca_answer", "cannot be parsed as X.509"),
        (Act::Nothing, "ca_answer", "empty"),
        (Act::Huge, "ca_answer", "too large"),
        (Act::Refuse(Code::PermissionDenied), "ca", "that is notfor you"),
        (Act::Refuse(Code::Unauthenticated), "ca", "refuses"),
        (Act::Refuse(Code::Internal), "unavailable", "does not answer"),
    ] {
        ca.acts(act.clone());
        let status = svid(&mesh, &roots, &web).await.unwrap_err();
        let line = audit.last();
        assert_eq!(
            (&line["message"], &line["cause"]),
            (&"certificate refused".into(), &cause.into()),
            "{act:?}: {line}"
        );
        assert!(line["reason"].as_str().unwrap().contains(said), "{act:?}: {line}");
        assert_eq!(line["identity"], "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(line["reason"], status.message());
    }
    ca.acts(Act::Well);
    svid(&mesh, &roots, &web).await.unwrap();
    assert!(!audit.tells(web.rsplit('.').next().unwrap()), "a token is in the log");
    let text = mesh.get("/metrics").await;
    let counted = "weft_control_certificates_refused_total{cause=\"ca_answer\",method=\"kubernetes\"} 10";
    assert!(text.contains(counted), "{text}");
    assert!(text.contains("weft_control_signing_requests 0"), "{text}");
}

#[tokio::test]
async fn a_ca_that_is_silent_is_given_up_before_the_sidecar_is() {
    let (audit, signer) = (Audit::begin(), Signer::new("k"));
    let (mesh, ca, roots) = start(&signer, |_| {}).await;
    ca.acts(Act::Silence);
    let began = Instant::now();
    svid(&mesh, &roots, &token(&signer, "shop", "web-1", "web")).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let line = audit.last();
    assert_eq!(line["cause"], "unavailable");
    assert!(line["reason"].as_str().unwrap().contains("no answer in 9 s"), "{line}");
}

#[tokio::test]
async fn a_ca_that_is_away_is_not_asked_for_everybody_and_serves_when_it_is_back() {
    let (audit, signer) = (Audit::begin(), Signer::new("k"));
    let (mesh, ca, roots) = start(&signer, |_| {}).await;
    let web = token(&signer, "shop", "web-1", "web");
    ca.acts(Act::Refuse(Code::Unavailable));
    let (before, began) = (ca.asked(), Instant::now());
    let mut refused = 0;
    while began.elapsed() < Duration::from_secs(3) {
        svid(&mesh, &roots, &web).await.unwrap_err();
        assert_eq!(audit.last()["cause"], "unavailable");
        refused += 1;
    }
    // 0.1, 0.2, 0.4, 0.8 s, then every second.
    let asked = ca.asked() - before;
    assert!(asked <= 8 && refused > 2 * asked, "{asked} questions for {refused} refusals");
    ca.acts(Act::Well);
    let back = Instant::now();
    until("it serves again", async || svid(&mesh, &roots, &web).await.is_ok()).await;
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
}

#[tokio::test]
async fn control_waits_for_its_own_certificate_and_says_so() {
    let signer = Signer::new("k");
    let elsewhere = tempfile::tempdir().unwrap();
    let ca = FakeCa::start(&elsewhere.path().join("ca-tls.pem")).await;
    ca.acts(Act::Refuse(Code::Unavailable));
    let roots = Roots::from_pem(&ca.state.lock().root.pem).unwrap();
    let mesh = Mesh::with(|config| {
        cluster(&signer, config);
        let dir = config.ca_dir.parent().unwrap().to_owned();
        std::fs::copy(elsewhere.path().join("ca-tls.pem"), dir.join("ca-tls.pem")).unwrap();
        by(&ca, &dir, config);
    })
    .await;
    until("it has asked", async || ca.asked() > 0).await;
    assert!(mesh.get("/healthz/ready").await.contains("no certificate of its own yet"));
    ca.acts(Act::Well);
    until("control is ready", async || mesh.get("/healthz/ready").await.contains("200 OK")).await;
    ask(&mesh, &roots, None, Some(&token(&signer, "shop", "web-1", "web")), &request("web")).await.unwrap();
    // Its own token was shown for its own certificate, the workload's for the workload's.
    let shown = ca.state.lock().tokens.clone();
    assert_ne!(shown.first(), shown.last());
}
