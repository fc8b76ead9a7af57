//! The file of roots, and who holds up one that was taken out of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;
use weft_api::names::{self, ResourceType as _};
use weft_api::wire::v1;
use weft_certs::svid::Svid;
use weft_certs::tls::Roots;
use weft_control::Config;

use super::fake::Root;
use super::misbehaving::start;
use super::{report, svid, token, until};
use crate::common::{Mesh, Proxy};
use crate::issuing::support::{Audit, Signer};

const LEAF: Duration = Duration::from_secs(15);

/// A stream with this certificate, that acknowledges whatever comes.
async fn stream(mesh: &Mesh, roots: &Roots, held: &Svid) -> AbortOnDropHandle<()> {
    let tls =
        tokio_rustls::TlsConnector::from(weft_certs::tls::control_client_config(Some(held), roots, super::TD).unwrap());
    let listen = mesh.listen;
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let tcp = tokio::net::TcpStream::connect(listen).await?;
            let name = weft_certs::tls::CONTROL_SERVER_NAME.try_into().unwrap();
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tls.connect(name, tcp).await?))
        }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://weft-control");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let mut proxy = Proxy::open(channel, "web-1", &[]).await.unwrap();
    proxy.ask(v1::Workload::TYPE_URL, &[&names::workload("shop", "web-1")]).await;
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok(Some(response)) = proxy.incoming.message().await {
            proxy.ack(&response).await;
        }
    }))
}

async fn roots_of(mesh: &Mesh) -> Vec<(bool, Vec<String>)> {
    let seen = report(mesh).await;
    let named = |root: &Value| {
        root["held_up_by"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| format!("{} {}", one["workload"].as_str().unwrap(), one["why"].as_str().unwrap()))
            .collect()
    };
    let all = seen["authorities"].as_array().unwrap();
    all.iter().map(|root| (root["leaving"] == true, named(root))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_was_taken_out_is_believed_until_nobody_shows_a_leaf_under_it() {
    let (_audit, signer) = (Audit::begin(), Signer::new("k"));
    let state = tempfile::tempdir().unwrap();
    let (mut mesh, ca, old_roots) = start(&signer, |config| short(config, state.path())).await;
    // One proxy is all that lives.
    mesh.edit("pods.yaml", &super::pod("shop", "web-1", "web", 1));
    mesh.edit("web.yaml", "");
    let web = token(&signer, "shop", "web-1", "web");
    let first = svid(&mesh, &old_roots, &web).await.unwrap();
    let shows = stream(&mesh, &old_roots, &first).await;

    // Both are published, as one resource; then the CA issues under the new one, and the old one is taken out.
    let (file, old, new) =
        (mesh.dir.path().join("roots.pem"), Arc::clone(&ca.state.lock().root), Arc::new(Root::new()));
    let both = Roots::from_pem(&format!("{}{}", old.pem, new.pem)).unwrap();
    std::fs::write(&file, format!("{}{}", old.pem, new.pem)).unwrap();
    until("both are published", async || roots_of(&mesh).await == [(false, vec![]), (false, vec![])]).await;
    ca.state.lock().root = Arc::clone(&new);
    std::fs::write(&file, &new.pem).unwrap();
    until("the old one is held up by whoever shows it", async || held(&mesh).await).await;
    let text = mesh.get("/metrics").await;
    assert!(text.contains("weft_control_leaving_roots 1"), "{text}");

    // Over a restart, after which the old leaf is taken still.
    drop(shows);
    mesh.stop().await;
    mesh.run(|config| {
        short(config, state.path());
        config.issuing.kubernetes_jwks = Some(file.with_file_name("keys.json").display().to_string());
        super::misbehaving::by(&ca, file.parent().unwrap(), config);
    })
    .await;
    until("it is ready again", async || mesh.get("/healthz/ready").await.contains("200 OK")).await;
    let again = stream(&mesh, &both, &first).await;
    until("it is named again", async || held(&mesh).await).await;
    drop(again);

    // Longer than any certificate lives: nobody knows what one that is away would show.
    tokio::time::sleep(LEAF + Duration::from_secs(6)).await;
    let roots = roots_of(&mesh).await;
    assert!(roots.len() == 2 && roots[1].1 == ["shop/web-1 is not connected"], "{roots:?}");
    let second = svid(&mesh, &both, &web).await.unwrap();
    let _turned = stream(&mesh, &both, &second).await;
    until("it is not believed any more", async || roots_of(&mesh).await == [(false, vec![])]).await;
}

/// The second root is leaving, and held up by who shows a leaf under it.
async fn held(mesh: &Mesh) -> bool {
    let roots = roots_of(mesh).await;
    roots.len() == 2 && roots[1].0 && roots[1].1.iter().any(|who| who.starts_with("shop/web-1 still shows"))
}

fn short(config: &mut Config, state: &Path) {
    config.leaf_ttl = LEAF;
    config.state_dir = Some(state.to_owned());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_breaks_changes_nothing() {
    let signer = Signer::new("k");
    let (mesh, ca, roots) = start(&signer, |_| {}).await;
    let file = mesh.dir.path().join("roots.pem");
    for broken in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&file, broken).unwrap();
        until("it is said", async || mesh.get("/metrics").await.contains("weft_control_ca_broken 1")).await;
        assert_eq!(roots_of(&mesh).await, [(false, vec![])]);
        svid(&mesh, &roots, &token(&signer, "shop", "web-1", "web")).await.unwrap();
        std::fs::write(&file, &ca.state.lock().root.pem).unwrap();
        until("it is mended", async || mesh.get("/metrics").await.contains("weft_control_ca_broken 0")).await;
    }
}
