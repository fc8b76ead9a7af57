//! Tables: what is written, and what comes of it.

mod connections;
mod filters;
mod sent;
mod written;

use proptest::prelude::*;

use super::*;
use crate::wire::v1::route_match::Path;

fn node(text: &str) -> Node {
    let documents = documents(text);
    assert_eq!(documents.len(), 1, "one document wanted in {text}");
    parse(documents[0]).unwrap_or_else(|fault| panic!("{fault} in {text}"))
}

fn try_read(kind: Kind, text: &str) -> Result<Object, Box<Refused>> {
    read(kind, &node(text), "f.yaml")
}

fn spec(kind: Kind, spec: &str) -> String {
    let version = kind.api_versions()[0];
    let indented = spec.lines().flat_map(|row| ["  ", row, "\n"]).collect::<String>();
    format!("apiVersion: {version}\nkind: {}\nmetadata: {{name: x, namespace: shop}}\nspec:\n{indented}", kind.name())
}

/// The faults of a `spec`, each as `LINE:COLUMN: MESSAGE`; the spec's first line is line 5 and stands two columns further in.
fn faults(kind: Kind, text: &str) -> Vec<String> {
    match try_read(kind, &spec(kind, text)) {
        Ok(_) => Vec::new(),
        Err(refused) => refused.faults.iter().map(ToString::to_string).collect(),
    }
}

fn route(text: &str) -> Route {
    match try_read(Kind::HttpRoute, &spec(Kind::HttpRoute, text)) {
        Ok(Object { body: Body::Route(route), .. }) => route,
        other => panic!("{other:?}"),
    }
}

const PARENT: &str = "parentRefs: [{group: \"\", kind: Service, name: web}]\n";

#[test]
fn a_rules_name_is_that_of_one_rule() {
    let two =
        "rules:\n- name: canary\n  backendRefs: [{name: web, port: 80}]\n- backendRefs: [{name: web, port: 80}]\n";
    for kind in [Kind::HttpRoute, Kind::GrpcRoute] {
        assert_eq!(faults(kind, &format!("{PARENT}{two}- name: rest\n")), [""; 0]);
        let found = faults(kind, &format!("{PARENT}{two}- name: canary\n- name: canary\n"));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("rules[0] and rules[2] are both called `canary`"), "{found:?}");
        assert!(found[1].contains("rules[0] and rules[3] are both called `canary`"), "{found:?}");
    }
}

#[test]
fn a_file_is_cut_at_its_markers() {
    let text = "# only a comment\n---\na: 1\n--- # next\n\nb: |\n  text\n  --- not a marker\n...\n%YAML 1.2\n---\nc: 3\n---\n---\n";
    let found = documents(text);
    let nodes: Vec<Node> = found.iter().map(|document| parse(*document).unwrap()).collect();
    let keys: Vec<_> = nodes.iter().map(|node| (node.entries()[0].key.as_str(), node.entries()[0].at)).collect();
    let at = |line| Position { line, column: 1 };
    assert_eq!(keys, [("a", at(3)), ("b", at(6)), ("c", at(12))]);
    assert!(nodes[1].get("b").unwrap().text().unwrap().contains("--- not a marker"));
    assert!(documents("").is_empty());
    assert!(documents("\u{feff}---\r\n# nothing\r\n").is_empty());
    assert_eq!(documents("\u{feff}a: 1\r\n---\r\nb: 2").len(), 2);
}

#[test]
fn places_are_those_of_the_file() {
    let found = documents("a: 1\n---\nlist:\n- one: [x, {deep: y}]\n- &anchor {k: v}\n- *anchor\n");
    let node = parse(found[1]).unwrap();
    let list = node.get("list").unwrap();
    let deep = list.elements()[0].get("one").unwrap().elements()[1].get("deep").unwrap();
    assert_eq!(deep.at, Position { line: 4, column: 19 });
    assert_eq!(list.elements()[0].entries()[0].at, Position { line: 4, column: 3 });
    assert_eq!(list.elements()[2].at, Position { line: 6, column: 3 });
}

