//! Resources become what the engine decides with, or are refused by name.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use proptest::prelude::*;
use prost::Message;
use weft_engine::authz::{PolicySet, Question, Verdict};
use weft_engine::identity::Identity;
use weft_engine::ratelimit::Key;
use weft_engine::reason::Reason;
use weft_engine::request::RequestView;
use weft_engine::route::{Opening, PathMatch, RouteTable, Tables};

use super::*;
use crate::FEATURES;
use crate::names::Digest;

const TRUST_DOMAIN: &str = "cluster.local";

fn convert<T: ResourceType>(message: &T) -> Result<Decoded, ResourceError> {
    decode(T::TYPE_URL, &message.encode_to_vec(), TRUST_DOMAIN)
}

fn code<T: ResourceType>(message: &T) -> ErrorCode {
    convert(message).expect_err("it must be refused").code
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn endpoint() -> v1::Endpoint {
    v1::Endpoint {
        ip: Bytes::from_static(&[10, 0, 0, 7]),
        port: 8080,
        identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
        alpn: texts(&["weft1-h2", "weft1-tcp", "weft9-new"]),
        workload: "shop/web-1".into(),
        ..v1::Endpoint::default()
    }
}

#[test]
fn types_that_are_not_ours_and_bytes_that_are_no_message_are_refused() {
    let error = decode("type.googleapis.com/envoy.Cluster", &[], TRUST_DOMAIN).unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownType);
    let error = decode(v1::Route::TYPE_URL, &[0xff, 0xff], TRUST_DOMAIN).unwrap_err();
    assert_eq!(error.code, ErrorCode::Malformed);
    assert!(error.to_string().contains("malformed"));
    let wire = error.to_wire(v1::Route::TYPE_URL, "HTTPRoute/shop/r", "v");
    assert_eq!((wire.code.as_str(), wire.name.as_str()), ("malformed", "HTTPRoute/shop/r"));
}

#[test]
fn codes_are_unique() {
    let mut codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.code()).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), ErrorCode::ALL.len());
    assert!(FEATURES.is_sorted());
}

#[test]
fn endpoints() {
    let Ok(Decoded::Endpoint(found)) = convert(&endpoint()) else { panic!("a good endpoint") };
    assert_eq!(found.addr.to_string(), "10.0.0.7:8080");
    assert_eq!(found.identity.unwrap().short(), "shop/web");
    assert_eq!(found.alpn, Alpn { h1: false, h2: true, tcp: true });
    assert_eq!(found.weight, 1);

    let mapped = Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 7]);
    let Ok(Decoded::Endpoint(found)) = convert(&v1::Endpoint { ip: mapped, ..endpoint() }) else { panic!("mapped") };
    assert_eq!(found.addr.to_string(), "10.0.0.7:8080");

    let change = |edit: fn(&mut v1::Endpoint)| {
        let mut changed = endpoint();
        edit(&mut changed);
        code(&changed)
    };
    assert_eq!(change(|e| e.ip = Bytes::from_static(&[1, 2, 3])), ErrorCode::InvalidAddress);
    assert_eq!(change(|e| e.ip = Bytes::from_static(&[0, 0, 0, 0])), ErrorCode::InvalidAddress);
    assert_eq!(change(|e| e.ip = Bytes::from_static(&[224, 0, 0, 1])), ErrorCode::InvalidAddress);
    assert_eq!(change(|e| e.port = 0), ErrorCode::InvalidPort);
    assert_eq!(change(|e| e.port = 65536), ErrorCode::InvalidPort);
    assert_eq!(change(|e| e.identity = "shop/web".into()), ErrorCode::InvalidIdentity);
    // Neither may fall to plaintext by accident.
    assert_eq!(change(|e| e.alpn.clear()), ErrorCode::UnsupportedFeature);
    assert_eq!(change(|e| e.identity.clear()), ErrorCode::InvalidIdentity);
    let plain = v1::Endpoint { identity: String::new(), alpn: vec![], ..endpoint() };
    assert!(matches!(convert(&plain), Ok(Decoded::Endpoint(Endpoint { identity: None, .. }))));
}

