//! Connections that go where a route says: TLS by the name that its client asks for, others by nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_engine::reason::Reason;
use weft_engine::route::{self, Hostname, Layer, Route, Rule};

use super::app::App;
use super::world::*;
use crate::Shared;
use crate::detect::SILENCE;
use crate::discovery::snapshot::{Backend, Destination, Protocol, Service};

/// What a TLS client sends first.
fn hello(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Says its name and how many bytes it was sent until the client's end; counts connections on which something was said.
async fn counting(name: &'static str, greeted: Arc<AtomicUsize>) -> Arc<Backend> {
    let addr = listen(move |mut stream, _| {
        let greeted = Arc::clone(&greeted);
        async move {
            let mut all = Vec::new();
            if stream.read_to_end(&mut all).await.is_ok() && !all.is_empty() {
                greeted.fetch_add(1, Ordering::SeqCst);
                stream.write_all(format!("{name} {}", all.len()).as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    backend(name, vec![endpoint(addr, None)])
}

async fn app(name: &'static str) -> Arc<Backend> {
    counting(name, Arc::default()).await
}

fn to(layer: Layer, hostnames: &[&str], backends: &[(&Arc<Backend>, u32)]) -> Route {
    let backend = |(to, weight): &(&Arc<Backend>, u32)| route::Backend {
        service: Arc::clone(&to.name),
        weight: *weight,
        ..route::Backend::default()
    };
    let rule = Rule { backends: backends.iter().map(backend).collect(), ..Rule::default() };
    let hostnames = hostnames.iter().map(|name| Hostname::parse(name).unwrap()).collect();
    Route { layer, hostnames, rules: vec![rule], ..Route::default() }
}

async fn side_of(service: Service) -> (Arc<Shared>, SocketAddr) {
    let proxy = World::new().proxy("web", calls(cluster_ip(), Destination::Service(service.into())));
    let side = outbound_side(&proxy, cluster_ip()).await;
    (proxy, side)
}

fn refused(proxy: &Shared, reason: Reason) -> u64 {
    let page = crate::telemetry::scrape::text(proxy).unwrap();
    let name = format!("weft_refused_total{{direction=\"outbound\",reason=\"{reason}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&*name)).map_or(0, |count| count.parse().unwrap())
}

/// Sends these pieces and the end, with a pause after each; what comes back.
async fn send(side: SocketAddr, pieces: &[&[u8]], pause: Duration) -> std::io::Result<String> {
    let mut client = Client::connect(side).await.0;
    for piece in pieces {
        tokio::time::sleep(pause).await;
        client.write_all(piece).await?;
    }
    client.shutdown().await?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn tls_goes_where_its_name_says() {
    let (own, a, b) = (app("own").await, app("a").await, app("b").await);
    let routes = || vec![to(Layer::Tls, &["a.example"], &[(&a, 1)]), to(Layer::Tls, &["*.b.example"], &[(&b, 1)])];
    for protocol in [Protocol::Detect, Protocol::Tcp] {
        let service = routed_by(Arc::clone(&own), vec![Arc::clone(&a), Arc::clone(&b)], routes());
        let (proxy, side) = side_of(Service { protocol, ..service }).await;
        for (name, by) in [("a.example", "a"), ("A.EXAMPLE", "a"), ("x.b.example", "b"), ("x.y.b.example", "b")] {
            let bytes = hello(name);
            let answer = send(side, &[&bytes], Duration::ZERO).await.unwrap();
            assert_eq!(answer, format!("{by} {}", bytes.len()), "{name}, {protocol:?}");
        }
        // In pieces that come one after the other it is the same name.
        let bytes = hello("a.example");
        let pieces: Vec<&[u8]> = bytes.chunks(bytes.len().div_ceil(5)).collect();
        assert_eq!(send(side, &pieces, Duration::from_millis(5)).await.unwrap(), format!("a {}", bytes.len()));
        // What is no TLS is not about TLSRoutes.
        assert_eq!(send(side, &[b"\0words"], Duration::ZERO).await.unwrap(), "own 6");

        for name in ["b.example", "c.example", "10.0.0.1"] {
            assert!(send(side, &[&hello(name)], Duration::ZERO).await.is_err(), "{name}: a reset");
        }
        assert_eq!(refused(&proxy, Reason::NoRoute), 3);

        let page = crate::telemetry::scrape::text(&proxy).unwrap();
        let opened = |sni: &str| {
            let mine = |line: &&str| line.starts_with("weft_tcp_connections_opened_total{") && line.contains(sni);
            page.lines().find(mine).map(|line| line.rsplit(' ').next().unwrap().to_owned())
        };
        assert_eq!(opened("sni=\"a.example\"").as_deref(), Some("3"), "{page}");
        assert_eq!(opened("sni=\"*.b.example\"").as_deref(), Some("2"), "{page}");
        assert!(
            !page.contains("x.b.example") && !page.contains("c.example"),
            "what clients ask for is no label: {page}"
        );
    }
}

#[tokio::test]
async fn tls_without_a_route_for_it_goes_to_the_service() {
    let (own, other) = (app("own").await, app("other").await);
    let bytes = hello("a.example");
    let (proxy, side) = side_of(service(Arc::clone(&own))).await;
    assert_eq!(send(side, &[&bytes], Duration::ZERO).await.unwrap(), format!("own {}", bytes.len()));
    let page = crate::telemetry::scrape::text(&proxy).unwrap();
    assert!(page.contains("sni=\"_other\"") && !page.contains("a.example"), "{page}");

    let (_proxy, side) = side_of(routed(own, vec![Arc::clone(&other)], to(Layer::Tcp, &[], &[(&other, 1)]))).await;
    assert_eq!(send(side, &[&bytes], Duration::ZERO).await.unwrap(), format!("other {}", bytes.len()));
    assert_eq!(send(side, &[b"\0words"], Duration::ZERO).await.unwrap(), "other 6");
}

#[tokio::test]
async fn a_client_that_is_late_goes_where_its_name_says_all_the_same() {
    let strays = Arc::<AtomicUsize>::default();
    let (own, a) = (counting("own", Arc::clone(&strays)).await, app("a").await);
    let route = to(Layer::Tls, &["a.example"], &[(&a, 1)]);
    let (_proxy, side) = side_of(routed(own, vec![Arc::clone(&a)], route)).await;
    let bytes = hello("a.example");
    for _ in 0..2 {
        let answer = send(side, &[&bytes], SILENCE + Duration::from_millis(50)).await.unwrap();
        assert_eq!(answer, format!("a {}", bytes.len()));
    }
    assert_eq!(strays.load(Ordering::SeqCst), 0, "no byte of it went elsewhere");
    // Where the service itself has nobody, its name still says where it goes.
    let route = to(Layer::Tls, &["a.example"], &[(&a, 1)]);
    let (_proxy, side) = side_of(routed(backend("none", Vec::new()), vec![Arc::clone(&a)], route)).await;
    let answer = send(side, &[&bytes], SILENCE + Duration::from_millis(50)).await.unwrap();
    assert_eq!(answer, format!("a {}", bytes.len()));
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_beside_a_tls_route() {
    let (greeting, a) = (super::app::greeting_app().await, app("a").await);
    let own = backend("own", vec![endpoint(greeting, None)]);
    let (_proxy, side) = side_of(routed(own, vec![Arc::clone(&a)], to(Layer::Tls, &["a.example"], &[(&a, 1)]))).await;
    let mut client = Client::connect(side).await.0;
    let mut greeting = [0; 5];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello");
}

#[tokio::test]
async fn a_share_of_connections_that_cannot_be_used_is_refused() {
    let a = app("a").await;
    let mut route = to(Layer::Tcp, &[], &[(&a, 1), (&a, 1)]);
    route.rules[0].backends[1].invalid = Some("no such service".into());
    let (proxy, side) = side_of(routed(app("own").await, vec![a], route)).await;
    let mut served: u64 = 0;
    for _ in 0..60 {
        served += u64::from(send(side, &[b"\0words"], Duration::ZERO).await.is_ok());
    }
    assert_eq!(served + refused(&proxy, Reason::InvalidBackend), 60);
    assert!((10..50).contains(&served), "{served} of 60");
}

#[tokio::test]
async fn requests_go_by_a_tcp_route_where_no_http_route_is() {
    let (own, other) = (App::start("own").await, App::start("other").await);
    let backends = [("own", &own), ("other", &other)].map(|(name, app)| backend(name, vec![endpoint(app.addr, None)]));
    let [own, other] = backends;
    let get = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
    for (layer, hostnames, by) in [(Layer::Tcp, &[][..], "other"), (Layer::Tls, &["a.example"], "own")] {
        let route = to(layer, hostnames, &[(&other, 1)]);
        let (_proxy, side) = side_of(routed(Arc::clone(&own), vec![Arc::clone(&other)], route)).await;
        let (_, body) = Client::connect(side).await.send(get).await;
        assert!(body.starts_with(by), "{layer:?}: {body}");
    }
}
