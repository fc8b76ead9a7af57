//! Tokens of OIDC issuers, and of nobody.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::support::{Audit, Signer, now};
use super::{refused, request};
use crate::common::Mesh;

fn claims() -> Value {
    json!({
        "iss": "https://nomad.example", "aud": "weft", "sub": "global:default:web", "iat": now(), "nbf": now(),
        "exp": now() + 600, "nomad_namespace": "shop", "nomad_job_id": "web",
    })
}

async fn nomad(signer: &Signer, more: &str) -> Mesh {
    Mesh::with(|config| {
        let dir = config.ca_dir.parent().unwrap();
        signer.write(&dir.join("nomad.json"));
        let mut text = String::from(
            "- name: nomad\n  issuer: https://nomad.example\n  audience: weft\n  jwks: nomad.json\n  \
             identity: ns/{nomad_namespace}/sa/{nomad_job_id}\n",
        );
        writeln!(text, "{more}").unwrap();
        let path = dir.join("providers.yaml");
        std::fs::write(&path, text).unwrap();
        config.issuing.identity_providers = Some(path);
    })
    .await
}

#[tokio::test]
async fn a_workload_of_nomad_gets_the_identity_that_its_claims_give() {
    let (audit, signer) = (Audit::begin(), Signer::new("n"));
    let mesh = nomad(&signer, "").await;
    mesh.certificate(None, Some(&signer.sign(&claims())), &request("web"), 60).await.unwrap();
    let line = audit.last();
    assert_eq!(line["method"], "oidc");
    assert_eq!(line["identity"], "spiffe://cluster.local/ns/shop/sa/web");

    let with = |name: &'static str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        signer.sign(&claims)
    };
    let csr = request("web");
    let control = {
        let mut claims = claims();
        (claims["nomad_namespace"], claims["nomad_job_id"]) = (json!("weft-system"), json!("weft-control"));
        signer.sign(&claims)
    };
    let cases = [
        ("token_audience", with("aud", json!("vault"))),
        ("token_expired", with("exp", json!(now() - 1))),
        ("token_not_yet", with("nbf", json!(now() + 600))),
        ("token_claims", with("nomad_job_id", Value::Null)),
        ("token_claims", with("nomad_job_id", json!(""))),
        ("token_claims", with("nomad_job_id", json!("web/sa/admin"))),
        ("token_claims", with("nomad_job_id", json!("../web"))),
        ("token_claims", with("nomad_job_id", json!("Web"))),
        ("token_claims", with("nomad_job_id", json!(["web"]))),
        ("token_claims", with("nomad_job_id", json!("x".repeat(300)))),
        ("token_issuer", with("iss", json!("https://nomad.example/"))),
        ("token_algorithm", signer.unsigned(&claims())),
        ("token_algorithm", signer.confused(&claims())),
        ("token_key", Signer::new("other").sign(&claims())),
        ("token_signature", Signer::new("n").sign(&claims())),
        ("reserved", control),
    ];
    for (cause, token) in &cases {
        refused(&mesh, &audit, token, &csr, cause).await;
    }
    refused(&mesh, &audit, &signer.sign(&claims()), &request("cart"), "request_names").await;
}

#[tokio::test]
async fn an_algorithm_that_is_not_listed_is_refused_although_the_key_is_right() {
    let (audit, signer) = (Audit::begin(), Signer::new("n"));
    let mesh = nomad(&signer, "  algorithms: [RS256, EdDSA]").await;
    refused(&mesh, &audit, &signer.sign(&claims()), &request("web"), "token_algorithm").await;
}

#[tokio::test]
async fn a_token_without_an_issuer_is_a_join_token_or_nothing() {
    let (audit, signer) = (Audit::begin(), Signer::new("n"));
    let mesh = nomad(&signer, "").await;
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove("iss");
    let line = refused(&mesh, &audit, &signer.sign(&claims), &request("web"), "token_key").await;
    assert_eq!(line["method"], "join");
    // Another CA's.
    let dir = tempfile::tempdir().unwrap();
    weft_certs::ca::Ca::open(dir.path(), "cluster.local").unwrap();
    let (web, ttl) = (Mesh::identity("web"), std::time::Duration::from_mins(1));
    let token = weft_certs::token::sign(dir.path(), &web, ttl, std::time::SystemTime::now()).unwrap();
    refused(&mesh, &audit, &token, &request("web"), "token_key").await;
}

#[tokio::test]
async fn the_list_of_issuers_is_read_again_and_one_that_is_wrong_changes_nothing() {
    let (audit, first, second) = (Audit::begin(), Signer::new("n"), Signer::new("s"));
    let mesh = nomad(&first, "").await;
    let path = mesh.dir.path().join("providers.yaml");
    let of_first = first.sign(&claims());
    let of_second = {
        let mut claims = claims();
        claims["iss"] = json!("https://second.example");
        second.sign(&claims)
    };
    let good = std::fs::read_to_string(&path).unwrap();
    refused(&mesh, &audit, &of_second, &request("web"), "token_issuer").await;

    // The first one's keys are out of reach meanwhile: those that are held serve.
    second.write(&mesh.dir.path().join("second.json"));
    std::fs::remove_file(mesh.dir.path().join("nomad.json")).unwrap();
    let more = "- {name: second, issuer: https://second.example, audience: weft, jwks: second.json, identity: ns/shop/sa/web}\n";
    std::fs::write(&path, format!("{good}{more}")).unwrap();
    taken(&mesh, &of_second, true).await;
    taken(&mesh, &of_first, true).await;

    std::fs::write(&path, format!("{good}{}", more.replace("audience", "audiense"))).unwrap();
    told(&audit, "providers.yaml:7:50: unknown field `audiense`").await;
    std::fs::write(&path, format!("{good}{more}{}", more.replace("second", "third"))).unwrap();
    told(&audit, "third: the keys of https://third.example").await;
    std::fs::remove_file(&path).unwrap();
    told(&audit, "cannot be read").await;
    taken(&mesh, &of_second, true).await;
    taken(&mesh, &of_first, true).await;

    std::fs::write(&path, good).unwrap();
    taken(&mesh, &of_second, false).await;
    refused(&mesh, &audit, &of_second, &request("web"), "token_issuer").await;
    taken(&mesh, &of_first, true).await;
}

/// Waits until the token is taken, or is not.
async fn taken(mesh: &Mesh, token: &str, wanted: bool) {
    until(async || mesh.certificate(None, Some(token), &request("web"), 60).await.is_ok() == wanted).await;
}

/// Waits until the log says something.
async fn told(audit: &Audit, text: &str) {
    until(async || audit.tells(text)).await;
}

async fn until(holds: impl AsyncFn() -> bool) {
    let held = async {
        while !holds().await {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), held).await.unwrap();
}

#[tokio::test]
async fn control_does_not_start_on_a_file_that_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("files")).unwrap();
    let path = dir.path().join("providers.yaml");
    let mut config = weft_control::Config::new(vec![dir.path().join("files")], dir.path().join("ca"));
    (config.listen, config.metrics) = (([127, 0, 0, 1], 0).into(), ([127, 0, 0, 1], 0).into());
    config.issuing.identity_providers = Some(path.clone());
    for (text, want) in [
        ("- name: a\n  isuer: b\n", "providers.yaml:2:3: unknown field `isuer`; did you mean `issuer`?"),
        ("- {name: a, issuer: b, audience: c, jwks: absent.json, identity: ns/a/sa/b}", "absent.json"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = weft_control::Control::start(config.clone()).await.unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(want), "{error}");
    }
}