#[test]
fn addresses_heads_and_extent() {
    use v1::address::Target;
    let address = |target| v1::Address { target };
    assert!(matches!(
        convert(&address(Some(Target::Service("service/shop/web:80".into())))),
        Ok(Decoded::Address(Address::Service(_)))
    ));
    let outside = Target::Outside(v1::Outside { reason: "no mesh".into() });
    assert!(matches!(convert(&address(Some(outside))), Ok(Decoded::Address(Address::Outside { .. }))));
    assert_eq!(code(&address(None)), ErrorCode::MissingField);
    for bad in ["", "service/shop/web", "service/shop/web:0", "service/shop/web:70000", "service//web:80", "x/a/b:80"] {
        assert_eq!(code(&address(Some(Target::Service(bad.into())))), ErrorCode::InvalidName, "{bad}");
    }

    let mut digest = Digest::default();
    digest.toggle("a", "1");
    let head = v1::EndpointHead { count: 1, digest: digest.to_bytes() };
    let Ok(Decoded::EndpointHead(head)) = convert(&head) else { panic!("a good head") };
    assert!(head.describes(1, digest) && !head.describes(2, digest) && !head.describes(1, Digest::default()));
    assert_eq!(code(&v1::EndpointHead { count: 1, digest: Bytes::new() }), ErrorCode::OutOfRange);

    let extent = |cidr: &str| v1::MeshExtent { cidrs: texts(&[cidr]) };
    let Ok(Decoded::MeshExtent(ranges)) = convert(&extent("10.0.0.0/8")) else { panic!("a range") };
    assert!(ranges[0].contains(&"10.1.2.3".parse::<std::net::IpAddr>().unwrap()));
    assert_eq!(code(&extent("10.0.0.0")), ErrorCode::InvalidAddress);
}

#[test]
fn services_and_workloads() {
    let service = v1::Service {
        namespace: "shop".into(),
        name: "web".into(),
        port: 80,
        routes: texts(&["HTTPRoute/shop/r"]),
        external_name: "Db.Example.COM.".into(),
        ..v1::Service::default()
    };
    let Ok(Decoded::Service(found)) = convert(&service) else { panic!("a good service") };
    assert_eq!((&*found.name, found.external_name.as_deref()), ("service/shop/web:80", Some("db.example.com")));
    assert_eq!(code(&v1::Service { protocol: 77, ..service.clone() }), ErrorCode::UnknownValue);
    assert_eq!(code(&v1::Service { routes: texts(&["UDPRoute/a/b"]), ..service.clone() }), ErrorCode::InvalidName);
    assert_eq!(code(&v1::Service { external_name: "a b".into(), ..service.clone() }), ErrorCode::InvalidAddress);
    let newer = v1::Service { requires: texts(&["http-route", "time-travel"]), ..service.clone() };
    let error = convert(&newer).unwrap_err();
    assert_eq!(error.code, ErrorCode::UnsupportedFeature);
    assert!(error.message.contains("time-travel") && !error.message.contains("http-route"), "{error}");

    let workload = v1::Workload {
        namespace: "shop".into(),
        name: "web-1".into(),
        service_account: "web".into(),
        mode: v1::MtlsMode::Strict.into(),
        ports: vec![v1::InboundPort { port: 8080, protocol: 1, services: texts(&["shop/web"]) }],
        authorization: vec![v1::PolicyBinding { policy: "AuthorizationPolicy/shop/p".into(), ports: vec![8080] }],
        ..v1::Workload::default()
    };
    let Ok(decoded @ Decoded::Workload(_)) = convert(&workload) else { panic!("a good workload") };
    assert_eq!(decoded.own_name().as_deref(), Some("workload/shop/web-1"));
    let Decoded::Workload(found) = decoded else { unreachable!() };
    assert_eq!((&*found.name, found.strict, found.identity.short()), ("shop/web-1", true, "shop/web".into()));
    assert!(found.authorization[0].covers(8080) && !found.authorization[0].covers(80));
    assert_eq!(code(&v1::Workload { mode: 9, ..workload.clone() }), ErrorCode::UnknownValue);
    assert_eq!(code(&v1::Workload { service_account: String::new(), ..workload.clone() }), ErrorCode::InvalidIdentity);
    let wrong = vec![v1::PolicyBinding { policy: "RateLimitPolicy/shop/p".into(), ports: vec![] }];
    assert_eq!(code(&v1::Workload { authorization: wrong, ..workload.clone() }), ErrorCode::InvalidName);
    assert_eq!(code(&v1::Workload { requires: texts(&["x"]), ..workload }), ErrorCode::UnsupportedFeature);
}