#[test]
fn syntax_errors_and_bombs_are_faults_with_a_place() {
    for (text, line) in
        [("a: [1\n", 2), ("x: 1\na: 'open\n", 3), ("k: 1\nk: 2\n", 2), ("a: *none\n", 1), ("{a: 1}}", 1)]
    {
        let fault = parse(documents(text)[0]).unwrap_err();
        assert!(fault.at.line.abs_diff(line) <= 1 && fault.at.column > 0, "{text}: {fault}");
    }
    let deep = "[".repeat(100_000);
    assert!(parse(documents(&deep)[0]).is_err());
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        bomb.extend(["a", &level.to_string(), ": &a", &level.to_string(), " [", &before, "]\n"]);
    }
    assert!(parse(documents(&bomb)[0]).is_err());
}

#[test]
fn kinds_are_told_apart() {
    let at = |text: &str| At { value: text.to_owned(), at: Position { line: 1, column: 1 } };
    let class = |version: &str, kind: &str| match classify(&at(version), &at(kind)) {
        Ok(Class::Ours(kind)) => kind.name().to_owned(),
        Ok(Class::Other) => "other".to_owned(),
        Err(fault) => fault.to_string(),
    };
    let gateway = "gateway.networking.k8s.io/v1";
    for (version, kind, wanted) in [
        (gateway, "HTTPRoute", "HTTPRoute"),
        (gateway, "GRPCRoute", "GRPCRoute"),
        ("gateway.networking.k8s.io/v1beta1", "ReferenceGrant", "ReferenceGrant"),
        ("weft.dev/v1alpha1", "RateLimitPolicy", "RateLimitPolicy"),
        ("apps/v1", "Deployment", "other"),
        ("v1", "ConfigMap", "other"),
        (gateway, "Gateway", "other"),
        ("security.istio.io/v1", "AuthorizationPolicy", "other"),
        ("weft.dev/v1alpha1", "AuthorisationPolicy", "did you mean `AuthorizationPolicy`?"),
        ("weft.dev/v1", "AuthorizationPolicy", "did you mean `weft.dev/v1alpha1`?"),
        ("gateway.networking.k8s.io/v1alpha2", "HTTPRoute", "did you mean `gateway.networking.k8s.io/v1`?"),
        (gateway, "HttpRoutes", "did you mean `HTTPRoute`?"),
        (gateway, "TLSRoute", "TLSRoute"),
        ("gateway.networking.k8s.io/v1alpha3", "TLSRoute", "TLSRoute"),
        ("gateway.networking.k8s.io/v1alpha2", "TLSRoute", "TLSRoute"),
        (gateway, "TCPRoute", "TCPRoute"),
        ("gateway.networking.k8s.io/v1alpha2", "TCPRoute", "TCPRoute"),
        ("gateway.networking.k8s.io/v1alpha3", "TCPRoute", "did you mean `gateway.networking.k8s.io/v1`?"),
        (gateway, "TLSRoutes", "did you mean `TLSRoute`?"),
        (gateway, "UDPRoute", "known, but not supported"),
        ("weft.dev/v1alpha1", "TrafficPolicy", "known, but not supported"),
        ("weft.dve/v1alpha1", "AuthorizationPolicy", "did you mean `weft.dev/v1alpha1`?"),
        ("weft.dve/v1alpha1", "Policy", "did you mean `weft.dev`?"),
        ("v1", "AuthorizationPolicy", "did you mean `weft.dev/v1alpha1`?"),
        (gateway, "RateLimitPolicy", "did you mean `weft.dev/v1alpha1`?"),
        ("weft.dev/v1alpha1", "Quux", "unknown kind `Quux` in group `weft.dev`"),
    ] {
        let found = class(version, kind);
        assert!(found.contains(wanted), "{version} {kind}: {found}");
    }
}

