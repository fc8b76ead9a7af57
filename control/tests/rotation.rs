//! A root, an issuer and the trust domain's name are exchanged while proxies hold real streams: no phase ends before all are ready for it, whoever lags is named, and
//! control may be started anew in any of them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::common::{Mesh, Proxy};
use serde_json::Value;
use tokio::task::JoinHandle;
use weft_api::names::{self, ResourceType};
use weft_api::wire::v1;
use weft_certs::ca::Ca;
use weft_certs::ca::rotation::Kind;

const SOON: Duration = Duration::from_secs(20);
const PODS: [(&str, &str); 3] = [("web-1", "web"), ("web-2", "web"), ("cart-1", "cart")];

/// A proxy that acknowledges whatever comes, until it is dropped.
struct Obedient(JoinHandle<()>);

impl Drop for Obedient {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn asking(mesh: &Mesh, pod: &str, account: &str) -> Proxy {
    let proxy = mesh.proxy(pod, account).await.unwrap();
    proxy.ask(v1::Workload::TYPE_URL, &[&names::workload("shop", pod)]).await;
    proxy
}

async fn obedient(mesh: &Mesh, pod: &str, account: &str) -> Obedient {
    let mut proxy = asking(mesh, pod, account).await;
    Obedient(tokio::spawn(async move {
        while let Ok(Some(response)) = proxy.incoming.message().await {
            proxy.ack(&response).await;
        }
    }))
}

async fn all(mesh: &Mesh) -> Vec<Obedient> {
    let mut proxies = Vec::new();
    for (pod, account) in PODS {
        proxies.push(obedient(mesh, pod, account).await);
    }
    proxies
}

async fn report(mesh: &Mesh) -> Value {
    let text = mesh.get("/debug/certificates").await;
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// The report, once `wanted` holds of it.
async fn until(mesh: &Mesh, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let waited = tokio::time::timeout(SOON, async {
        loop {
            last = report(mesh).await;
            if wanted(&last) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let found = waited.await.is_ok();
    assert!(found, "{what}: {last:#}");
    last
}

async fn phase(mesh: &Mesh, phase: &str) -> Value {
    until(mesh, phase, |report| report["rotation"]["phase"] == phase).await
}

fn waiting(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let waiting = report["rotation"]["waiting"].as_array().unwrap();
    waiting.iter().map(|one| (text(&one["workload"]), text(&one["why"]))).collect()
}

/// The whole of what the mesh's own tools see of the CA.
fn now(mesh: &Mesh) -> Ca {
    Ca::load(&mesh.dir.path().join("ca")).unwrap()
}

async fn restart(mesh: &mut Mesh) {
    mesh.stop().await;
    mesh.run(short).await;
}

fn short(config: &mut weft_control::Config) {
    config.leaf_ttl = Duration::from_secs(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_never_started_or_has_ended_or_leaves_is_not_waited_for() {
    let mut mesh = Mesh::with(|_| {}).await;
    let manifest = |name: &str, more: &str, status: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, annotations: {{weft.dev/injected: \"true\"}}{more}}}\n\
             spec: {{serviceAccountName: web}}\nstatus: {status}\n"
        )
    };
    let others = manifest("pending", "", "{phase: Pending}")
        + &manifest("done", "", "{phase: Succeeded, podIP: 10.0.0.81}")
        + &manifest("failed", "", "{phase: Failed, podIP: 10.0.0.82}")
        + &manifest("leaving", ", deletionTimestamp: 2026-01-01T00:00:00Z", "{phase: Running, podIP: 10.0.0.83}")
        + &manifest("stuck", "", "{phase: Pending, podIP: 10.0.0.84}");
    crate::common::write(mesh.dir.path(), "others.yaml", &others);
    now(&mesh).begin(Kind::Root, SystemTime::now()).unwrap();
    let said = until(&mesh, "those with an address are named", |report| waiting_or_none(report) == 4).await;
    let named: Vec<_> = waiting(&said).into_iter().map(|(who, _)| who).collect();
    assert_eq!(named, ["shop/cart-1", "shop/stuck", "shop/web-1", "shop/web-2"]);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_exchanged_step_by_step_and_control_may_die_in_each() {
    let mut mesh = Mesh::with(short).await;
    let web = obedient(&mesh, "web-1", "web").await;
    // It hears and says nothing.
    let mute = asking(&mesh, "web-2", "web").await;
    until(&mesh, "all are seen", |report| {
        let connected = report["proxies"].as_array().unwrap().iter().filter(|proxy| proxy["connected"] == true).count();
        connected == 2 && report["proxies"].as_array().unwrap().len() == 3
    })
    .await;
    let old = now(&mesh).root_pem().to_owned();
    now(&mesh).begin(Kind::Root, SystemTime::now()).unwrap();

    let said = until(&mesh, "both are named", |report| waiting_or_none(report) == 2).await;
    let expected = [("shop/cart-1", "is not connected"), ("shop/web-2", "has not acknowledged the roots")];
    assert_eq!(waiting(&said), expected.map(|(who, why)| (who.to_owned(), why.to_owned())));
    let told = tokio::time::timeout(SOON, async {
        while !mesh.get("/metrics").await.contains("weft_control_rotation_waiting_proxies 2") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    told.await.expect("the metric counts them");
    assert!(mesh.get("/metrics").await.contains("weft_control_rotation_phase{phase=\"publishing\"} 1"));

    drop((web, mute));
    restart(&mut mesh).await;
    until(&mesh, "after a start nobody is taken for ready", |report| waiting_or_none(report) == 3).await;
    phase(&mesh, "publishing").await;
    let proxies = all(&mesh).await;
    let said = phase(&mesh, "turning").await;
    assert_eq!(said["issuing"], "issuer-2");
    let lags = waiting(&said);
    assert_eq!(lags.len(), 3);
    assert_eq!(lags[0], ("shop/cart-1".to_owned(), "still shows a certificate of issuer".to_owned()));
    // The certificates that are waited for have ten minutes to live: longer than those that control gives, and still they hold it up.
    until(&mesh, "the wait began", |report| report["rotation"]["until"].is_u64()).await;

    drop(proxies);
    restart(&mut mesh).await;
    mesh.ca = Arc::new(now(&mesh));
    let proxies = all(&mesh).await;
    let said = phase(&mesh, "withdrawing").await;
    assert_eq!(said["authorities"][0]["id"], "root-2");
    assert_eq!(said["authorities"][1]["published"], false, "{said:#}");
    assert!(!now(&mesh).root_pem().contains(&old));

    drop(proxies);
    restart(&mut mesh).await;
    mesh.ca = Arc::new(now(&mesh));
    let proxies = all(&mesh).await;
    let said = until(&mesh, "it is over", |report| report["rotation"].is_null()).await;
    assert_eq!(said["authorities"].as_array().unwrap().len(), 2);
    assert_eq!(said["proxies"][0]["issuer"], "issuer-2");
    drop(proxies);
    mesh.stop().await;
}

fn waiting_or_none(report: &Value) -> usize {
    report["rotation"]["waiting"].as_array().map_or(0, Vec::len)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_is_exchanged_and_what_has_begun_can_be_turned_back() {
    let mut mesh = Mesh::with(short).await;
    let proxies = all(&mesh).await;
    now(&mesh).begin(Kind::Issuer, SystemTime::now()).unwrap();
    phase(&mesh, "turning").await;
    let chain = mesh.certificate(Some(&mesh.svid("web", SOON)), None, &csr("web"), 0).await.unwrap();
    assert_eq!(chain[1], now(&mesh).issue(&csr("web"), &Mesh::identity("web"), SOON, SystemTime::now()).unwrap()[1]);
    assert_ne!(chain[1], mesh.svid("web", SOON).chain_pem()[1], "issued by the new one");

    now(&mesh).abort(SystemTime::now()).unwrap();
    let said = until(&mesh, "turned back", |report| report["rotation"]["aborted"] == true).await;
    assert_eq!((said["issuing"].as_str(), said["rotation"]["to"].as_str()), (Some("issuer"), Some("issuer")));
    let said = until(&mesh, "it is over", |report| report["rotation"].is_null()).await;
    assert_eq!(said["authorities"].as_array().unwrap().len(), 2);
    drop(proxies);
    mesh.stop().await;
}

/// Who a chain's leaf says that its holder is.
fn named(chain: &[String]) -> String {
    let looked = weft_certs::inspect::inspect(chain[0].as_bytes(), None, SystemTime::now()).unwrap();
    looked.certificates[0].names[0].trim_start_matches("URI:").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trust_domain_is_renamed_step_by_step_and_control_may_die_in_each() {
    const NEW: &str = "new.example";
    let mut mesh = Mesh::with(short).await;
    let (web, mute) = (obedient(&mesh, "web-1", "web").await, asking(&mesh, "web-2", "web").await);
    until(&mesh, "all are seen", |report| report["proxies"].as_array().unwrap().len() == 3).await;
    now(&mesh).rename(NEW, false, SystemTime::now()).unwrap();
    let said = until(&mesh, "both are named", |report| waiting_or_none(report) == 2).await;
    let expected =
        [("shop/cart-1", "is not connected"), ("shop/web-2", "has not acknowledged the names of the trust domain")];
    assert_eq!(waiting(&said), expected.map(|(who, why)| (who.to_owned(), why.to_owned())));
    assert_eq!((&said["trust_domain"], &said["aliases"][0]), (&crate::common::TD.into(), &NEW.into()));
    assert_eq!(said["rotation"]["kind"], "trust-domain");
    drop((web, mute));

    let (old, new) = ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://new.example/ns/shop/sa/web");
    let renewed =
        async |mesh: &Mesh| mesh.certificate(Some(&mesh.svid("web", SOON)), None, &csr("web"), 0).await.unwrap();
    restart(&mut mesh).await;
    phase(&mesh, "publishing").await;
    assert_eq!(named(&renewed(&mesh).await), old);
    let proxies = all(&mesh).await;
    let said = phase(&mesh, "turning").await;
    assert_eq!((&said["trust_domain"], &said["aliases"][0]), (&NEW.into(), &crate::common::TD.into()));
    assert_eq!(waiting(&said)[0], ("shop/cart-1".to_owned(), "still shows a certificate of cluster.local".to_owned()));
    // Proved in the old name and asked for in the old name, it is given in the new one.
    assert_eq!(named(&renewed(&mesh).await), new);

    drop(proxies);
    restart(&mut mesh).await;
    mesh.ca = Arc::new(now(&mesh));
    let proxies = all(&mesh).await;
    let said = phase(&mesh, "withdrawing").await;
    assert_eq!(said["aliases"], serde_json::json!([]));
    drop(proxies);
    restart(&mut mesh).await;
    mesh.ca = Arc::new(now(&mesh));
    let proxies = all(&mesh).await;
    let said = until(&mesh, "it is over", |report| report["rotation"].is_null()).await;
    assert_eq!(
        (&said["trust_domain"], &said["proxies"][0]["identity"]),
        (&NEW.into(), &"spiffe://new.example/ns/shop/sa/cart".into())
    );
    drop(proxies);
    mesh.stop().await;
    // Control may be told any name that the mesh ever had.
    mesh.run(|config| {
        short(config);
        config.trust_domain = NEW.to_owned();
    })
    .await;
    assert_eq!(named(&renewed(&mesh).await), new);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_federated_trust_domain_is_no_name_of_ours() {
    const PARTNER: &str = "partner.example";
    let elsewhere = tempfile::tempdir().unwrap();
    let theirs = Ca::open(&elsewhere.path().join("theirs"), PARTNER).unwrap();
    let file = elsewhere.path().join("partner.pem");
    std::fs::write(&file, theirs.root_pem()).unwrap();
    let federated = vec![format!("{PARTNER}={}", file.display()).parse().unwrap()];
    let mut mesh = Mesh::with(|config| config.federated = federated.clone()).await;
    assert_eq!(report(&mesh).await["federated"], serde_json::json!([PARTNER]));
    now(&mesh).rename(PARTNER, false, SystemTime::now()).unwrap();
    tokio::time::timeout(SOON, async {
        while now(&mesh).authorities().rotation().is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("control turns it back");
    assert_eq!(now(&mesh).called().every().collect::<Vec<_>>(), [crate::common::TD], "and nothing is left of it");
    assert_eq!(report(&mesh).await["federated"], serde_json::json!([PARTNER]));
    mesh.stop().await;
    // The other way round: no file speaks for a name that was ours once.
    now(&mesh).rename("new.example", false, SystemTime::now()).unwrap().abort(SystemTime::now()).unwrap();
    let mut config = weft_control::Config::new(vec![mesh.dir.path().join("files")], mesh.dir.path().join("ca"));
    (config.listen, config.metrics) = (mesh.listen, mesh.metrics);
    config.federated = vec![format!("new.example={}", file.display()).parse().unwrap()];
    let refused = format!("{:#}", weft_control::Control::start(config).await.unwrap_err());
    assert!(refused.contains("`new.example` is, or was, a name of this mesh's own trust domain"), "{refused}");
}

/// What somebody else's CA has made, as a Secret of cert-manager is mounted.
fn give(theirs: &Path, generation: &str, given: &Path) {
    std::fs::create_dir_all(given).unwrap();
    let files = [(format!("issuer{generation}.pem"), "tls.crt"), (format!("issuer{generation}.key"), "tls.key")];
    for (from, to) in files.into_iter().chain([("root.pem".to_owned(), "ca.crt")]) {
        std::fs::copy(theirs.join("keys").join(from), given.join(to)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_somebody_else_keeps_is_followed() {
    let elsewhere = tempfile::tempdir().unwrap();
    let (theirs, given) = (elsewhere.path().join("theirs"), elsewhere.path().join("given"));
    let first = Ca::open(&theirs, crate::common::TD).unwrap();
    give(&theirs, "", &given);
    let mut mesh = Mesh::with(short).await;
    let proxies = all(&mesh).await;
    mesh.stop().await;
    drop(proxies);
    // One that has a CA of its own already: it goes over to the other, and nobody notices.
    let from = given.clone();
    mesh.run(|config| {
        short(config);
        config.issuer_from = Some(from);
    })
    .await;
    let proxies = all(&mesh).await;
    phase(&mesh, "turning").await;
    assert_eq!(
        now(&mesh).issue(&csr("web"), &Mesh::identity("web"), SOON, SystemTime::now()).unwrap()[2],
        first.root_pem()
    );
    mesh.ca = Arc::new(now(&mesh));
    drop(proxies);
    let proxies = all(&mesh).await;
    until(&mesh, "it is over", |report| report["rotation"].is_null() && report["issuing"] == "issuer-2").await;

    // What is broken changes nothing; what is exchanged is followed.
    std::fs::write(given.join("tls.crt"), "half").unwrap();
    first.begin(Kind::Issuer, SystemTime::now()).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(report(&mesh).await["issuing"], "issuer-2");
    give(&theirs, "-2", &given);
    until(&mesh, "the next one issues", |report| report["issuing"] == "issuer-3").await;
    drop(proxies);
    mesh.stop().await;
}

fn csr(account: &str) -> String {
    weft_certs::svid::KeyPair::generate().unwrap().csr(&Mesh::identity(account)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_is_gone_is_said_and_the_one_in_force_issues_on() {
    let mut mesh = Mesh::start().await;
    let (dir, kept) = (mesh.dir.path().join("ca"), mesh.dir.path().join("kept"));
    let svid = mesh.svid("web", Duration::from_mins(10));
    let broken = async |wanted: &str| {
        let waited = tokio::time::timeout(SOON, async {
            while !mesh.get("/metrics").await.contains(&format!("\nweft_control_ca_broken {wanted}\n")) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        assert!(waited.await.is_ok(), "ca_broken never was {wanted}");
        let key = weft_certs::svid::KeyPair::generate().unwrap();
        let csr = key.csr(&Mesh::identity("web")).unwrap();
        let chain = mesh.certificate(Some(&svid), None, &csr, 600).await.unwrap();
        assert_eq!(chain.last().unwrap(), mesh.ca.root_pem());
    };
    broken("0").await;
    std::fs::rename(&dir, &kept).unwrap();
    broken("1").await;
    std::fs::rename(&kept, &dir).unwrap();
    broken("0").await;
    mesh.stop().await;
}
