//! What `weft explain` says of the example shop.

mod order;

use std::path::PathBuf;

use super::*;

fn shop() -> Compiled {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples/shop"));
    let loaded = files::load(&[dir], "cluster.local");
    assert_eq!(loaded.problems, Vec::new());
    weft_control::compile::compile(&loaded.model)
}

fn ask(from: &str, method: &str, url: &str) -> Explanation {
    let from = crate::token::identity(from, "cluster.local").unwrap();
    let request = http::Request::builder().method(method).uri(url).body(()).unwrap();
    explain(&shop(), &from, &request.into_parts().0)
}

#[test]
fn the_route_and_its_shares_are_named() {
    let told = ask("shop/web", "GET", "http://catalog.shop/items");
    assert_eq!(told.verdict, Verdict::Allowed, "{told:?}");
    let shares: Vec<_> = told.outcomes.iter().map(|outcome| (&*outcome.backend, outcome.share)).collect();
    assert_eq!(shares, [("service/shop/catalog-v1:80", 0.9), ("service/shop/catalog-v2:80", 0.1)]);
    let route = told.steps.iter().find(|step| step.room == "route").unwrap();
    assert!(route.by.contains("HTTPRoute/shop/catalog") && route.by.contains("catalog.yaml:"), "{}", route.by);
}

#[test]
fn a_refusal_has_its_reason_and_its_line() {
    let told = ask("shop/intern", "GET", "http://ledger.shop/entries/today");
    assert_eq!((told.verdict, told.reason), (Verdict::Refused, Some(Reason::NotAllowed)), "{told:?}");
    assert_eq!(told.status, Some(403));
    assert!(ask("shop/web", "GET", "http://ledger.shop/entries/today").foresees(None));
    let told = ask("shop/web", "POST", "http://ledger.shop/entries/today");
    assert_eq!(told.reason, Some(Reason::NotAllowed));
    let told = ask("shop/web", "GET", "http://ledger.shop/entries/../secret");
    assert_eq!(told.reason, Some(Reason::NotAllowed), "{told:?}");
}

#[test]
fn an_allowing_rule_is_named_by_its_line() {
    let told = ask("shop/web", "GET", "http://10.96.0.70/entries/today");
    assert_eq!(told.verdict, Verdict::Allowed);
    let by = &told.outcomes[0].steps.iter().find(|step| step.room == "authorization").unwrap().by;
    assert!(by.contains("ledger-policy.yaml:"), "{by}");
}

#[test]
fn a_limit_is_told_but_does_not_refuse() {
    let told = ask("shop/web", "GET", "http://payments.shop/pay");
    assert_eq!(told.verdict, Verdict::Allowed);
    let limit = told.outcomes[0].steps.iter().find(|step| step.room == "rate limit").unwrap();
    assert!(limit.by.contains("payments.yaml:"), "{limit:?}");
}

#[test]
fn every_address_has_an_answer() {
    for url in ["http://elsewhere.example/", "http://192.0.2.1/"] {
        let told = ask("shop/web", "GET", url);
        assert_eq!(told.verdict, Verdict::Allowed, "{told:?}");
        assert!(told.steps[0].decision.contains("outside the mesh"), "{told:?}");
    }
    assert_eq!(ask("shop/web", "GET", "http://catalog.shop:81/").reason, Some(Reason::NoEndpoints));
    assert_eq!(ask("shop/web", "GET", "http://10.244.0.50:8080/").verdict, Verdict::Allowed);
    assert_eq!(ask("shop/intern", "GET", "http://10.244.0.70:8080/entries").reason, Some(Reason::NotAllowed));
}