fn route() -> v1::Route {
    let exact = |name: &str, value: &str| v1::ValueMatch {
        name: name.into(),
        value: Some(v1::value_match::Value::Exact(value.into())),
    };
    let matched = v1::RouteMatch {
        path: Some(v1::route_match::Path::PathPrefix("/api".into())),
        method: "GET".into(),
        headers: vec![exact("X-Env", "one"), exact("x-env", "ignored: the first entry of a name counts")],
        query: vec![exact("q", "1")],
    };
    let edit = v1::HeaderEdit {
        set: vec![v1::Header { name: "X-Set".into(), value: "v".into() }],
        ..v1::HeaderEdit::default()
    };
    let rule = v1::RouteRule {
        matches: vec![matched],
        filters: vec![v1::Filter { filter: Some(v1::filter::Filter::RequestHeaders(edit)) }],
        backends: vec![v1::RouteBackend {
            service: "service/shop/web:80".into(),
            weight: 1,
            ..v1::RouteBackend::default()
        }],
        request_timeout_ms: 1500,
        source: "r.yaml:7".into(),
        ..v1::RouteRule::default()
    };
    v1::Route {
        kind: "HTTPRoute".into(),
        namespace: "shop".into(),
        name: "r".into(),
        rules: vec![rule],
        ..v1::Route::default()
    }
}

#[test]
fn routes_are_compiled() {
    let Ok(Decoded::Route(found)) = convert(&route()) else { panic!("a good route") };
    let rule = &found.rules[0];
    assert_eq!((&*rule.route, &*rule.name, &*rule.source), ("HTTPRoute/shop/r", "0", "r.yaml:7"));
    assert_eq!((rule.request_timeout, rule.backend_request_timeout), (Some(Duration::from_millis(1500)), None));
    assert_eq!(rule.matches[0].headers.len(), 1);
    assert!(matches!(&rule.matches[0].path, Some(PathMatch::Prefix(path)) if path == "/api"));
    let mut headers = HeaderMap::new();
    headers.insert("x-env", "one".parse().unwrap());
    let request = RequestView { method: &Method::GET, path: "/api/x", query: Some("q=1"), headers: (&headers).into() };
    assert!(RouteTable::new(vec![found]).select(&request).is_some());
}

