//! Join tokens are good for one key.

use std::time::{Duration, SystemTime};

use weft_api::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use weft_certs::token::{Uses, sign, sign_for};
use weft_control::{Config, Control};

use super::support::Audit;
use super::{refused, request};
use crate::common::Mesh;

const TTL: Duration = Duration::from_mins(10);

fn token(mesh: &Mesh, uses: Uses) -> String {
    sign_for(&mesh.dir.path().join("ca"), &Mesh::identity("web"), uses, TTL, SystemTime::now()).unwrap()
}

#[tokio::test]
async fn a_join_token_is_good_for_one_key_and_a_bad_request_does_not_use_it_up() {
    let audit = Audit::begin();
    let mut mesh = Mesh::start().await;
    let (once, csr) = (token(&mesh, Uses::Once), request("web"));
    refused(&mesh, &audit, &once, "no request", "request_malformed").await;
    refused(&mesh, &audit, &once, &request("cart"), "request_names").await;
    mesh.certificate(None, Some(&once), &csr, 60).await.unwrap();
    assert_eq!(audit.last()["method"], "join");
    // The answer may have been lost: the same key gets another.
    mesh.certificate(None, Some(&once), &csr, 60).await.unwrap();
    let line = refused(&mesh, &audit, &once, &request("web"), "token_replayed").await;
    assert_eq!(line["identity"], "spiffe://cluster.local/ns/shop/sa/web");
    // Control's memory of it is on the disk.
    mesh.stop().await;
    mesh.run(|_| {}).await;
    refused(&mesh, &audit, &once, &request("web"), "token_replayed").await;
    mesh.certificate(None, Some(&once), &csr, 60).await.unwrap();
    let text = mesh.get("/metrics").await;
    assert!(text.contains("weft_control_used_tokens 1"), "{text}");
}

#[tokio::test]
async fn a_reusable_token_says_so_itself() {
    let mesh = Mesh::start().await;
    let many = token(&mesh, Uses::Many);
    for _ in 0..3 {
        mesh.certificate(None, Some(&many), &request("web"), 60).await.unwrap();
    }
}

#[tokio::test]
async fn renewal_by_certificate_uses_up_no_token() {
    let mesh = Mesh::start().await;
    let (once, svid) = (token(&mesh, Uses::Once), mesh.svid("web", TTL));
    mesh.certificate(Some(&svid), Some(&once), &request("web"), 60).await.unwrap();
    mesh.certificate(None, Some(&once), &request("web"), 60).await.unwrap();
}

#[tokio::test]
async fn a_token_whose_use_cannot_be_recorded_gets_nothing() {
    let audit = Audit::begin();
    let mesh = Mesh::start().await;
    let once = token(&mesh, Uses::Once);
    std::fs::remove_dir_all(mesh.dir.path().join("ca/used-tokens")).unwrap();
    refused(&mesh, &audit, &once, &request("web"), "unavailable").await;
}

/// Two replicas with one CA directory, and many who hold copies of one token.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_that_race_for_a_token_through_two_replicas_one_gets_a_certificate() {
    let mesh = Mesh::start().await;
    let mut config = Config::new(vec![mesh.dir.path().join("files")], mesh.dir.path().join("ca"));
    (config.listen, config.metrics) = (([127, 0, 0, 1], 0).into(), ([127, 0, 0, 1], 0).into());
    let second = Control::start(config).await.unwrap();
    let clients = [mesh.channel_to(mesh.listen, None).await, mesh.channel_to(second.listen, None).await];
    for _ in 0..5 {
        let once = sign(&mesh.dir.path().join("ca"), &Mesh::identity("web"), TTL, SystemTime::now()).unwrap();
        let racers: Vec<_> = (0..24)
            .map(|racer| {
                let client = IstioCertificateServiceClient::new(clients[racer % 2].clone());
                let (once, csr) = (once.clone(), request("web"));
                tokio::spawn(async move { Mesh::create(client, Some(&once), &csr, 60).await })
            })
            .collect();
        let mut won = 0;
        for racer in racers {
            match racer.await.unwrap() {
                Ok(_) => won += 1,
                Err(status) => assert!(status.message().contains("used before"), "{status}"),
            }
        }
        assert_eq!(won, 1);
    }
    drop(second);
}
