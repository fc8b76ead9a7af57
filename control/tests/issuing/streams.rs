//! Streams that ask for what is another's, or say what is not so.

use std::time::Duration;

use prost::Message as _;
use tonic::Code;
use weft_api::names::ResourceType as _;
use weft_api::wire::discovery::DeltaDiscoveryRequest;
use weft_api::wire::v1::drain_client::DrainClient;
use weft_api::wire::{rpc, v1};

use super::support::Audit;
use crate::common::{Mesh, Proxy};

const CART: &str = "workload/shop/cart-1";

/// The stream is refused, with a line of the audit log.
async fn refused(
    proxy: Result<Proxy, tonic::Status>,
    audit: &Audit,
    code: Code,
    cause: &str,
    identity: &str,
) -> String {
    let status = match proxy {
        Ok(mut proxy) => proxy.hear().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(status.code(), code, "{status}");
    audited(&status, audit, "stream refused", cause, identity);
    status.message().to_owned()
}

fn audited(status: &tonic::Status, audit: &Audit, message: &str, cause: &str, identity: &str) {
    let line = audit.last();
    assert_eq!((&line["message"], &line["level"]), (&message.into(), &"WARN".into()), "{line}");
    assert_eq!((&line["cause"], &line["identity"]), (&cause.into(), &identity.into()), "{line}");
    assert_eq!(line["reason"], status.message(), "{line}");
}

#[tokio::test]
async fn who_takes_anothers_workload_out_of_service_is_refused_and_audited() {
    let (audit, mesh) = (Audit::begin(), Mesh::start().await);
    let web = Mesh::identity("web").to_string();
    let svid = mesh.svid("web", Duration::from_mins(1));
    for (svid, workload, code, cause) in [
        (None, "shop/web-1", Code::Unauthenticated, "unauthenticated"),
        (Some(&svid), "shop/cart-1", Code::PermissionDenied, "not_yours"),
        (Some(&svid), "shop/nowhere", Code::PermissionDenied, "not_yours"),
        (Some(&svid), "web-1", Code::InvalidArgument, "protocol"),
    ] {
        let leaves = v1::DrainRequest { workload: workload.to_owned(), deadline_ms: 10, instance: None };
        let status = DrainClient::new(mesh.channel(svid).await).begin(leaves).await.unwrap_err();
        assert_eq!(status.code(), code, "{workload}");
        audited(&status, &audit, "drain refused", cause, svid.map_or("", |_| &web));
    }
}

#[tokio::test]
async fn a_flood_of_refusals_is_no_flood_of_lines() {
    let (audit, mesh) = (Audit::begin(), Mesh::start().await);
    let client = DrainClient::new(mesh.channel(None).await);
    let mut at_once = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let mut client = client.clone();
        at_once.spawn(async move { client.begin(v1::DrainRequest::default()).await });
    }
    assert!(at_once.join_all().await.iter().all(Result::is_err));
    assert!(mesh.get("/metrics").await.contains("weft_control_bound_hits_total{bound=\"audit_lines\"}"));
    let lines = audit.count("drain refused");
    assert!((50..200).contains(&lines), "{lines}");
}

#[tokio::test]
async fn who_asks_for_anothers_or_forges_an_ack_is_refused_and_audited() {
    let (audit, mesh) = (Audit::begin(), Mesh::start().await);
    let web = Mesh::identity("web").to_string();
    let nobody = Proxy::open(mesh.channel(None).await, "web-1", &[]).await;
    refused(nobody, &audit, Code::Unauthenticated, "unauthenticated", "").await;
    let as_cart = mesh.proxy("cart-1", "web").await;
    let why = refused(as_cart, &audit, Code::PermissionDenied, "not_yours", &web).await;
    assert!(why.contains("shop/cart-1 does not belong to"), "{why}");

    // Its own stream, but the inbound policy of another; by name, and by saying that it has it already.
    for held in [&[][..], &[(CART, "0123")]] {
        let svid = mesh.svid("web", Duration::from_mins(1));
        let mut curious = Proxy::open(mesh.channel(Some(&svid)).await, "web-1", held).await.unwrap();
        assert_eq!(curious.next().await, ["mesh-extent"]);
        curious.ask(v1::Workload::TYPE_URL, &[CART]).await;
        let why = refused(Ok(curious), &audit, Code::PermissionDenied, "not_yours", &web).await;
        assert!(why.contains(CART), "{why}");
    }

    // The answer that another stream waits for an ack of, and one that no stream was sent.
    let mut cart = mesh.proxy("cart-1", "cart").await.unwrap();
    cart.next().await;
    cart.ask(v1::Address::TYPE_URL, &["web.shop:80"]).await;
    let of_cart = cart.hear().await.unwrap();
    for nonce in [of_cart.nonce.as_str(), "99", "-1", "", "18446744073709551616"] {
        let mut forger = mesh.proxy("web-1", "web").await.unwrap();
        let own = forger.hear().await.unwrap();
        assert_ne!(own.nonce, nonce);
        let ack = DeltaDiscoveryRequest { type_url: own.type_url.clone(), ..Default::default() };
        if nonce.is_empty() {
            // Without a nonce it is no ack, and nothing is taken for acknowledged.
            forger.out.send(ack).await.unwrap();
            assert_eq!(unacknowledged(&mesh, "web-1"), 1);
            continue;
        }
        forger.out.send(DeltaDiscoveryRequest { response_nonce: nonce.to_owned(), ..ack }).await.unwrap();
        refused(Ok(forger), &audit, Code::InvalidArgument, "protocol", &web).await;
    }
    assert_eq!(unacknowledged(&mesh, "cart-1"), 1, "cart has not acknowledged it, and nobody did in its place");
}

#[tokio::test]
async fn a_refusal_of_what_was_never_sent_counts_for_nobody() {
    let mesh = Mesh::start().await;
    let mut cart = mesh.proxy("cart-1", "cart").await.unwrap();
    cart.next().await;
    cart.ask(v1::Workload::TYPE_URL, &[CART]).await;
    cart.next().await;
    let mut forger = mesh.proxy("web-1", "web").await.unwrap();
    let own = forger.hear().await.unwrap();
    let error = v1::ResourceError { name: CART.to_owned(), code: "invalid".to_owned(), ..Default::default() };
    let details = prost_types::Any {
        type_url: v1::NackDetails::TYPE_URL.to_owned(),
        value: v1::NackDetails { errors: vec![error] }.encode_to_vec(),
    };
    let nack = DeltaDiscoveryRequest {
        type_url: own.type_url.clone(),
        response_nonce: own.nonce.clone(),
        error_detail: Some(rpc::Status { code: 3, message: "no".to_owned(), details: vec![details] }),
        ..Default::default()
    };
    forger.out.send(nack).await.unwrap();
    // What it asks for next is answered: the refusal has been heard by then.
    forger.ask(v1::Address::TYPE_URL, &["cart.shop:80"]).await;
    assert_eq!(forger.next().await[0], "cart.shop:80");
    for stream in mesh.hub.streams() {
        assert_eq!(stream.session(|session| session.refusals().count()), 0, "{}", stream.client.workload);
    }
}

fn unacknowledged(mesh: &Mesh, pod: &str) -> usize {
    let streams = mesh.hub.streams();
    let of_pod = streams.iter().filter(|stream| stream.client.workload.name == pod);
    of_pod.map(|stream| stream.session(weft_control::distribute::session::Session::unacknowledged)).sum()
}
