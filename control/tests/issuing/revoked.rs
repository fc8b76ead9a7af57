//! Who is revoked: told so, then without a stream and without certificates, until he is on the list no more.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use prost::Message as _;
use tonic::Code;
use weft_api::names::ResourceType;
use weft_api::wire::v1;
use weft_certs::svid::Svid;
use weft_certs::token::{Uses, sign_for};
use weft_control::{Config, Control};

use super::request;
use super::support::Audit;
use crate::common::{Mesh, Proxy};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const TTL: Duration = Duration::from_mins(10);

fn file(ca_dir: &Path) -> PathBuf {
    ca_dir.with_file_name("revoked.yaml")
}

async fn mesh() -> Mesh {
    Mesh::with(|config| {
        std::fs::write(file(&config.ca_dir), "[]").unwrap();
        config.revoked = Some(file(&config.ca_dir));
    })
    .await
}

fn revoke(mesh: &Mesh, text: &str) {
    std::fs::write(file(&mesh.dir.path().join("ca")), text).unwrap();
}

/// The next list that a proxy is told.
async fn list(proxy: &mut Proxy) -> v1::Revoked {
    loop {
        let response = proxy.hear().await.unwrap();
        proxy.ack(&response).await;
        let found = response.resources.iter().find(|resource| resource.name == "revoked");
        if let Some(found) = found {
            let any = found.resource.as_ref().unwrap();
            // Of the response's own type, or it says its own.
            let type_url = if any.type_url.is_empty() { &response.type_url } else { &any.type_url };
            assert_eq!(type_url, v1::Revoked::TYPE_URL);
            return v1::Revoked::decode(&*any.value).unwrap();
        }
    }
}

async fn open(mesh: &Mesh, svid: &Svid, pod: &str) -> Proxy {
    let mut proxy = Proxy::open(mesh.channel(Some(svid)).await, pod, &[]).await.unwrap();
    proxy.next().await;
    proxy.ask(v1::Workload::TYPE_URL, &[&format!("workload/shop/{pod}")]).await;
    assert_eq!(list(&mut proxy).await, v1::Revoked::default());
    proxy
}

#[tokio::test]
async fn an_identity_is_told_that_it_is_revoked_then_its_stream_ends_and_no_proof_counts() {
    let (audit, mesh) = (Audit::begin(), mesh().await);
    let svid = mesh.svid("web", TTL);
    let (mut web, mut cart) = (open(&mesh, &svid, "web-1").await, open(&mesh, &mesh.svid("cart", TTL), "cart-1").await);
    revoke(&mesh, &format!("- identity: {WEB}\n"));
    let told = list(&mut web).await;
    // Of our own trust domain, whatever that is called.
    assert_eq!((told.identities, told.serials.len()), (vec!["/ns/shop/sa/web".to_owned()], 0));
    assert_eq!(web.hear().await.unwrap_err().code(), Code::PermissionDenied);
    let mut again = Proxy::open(mesh.channel(Some(&svid)).await, "web-1", &[]).await.unwrap();
    assert_eq!(again.hear().await.unwrap_err().code(), Code::PermissionDenied);

    let token =
        sign_for(&mesh.dir.path().join("ca"), &Mesh::identity("web"), Uses::Many, TTL, SystemTime::now()).unwrap();
    for (by, token, method) in [(Some(&svid), None, "certificate"), (None, Some(&*token), "join")] {
        let status = mesh.certificate(by, token, &request("web"), 0).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        let line = audit.last();
        assert_eq!(
            (&line["cause"], &line["method"], &line["identity"]),
            (&"revoked".into(), &method.into(), &WEB.into())
        );
    }
    let text = mesh.get("/metrics").await;
    assert!(text.contains("weft_control_revoked_entries 1"), "{text}");
    assert!(text.contains("cause=\"revoked\",method=\"join\"} 1"), "{text}");

    // The others go on, and hear when he is believed again.
    assert_eq!(list(&mut cart).await.identities, ["/ns/shop/sa/web"]);
    revoke(&mesh, "[]");
    assert_eq!(list(&mut cart).await, v1::Revoked::default());
    open(&mesh, &svid, "web-1").await;
    mesh.certificate(Some(&svid), None, &request("web"), 0).await.unwrap();
}

#[tokio::test]
async fn of_a_stolen_certificate_the_owner_gets_another_by_his_token() {
    let (audit, mesh) = (Audit::begin(), mesh().await);
    let (stolen, other) = (mesh.svid("web", TTL), mesh.svid("web", TTL));
    let mut web = open(&mesh, &stolen, "web-1").await;
    let mut second = open(&mesh, &other, "web-2").await;
    revoke(&mesh, &format!("- serial: {}\n  reason: copied\n", stolen.serial()));
    assert_eq!(list(&mut web).await.serials.len(), 1);
    assert_eq!(web.hear().await.unwrap_err().code(), Code::PermissionDenied);
    let status = mesh.certificate(Some(&stolen), None, &request("web"), 0).await.unwrap_err();
    assert_eq!((status.code(), &audit.last()["cause"]), (Code::PermissionDenied, &"revoked".into()));
    let token =
        sign_for(&mesh.dir.path().join("ca"), &Mesh::identity("web"), Uses::Once, TTL, SystemTime::now()).unwrap();
    mesh.certificate(Some(&stolen), Some(&token), &request("web"), 0).await.unwrap();
    assert_eq!(audit.last()["method"], "join");
    mesh.certificate(Some(&other), None, &request("web"), 0).await.unwrap();
    assert_eq!(list(&mut second).await.serials.len(), 1);
    second.ask(v1::Address::TYPE_URL, &["cart.shop:80"]).await;
    assert_eq!(second.next().await[0], "cart.shop:80");
}

#[tokio::test]
async fn control_does_not_start_with_a_list_that_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("files")).unwrap();
    let mut config = Config::new(vec![dir.path().join("files")], dir.path().join("ca"));
    config.listen.set_port(0);
    config.metrics.set_port(0);
    config.revoked = Some(file(&config.ca_dir));
    for text in [None, Some("- identity: spiffe://cluster.local/ns/weft-system/sa/weft-control")] {
        if let Some(text) = text {
            std::fs::write(file(&config.ca_dir), text).unwrap();
        }
        let error = Control::start(config.clone()).await.unwrap_err().to_string();
        assert!(error.starts_with("--revoked "), "{error}");
    }
}