#[test]
fn what_a_route_may_not_hold() {
    use v1::filter::Filter;
    type Edit = fn(&mut v1::RouteRule);
    let header = |name: &str, value: &str| v1::Header { name: name.into(), value: value.into() };
    let cases: [(Edit, ErrorCode); 16] = [
        (|r| r.retry = Some(v1::Retry::default()), ErrorCode::OutOfRange),
        (|r| r.retry = Some(v1::Retry { attempts: 21, ..Default::default() }), ErrorCode::OutOfRange),
        (|r| r.retry = Some(v1::Retry { attempts: 1, codes: vec![200], ..Default::default() }), ErrorCode::OutOfRange),
        (|r| r.matches[0].path = Some(v1::route_match::Path::PathExact("api".into())), ErrorCode::InvalidPath),
        (|r| r.matches[0].path = Some(v1::route_match::Path::PathRegex("(".into())), ErrorCode::InvalidRegex),
        (|r| r.matches[0].path = Some(v1::route_match::Path::PathRegex("a)|(b".into())), ErrorCode::InvalidRegex),
        (|r| r.matches[0].method = "G T".into(), ErrorCode::InvalidMethod),
        (|r| r.matches[0].headers[0].name = "a b".into(), ErrorCode::InvalidHeader),
        (|r| r.matches[0].headers[0].value = None, ErrorCode::MissingField),
        (|r| r.matches[0].query[0].name.clear(), ErrorCode::MissingField),
        (|r| r.filters[0].filter = None, ErrorCode::MissingField),
        (|r| r.backends[0].service = "web".into(), ErrorCode::InvalidName),
        (|r| r.backends[0].weight = 1_000_001, ErrorCode::OutOfRange),
        (|r| r.request_timeout_ms = u64::MAX, ErrorCode::OutOfRange),
        (|r| r.backends[0].filters = vec![v1::Filter::default()], ErrorCode::MissingField),
        (
            |r| {
                let regex = v1::RouteMatch {
                    path: Some(v1::route_match::Path::PathRegex("a".into())),
                    ..v1::RouteMatch::default()
                };
                r.matches = vec![regex; 300];
            },
            ErrorCode::OutOfRange,
        ),
    ];
    for (index, (edit, expected)) in cases.into_iter().enumerate() {
        let mut changed = route();
        edit(&mut changed.rules[0]);
        let error = convert(&changed).unwrap_err();
        assert_eq!(error.code, expected, "case {index}: {error}");
        assert!(error.message.starts_with("HTTPRoute/shop/r rule 0 at r.yaml:7: "), "{error}");
    }
    let path = |edit| Some(v1::PathEdit { edit: Some(edit) });
    let full = |text: &str| path(v1::path_edit::Edit::Full(text.into()));
    let redirect = v1::Redirect { status: 302, ..v1::Redirect::default() };
    for (filter, expected) in [
        (Filter::Redirect(v1::Redirect { status: 200, ..redirect.clone() }), ErrorCode::UnknownValue),
        (Filter::Redirect(v1::Redirect { scheme: "ftp".into(), ..redirect.clone() }), ErrorCode::UnknownValue),
        (Filter::Redirect(v1::Redirect { port: 65536, ..redirect.clone() }), ErrorCode::OutOfRange),
        (Filter::Redirect(v1::Redirect { hostname: "*.a".into(), ..redirect.clone() }), ErrorCode::InvalidAddress),
        (Filter::Redirect(v1::Redirect { path: full("a"), ..redirect }), ErrorCode::InvalidPath),
        (
            Filter::Mirror(v1::Mirror { service: "web".into(), numerator: 1, denominator: 1, ..Default::default() }),
            ErrorCode::InvalidName,
        ),
        (Filter::Mirror(v1::Mirror { numerator: 2, denominator: 1, ..Default::default() }), ErrorCode::OutOfRange),
        (Filter::Mirror(v1::Mirror::default()), ErrorCode::OutOfRange),
        (Filter::Cors(v1::Cors { allow_origins: texts(&["a"]), ..Default::default() }), ErrorCode::InvalidAddress),
        (Filter::Cors(v1::Cors { allow_methods: texts(&["a\n"]), ..Default::default() }), ErrorCode::InvalidHeader),
        (Filter::Rewrite(v1::Rewrite { hostname: "a b".into(), path: None }), ErrorCode::InvalidAddress),
        (Filter::Rewrite(v1::Rewrite { path: full("/a b"), ..Default::default() }), ErrorCode::InvalidPath),
        (
            Filter::Rewrite(v1::Rewrite { path: Some(v1::PathEdit { edit: None }), ..Default::default() }),
            ErrorCode::MissingField,
        ),
    ] {
        let mut changed = route();
        changed.rules[0].filters[0].filter = Some(filter.clone());
        assert_eq!(code(&changed), expected, "{filter:?}");
    }
    for (name, value) in
        [("Host", "x"), ("Content-Length", "1"), ("transfer-encoding", "x"), ("a\r\n", "x"), ("a", "x\n")]
    {
        let edit = v1::HeaderEdit { set: vec![header(name, value)], ..v1::HeaderEdit::default() };
        let mut changed = route();
        changed.rules[0].filters[0].filter = Some(Filter::ResponseHeaders(edit));
        assert_eq!(code(&changed), ErrorCode::InvalidHeader, "{name}");
    }
    assert_eq!(code(&v1::Route { kind: "UDPRoute".into(), ..route() }), ErrorCode::InvalidName);
    assert_eq!(code(&v1::Route { hostnames: texts(&["a.example"]), ..route() }), ErrorCode::UnknownValue);
    assert_eq!(code(&v1::Route { requires: texts(&["mirror"]), ..route() }), ErrorCode::UnsupportedFeature);
    let mut unusable = route();
    unusable.rules[0].backends[0].service = "nonsense".into();
    unusable.rules[0].backends[0].invalid = "no such service".into();
    assert!(convert(&unusable).is_ok(), "an invalid backend keeps its share");
}

