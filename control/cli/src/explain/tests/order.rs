//! Which route takes a request, a row a sentence of Gateway API (HTTPRoute `matches`, GRPCRoute `rules`, GEP-1294), from manifests to the answer.

use super::*;

const HOUSE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: more, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: none, namespace: shop}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: more, port: 8081}]
endpoints: [{addresses: [10.244.0.1]}]
";

/// A route of a namespace on `shop/web` with named rules, each given as its other fields in YAML's flow style.
fn route(kind: &str, name: &str, created: &str, parent: &str, rules: &[(&str, &str)]) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    let rules: Vec<String> = rules
        .iter()
        .map(|(rule, fields)| {
            format!("{{name: {rule}, {fields}backendRefs: [{{name: web, namespace: shop, port: 80}}]}}")
        })
        .collect();
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2026-01-01T00:00:0{created}Z'}}
spec: {{parentRefs: [{{group: '', kind: Service, name: web, namespace: shop{parent}}}], rules: [{}]}}
",
        rules.join(", ")
    )
}

fn http(name: &str, created: &str, rules: &[(&str, &str)]) -> String {
    route("HTTPRoute", name, created, "", rules)
}

fn grpc(name: &str, created: &str, rules: &[(&str, &str)]) -> String {
    route("GRPCRoute", name, created, "", rules)
}

