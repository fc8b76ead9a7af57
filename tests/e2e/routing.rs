//! Routes: what is matched, what is changed on the way, and where it goes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http::Method;
use weft_tests::client::{Got, Session, get, request, run, try_send};
use weft_tests::dns::Dns;
use weft_tests::manifests::Family;
use weft_tests::{Mesh, Service, Trial, test, test_alone};

use crate::ipv6::has_ipv6;

pub fn tests() -> Vec<Trial> {
    vec![
        test("routing_header_filters", header_filters),
        test("routing_redirect_and_rewrite", redirect_and_rewrite),
        test("routing_mirror_retry_and_cors", mirror_retry_and_cors),
        test("routing_weights_split_by_request", weights_split_by_request),
        test("routing_request_timeout", request_timeout),
        test("routing_grpc_route_matches_method", grpc_route_matches_method),
        test("routing_external_name_moves_with_its_ttl", external_name_moves_with_its_ttl),
        test("routing_an_address_that_leads_nowhere_costs_little", an_address_that_leads_nowhere_costs_little)
            .with_ignored_flag(!has_ipv6()),
        test_alone("routing_a_slow_endpoint_gets_little", a_slow_endpoint_gets_little),
        test("routing_a_killed_endpoint_loses_no_get", a_killed_endpoint_loses_no_get),
    ]
}

/// An HTTPRoute on Service `web` with these rules, given as YAML of `spec.rules`.
fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web, port: 80}}]
  rules:
{rules}"
    )
}

fn header_filters() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    mesh.write(
        "route.yaml",
        &route(
            "  - filters:
      - type: RequestHeaderModifier
        requestHeaderModifier:
          set: [{name: x-set, value: new}]
          add: [{name: x-add, value: more}]
          remove: [x-remove]
      - type: ResponseHeaderModifier
        responseHeaderModifier:
          add: [{name: x-answer, value: changed}]
    backendRefs: [{name: web, port: 80}]
",
        ),
    );
    let to = mesh.address("web");
    let sent =
        [("x-set", "old"), ("x-add", "first"), ("x-remove", "me"), ("x-forwarded-client-cert", "URI=spiffe://forged")];
    let got = mesh.until("the route to take effect", || {
        let got = try_send(mesh.pod("client-0"), to, request(Method::GET, "web", "/", &sent))?;
        if got.header("x-answer") == "changed" { Ok(got) } else { Err(format!("{got:?}")) }
    });
    let seen = got.json()["headers"].clone();
    assert_eq!(seen["x-set"], "new");
    assert_eq!(seen["x-add"].as_str().unwrap().replace(' ', ""), "first,more");
    assert!(seen.get("x-remove").is_none(), "{seen}");
    // Who called is said by the certificate, not by the client.
    let peer = seen["x-forwarded-client-cert"].as_str().unwrap_or_default();
    assert!(peer.contains("spiffe://cluster.local/ns/shop/sa/client") && !peer.contains("forged"), "{seen}");
}

fn redirect_and_rewrite() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    let rules = "  - matches: [{path: {value: /old}}]
    filters:
      - type: RequestRedirect
        requestRedirect: {scheme: https, hostname: example.org, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 307}
  - matches: [{path: {value: /api}}]
    filters:
      - type: URLRewrite
        urlRewrite: {hostname: inside.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}
    backendRefs: [{name: web, port: 80}]
";
    mesh.write("route.yaml", &route(rules));
    let (pod, to) = (mesh.pod("client-0"), mesh.address("web"));
    let got = mesh.until("the route to take effect", || match get(pod, to, "/old/a?b=c") {
        got if got.status == 307 => Ok(got),
        got => Err(format!("{got:?}")),
    });
    assert_eq!((got.header("location"), got.header("x-weft-reason")), ("https://example.org/new/a?b=c", ""));
    let got = get(pod, to, "/api/delay/0?q=1");
    assert_eq!(got.outcome(), (200, ""));
    assert_eq!(got.json()["headers"]["host"], "inside.example");
    assert_eq!(got.json()["path"], "/delay/0");
}

fn mirror_retry_and_cors() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).deploy(Service::http("copy")).client("client");
    let rules = "  - matches: [{path: {value: /copied}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 80}}}]
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {value: /status}}]
    retry: {codes: [503], attempts: 2, backoff: 50ms}
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {value: /read}}]
    filters: [{type: CORS, cors: {allowOrigins: ['https://*.example.org'], allowMethods: [PUT]}}]
    backendRefs: [{name: web, port: 80}]