fn tls_route() -> v1::Route {
    let backends = vec![v1::RouteBackend { service: "service/shop/web:443".into(), weight: 1, ..Default::default() }];
    v1::Route {
        kind: "TLSRoute".into(),
        hostnames: texts(&["a.example", "*.B.example."]),
        rules: vec![v1::RouteRule { backends, ..v1::RouteRule::default() }],
        requires: texts(&["tls-route"]),
        ..route()
    }
}

#[test]
fn routes_of_connections_are_compiled() {
    let Ok(decoded @ Decoded::Route(_)) = convert(&tls_route()) else { panic!("a good route") };
    assert_eq!(decoded.own_name().as_deref(), Some("TLSRoute/shop/r"));
    let Decoded::Route(found) = decoded else { unreachable!() };
    let table = Tables::new(vec![found]).connections.unwrap();
    let taken = table.select(Opening::Tls { sni: Some("x.b.example") }).unwrap().unwrap();
    assert_eq!(taken.hostname.map(|name| name.text().to_string()).as_deref(), Some("*.b.example"));
    assert_eq!(&*taken.backend(0).unwrap().service, "service/shop/web:443");
    let tcp = v1::Route { kind: "TCPRoute".into(), hostnames: Vec::new(), ..tls_route() };
    let Ok(Decoded::Route(found)) = convert(&tcp) else { panic!("a good route") };
    assert!(Tables::new(vec![found]).connections.unwrap().select(Opening::Opaque).unwrap().is_some());

    assert_eq!(code(&v1::Route { hostnames: texts(&["a.example"]), ..tcp.clone() }), ErrorCode::UnknownValue);
    assert_eq!(code(&v1::Route { rules: vec![v1::RouteRule::default(); 2], ..tcp }), ErrorCode::OutOfRange);
    assert_eq!(code(&v1::Route { hostnames: texts(&["a..b"]), ..tls_route() }), ErrorCode::InvalidAddress);
    assert_eq!(code(&v1::Route { hostnames: texts(&["a.example"; 17]), ..tls_route() }), ErrorCode::OutOfRange);
    assert_eq!(code(&v1::Route { requires: texts(&["tls-alpn"]), ..tls_route() }), ErrorCode::UnsupportedFeature);
    let edits: [fn(&mut v1::RouteRule); 6] = [
        |rule| rule.retry = Some(v1::Retry { attempts: 1, ..v1::Retry::default() }),
        |rule| rule.matches = vec![v1::RouteMatch::default()],
        |rule| rule.filters = route().rules[0].filters.clone(),
        |rule| rule.backends[0].filters = route().rules[0].filters.clone(),
        |rule| rule.request_timeout_ms = 1,
        |rule| rule.backend_request_timeout_ms = 1,
    ];
    for (index, edit) in edits.into_iter().enumerate() {
        let mut changed = tls_route();
        edit(&mut changed.rules[0]);
        assert_eq!(code(&changed), ErrorCode::UnknownValue, "case {index}");
    }
}

fn policy() -> v1::AuthorizationPolicy {
    let rule = v1::AuthorizationRule {
        from: vec![v1::AuthorizationFrom { identities: texts(&["shop/web"]), ..v1::AuthorizationFrom::default() }],
        to: vec![v1::AuthorizationTo { methods: texts(&["GET"]), paths: texts(&["/a/*"]) }],
        source: "p.yaml:9".into(),
    };
    v1::AuthorizationPolicy {
        namespace: "shop".into(),
        name: "p".into(),
        rules: vec![rule],
        source: "p.yaml:1".into(),
        ..v1::AuthorizationPolicy::default()
    }
}

fn verdict(policy: &v1::AuthorizationPolicy, peer: &str) -> Option<Reason> {
    let Ok(Decoded::AuthorizationPolicy(policy)) = convert(policy) else { panic!("a good policy") };
    let peer: Identity = peer.parse().unwrap();
    match PolicySet::new(vec![policy], false)
        .decide(&Question { peer: Some(&peer), http: Some((&Method::GET, "/a/b")) })
    {
        Verdict::Allow { .. } => None,
        Verdict::Deny { reason, .. } => Some(reason),
    }
}

