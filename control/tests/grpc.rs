//! Control from outside: discovery, certificates and drains over real TLS, from real files.

use std::time::{Duration, Instant};

use crate::common::{Mesh, Proxy, ask, service, slice};
use tonic::Code;
use weft_api::names::ResourceType;
use weft_api::wire::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_api::wire::v1;
use weft_api::wire::v1::drain_client::DrainClient;
use weft_certs::svid::{KeyPair, Svid};

const ADDRESS: &str = v1::Address::TYPE_URL;
const WEB: &str = "endpoints/shop/web:80";

#[tokio::test]
async fn a_proxy_gets_what_it_asks_for_and_an_edit_sends_one_endpoint() {
    let mesh = Mesh::start().await;
    let mut cart = mesh.proxy("cart-1", "cart").await.unwrap();
    assert_eq!(cart.next().await, ["mesh-extent"]);
    cart.ask(v1::Workload::TYPE_URL, &["workload/shop/cart-1"]).await;
    assert_eq!(cart.next().await, ["workload/shop/cart-1", "trust", "revoked"]);
    let asked = Instant::now();
    cart.ask(ADDRESS, &["10.96.0.1:80", "nobody.shop:80"]).await;
    let structure = ["10.96.0.1:80", "service/shop/web:80", WEB, "nobody.shop:80"];
    let members = ["endpoints/shop/web:80/web-1", "endpoints/shop/web:80/web-2"];
    assert_eq!(cart.next().await, [&structure[..], &members[..]].concat());
    assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());

    let mut other = mesh.proxy("web-1", "web").await.unwrap();
    assert_eq!(other.next().await, ["mesh-extent"]);
    mesh.edit("web.yaml", &slice("web", &[("web-1", 1)]));
    assert_eq!(cart.next().await, ["-endpoints/shop/web:80/web-2"]);
    mesh.edit("more.yaml", &service("nobody", 9));
    assert_eq!(cart.next().await, ["nobody.shop:80", "service/shop/nobody:80", "endpoints/shop/nobody:80"]);
    // The other one was told nothing of it: the next that it hears is what it asks for.
    other.ask(ADDRESS, &["cart.shop:80"]).await;
    assert_eq!(other.next().await[0], "cart.shop:80");
}

