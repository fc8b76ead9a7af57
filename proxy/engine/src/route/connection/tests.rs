use http::{HeaderMap, Method};
use proptest::prelude::*;

use super::*;
use crate::request::RequestView;
use crate::route::Backend;

fn route(name: &str, layer: Layer, created: u64, hostnames: &[&str]) -> Route {
    let rule = Rule { route: name.into(), ..Rule::default() };
    let hostnames = hostnames.iter().map(|name| Hostname::parse(name).unwrap()).collect();
    Route { name: name.into(), created, layer, hostnames, rules: vec![rule] }
}

fn tls(name: &str, hostnames: &[&str]) -> Route {
    route(&format!("TLSRoute/{name}"), Layer::Tls, 0, hostnames)
}

fn tcp(name: &str) -> Route {
    route(&format!("TCPRoute/{name}"), Layer::Tcp, 0, &[])
}

/// Route and hostname that take it; what it is refused with; or nothing.
fn taken(table: &ConnectionTable, opening: Opening<'_>) -> String {
    match table.select(opening) {
        Ok(None) => String::new(),
        Ok(Some(taken)) => format!("{} {}", taken.rule.route, taken.hostname.map_or("-", |name| name.text())),
        Err(reason) => reason.code().to_owned(),
    }
}

fn asks(sni: &str) -> Opening<'_> {
    Opening::Tls { sni: Some(sni) }
}

#[test]
fn what_is_a_hostname() {
    for (text, wanted) in [
        ("a.example", Some("a.example")),
        ("A.Example.", Some("a.example")),
        ("*.Example", Some("*.example")),
        ("*.com", Some("*.com")),
        ("localhost", Some("localhost")),
        ("", None),
        (".", None),
        ("*", None),
        ("*.", None),
        ("a..b", None),
        ("a.*.b", None),
        ("*a.b", None),
        ("*.*.b", None),
        ("-a.b", None),
        ("a_b.c", None),
        ("a b", None),
        ("ä.example", None),
    ] {
        assert_eq!(Hostname::parse(text).ok().map(|name| name.text().to_string()), wanted.map(str::to_owned), "{text}");
    }
    for address in ["10.0.0.1", "::1", "*.10.0.0.1"] {
        assert_eq!(Hostname::parse(address), Err(BadHostname::Address), "{address}");
    }
    assert!(Hostname::parse(&["a"; 127].join(".")).is_ok());
    assert!(Hostname::parse(&["a"; 128].join(".")).is_err());
    assert!(Hostname::parse(&"a".repeat(64)).is_err());
}

#[test]
fn names_match_whole_labels_without_regard_to_case_and_dot() {
    for (hostname, sni, yes) in [
        ("a.example", "a.example", true),
        ("a.example", "A.EXAMPLE", true),
        ("a.example", "a.example.", true),
        ("a.example", "b.a.example", false),
        ("a.example", "example", false),
        ("*.example", "a.example", true),
        ("*.example", "b.A.Example.", true),
        ("*.example", "example", false),
        ("*.example", ".example", false),
        ("*.example", "anexample", false),
        ("*.example", "", false),
        ("*.a.example", "b.example", false),
        ("a.example", "", false),
    ] {
        assert_eq!(Hostname::parse(hostname).unwrap().matches(sni), yes, "{hostname} on {sni}");
    }
}

#[test]
fn tls_goes_by_its_name_and_is_refused_if_none_matches() {
    let named = [tls("ns/b", &["*.example", "b.example"]), tls("ns/a", &["a.example"]), tcp("ns/rest")];
    let table = Tables::new(named.to_vec()).connections.unwrap();
    assert!(table.reads_tls());
    for (sni, wanted) in [
        ("a.example", "TLSRoute/ns/a a.example"),
        ("b.example", "TLSRoute/ns/b b.example"),
        ("c.example", "TLSRoute/ns/b *.example"),
        ("other", "no_route"),
    ] {
        assert_eq!(taken(&table, asks(sni)), wanted, "{sni}");
    }
    // Without a name only a route without hostnames takes it; what is no TLS is not about TLSRoutes.
    assert_eq!(taken(&table, Opening::Tls { sni: None }), "no_route");
    assert_eq!(taken(&table, Opening::Opaque), "TCPRoute/ns/rest -");
    let table = Tables::new(vec![named[0].clone(), tls("ns/any", &[])]).connections.unwrap();
    assert_eq!(taken(&table, Opening::Tls { sni: None }), "TLSRoute/ns/any -");
    assert_eq!(taken(&table, asks("other")), "TLSRoute/ns/any -");
    assert_eq!(taken(&table, asks("c.example")), "TLSRoute/ns/b *.example");
    assert_eq!(taken(&table, Opening::Opaque), "");
}

