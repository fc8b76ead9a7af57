//! Certificates of another CA that control was told to believe (`--svid-roots`): good for their holder's stream, never for a certificate of ours.

use std::time::{Duration, SystemTime};

use tonic::Code;
use weft_certs::ca::Ca;
use weft_certs::svid::{KeyPair, Svid};
use weft_certs::token;

use super::request;
use super::support::Audit;
use crate::common::{Mesh, Proxy};

const HOUR: Duration = Duration::from_hours(1);

/// A certificate of this CA for `shop/web`, with what `beside` puts into the chain that is shown.
fn svid(ca: &Ca, beside: &[String]) -> Svid {
    let (key, web) = (KeyPair::generate().unwrap(), Mesh::identity("web"));
    let mut chain = ca.issue(&key.csr(&web).unwrap(), &web, HOUR, SystemTime::now()).unwrap();
    chain.splice(1..1, beside.iter().cloned());
    Svid::new(key, &chain).unwrap()
}

#[tokio::test]
async fn a_certificate_of_another_ca_opens_its_stream_and_proves_nothing_to_ours() {
    let dir = tempfile::tempdir().unwrap();
    let [agent, stranger] =
        ["agent", "stranger"].map(|name| Ca::open(&dir.path().join(name), "cluster.local").unwrap());
    let roots = dir.path().join("roots.pem");
    std::fs::write(&roots, agent.root_pem()).unwrap();
    let audit = Audit::begin();
    let mesh = Mesh::with(|config| config.svid_roots = Some(roots.clone())).await;
    let csr = request("web");
    // With it, an issuer of ours, which signed nothing of it.
    let ours = {
        let (key, web) = (KeyPair::generate().unwrap(), Mesh::identity("web"));
        mesh.ca.issue(&key.csr(&web).unwrap(), &web, HOUR, SystemTime::now()).unwrap()[1].clone()
    };
    for foreign in [svid(&agent, &[]), svid(&agent, &[ours])] {
        let channel = mesh.channel(Some(&foreign)).await;
        let mut proxy = Proxy::open(channel, "web-1", &[]).await.unwrap();
        assert_eq!(proxy.next().await, ["mesh-extent"]);
        assert!(mesh.hub.streams().iter().all(|stream| stream.client.proved.issuer.is_none()));
        let other = Proxy::open(mesh.channel(Some(&foreign)).await, "cart-1", &[]).await.unwrap().hear().await;
        assert_eq!(other.unwrap_err().code(), Code::PermissionDenied);

        let refused = mesh.certificate(Some(&foreign), None, &csr, 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        let line = audit.last();
        assert_eq!((&line["message"], &line["cause"]), (&"certificate refused".into(), &"other_ca".into()), "{line}");
        assert_eq!(line["method"], "certificate", "{line}");
        assert_eq!(line["identity"], Mesh::identity("web").to_string(), "{line}");
        // A token proves it, beside whatever certificate.
        let token = token::sign(&mesh.dir.path().join("ca"), &Mesh::identity("web"), HOUR, SystemTime::now()).unwrap();
        mesh.certificate(Some(&foreign), Some(&token), &csr, 0).await.unwrap();
        assert_eq!(audit.last()["method"], "join");
    }
    // One of ours renews as ever.
    let own = mesh.svid("web", HOUR);
    mesh.certificate(Some(&own), None, &csr, 0).await.unwrap();

    // The roots are exchanged: who was believed is not any more, and the other way round. A refusal comes with the first use.
    let believed = async |ca: &Ca| {
        let connected = mesh.try_channel(&svid(ca, &[])).await;
        match connected {
            Ok(channel) => match Proxy::open(channel, "web-1", &[]).await {
                Ok(mut proxy) => proxy.hear().await.is_ok(),
                Err(_) => false,
            },
            Err(_) => false,
        }
    };
    assert!(!believed(&stranger).await && believed(&agent).await);
    std::fs::write(&roots, stranger.root_pem()).unwrap();
    let turned = async {
        while !believed(&stranger).await || believed(&agent).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), turned).await.unwrap();
}