struct Row {
    sentence: &'static str,
    routes: Vec<String>,
    /// Client, method and URL behind the host.
    asked: (&'static str, &'static str, &'static str),
    /// Name of the rule's route and of the rule; none: no route says anything of it.
    want: Option<&'static str>,
}

fn row(sentence: &'static str, routes: Vec<String>, path: &'static str, want: &'static str) -> Row {
    Row { sentence, routes, asked: ("shop/web", "GET", path), want: Some(want) }
}

const PREFIX: &str = "matches: [{path: {value: /a}}], ";
const LONGER: &str = "matches: [{path: {value: /a/b}}], ";
const EXACT: &str = "matches: [{path: {type: Exact, value: /a/b}}], ";
const METHOD: &str = "matches: [{path: {value: /a}, method: GET}], ";
const QUERY: &str = "matches: [{path: {value: /a}, queryParams: [{name: q, value: '1'}]}], ";
const QUERIES: &str = "matches: [{path: {value: /a}, queryParams: [{name: q, value: '1'}, {name: r, value: '1'}]}], ";
const HEADER: &str = "matches: [{path: {value: /a}, headers: [{name: host, value: web.shop}]}], ";
const WHOLE: &str = "matches: [{method: {service: p.S, method: Do}}], ";
const SERVICE: &str = "matches: [{method: {service: p.S}}], ";
const LONG_METHOD: &str = "matches: [{method: {method: DoALotOfThingsAtOnce}}], ";
const LONG_WHOLE: &str = "matches: [{method: {service: p.S, method: DoALotOfThingsAtOnce}}], ";

fn within_and_across_routes() -> Vec<Row> {
    vec![
        row("an exact path before a prefix", vec![http("shop/r", "0", &[("p", LONGER), ("e", EXACT)])], "/a/b", "r e"),
        row("the longest prefix", vec![http("shop/r", "0", &[("p", PREFIX), ("l", LONGER)])], "/a/b", "r l"),
        row("a method match", vec![http("shop/r", "0", &[("h", HEADER), ("m", METHOD)])], "/a", "r m"),
        row("most header matches", vec![http("shop/r", "0", &[("q", QUERIES), ("h", HEADER)])], "/a?q=1&r=1", "r h"),
        row("most query parameters", vec![http("shop/r", "0", &[("q", QUERY), ("qs", QUERIES)])], "/a?q=1&r=1", "r qs"),
        row(
            "across all rules of all routes: a younger route that is more specific wins",
            vec![http("shop/a", "0", &[("p", PREFIX)]), http("shop/b", "9", &[("l", LONGER)])],
            "/a/b",
            "b l",
        ),
        row(
            "of equals the oldest route",
            vec![http("shop/a", "9", &[("p", PREFIX)]), http("shop/b", "1", &[("p", PREFIX)])],
            "/a",
            "b p",
        ),
        row(
            "of the same age the first by namespace/name",
            vec![http("shop/b", "1", &[("p", PREFIX)]), http("shop/a", "1", &[("p", PREFIX)])],
            "/a",
            "a p",
        ),
        row("within a route the first rule", vec![http("shop/r", "0", &[("z", PREFIX), ("a", PREFIX)])], "/a", "r z"),
        Row {
            sentence: "what no rule matches is not found",
            routes: vec![http("shop/r", "0", &[("p", PREFIX)])],
            asked: ("shop/web", "GET", "/b"),
            want: Some("no_route"),
        },
    ]
}

fn kinds_and_namespaces() -> Vec<Row> {
    let market = |path| ("market/web", "GET", path);
    vec![
        row(
            "gRPC: characters of the service before those of the method",
            vec![grpc("shop/r", "0", &[("m", LONG_METHOD), ("s", SERVICE)])],
            "/p.S/DoALotOfThingsAtOnce",
            "r s",
        ),
        row(
            "gRPC: characters of the method",
            vec![grpc("shop/r", "0", &[("s", SERVICE), ("w", LONG_WHOLE)])],
            "/p.S/DoALotOfThingsAtOnce",
            "r w",
        ),
        row(
            "gRPC: of equals the oldest route",
            vec![grpc("shop/a", "9", &[("w", WHOLE)]), grpc("shop/b", "1", &[("w", WHOLE)])],
            "/p.S/Do",
            "b w",
        ),
        row(
            "routes of gRPC and HTTP are not merged, and GRPCRoute goes first, however old they are",
            vec![
                http("shop/h", "0", &[("e", "matches: [{path: {type: Exact, value: /p.S/Do}}], ")]),
                grpc("shop/g", "9", &[("s", SERVICE)]),
            ],
            "/p.S/Do",
            "g s",
        ),
        Row {
            sentence: "and what the HTTPRoute alone would take is not found",
            routes: vec![http("shop/h", "0", &[("p", PREFIX)]), grpc("shop/g", "9", &[("s", SERVICE)])],
            asked: ("shop/web", "GET", "/a"),
            want: Some("no_route"),
        },
        Row {
            sentence: "on another port they are not in conflict",
            routes: vec![
                http("shop/h", "0", &[("p", PREFIX)]),
                route("GRPCRoute", "shop/g", "9", ", port: 81", &[("s", SERVICE)]),
            ],
            asked: ("shop/web", "GET", "/a"),
            want: Some("h p"),
        },
        row(
            "parentRef port: only that port",
            vec![route("HTTPRoute", "shop/r", "0", ", port: 80", &[("p", PREFIX)])],
            "/a",
            "r p",
        ),
        row(
            "sectionName: only the port of that name",
            vec![route("HTTPRoute", "shop/r", "0", ", sectionName: http", &[("p", PREFIX)])],
            "/a",
            "r p",
        ),
        Row {
            want: None,
            ..row(
                "on another port it says nothing",
                vec![route("HTTPRoute", "shop/r", "0", ", port: 81", &[("p", PREFIX)])],
                "/a",
                "",
            )
        },
        Row {
            want: None,
            ..row(
                "of another section neither",
                vec![route("HTTPRoute", "shop/r", "0", ", sectionName: more", &[("p", PREFIX)])],
                "/a",
                "",
            )
        },
        Row {
            asked: market("/a"),
            ..row(
                "a namespace with consumer routes has these alone, older and more specific ones of the producer notwithstanding",
                vec![http("shop/own", "0", &[("l", METHOD)]), http("market/r", "9", &[("p", PREFIX)])],
                "",
                "r p",
            )
        },
        row(
            "and all others have the producer's",
            vec![http("shop/own", "9", &[("p", PREFIX)]), http("market/r", "0", &[("l", METHOD)])],
            "/a",
            "own p",
        ),
    ]
}

#[test]
fn who_takes_a_request_is_as_specified() {
    for row in within_and_across_routes().into_iter().chain(kinds_and_namespaces()) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("all.yaml"), HOUSE.to_owned() + &row.routes.concat()).unwrap();
        let loaded = files::load(&[dir.path().to_path_buf()], "cluster.local");
        assert_eq!(loaded.problems, Vec::new(), "{}", row.sentence);
        let compiled = weft_control::compile::compile(&loaded.model);
        let (from, method, path) = row.asked;
        let from = crate::token::identity(from, "cluster.local").unwrap();
        let request = http::Request::builder().method(method).uri(format!("http://web.shop{path}"));
        let told = explain(&compiled, &from, &request.body(()).unwrap().into_parts().0);
        let by =
            told.steps.iter().rev().find(|step| step.room == "route").map(|step| step.by.as_str()).unwrap_or_default();
        let found = match told.reason {
            Some(reason) => Some(reason.code().to_owned()),
            None => by.split(" at ").next().filter(|by| !by.is_empty()).map(|by| {
                let name = by.rsplit('/').next().unwrap_or_default();
                name.replace(" rule ", " ")
            }),
        };
        assert_eq!(found.as_deref(), row.want, "{}: {told:?}", row.sentence);
    }
}

#[test]
fn a_route_that_another_overrules_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let routes = http("shop/h", "0", &[("p", PREFIX)]) + &grpc("shop/g", "9", &[("s", SERVICE)]);
    std::fs::write(dir.path().join("all.yaml"), HOUSE.to_owned() + &routes).unwrap();
    let loaded = files::load(&[dir.path().to_path_buf()], "cluster.local");
    let told: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert!(told.len() == 1 && told[0].contains("GRPCRoute/shop/g is attached to the same port"), "{told:?}");
    let overruled = |kind: &str, name: &str| {
        let key = (kind.to_owned(), weft_control::model::Name::new("shop", name));
        loaded.model.overruled(&key, &loaded.model.routes[&key].parents[0]).map(|conflict| conflict.whole)
    };
    assert_eq!((overruled("HTTPRoute", "h"), overruled("GRPCRoute", "g")), (Some(true), None));
}
