//! Routes of connections.

use super::*;

fn written(kind: Kind, text: &str) -> Route {
    match try_read(kind, &spec(kind, text)) {
        Ok(Object { body: Body::Route(route), .. }) => route,
        other => panic!("{other:?}"),
    }
}

#[test]
fn routes_of_connections_in_wire_form() {
    let rule =
        "rules: [{name: all, backendRefs: [{name: a, port: 443, weight: 9}, {name: b, namespace: far, port: 443}]}]";
    let found = written(Kind::TlsRoute, &format!("{PARENT}hostnames: [a.example, \"*.b.example\"]\n{rule}"));
    assert_eq!(found.hostnames, ["a.example", "*.b.example"]);
    let [made] = found.rules.as_slice() else { panic!("{found:?}") };
    assert_eq!((made.name.as_str(), made.source.as_str()), ("all", "f.yaml:7"));
    let backends: Vec<_> = made.backends.iter().map(|found| (found.service.as_str(), found.weight)).collect();
    assert_eq!(backends, [("service/shop/a:443", 9), ("service/far/b:443", 1)]);
    assert_eq!((found.foreign.len(), found.foreign[0].rule), (1, 0));

    let found = written(Kind::TcpRoute, &format!("{PARENT}{rule}"));
    assert_eq!((found.parents.len(), found.rules.len(), found.hostnames.len()), (1, 1, 0));

    // Names are optional in one version.
    let text = spec(Kind::TlsRoute, &format!("{PARENT}{rule}"));
    assert!(try_read(Kind::TlsRoute, &text).is_err());
    assert!(try_read(Kind::TlsRoute, &text.replace("k8s.io/v1\n", "k8s.io/v1alpha2\n")).is_ok());
}

#[test]
fn what_is_wrong_in_a_route_of_connections_is_told_at_its_place() {
    const RULE: &str = "rules: [{backendRefs: [{name: web, port: 443}]}]\n";
    let tls = |rest: &str| (Kind::TlsRoute, format!("{PARENT}{RULE}{rest}"));
    let tcp = |rest: &str| (Kind::TcpRoute, format!("{PARENT}{rest}"));
    let table = [
        (tls(""), "1:1: `hostnames` is missing"),
        (tls("hostnames: []"), "7:14: `hostnames` is missing"),
        (tls("hostname: [a.example]"), "7:3: unknown field `hostname`; did you mean `hostnames`?"),
        (
            tls("hostnames: [A.example]"),
            "7:15: hostname `A.example` is not written as it is compared; did you mean `a.example`?",
        ),
        (tls("hostnames: [a.example.]"), "did you mean `a.example`?"),
        (tls("hostnames: [a.example, a.example]"), "7:26: hostname `a.example` is there twice"),
        (tls("hostnames: [10.0.0.1]"), "7:15: hostname `10.0.0.1`: an IP address is no name"),
        (tls("hostnames: [\"a.*.b\"]"), "hostname `a.*.b`: not a host name"),
        (tls("hostnames: [\"*\"]"), "not a host name"),
        (tls("hostnames: [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q]"), "17 hostnames, at most 16"),
        (tls("useDefaultGateways: None"), "field `useDefaultGateways` is known, but not supported"),
        (tcp(""), "1:1: `rules` is missing"),
        (tcp("rules: []"), "6:10: `rules` is missing"),
        (tcp("hostnames: [a.example]"), "6:3: unknown field `hostnames`"),
        (tcp("rules: [{backendRefs: [{name: web, port: 1}]}, {}]"), "6:50: a second rule takes nothing"),
        (tcp("rules: [{matches: []}]"), "6:12: unknown field `matches`"),
        (tcp("rules: [{timeouts: {}}]"), "unknown field `timeouts`"),
        (
            tcp("rules: [{backendRefs: [{name: web, port: 1, filters: [{type: URLRewrite}]}]}]"),
            "6:26: unknown field `filters`",
        ),
        (tcp("rules: [{backendRefs: [{name: web}]}]"), "6:26: backend `web` needs a `port`"),
        ((Kind::TcpRoute, format!("parentRefs: [{{kind: Service, name: web}}]\n{RULE}")), "needs `group: \"\"`"),
    ];
    for ((kind, text), wanted) in table {
        let found = faults(kind, &text);
        assert!(found.iter().any(|fault| fault.contains(wanted)), "{text}\nwanted {wanted}\nfound {found:?}");
    }
    let gateways = spec(Kind::TlsRoute, "parentRefs: [{name: edge}]\nunknown: 1");
    assert!(try_read(Kind::TlsRoute, &gateways).is_ok(), "a gateway's route is not judged");
}