";
    mesh.write("route.yaml", &route(rules));
    let (pod, to) = (mesh.pod("client-0"), mesh.address("web"));
    let asks = [("origin", "https://a.example.org"), ("access-control-request-method", "PUT")];
    let got = mesh.until("the route to take effect", || {
        let got = try_send(pod, to, request(Method::OPTIONS, "web", "/read", &asks))?;
        if got.status == 204 { Ok(got) } else { Err(format!("{got:?}")) }
    });
    assert_eq!(got.header("access-control-allow-origin"), "https://a.example.org");
    // The last of three passes, and two waits of 50 ms and 100 ms lie between.
    let got = get(pod, to, "/status/503");
    assert_eq!((got.outcome(), got.by().as_str()), ((503, ""), "web-0"));
    assert!(got.took >= Duration::from_millis(150), "{:?}", got.took);
    assert_eq!(get(pod, to, "/copied").by(), "web-0");
    mesh.counts("client-0", "weft_mirrored_requests_total", &["outcome=\"answered\""], |count| count >= 1.0);
    mesh.counts("client-0", "weft_retries_total", &[], |count| count >= 2.0);
}

fn weights_split_by_request() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).deploy(Service::http("canary").version("v2")).client("client");
    mesh.write(
        "route.yaml",
        &route("  - backendRefs: [{name: web, port: 80, weight: 9}, {name: canary, port: 80, weight: 1}]\n"),
    );
    let to = mesh.address("web");
    let pod = mesh.pod("client-0");
    mesh.until("the route to take effect", || match get(pod, to, "/").by().as_str() {
        "canary-0" => Ok(()),
        other => Err(format!("{other} answered")),
    });
    let by = spread(&many(pod, to, 2000, 1));
    let share = by["canary-0"] as f64 / 2000.0;
    // 2,000 draws at 0.1: five standard deviations are 0.034.
    assert!((share - 0.1).abs() < 0.034, "{by:?}");
}

/// GETs on one connection after the other, `at_once` connections side by side.
fn many(pod: &weft::lab::Pod, to: SocketAddr, count: usize, at_once: usize) -> Vec<Result<Got, String>> {
    run(async {
        let each = count / at_once;
        let work = (0..at_once).map(|_| async move {
            let mut answers = Vec::new();
            let mut session = Session::open(pod, to).await;
            for _ in 0..each {
                let answer = match &mut session {
                    Ok(open) => open.send(request(Method::GET, "web", "/", &[])).await,
                    Err(error) => Err(error.clone()),
                };
                if answer.is_err() {
                    session = Session::open(pod, to).await;
                }
                answers.push(answer);
            }
            answers
        });
        futures_util::future::join_all(work).await.concat()
    })
}

/// How often each pod answered; fails on anything but 200.
fn spread(answers: &[Result<Got, String>]) -> BTreeMap<String, usize> {
    let mut by = BTreeMap::new();
    for answer in answers {
        let got = answer.as_ref().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(got.outcome(), (200, ""), "{got:?}");
        *by.entry(got.by()).or_default() += 1;
    }
    by
}

fn request_timeout() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    mesh.write("route.yaml", &route("  - timeouts: {request: 300ms}\n    backendRefs: [{name: web, port: 80}]\n"));
    let to = mesh.address("web");
    let pod = mesh.pod("client-0");
    let got = mesh.until("the timeout to take effect", || match get(pod, to, "/delay/2000") {
        got if got.status == 504 => Ok(got),
        got => Err(format!("{got:?}")),
    });
    assert_eq!(got.outcome(), (504, "request_timeout"));
    assert!(got.took >= Duration::from_millis(300) && got.took < Duration::from_millis(1500), "{:?}", got.took);
    assert_eq!(get(pod, to, "/delay/10").outcome(), (200, ""));
}

fn grpc_route_matches_method() {
    use crate::grpc::say;
    let mut mesh = Mesh::new();
    mesh.deploy(Service::grpc("say")).deploy(Service::grpc("other").version("v2")).client("client");
    mesh.write(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: say, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: say, port: 50051}]
  rules:
  - matches: [{method: {service: echo.v1.Echo, method: Say}, headers: [{name: x-to, value: other}]}]
    backendRefs: [{name: other, port: 50051}]
  - matches: [{method: {service: echo.v1.Echo}}]
    backendRefs: [{name: say, port: 50051}]
",
    );
    let (pod, to) = (mesh.pod("client-0"), mesh.address("say"));
    mesh.until("the route to take effect", || {
        let reply = run(say(pod, to, Some(("x-to", "other"))))?;
        if reply.contains("other-0") { Ok(()) } else { Err(reply) }
    });
    assert!(run(say(pod, to, None)).unwrap().contains("say-0"));
}

/// `web` is routed to an ExternalName of this host.
fn routes_to_external(mesh: &Mesh, host: &str) {
    mesh.write(
        "external.yaml",
        &format!(
            "apiVersion: v1
kind: Service
metadata: {{name: external, namespace: shop}}
spec:
  type: ExternalName
  externalName: {host}
  ports: [{{name: main, port: 8080}}]
"
        ),
    );
    mesh.write("route.yaml", &route("  - backendRefs: [{name: external, port: 8080}]\n"));
}