#[test]
fn identities_in_policies_belong_to_the_mesh() {
    let (web, foreign) = ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://elsewhere/ns/shop/sa/web");
    for (written, takes_web, takes_foreign) in [
        ("shop/web", true, false),
        ("shop/*", true, false),
        ("shop/we*", true, false),
        ("shop/db", false, false),
        ("*", true, true),
        (web, true, false),
        (foreign, false, true),
        ("spiffe://cluster.local/ns/sh*", true, false),
    ] {
        let mut policy = policy();
        policy.rules[0].from[0].identities = texts(&[written]);
        assert_eq!(verdict(&policy, web).is_none(), takes_web, "{written}");
        assert_eq!(verdict(&policy, foreign).is_none(), takes_foreign, "{written}");
    }
}

#[test]
fn what_a_policy_may_not_hold() {
    type Edit = fn(&mut v1::AuthorizationPolicy);
    let cases: [(Edit, ErrorCode); 19] = [
        (|p| p.action = 5, ErrorCode::UnknownValue),
        (|p| p.namespace.clear(), ErrorCode::InvalidName),
        (|p| p.rules[0].from[0].identities[0] = String::new(), ErrorCode::InvalidIdentity),
        (|p| p.rules[0].from[0].identities[0] = "shop".into(), ErrorCode::InvalidIdentity),
        (|p| p.rules[0].from[0].identities[0] = "sh*/web".into(), ErrorCode::InvalidIdentity),
        (|p| p.rules[0].from[0].identities[0] = "shop/".into(), ErrorCode::InvalidIdentity),
        (|p| p.rules[0].from[0].identities[0] = "shop/web/x".into(), ErrorCode::InvalidIdentity),
        (|p| p.rules[0].from[0].identities[0] = "spiffe://x".into(), ErrorCode::InvalidIdentity),
        (|p| p.rules[0].from[0].identities.clear(), ErrorCode::MissingField),
        (|p| p.rules[0].from[0].namespaces = vec!["a/b".into()], ErrorCode::InvalidIdentity),
        (|p| p.rules[0].from[0].namespaces = vec![String::new()], ErrorCode::InvalidIdentity),
        (|p| p.rules[0].to[0] = v1::AuthorizationTo::default(), ErrorCode::MissingField),
        (|p| p.rules[0].to[0].methods[0] = "*".into(), ErrorCode::InvalidMethod),
        (|p| p.rules[0].to[0].paths[0] = "a".into(), ErrorCode::InvalidPath),
        (|p| p.rules[0].to[0].paths[0] = "/a*b".into(), ErrorCode::InvalidPath),
        (|p| p.rules[0].to[0].paths[0] = "/a//b".into(), ErrorCode::InvalidPath),
        (|p| p.rules[0].to[0].paths[0] = "/a/../b".into(), ErrorCode::InvalidPath),
        (|p| p.rules[0].to[0].paths[0] = "/%61".into(), ErrorCode::InvalidPath),
        (|p| p.rules[0].to[0].paths[0] = "/a%2Fb".into(), ErrorCode::InvalidPath),
    ];
    for (index, (edit, expected)) in cases.into_iter().enumerate() {
        let mut changed = policy();
        edit(&mut changed);
        let error = convert(&changed).unwrap_err();
        assert_eq!(error.code, expected, "case {index}: {error}");
        let closed = closed_policy("AuthorizationPolicy/shop/p", &error);
        assert!(closed.broken.is_some());
    }
}

#[test]
fn a_policy_that_cannot_be_enforced_closes_its_targets() {
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let newer = v1::AuthorizationPolicy { requires: texts(&["jwt"]), action: 7, ..policy() };
    assert_eq!(verdict(&newer, web), Some(Reason::PolicyUnsupported));
    let invalid = v1::AuthorizationPolicy { invalid: "misspelt".into(), rules: vec![], ..policy() };
    assert_eq!(verdict(&invalid, web), Some(Reason::PolicyInvalid));
    assert_eq!(verdict(&policy(), web), None);

    let limit = v1::RateLimitPolicy { namespace: "shop".into(), name: "l".into(), ..v1::RateLimitPolicy::default() };
    for (wire, reason) in [
        (v1::RateLimitPolicy { requires: texts(&["global"]), ..limit.clone() }, Reason::PolicyUnsupported),
        (v1::RateLimitPolicy { invalid: "misspelt".into(), ..limit.clone() }, Reason::PolicyInvalid),
    ] {
        let Ok(Decoded::RateLimitPolicy(found)) = convert(&wire) else { panic!("it is broken, not refused") };
        assert_eq!(found.closing().and_then(|policy| policy.broken).map(|broken| broken.0), Some(reason));
    }
    let Ok(Decoded::RateLimitPolicy(found)) = convert(&limit) else { panic!("an empty one limits nothing") };
    assert!(found.closing().is_none());
}