#[tokio::test]
async fn who_has_no_certificate_or_anothers_pod_is_refused() {
    let mesh = Mesh::start().await;
    let code = |result: Result<Proxy, tonic::Status>| result.err().map(|status| status.code());
    let nobody = Proxy::open(mesh.channel(None).await, "web-1", &[]).await;
    assert_eq!(code(nobody), Some(Code::Unauthenticated));
    for (pod, account) in [("cart-1", "web"), ("nowhere", "web")] {
        let mut proxy = mesh.proxy(pod, account).await.unwrap();
        assert_eq!(proxy.hear().await.unwrap_err().code(), Code::PermissionDenied, "{pod}");
    }
    let mut foreign = mesh.proxy("web-1", "web").await.unwrap();
    foreign.next().await;
    foreign.ask(v1::Workload::TYPE_URL, &["workload/shop/cart-1"]).await;
    assert_eq!(foreign.hear().await.unwrap_err().code(), Code::PermissionDenied);

    let request = v1::DrainRequest { workload: "shop/web-1".into(), deadline_ms: 10, instance: None };
    let drained = DrainClient::new(mesh.channel(None).await).begin(request.clone()).await;
    assert_eq!(drained.unwrap_err().code(), Code::Unauthenticated);
    let cart = mesh.svid("cart", Duration::from_mins(1));
    let drained = DrainClient::new(mesh.channel(Some(&cart)).await).begin(request).await;
    assert_eq!(drained.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_stream_ends_with_the_certificate_it_was_opened_with() {
    let mesh = Mesh::start().await;
    let svid = mesh.svid("web", Duration::from_secs(2));
    let channel = mesh.channel(Some(&svid)).await;
    let mut proxy = Proxy::open(channel.clone(), "web-1", &[]).await.unwrap();
    assert_eq!(proxy.next().await, ["mesh-extent"]);
    assert_eq!(proxy.hear().await.unwrap_err().code(), Code::Unauthenticated);
    // Nor can another one be opened on the same connection.
    let again = Proxy::open(channel, "web-1", &[]).await;
    assert_eq!(again.err().map(|status| status.code()), Some(Code::Unauthenticated));
}

#[tokio::test]
async fn a_stream_ends_when_its_pod_becomes_anothers() {
    let mesh = Mesh::start().await;
    let mut proxy = mesh.proxy("web-1", "web").await.unwrap();
    assert_eq!(proxy.next().await, ["mesh-extent"]);
    mesh.edit("pods.yaml", &(crate::common::pod("web-1", "thief", 1) + &crate::common::pod("cart-1", "cart", 3)));
    assert_eq!(proxy.hear().await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_restart_resends_nothing_but_what_was_edited_meanwhile() {
    let mut mesh = Mesh::start().await;
    let mut cart = mesh.proxy("cart-1", "cart").await.unwrap();
    let mut held: Vec<(String, String)> = Vec::new();
    let extent = cart.hear().await.unwrap();
    cart.ack(&extent).await;
    cart.ask(ADDRESS, &["10.96.0.1:80", "10.96.0.2:80"]).await;
    let said = cart.hear().await.unwrap();
    cart.ack(&said).await;
    for resource in extent.resources.iter().chain(&said.resources) {
        if !resource.name.starts_with("endpoints/") || resource.name.matches('/').count() == 2 {
            held.push((resource.name.clone(), resource.version.clone()));
        }
    }
    mesh.stop().await;
    assert!(cart.hear().await.is_err());
    let member = crate::common::pod("web-1", "web", 1)
        + &crate::common::pod("web-2", "web", 7)
        + &crate::common::pod("cart-1", "cart", 3);
    mesh.edit("pods.yaml", &member);
    mesh.edit("web.yaml", &slice("web", &[("web-1", 1), ("web-2", 7)]));
    mesh.run(|_| {}).await;

    let held: Vec<(&str, &str)> = held.iter().map(|(name, version)| (name.as_str(), version.as_str())).collect();
    let svid = mesh.svid("cart", Duration::from_mins(1));
    let mut cart = Proxy::open(mesh.channel(Some(&svid)).await, "cart-1", &held).await.unwrap();
    assert!(cart.next().await.is_empty(), "the extent is as it was");
    cart.out.send(ask(ADDRESS, &["10.96.0.1:80", "10.96.0.2:80"], &held)).await.unwrap();
    assert_eq!(cart.next().await, [WEB], "one set differs");
    let members: Vec<(&str, &str)> = said
        .resources
        .iter()
        .filter(|resource| resource.name.starts_with("endpoints/shop/web:80/"))
        .map(|resource| (resource.name.as_str(), resource.version.as_str()))
        .collect();
    cart.out.send(ask(v1::Endpoint::TYPE_URL, &[WEB], &members)).await.unwrap();
    assert_eq!(cart.next().await, ["endpoints/shop/web:80/web-2"]);
}

#[tokio::test]
async fn a_drain_ends_when_everybody_knows() {
    let mesh = Mesh::start().await;
    let mut cart = mesh.proxy("cart-1", "cart").await.unwrap();
    cart.next().await;
    cart.ask(ADDRESS, &["web.shop:80"]).await;
    cart.next().await;
    let mut web_1 = mesh.proxy("web-1", "web").await.unwrap();
    web_1.next().await;
    let svid = mesh.svid("web", Duration::from_mins(1));
    let mut client = DrainClient::new(mesh.channel(Some(&svid)).await);
    let begun = Instant::now();
    let begin = |deadline_ms| v1::DrainRequest { workload: "shop/web-2".into(), deadline_ms, instance: None };

    // web-2 is not connected, and it is the one that leaves: nobody waits for it.
    let waiting = tokio::spawn({
        let mut client = client.clone();
        async move { client.begin(begin(20_000)).await.unwrap().into_inner() }
    });
    let response = cart.hear().await.unwrap();
    assert_eq!(response.resources[0].name, "endpoints/shop/web:80/web-2");
    let any = response.resources[0].resource.as_ref().unwrap();
    assert!(<v1::Endpoint as prost::Message>::decode(any.value.as_slice()).unwrap().draining);
    assert!(!waiting.is_finished());
    cart.ack(&response).await;
    let reply = waiting.await.unwrap();
    assert_eq!((reply.acknowledged, reply.lagging), (1, vec![]));
    assert!(begun.elapsed() < Duration::from_secs(10));

    // One that does not acknowledge lags.
    let leaves = v1::DrainRequest { workload: "shop/web-1".into(), deadline_ms: 300, instance: None };
    let reply = client.begin(leaves).await.unwrap().into_inner();
    assert_eq!((reply.acknowledged, reply.lagging), (0, vec!["shop/cart-1".to_owned()]));

    // Who waits for it may go; and one that nobody uses has nobody to wait for.
    let web_1 = weft_control::model::Name::new("shop", "web-1");
    let again = weft_control::distribute::drain::drain(&mesh.hub, &web_1, None, Duration::from_mins(1));
    assert!(tokio::time::timeout(Duration::from_millis(50), again).await.is_err(), "cart-1 has not answered");
    let mut of_cart = DrainClient::new(mesh.channel(Some(&mesh.svid("cart", Duration::from_mins(1)))).await);
    let alone = v1::DrainRequest { workload: "shop/cart-1".into(), deadline_ms: 60_000, instance: None };
    assert_eq!(of_cart.begin(alone).await.unwrap().into_inner(), v1::DrainReply::default());
    let counted =
        |text: &str, ended: &str| text.contains(&format!("drain_duration_seconds_count{{ended=\"{ended}\"}} 1\n"));
    let begun = Instant::now();
    loop {
        let text = mesh.get("/metrics").await;
        if ["acknowledged", "deadline", "caller_gone", "nobody"].iter().all(|ended| counted(&text, ended)) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn certificates_go_to_who_proves_an_identity() {
    let mesh = Mesh::start().await;
    let (key, web) = (KeyPair::generate().unwrap(), Mesh::identity("web"));
    let csr = key.csr(&web).unwrap();
    let token = |account, ttl| {
        weft_certs::token::sign(
            &mesh.dir.path().join("ca"),
            &Mesh::identity(account),
            ttl,
            std::time::SystemTime::now(),
        )
    };
    let good = token("web", Duration::from_mins(1)).unwrap();
    assert_eq!(mesh.certificate(None, Some(&good), "no csr", 0).await.unwrap_err().code(), Code::InvalidArgument);
    let chain = mesh.certificate(None, Some(&good), &csr, 60).await.unwrap();
    let svid = Svid::new(key, &chain).unwrap();
    assert_eq!(*svid.identity(), web);
    let life = svid.not_after().duration_since(std::time::SystemTime::now()).unwrap();
    assert!(life <= Duration::from_mins(1), "{life:?}");

    // Renewal by certificate, with a token that has run out.
    let next = KeyPair::generate().unwrap();
    let renewed = mesh.certificate(Some(&svid), Some("stale"), &next.csr(&web).unwrap(), 0).await.unwrap();
    let renewed = Svid::new(next, &renewed).unwrap();
    assert_ne!(renewed.serial(), svid.serial());
    let life = renewed.not_after().duration_since(std::time::SystemTime::now()).unwrap();
    assert!(life > Duration::from_mins(50) && life <= Duration::from_hours(1), "{life:?}");

    let code = |result: Result<Vec<String>, tonic::Status>| result.unwrap_err().code();
    assert_eq!(code(mesh.certificate(None, None, &csr, 0).await), Code::Unauthenticated);
    assert_eq!(code(mesh.certificate(None, Some("nonsense"), &csr, 0).await), Code::Unauthenticated);
    let carts = token("cart", Duration::from_mins(1)).unwrap();
    assert_eq!(code(mesh.certificate(Some(&svid), Some(&carts), &csr, 0).await), Code::PermissionDenied);
    // The request names web, the token proves cart.
    assert_eq!(code(mesh.certificate(None, Some(&carts), &csr, 0).await), Code::InvalidArgument);
    assert_eq!(code(mesh.certificate(None, Some(&good), &csr, -1).await), Code::InvalidArgument);
    let text = mesh.get("/metrics").await;
    assert!(text.contains("weft_control_certificates_issued_total{method=\"join\"} 1"), "{text}");
    assert!(text.contains("weft_control_certificates_issued_total{method=\"certificate\"} 1"), "{text}");
    let refused = "weft_control_certificates_refused_total{cause=\"token_malformed\",method=\"none\"} 1";
    assert!(text.contains(refused), "{text}");
}

#[tokio::test]
async fn certificates_are_rationed_by_identity() {
    let mesh = Mesh::with(|config| config.certificates = (1, 2)).await;
    let svid = mesh.svid("web", Duration::from_mins(1));
    let csr = KeyPair::generate().unwrap().csr(&Mesh::identity("web")).unwrap();
    let mut refused = None;
    for _ in 0..5 {
        refused = mesh.certificate(Some(&svid), None, &csr, 0).await.err().or(refused);
    }
    assert_eq!(refused.unwrap().code(), Code::ResourceExhausted);
    let other = mesh.svid("cart", Duration::from_mins(1));
    let csr = KeyPair::generate().unwrap().csr(&Mesh::identity("cart")).unwrap();
    assert!(mesh.certificate(Some(&other), None, &csr, 0).await.is_ok());
}

#[tokio::test]
async fn operators_see_who_runs_what() {
    let mesh = Mesh::start().await;
    assert!(mesh.get("/healthz/live").await.starts_with("HTTP/1.1 200"));
    let mut cart = mesh.proxy("cart-1", "cart").await.unwrap();
    cart.next().await;
    assert!(mesh.get("/healthz/ready").await.starts_with("HTTP/1.1 200"));
    cart.ask(ADDRESS, &["web.shop:80"]).await;
    let response = cart.hear().await.unwrap();
    let listed = mesh.get("/debug/proxies").await;
    assert!(listed.contains("\"workload\":\"shop/cart-1\""), "{listed}");
    assert!(listed.contains("\"unacknowledged\":1"), "{listed}");
    let detail = mesh.get("/debug/proxies?workload=shop/cart-1").await;
    assert!(detail.contains("\"name\":\"service/shop/web:80\""), "{detail}");
    cart.ack(&response).await;
    let text = mesh.get("/metrics").await;
    for metric in [
        "weft_control_connected_proxies 1",
        "weft_control_resources{type=\"Service\"} 2",
        "weft_control_source_problems 0",
    ] {
        assert!(text.contains(metric), "{metric} is not in\n{text}");
    }
    assert!(mesh.get("/nonsense").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_stream_that_breaks_the_protocol_or_says_nothing_of_itself_ends() {
    let mesh = Mesh::start().await;
    let svid = mesh.svid("web", Duration::from_mins(1));
    let (out, requests) = tokio::sync::mpsc::channel(1);
    out.send(ask(ADDRESS, &["web.shop:80"], &[])).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(mesh.channel(Some(&svid)).await);
    let stream = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut incoming = client.delta_aggregated_resources(stream).await.unwrap().into_inner();
    assert_eq!(incoming.message().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn more_streams_than_control_can_begin_wait_outside_and_hurt_nobody() {
    let mesh = Mesh::with(|config| config.new_streams = (1, 2)).await;
    let mut first = mesh.proxy("web-1", "web").await.unwrap();
    assert_eq!(first.next().await, ["mesh-extent"]);
    let _second = mesh.proxy("web-2", "web").await.unwrap();
    let refused = mesh.proxy("cart-1", "cart").await.err().unwrap();
    assert_eq!((refused.code(), refused.message().contains("connect again")), (Code::Unavailable, true), "{refused}");
    let text = mesh.get("/metrics").await;
    assert!(text.contains("weft_control_bound_hits_total{bound=\"new_streams\"}"), "{text}");
    // Who is here is served, and who comes again is let in.
    first.ask(ADDRESS, &["cart.shop:80"]).await;
    assert_eq!(first.next().await[0], "cart.shop:80");
    let begun = Instant::now();
    let mut third = loop {
        match mesh.proxy("cart-1", "cart").await {
            Ok(proxy) => break proxy,
            Err(status) => assert_eq!(status.code(), Code::Unavailable),
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(third.next().await, ["mesh-extent"]);
}

#[tokio::test]
async fn a_peer_that_is_gone_without_a_word_is_noticed() {
    let mesh = Mesh::with(|config| config.keepalive = (Duration::from_millis(200), Duration::from_millis(300))).await;
    let mut here = mesh.proxy("web-2", "web").await.unwrap();
    here.next().await;
    // A relay that stops to relay, and closes nothing.
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (between, control) = (relay.local_addr().unwrap(), mesh.listen);
    let (freeze, frozen) = tokio::sync::oneshot::channel::<()>();
    let relaying = tokio::spawn(async move {
        let (mut near, _) = relay.accept().await.unwrap();
        let mut far = tokio::net::TcpStream::connect(control).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            _ = frozen => std::future::pending().await,
        }
    });
    let svid = mesh.svid("web", Duration::from_mins(1));
    let mut gone = Proxy::open(mesh.channel_to(between, Some(&svid)).await, "web-1", &[]).await.unwrap();
    gone.next().await;
    assert_eq!(mesh.hub.streams().len(), 2);
    freeze.send(()).unwrap();
    let begun = Instant::now();
    while mesh.hub.streams().len() > 1 {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is believed to be here");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Nobody else was taken for dead.
    here.ask(ADDRESS, &["cart.shop:80"]).await;
    assert_eq!(here.next().await[0], "cart.shop:80");
    relaying.abort();
}