const NAMES: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: vault, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: vault}]
  hostnames: [a.example, '*.b.example']
  rules: [{backendRefs: [{name: ledger, port: 80, weight: 3}, {name: nosuch, port: 443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: vault, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: vault}]
  rules: [{backendRefs: [{name: ledger, port: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: shop}
spec: {clusterIP: 10.96.0.99, ports: [{port: 443}]}
";

#[test]
fn connections_go_by_their_name() {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples/shop"));
    let more = tempfile::tempdir().unwrap();
    std::fs::write(more.path().join("names.yaml"), NAMES).unwrap();
    let loaded = files::load(&[dir, more.path().to_path_buf()], "cluster.local");
    assert_eq!(loaded.problems, Vec::new());
    let compiled = weft_control::compile::compile(&loaded.model);
    let from = crate::token::identity("shop/web", "cluster.local").unwrap();
    let ask = |url: &str, sni: Option<&str>| {
        let asked = connection(url, sni).unwrap_or_else(|_| panic!("{url} is not taken"));
        explain_connection(&compiled, &from, &asked)
    };
    let told = ask("tls://vault.shop:443", Some("x.b.example"));
    assert_eq!(told.verdict, Verdict::Depends, "{told:?}");
    let route = told.steps.iter().find(|step| step.room == "route").unwrap();
    assert!(route.by.contains("TLSRoute/shop/vault rule 0 at") && route.by.contains("names.yaml:"), "{route:?}");
    let shares: Vec<_> = told.outcomes.iter().map(|outcome| (&*outcome.backend, outcome.share)).collect();
    assert_eq!(shares, [("service/shop/ledger:80", 0.75), ("service/shop/nosuch:443", 0.25)]);
    assert_eq!(told.outcomes[1].reason, Some(Reason::InvalidBackend));
    assert!(told.outcomes.iter().all(|outcome| outcome.status.is_none()));
    // Of itself it asks for the host that it calls.
    let told = ask("tls://vault.shop:443", None);
    assert_eq!((told.verdict, told.reason, told.status), (Verdict::Refused, Some(Reason::NoRoute), None), "{told:?}");
    assert!(told.steps.last().unwrap().decision.contains("`vault.shop`"), "{told:?}");
    let told = ask("tcp://vault.shop:443", None);
    assert!(told.steps.iter().any(|step| step.by.contains("TCPRoute/shop/vault")), "{told:?}");
    assert_eq!(ask("tcp://elsewhere.example:1", None).verdict, Verdict::Allowed);
    for wrong in ["tls://vault.shop", "http://vault.shop:1", "tls://vault.shop:1/path", "vault", "GET"] {
        assert!(connection(wrong, None).is_err(), "{wrong}");
    }
    assert!(connection("tcp://vault.shop:1", Some("a")).is_err());
}

const FILTERS: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: filters, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: ledger}]
  rules:
  - matches: [{path: {value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 301}}]
  - matches: [{path: {value: /api}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: ledger, port: 80}]
";

#[test]
fn what_a_route_answers_and_rewrites_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("filters.yaml"), FILTERS).unwrap();
    let shop = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples/shop"));
    let loaded = files::load(&[shop, dir.path().to_owned()], "cluster.local");
    let compiled = weft_control::compile::compile(&loaded.model);
    let from = crate::token::identity("shop/web", "cluster.local").unwrap();
    let ask = |url: &str| {
        let request = http::Request::builder().uri(url).body(()).unwrap();
        explain(&compiled, &from, &request.into_parts().0)
    };
    let told = ask("http://ledger.shop/moved/a?b");
    assert_eq!((told.verdict, told.reason, told.status), (Verdict::Allowed, None, Some(301)), "{told:?}");
    assert!(told.steps.iter().any(|step| step.decision.contains("go to http://ledger.shop/new/a?b")), "{told:?}");
    assert!(text::page(&told, &from, "GET", Paint::stdout()).contains("answered: HTTP 301"));
    // The path that the ledger's policy is asked about is the one that it gets.
    assert_eq!(ask("http://ledger.shop/api/entries/today").verdict, Verdict::Allowed);
    assert_eq!(ask("http://ledger.shop/api/secret").reason, Some(Reason::NotAllowed));
}