#[test]
fn rate_limits() {
    let limit = v1::RateLimit {
        name: "per-client".into(),
        requests: 10,
        per_ms: 1000,
        key: v1::rate_limit::Key::ClientIdentity.into(),
        ..v1::RateLimit::default()
    };
    let policy = |limit: &v1::RateLimit| v1::RateLimitPolicy {
        namespace: "shop".into(),
        name: "l".into(),
        limits: vec![limit.clone()],
        ..v1::RateLimitPolicy::default()
    };
    let Ok(Decoded::RateLimitPolicy(found)) = convert(&policy(&limit)) else { panic!("a good limit") };
    let limiter = &found.limiters[0];
    assert_eq!((&*limiter.name, limiter.key, limiter.rate.burst), ("per-client", Key::ClientIdentity, 10));
    let change = |edit: fn(&mut v1::RateLimit)| {
        let mut changed = limit.clone();
        edit(&mut changed);
        code(&policy(&changed))
    };
    assert_eq!(change(|l| l.requests = 0), ErrorCode::OutOfRange);
    assert_eq!(change(|l| l.requests = u64::MAX), ErrorCode::OutOfRange);
    assert_eq!(change(|l| l.burst = u64::MAX), ErrorCode::OutOfRange);
    assert_eq!(change(|l| l.per_ms = 0), ErrorCode::OutOfRange);
    assert_eq!(change(|l| l.per_ms = u64::MAX), ErrorCode::OutOfRange);
    assert_eq!(change(|l| l.key = 9), ErrorCode::UnknownValue);
    assert_eq!(change(|l| l.name = "a\"b".into()), ErrorCode::InvalidName);
}

const TYPES: [&str; 9] = [
    v1::Address::TYPE_URL,
    v1::Service::TYPE_URL,
    v1::Route::TYPE_URL,
    v1::EndpointHead::TYPE_URL,
    v1::Endpoint::TYPE_URL,
    v1::Workload::TYPE_URL,
    v1::AuthorizationPolicy::TYPE_URL,
    v1::RateLimitPolicy::TYPE_URL,
    v1::MeshExtent::TYPE_URL,
];

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (v1::Endpoint::TYPE_URL, endpoint().encode_to_vec()),
        (v1::Route::TYPE_URL, route().encode_to_vec()),
        (v1::AuthorizationPolicy::TYPE_URL, policy().encode_to_vec()),
    ]
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(which in 0..TYPES.len(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(TYPES[which], &bytes, TRUST_DOMAIN);
    }

    #[test]
    fn no_damage_makes_it_panic(
        which in 0usize..3,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let (type_url, mut bytes) = samples().swap_remove(which);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = decode(type_url, &bytes, TRUST_DOMAIN);
        bytes.truncate(cut.index(bytes.len()));
        let _ = decode(type_url, &bytes, TRUST_DOMAIN);
    }

    #[test]
    fn no_text_in_a_field_makes_it_panic(text in any::<String>()) {
        let mut policy = policy();
        policy.rules[0].from[0].identities[0].clone_from(&text);
        policy.rules[0].to[0].paths[0].clone_from(&text);
        let _ = convert(&policy);
        let mut route = route();
        route.rules[0].matches[0].path = Some(v1::route_match::Path::PathRegex(text.clone()));
        route.rules[0].backends[0].service.clone_from(&text);
        let _ = convert(&route);
        let _ = convert(&v1::Route { hostnames: vec![text.clone()], ..tls_route() });
        let _ = convert(&v1::MeshExtent { cidrs: vec![text] });
    }
}