#[test]
fn an_http_route_in_wire_form() {
    let found = route(&format!(
        "{PARENT}hostnames: [example.com]
rules:
- name: canary
  matches:
  - path: {{type: Exact, value: /a}}
    method: GET
    headers: [{{name: X-Canary, value: \"yes\"}}]
    queryParams: [{{name: q, type: RegularExpression, value: \"a+\"}}]
  - path: {{type: RegularExpression, value: \"/b/.*\"}}
  - path: {{value: /c}}
  - {{}}
  filters:
  - type: RequestHeaderModifier
    requestHeaderModifier:
      set: [{{name: X-A, value: one}}]
      add: [{{name: X-B, value: two}}]
      remove: [X-C]
  backendRefs:
  - {{name: web, port: 80, weight: 90}}
  - name: web-v2
    port: 8080
    weight: 10
    filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {{add: [{{name: X-Version, value: v2}}]}}
  timeouts: {{request: 1m30s, backendRequest: 500ms}}
  retry: {{codes: [500, 503], attempts: 3, backoff: 100ms}}
- backendRefs: [{{name: web, port: 80}}]"
    ));
    assert_eq!(found.parents.len(), 1);
    let [rule, second] = found.rules.as_slice() else { panic!("{found:?}") };
    assert_eq!((rule.name.as_str(), rule.source.as_str()), ("canary", "f.yaml:8"));
    assert_eq!((second.name.as_str(), second.source.as_str()), ("1", "f.yaml:33"));
    assert_eq!((rule.request_timeout_ms, rule.backend_request_timeout_ms), (90_000, 500));
    let retry = v1::Retry { attempts: 3, codes: vec![500, 503], backoff_ms: 100 };
    assert_eq!((rule.retry.clone(), second.retry.clone()), (Some(retry), None));
    let paths: Vec<_> = rule.matches.iter().map(|found| found.path.clone()).collect();
    let wanted = [
        Some(Path::PathExact("/a".into())),
        Some(Path::PathRegex("/b/.*".into())),
        Some(Path::PathPrefix("/c".into())),
        None,
    ];
    assert_eq!(paths, wanted);
    assert_eq!(rule.matches[0].method, "GET");
    assert_eq!(rule.matches[0].headers[0].name, "x-canary");
    let backends: Vec<_> = rule.backends.iter().map(|found| (found.service.as_str(), found.weight)).collect();
    assert_eq!(backends, [("service/shop/web:80", 90), ("service/shop/web-v2:8080", 10)]);
    assert_eq!(rule.backends[1].filters.len(), 1);
    assert_eq!(second.backends[0].weight, 1);
}

#[test]
fn a_grpc_route_in_wire_form() {
    let text = format!(
        "{PARENT}rules:
- matches:
  - method: {{service: shop.Cart, method: Add}}
  - method: {{service: shop.Cart}}
  - method: {{method: Add}}
  - method: {{type: RegularExpression, service: \"shop[.].*\", method: \"Get|List\"}}
  - headers: [{{name: version, value: two}}]
  backendRefs: [{{name: cart, port: 50051}}]"
    );
    let Ok(Object { body: Body::Route(found), .. }) = try_read(Kind::GrpcRoute, &spec(Kind::GrpcRoute, &text)) else {
        panic!("refused")
    };
    let paths: Vec<_> = found.rules[0].matches.iter().map(|found| found.path.clone()).collect();
    let wanted = [
        Some(Path::PathExact("/shop.Cart/Add".into())),
        Some(Path::PathPrefix("/shop.Cart".into())),
        Some(Path::PathRegex("/[^/]+/Add".into())),
        Some(Path::PathRegex("/(?:shop[.].*)/(?:Get|List)".into())),
        None,
    ];
    assert_eq!(paths, wanted);
}

#[test]
fn what_is_wrong_in_a_route_is_told_at_its_place() {
    let rule = |rest: &str| format!("{PARENT}rules:\n- backendRefs: [{{name: web, port: 80}}]\n  {rest}");
    let table = [
        ("parentRef: []".to_owned(), "5:3: unknown field `parentRef`; did you mean `parentRefs`?"),
        (format!("{PARENT}rules: [{{matchs: []}}]"), "6:12: unknown field `matchs`; did you mean `matches`?"),
        (rule("matches: [{path: {typ: Exact, value: /}}]"), "8:23: unknown field `typ`; did you mean `type`?"),
        (rule("matches: [{path: {type: Prefix, value: /}}]"), "8:29: unknown value `Prefix`, expected one of"),
        (rule("matches: [{path: {type: exact, value: /}}]"), "8:29: unknown value `exact`; did you mean `Exact`?"),
        (rule("matches: [{path: {value: a}}]"), "8:30: path `a` must start with `/`"),
        (rule("matches: [{path: {value: /a//b}}]"), "must not contain `//`"),
        (rule("matches: [{path: {value: \"/a b\"}}]"), "percent-encode it"),
        (
            rule("matches: [{path: {type: RegularExpression, value: \"(\"}}]"),
            "8:55: `(` is not a usable regular expression",
        ),
        (rule("matches: [{method: get}]"), "8:24: unknown method `get`; did you mean `GET`?"),
        (rule("matches: [{headers: [{name: \"a b\", value: x}]}]"), "8:33: `a b` is no header name"),
        (rule("matches: [{headers: [{name: a, value: 1}]}]"), "did you mean `\"1\"`?"),
        (rule("matches: [{headers: [{name: a, value: x}, {name: A, value: y}]}]"), "header `a` is matched twice"),
        (rule("filters: [{type: ExternalAuth, externalAuth: {}}]"), "field `externalAuth` is known, but not supported"),
        (rule("filters: [{type: ExtensionRef}]"), "filter ExtensionRef is known, but not supported"),
        (
            rule("filters: [{type: RequestHeaderModifer}]"),
            "8:22: unknown value `RequestHeaderModifer`; did you mean `RequestHeaderModifier`?",
        ),
        (rule("filters: [{type: RequestHeaderModifier}]"), "needs the field `requestHeaderModifier`"),
        (
            rule("filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: x}]}}]"),
            "no filter may edit it",
        ),
        (rule("timeouts: {request: 10}"), "invalid type: integer `10`, expected a string; did you mean `\"10\"`?"),
        (rule("timeouts: {request: 10 s}"), "8:25: `10 s` is no duration"),
        (rule("timeouts: {request: 1s, backendRequest: 2s}"), "8:45: backendRequest is longer than request"),
        (
            rule("sessionPersistence: {}"),
            "8:5: field `sessionPersistence` is known, but not supported by this version of",
        ),
        (rule("retry: {attempts: 0}"), "`attempts` is 1 to 20"),
        (rule("retry: {codes: [500, 200]}"), "status 200 is never retried"),
        (rule("retry: {codes: [500, 500]}"), "status 500 is there twice"),
        (rule("retry: {backoff: 1}"), "invalid type: integer `1`"),
        (format!("{PARENT}rules: [{{backendRefs: [{{name: web}}]}}]"), "6:26: backend `web` needs a `port`"),
        (
            format!("{PARENT}rules: [{{backendRefs: [{{name: web, port: 70000}}]}}]"),
            "6:44: invalid value: integer `70000`, expected u16",
        ),
        (
            format!("{PARENT}rules: [{{backendRefs: [{{name: web, port: 80, weight: -1}}]}}]"),
            "invalid value: integer `-1`, expected u32",
        ),
        (
            format!("{PARENT}rules: [{{backendRefs: [{{name: web, port: 80, weight: 2000000}}]}}]"),
            "weight 2000000 is over 1000000",
        ),
        (format!("{PARENT}rules: [{{backendRefs: [{{kind: Bucket, name: web, port: 80}}]}}]"), "only Services"),
        ("parentRefs: [{kind: Service, name: web}]".to_owned(), "needs `group: \"\"`"),
        (
            "parentRefs: [{group: \"\", kind: Servce, name: web}]".to_owned(),
            "5:34: unknown parent kind `Servce` in group ``; did you mean `Service`?",
        ),
        ("parentRefs: [{group: \"\", kind: Service, name: web, namespace: Other}]".to_owned(), "`Other` is no name"),
    ];
    for (text, wanted) in table {
        let found = faults(Kind::HttpRoute, &text);
        assert!(found.iter().any(|fault| fault.contains(wanted)), "{text}\nwanted {wanted}\nfound {found:?}");
    }
    // All of it is told, not only the first.
    let both = faults(Kind::HttpRoute, &rule("timeouts: {request: x, backendRequest: y}"));
    assert_eq!(both.len(), 2, "{both:?}");
}

#[test]
fn routes_of_gateways_are_not_judged() {
    let text = spec(Kind::HttpRoute, "parentRefs: [{name: edge}]\nrules: [{filters: [{type: Whatever, unknown: 1}]}]");
    let Ok(Object { body: Body::Route(route), .. }) = try_read(Kind::HttpRoute, &text) else { panic!("judged") };
    assert!(route.parents.is_empty() && route.rules.is_empty());
    // One that is also a Service's is.
    let text = spec(Kind::HttpRoute, "parentRefs: [{name: edge}, {group: \"\", kind: Service, name: web}]\nunknown: 1");
    assert!(try_read(Kind::HttpRoute, &text).is_err());
}

#[test]
fn policies_in_wire_form() {
    let text = spec(
        Kind::AuthorizationPolicy,
        "targetRefs: [{group: \"\", kind: Service, name: web}, {kind: Namespace, name: shop}]
action: Deny
rules:
- from: [{identities: [shop/front, \"shop/*\", \"spiffe://cluster.local/ns/a/sa/b\", \"*\"], namespaces: [shop, \"dev-*\"]}]
  to: [{methods: [GET, PURGE], paths: [/a, \"/b/*\", \"*\"]}]
- from: [{namespaces: [shop]}]",
    );
    let Ok(Object { body: Body::Authorization(targets, policy), .. }) = try_read(Kind::AuthorizationPolicy, &text)
    else {
        panic!("refused")
    };
    assert_eq!(targets, [Target::Service("web".into()), Target::Namespace]);
    assert_eq!(policy.source, "f.yaml:1");
    assert_eq!(policy.action(), v1::authorization_policy::Action::Deny);
    assert_eq!(policy.rules.len(), 2);
    assert_eq!(policy.rules[1].source, "f.yaml:10");

    let text = spec(
        Kind::RateLimitPolicy,
        "targetRefs: [{kind: Service, name: web}]
limits:
- {requests: 100, per: 1m, burst: 20, key: ClientIdentity, match: [{path: {value: /a}, method: GET, headers: [{name: a, value: b}]}]}
- {name: all, requests: 5, per: 1s}",
    );
    let Ok(Object { body: Body::RateLimit(_, policy), .. }) = try_read(Kind::RateLimitPolicy, &text) else {
        panic!("refused")
    };
    let [first, second] = policy.limits.as_slice() else { panic!("{policy:?}") };
    assert_eq!((first.name.as_str(), first.requests, first.per_ms, first.burst), ("x-0", 100, 60_000, 20));
    assert_eq!((first.key(), first.matches.len()), (v1::rate_limit::Key::ClientIdentity, 1));
    assert_eq!((second.name.as_str(), second.burst, second.key()), ("all", 0, v1::rate_limit::Key::Service));
}

#[test]
fn what_is_wrong_in_a_policy_is_told_and_its_targets_are_still_known() {
    let rules = |rules: &str| format!("targetRefs: [{{kind: Service, name: web}}]\naction: Allow\nrules:\n- {rules}");
    let web = Some(vec![Target::Service("web".into())]);
    let table = [
        (rules("form: []"), "8:5: unknown field `form`; did you mean `from`?", web.clone()),
        (rules("from: []"), "`from` is empty: leave it out if anybody is meant", web.clone()),
        (rules("from:"), "`from` is empty", web.clone()),
        (rules("from: [{}]"), "would match anybody", web.clone()),
        (rules("from: [{identities: []}]"), "`identities` is empty", web.clone()),
        (rules("from: [{identities: [web]}]"), "names no identity", web.clone()),
        (rules("from: [{identities: [\"*/web\"]}]"), "no pattern", web.clone()),
        (rules("from: [{identities: [\"spiffe://x/ns/a\"]}]"), "names no identity", web.clone()),
        (rules("from: [{identities: [Shop/web]}]"), "names no identity", web.clone()),
        (rules("from: [{namespaces: [\"Shop\"]}]"), "is no namespace", web.clone()),
        (rules("to: [{methods: [get]}]"), "8:21: `get` is no method; did you mean `GET`?", web.clone()),
        (rules("to: [{methods: [\"*\"]}]"), "leave `methods` out", web.clone()),
        (rules("to: [{paths: [a]}]"), "must start with `/`", web.clone()),
        (rules("to: [{paths: [\"/a*b\"]}]"), "is no pattern", web.clone()),
        (rules("to: [{paths: [\"/%61dmin\"]}]"), "did you mean `/admin`?", web.clone()),
        (rules("to: [{paths: [\"/a/../b*\"]}]"), "must not contain `/../`", web.clone()),
        (rules("to: [{ports: [80]}]"), "unknown field `ports`, expected one of `methods`, `paths`", web.clone()),
        (
            "targetRefs: [{kind: Service, name: web}]\naction: Audit".to_owned(),
            "6:11: unknown value `Audit`",
            web.clone(),
        ),
        ("targetRefs: [{kind: Service, name: web}]".to_owned(), "field `action` is missing", web),
        ("action: Allow".to_owned(), "field `targetRefs` is missing", None),
        ("targetRefs: []\naction: Allow".to_owned(), "`targetRefs` names nothing", None),
        (
            "targetRefs: [{kind: Servise, name: web}]\naction: Allow".to_owned(),
            "5:23: unknown target kind `Servise`, expected Service or Namespace; did you mean `Service`?",
            None,
        ),
        ("targetRefs: [{kind: Namespace, name: other}]\naction: Allow".to_owned(), "did you mean `shop`?", None),
        (
            "targetRefs: [{group: apps, kind: Service, name: web}]\naction: Allow".to_owned(),
            "unknown target group `apps`",
            None,
        ),
        (
            "targetRefs: [{kind: Service, name: web, sectionName: http}]\naction: Allow".to_owned(),
            "not supported",
            None,
        ),
    ];
    for (text, wanted, targets) in table {
        let refused = try_read(Kind::AuthorizationPolicy, &spec(Kind::AuthorizationPolicy, &text)).unwrap_err();
        let found: Vec<_> = refused.faults.iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|fault| fault.contains(wanted)), "{text}\nwanted {wanted}\nfound {found:?}");
        assert_eq!(refused.targets, targets, "{text}");
        assert_eq!((refused.namespace.as_str(), refused.name.as_deref()), ("shop", Some("x")));
    }
    let limit = |limit: &str| format!("targetRefs: [{{kind: Service, name: web}}]\nlimits: [{limit}]");
    for (text, wanted) in [
        (limit("{requests: 0, per: 1s}"), "`requests: 0` admits nothing"),
        (limit("{requests: 1, per: 0s}"), "longer than nothing"),
        (limit("{requests: 1, per: 1d}"), "is no duration"),
        (limit("{requests: 1, per: 1s, key: Client}"), "unknown value `Client`"),
        (limit("{requests: -1, per: 1s}"), "invalid value: integer `-1`"),
        (limit("{requests: 1.5, per: 1s}"), "invalid type"),
        (limit("{requests: 1, per: 1s, burst: 0}"), "`burst: 0` admits nothing"),
        (limit("{request: 1, per: 1s}"), "did you mean `requests`?"),
        (limit(""), "`limits` is empty"),
        (limit("{name: a, requests: 1, per: 1s}, {name: a, requests: 1, per: 1s}"), "limit `a` is there twice"),
    ] {
        let found = faults(Kind::RateLimitPolicy, &text);
        assert!(found.iter().any(|fault| fault.contains(wanted)), "{text}\nwanted {wanted}\nfound {found:?}");
    }
}

#[test]
fn metadata_is_read_strictly_because_it_decides_where_a_policy_counts() {
    let text = |metadata: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {metadata}\nspec: {{targetRefs: [{{kind: Namespace, name: default}}], action: Allow}}\n"
        )
    };
    for (metadata, wanted) in [
        ("{name: x, namepsace: shop}", "3:21: unknown field `namepsace`; did you mean `namespace`?"),
        ("{namespace: default}", "object has no name"),
        ("{name: X}", "`X` is no name: lower-case letters, digits, `-` and `.`; did you mean `x`?"),
        ("{name: x, namespace: Default}", "is no namespace"),
    ] {
        let refused = try_read(Kind::AuthorizationPolicy, &text(metadata)).unwrap_err();
        let found: Vec<_> = refused.faults.iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|fault| fault.contains(wanted)), "{metadata}: {found:?}");
    }
    let dumped = "{name: x, uid: u, resourceVersion: '1', generation: 2, labels: {a: b}, annotations: {c: d}, managedFields: [{x: y}], creationTimestamp: 2026-01-02T03:04:05Z}";
    assert!(try_read(Kind::AuthorizationPolicy, &text(dumped)).is_ok());
}

#[test]
fn times_are_read() {
    for (text, wanted) in [
        ("1970-01-01T00:00:00Z", Some(0)),
        ("2026-01-02T03:04:05Z", Some(1_767_323_045)),
        ("2024-02-29T23:59:59.123Z", Some(1_709_251_199)),
        ("2026-13-01T00:00:00Z", None),
        ("2026-01-02 03:04:05", None),
        ("-1-01-01T00:00:00Z", None),
        ("", None),
    ] {
        assert_eq!(unix_seconds(text), wanted, "{text}");
    }
}

#[test]
fn durations_are_those_of_gep_2257() {
    let read = |text: &str| check::duration(&At { value: text.to_owned(), at: Position::default() }).ok();
    for (text, wanted) in [
        ("0s", Some(0)),
        ("10s", Some(10_000)),
        ("1h30m", Some(5_400_000)),
        ("1h2m3s4ms", Some(3_723_004)),
        ("500ms", Some(500)),
        ("99999h", Some(359_996_400_000)),
        ("", None),
        ("1", None),
        ("s", None),
        ("1.5s", None),
        ("-1s", None),
        ("100000s", None),
        ("1h1h1h1h1h", None),
        ("1 s", None),
        ("1us", None),
    ] {
        assert_eq!(read(text), wanted, "{text}");
    }
}

/// Pieces that manifests are made of, so that arbitrary texts get deep into the readers.
fn piece() -> impl Strategy<Value = String> {
    let words: Vec<String> = [
        "apiVersion: weft.dev/v1alpha1\n",
        "kind: AuthorizationPolicy\n",
        "kind: RateLimitPolicy\n",
        "metadata:\n",
        "spec:\n",
        "apiVersion: gateway.networking.k8s.io/v1\n",
        "kind: HTTPRoute\n",
        "kind: GRPCRoute\n",
        "kind: TLSRoute\n",
        "  hostnames:\n",
        "  name: x\n",
        "  targetRefs:\n",
        "  - ",
        "kind: Service",
        "name: web",
        "\n",
        "  ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        ": ",
        "---\n",
        "...\n",
        "&a ",
        "*a ",
        "<<: *a\n",
        "  rules:\n",
        "from:\n",
        "to:\n",
        "  parentRefs:\n",
        "group: ''",
        "null",
        "1e999",
        "!!binary ",
        "|\n",
        ">-\n",
        "'",
        "\"",
        "#",
        "\t",
        "?",
        "%YAML 1.2\n",
        "\u{0}",
        "\u{85}",
        "é",
    ]
    .map(str::to_owned)
    .into();
    prop_oneof![4 => proptest::sample::select(words), 1 => "\\PC{0,8}"]
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(pieces in proptest::collection::vec(piece(), 0..60)) {
        let text = pieces.concat();
        for document in documents(&text) {
            match parse(document) {
                Ok(node) => for kind in Kind::ALL {
                    if let Err(refused) = read(kind, &node, "f") {
                        prop_assert!(!refused.faults.is_empty());
                    }
                    targets_of(&node, "default");
                },
                Err(fault) => prop_assert!(fault.at.line > document.lines_before),
            }
        }
    }

    #[test]
    fn cutting_loses_no_line(text in "(a: 1\n|---\n|\\.\\.\\.\n|# c\n|\n|--- \n|%X\n| ---\n){0,20}") {
        let lines: Vec<&str> = text.lines().collect();
        for document in documents(&text) {
            for (index, row) in document.text.lines().enumerate() {
                prop_assert_eq!(lines[document.lines_before as usize + index], row);
            }
        }
        let kept: usize = documents(&text).iter().map(|document| document.text.matches("a: 1").count()).sum();
        prop_assert_eq!(kept, text.matches("a: 1").count());
    }

    // What is accepted here is tried on the proxies' own check inside `read`; what the value checks let through must pass it.
    #[test]
    fn checked_values_are_taken_by_the_proxies(
        path in "[/a-z%0-9.*~-]{1,12}", identity in "[a-z*/:.-]{1,12}", header in "[A-Za-z0-9_-]{1,10}", value in "[ -~]{0,12}",
    ) {
        let quote = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let policy = format!(
            "targetRefs: [{{kind: Service, name: web}}]\naction: Allow\nrules: [{{from: [{{identities: [{}]}}], to: [{{paths: [{}]}}]}}]",
            quote(&identity), quote(&path),
        );
        let route = format!(
            "{PARENT}rules: [{{matches: [{{path: {{value: {}}}, headers: [{{name: '{header}', value: {}}}]}}], backendRefs: [{{name: a, port: 1}}]}}]",
            quote(&path), quote(&value),
        );
        for fault in faults(Kind::AuthorizationPolicy, &policy).into_iter().chain(faults(Kind::HttpRoute, &route)) {
            prop_assert!(!fault.starts_with("1:1:"), "{fault}");
        }
    }
}
