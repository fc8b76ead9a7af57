//! What a request asks for beyond what was proved, and with what keys.

use rcgen::{CertificateParams, SanType};

use super::request;
use super::support::Audit;
use crate::common::Mesh;

/// A request with these names.
fn named(names: Vec<SanType>) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

const RSA_1024: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIIBPzCBqQIBADAAMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDwmVn3yK0n
+T94RkDh5HBpgeBnB9AKHoOOoryh+wsmIMxHjeCaD7wbZZddF+aXY6E5CKiygdvI
SeSmLIQ7Kyu4HYGMlTMbeibFLGVlKMBOhnNnk0w5qbkugp3Q73Yfdja81BEC7WZb
aczb+EaYknqSMwEQMuj2/VylDr5l3EJLfQIDAQABoAAwDQYJKoZIhvcNAQELBQAD
gYEAz9Y8cCI1ELZK9YeoIiviPgkwNhAREQHwdCirOdM9/ONUApCP6O4ASVJbpDm5
VBONJBIQrGwLJZ/77i3qUVSobdN8NxKIEVzyUaVBTz0ocdP0qPVkwIPm/pkF58Hd
C58KrEw78/Eb/9g65+TFp8qhD7POHLOe4cJEz1KxzOlAjRk=
-----END CERTIFICATE REQUEST-----
";

const P224: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIGnMFcCAQAwADBOMBAGByqGSM49AgEGBSuBBAAhAzoABNMUvdSlsADgshfaypc+
8HstJal5sJcQcCRZ1UsAr+lkojPI/RudyxXoNIGBABo4xmut5ByFheFVoAAwCgYI
KoZIzj0EAwIDQAAwPQIdAPyqi02/DAewNzo0ZEfEpW+EIDbFj5Xau55whZkCHB7S
obm8dWdC3wT/gxWtdaYmJ2TWt1M+7sVGEj4=
-----END CERTIFICATE REQUEST-----
";

/// By certificate: the proof is good, so that only the request can be refused.
async fn refused(mesh: &Mesh, audit: &Audit, csr: &str, cause: &str) {
    let svid = mesh.svid("web", std::time::Duration::from_mins(5));
    let status = mesh.certificate(Some(&svid), None, csr, 0).await.unwrap_err();
    let line = audit.last();
    assert_eq!(line["cause"], cause, "{line} {status}");
    assert_eq!(line["method"], "certificate", "{line}");
    assert_eq!(line["identity"], WEB, "{line}");
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
}

#[tokio::test]
async fn names_that_were_not_proved_are_refused() {
    let (audit, mesh) = (Audit::begin(), Mesh::start().await);
    for name in [
        "spiffe://cluster.local/ns/shop/sa/admin",
        "spiffe://cluster.local/ns/other/sa/web",
        "spiffe://other.example/ns/shop/sa/web",
        "spiffe://cluster.local./ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/web.",
        "spiffe://cluster.local/ns/shop/sa/web/",
        "spiffe://cluster.local/ns/shop/sa/*",
        "spiffe://*.local/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/w%65b",
        "spiffe://cluster.local/ns/shop/sa/../sa/web",
        "spiffe://cluster.local//ns/shop/sa/web",
        "SPIFFE://cluster.local/ns/shop/sa/web",
        "spiffe://CLUSTER.local/ns/shop/sa/web",
        "spiffe://cluster.local:443/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/web?x=1",
        "spiffe://cluster.local/ns/shop/sa/web#x",
        "spiffe://cluster.local/ns/weft-system/sa/weft-control",
        "https://cluster.local/ns/shop/sa/web",
        "",
    ] {
        refused(&mesh, &audit, &named(vec![uri(name)]), "request_names").await;
    }
    for names in [
        vec![uri(WEB), uri("spiffe://cluster.local/ns/shop/sa/admin")],
        vec![uri("spiffe://cluster.local/ns/shop/sa/admin"), uri(WEB)],
        vec![uri(WEB), uri(WEB)],
        vec![uri(WEB), SanType::DnsName("weft-control".try_into().unwrap())],
        vec![SanType::DnsName("web.shop".try_into().unwrap())],
        vec![SanType::DnsName("*".try_into().unwrap())],
        vec![SanType::IpAddress([10, 0, 0, 1].into())],
        vec![SanType::Rfc822Name("web@shop".try_into().unwrap())],
    ] {
        refused(&mesh, &audit, &named(names), "request_names").await;
    }
}

#[tokio::test]
async fn weak_keys_and_what_is_no_request_are_refused() {
    let (audit, mesh) = (Audit::begin(), Mesh::start().await);
    refused(&mesh, &audit, RSA_1024, "request_key").await;
    refused(&mesh, &audit, P224, "request_key").await;
    for bad in ["", "nonsense", mesh.ca.root_pem(), &"x".repeat(20_000)] {
        refused(&mesh, &audit, bad, "request_malformed").await;
    }
    // Too long to be read at all: refused before there is anybody to ask who it is.
    let svid = mesh.svid("web", std::time::Duration::from_mins(5));
    let status = mesh.certificate(Some(&svid), None, &"x".repeat(100_000), 0).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    // A good one, with the certificate of another workload.
    let cart = mesh.svid("cart", std::time::Duration::from_mins(5));
    mesh.certificate(Some(&cart), None, &request("web"), 0).await.unwrap_err();
    assert_eq!(audit.last()["cause"], "request_names");
}

#[tokio::test]
async fn who_shows_nothing_or_two_things_is_refused() {
    let (audit, mesh) = (Audit::begin(), Mesh::start().await);
    mesh.certificate(None, None, &request("web"), 0).await.unwrap_err();
    let line = audit.last();
    assert_eq!((line["cause"].as_str(), line["method"].as_str()), (Some("unauthenticated"), Some("none")));
    let (svid, life) = (mesh.svid("web", std::time::Duration::from_mins(5)), std::time::Duration::from_mins(1));
    let cart = Mesh::identity("cart");
    let token =
        weft_certs::token::sign(&mesh.dir.path().join("ca"), &cart, life, std::time::SystemTime::now()).unwrap();
    mesh.certificate(Some(&svid), Some(&token), &request("web"), 0).await.unwrap_err();
    assert_eq!(audit.last()["cause"], "mismatch");
    mesh.certificate(Some(&svid), None, &request("web"), -1).await.unwrap_err();
    assert_eq!(audit.last()["cause"], "validity");
}