#[test]
fn tcp_routes_take_what_no_kind_above_them_is_about() {
    let headers = HeaderMap::new();
    let view = RequestView { method: &Method::GET, path: "/", query: None, headers: (&headers).into() };
    let by = |tables: &Tables| {
        tables.requests.as_ref().map(|table| table.select(&view).map(|(rule, _)| rule.route.to_string()))
    };
    let http = route("HTTPRoute/ns/h", Layer::Http, 9, &[]);
    let tables = Tables::new(vec![tcp("ns/b"), tcp("ns/a")]);
    let connections = tables.connections.as_ref().unwrap();
    assert!(!connections.reads_tls());
    for opening in [Opening::Opaque, asks("a.example"), Opening::Tls { sni: None }] {
        assert_eq!(taken(connections, opening), "TCPRoute/ns/a -");
    }
    assert_eq!(by(&tables), Some(Some("TCPRoute/ns/a".to_owned())));
    assert_eq!(by(&Tables::new(vec![tcp("ns/a"), http.clone()])), Some(Some("HTTPRoute/ns/h".to_owned())));
    // A TLSRoute is about no request, an HTTPRoute about nothing else.
    assert_eq!(by(&Tables::new(vec![tls("ns/t", &["a.example"])])), None);
    assert!(Tables::new(vec![http]).connections.is_none());
    assert!(Tables::new(Vec::new()).requests.is_none());
}

#[test]
fn a_route_without_rules_takes_nothing_and_still_refuses() {
    let mut empty = tls("ns/t", &["a.example"]);
    empty.rules.clear();
    let table = Tables::new(vec![empty]).connections.unwrap();
    assert_eq!(taken(&table, asks("a.example")), "no_route");
    assert_eq!(taken(&table, Opening::Opaque), "");
}

#[test]
fn a_share_that_cannot_be_used_is_refused() {
    let mut half = tcp("ns/t");
    let usable = Backend { service: "service/ns/a:1".into(), weight: 1, ..Backend::default() };
    let invalid = Backend { invalid: Some("no such service".into()), ..usable.clone() };
    half.rules[0].backends = vec![usable, invalid];
    let table = Tables::new(vec![half]).connections.unwrap();
    let drawn =
        |random| table.select(Opening::Opaque).unwrap().unwrap().backend(random).map(|to| to.service.to_string());
    assert_eq!(drawn(0), Ok("service/ns/a:1".to_owned()));
    assert_eq!(drawn(u64::MAX), Err(Reason::InvalidBackend));
    let none = Tables::new(vec![tcp("ns/t")]).connections.unwrap();
    assert_eq!(none.select(Opening::Opaque).unwrap().unwrap().backend(0).err(), Some(Reason::InvalidBackend));
}

/// The specification's words, without cleverness: of all hostnames that match the most specific, then the oldest, then by name.
fn oracle(routes: &[Route], sni: Option<&str>) -> String {
    let labels = |name: &str| -> Vec<String> {
        name.trim_end_matches('.').to_lowercase().split('.').rev().map(str::to_owned).collect()
    };
    let mut found = Vec::new();
    for route in routes {
        let mut offers: Vec<(u8, usize, String)> = Vec::new();
        for hostname in &route.hostnames {
            let Some(sni) = sni else { continue };
            let (asked, wanted) = (labels(sni), labels(hostname.text()));
            if wanted.last().is_some_and(|first| first == "*") {
                let end = &wanted[..wanted.len() - 1];
                if asked.len() > end.len() && asked.starts_with(end) {
                    offers.push((1, hostname.text().len(), hostname.text().to_string()));
                }
            } else if asked == wanted {
                offers.push((0, 0, hostname.text().to_string()));
            }
        }
        if route.hostnames.is_empty() {
            offers.push((2, 0, "-".to_owned()));
        }
        for (class, length, hostname) in offers {
            let rank = (class, Reverse(length), route.created, route.name.to_string());
            found.push((rank, format!("{} {hostname}", route.name)));
        }
    }
    found.into_iter().min().map_or_else(|| "no_route".to_owned(), |(_, taken)| taken)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn takes_what_the_specification_takes(
        written in prop::collection::vec(
            (0u64..3, prop::collection::vec(prop::sample::select(vec![
                "a.example", "b.example", "*.example", "*.b.example", "a.b.example", "*.com", "example",
            ]), 0..4)),
            1..5,
        ),
        sni in prop::option::of("(a|A|b|B|c)(\\.(b|B))?\\.(example|EXAMPLE|com)\\.?|example\\.?|[a-zA-Z]{1,6}(\\.com)?"),
        turn in 0usize..5,
    ) {
        let mut routes: Vec<Route> = Vec::new();
        for (index, (created, hostnames)) in written.iter().enumerate() {
            let mut hostnames = hostnames.clone();
            hostnames.sort_unstable();
            hostnames.dedup();
            routes.push(route(&format!("TLSRoute/ns/{index}"), Layer::Tls, *created, &hostnames));
        }
        let expected = oracle(&routes, sni.as_deref());
        let by = turn % routes.len();
        routes.rotate_left(by);
        let table = Tables::new(routes).connections.unwrap();
        prop_assert_eq!(taken(&table, Opening::Tls { sni: sni.as_deref() }), expected);
    }
}