fn external_name_moves_with_its_ttl() {
    let mut mesh = Mesh::new();
    let dns = Dns::start(&mesh.lab);
    mesh.deploy(Service::http("old").unmeshed().ports(8080, 8080))
        .deploy(Service::http("new").unmeshed().ports(8080, 8080));
    mesh.deploy(Service::http("web")).client("client");
    let ips: [Ipv4Addr; 2] = ["old-0", "new-0"].map(|name| mesh.pod(name).ip());
    dns.set("moving.example.org", ips[0], 1);
    routes_to_external(&mesh, "moving.example.org");
    let (pod, to) = (mesh.pod("client-0"), mesh.address("web"));
    let by = |name: &str| match get(pod, to, "/") {
        got if got.status == 200 && got.by() == name => Ok(()),
        got => Err(format!("{got:?}")),
    };
    mesh.until("the external name to answer", || by("old-0"));
    let start = std::time::Instant::now();
    dns.set("moving.example.org", ips[1], 1);
    mesh.until("the external name to have moved", || by("new-0"));
    assert!(start.elapsed() < Duration::from_secs(4), "a TTL of 1 s was held for {:?}", start.elapsed());
    // Not asked for every request.
    let before = dns.asked();
    for _ in 0..50 {
        get(pod, to, "/");
    }
    assert!(dns.asked() - before <= 20, "{} questions for 50 requests", dns.asked() - before);
}

fn a_slow_endpoint_gets_little() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").pods(2).arg("--slow=5")).client("client");
    // A third endpoint of the same service, ten times slower.
    mesh.deploy(Service::http("slow").arg("--slow=50"));
    let slow = ("slow-0".to_owned(), mesh.pod("slow-0").ip().into());
    mesh.write("slice.yaml", &mesh.services["web"].0.slice_of("2", &[slow]));
    let (pod, to) = (mesh.pod("client-0"), mesh.address("web"));
    mesh.until("the slow endpoint to be known", || {
        if spread(&many(pod, to, 60, 6)).contains_key("slow-0") { Ok(()) } else { Err("it never answered".to_owned()) }
    });
    let by = spread(&many(pod, to, 1800, 6));
    let share = *by.get("slow-0").unwrap_or(&0) as f64 / 1800.0;
    assert!(share < 0.1, "the slow endpoint got {share} of the requests: {by:?}");
}

fn a_killed_endpoint_loses_no_get() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").pods(3)).client("client");
    let to = mesh.address("web");
    let pod = mesh.pod("client-0").clone();
    let load = std::thread::spawn(move || many(&pod, to, 3000, 6));
    // In the midst of it, without any warning.
    mesh.until("traffic to flow", || match mesh.metric("web-1", "weft_requests_total", &["direction=\"inbound\""]) {
        count if count > 50.0 => Ok(()),
        count => Err(format!("{count} requests so far")),
    });
    let member = mesh.member_mut("web-1");
    member.sidecar.take();
    member.app.take();
    let by = spread(&load.join().unwrap());
    assert_eq!(by.values().sum::<usize>(), 3000);
    assert!(by.len() == 3, "{by:?}");
}

/// A name with an IPv6 address where nobody is, before the IPv4 address of a pod: it costs the first connection a quarter of a second, and
/// those after it nothing.
fn an_address_that_leads_nowhere_costs_little() {
    let mut mesh = Mesh::new();
    let dns = Dns::start(&mesh.lab);
    mesh.deploy(Service::http("far").unmeshed().ports(8080, 8080).family(Family::Dual));
    mesh.deploy(Service::own("client").family(Family::Dual));
    mesh.deploy(Service::http("web"));
    let mut nowhere = mesh.pod("far-0").ip6().unwrap().segments();
    nowhere[7] = 0xdead;
    let both = [Ipv6Addr::from(nowhere).into(), mesh.pod("far-0").ip().into()];
    dns.set_all("far.example.org", &both, 60);
    routes_to_external(&mesh, "far.example.org");
    let (pod, to) = (mesh.pod("client-0"), mesh.address("web"));
    let mut first = None;
    mesh.until("the external name to answer", || match get(pod, to, "/") {
        got if got.status == 200 && got.by() == "far-0" => {
            first = Some(got.took);
            Ok(())
        }
        got => Err(format!("{got:?}")),
    });
    let first = first.unwrap();
    assert!(first >= Duration::from_millis(200) && first < Duration::from_millis(400), "{first:?}");
    // Longer than a connection is kept, and than the first back-off of an address that failed: others find out whether it is back.
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(2100));
        let got = get(pod, to, "/");
        assert_eq!(got.outcome(), (200, ""));
        assert!(got.took < Duration::from_millis(200), "{:?}", got.took);
    }
}
