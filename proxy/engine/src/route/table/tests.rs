use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::route::{Backend, Filter, HeaderEdit, Redirect, ValueMatch, whole_regex};

/// A match as a person writes it: what the oracle reads.
#[derive(Clone, Debug)]
struct Written {
    path: Option<(char, &'static str)>,
    method: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

#[derive(Clone, Debug)]
struct WrittenRoute {
    kind: &'static str,
    name: &'static str,
    created: u64,
    rules: Vec<Vec<Written>>,
}

#[derive(Clone, Debug)]
struct Asked {
    path: &'static str,
    method: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

impl Written {
    fn compile(&self) -> Match {
        let exact = |text: &str| ValueMatch::Exact(text.to_owned());
        Match {
            path: self.path.map(|(kind, text)| match kind {
                'e' => PathMatch::Exact(text.into()),
                'p' => PathMatch::Prefix(text.into()),
                _ => PathMatch::Regex(whole_regex(text).unwrap()),
            }),
            method: self.method.map(|m| m.parse().unwrap()),
            headers: self.headers.iter().map(|(n, v)| (HeaderName::from_static(n), exact(v))).collect(),
            query: self.query.iter().map(|(n, v)| ((*n).into(), exact(v))).collect(),
        }
    }

    /// The specification's words, without cleverness.
    fn takes(&self, asked: &Asked) -> bool {
        let elements = |path: &str| -> Vec<String> {
            path.split('/').filter(|element| !element.is_empty()).map(str::to_owned).collect()
        };
        let path = match self.path {
            None => true,
            Some(('e', text)) => asked.path == text,
            Some(('p', text)) => elements(asked.path).starts_with(&elements(text)),
            Some((_, text)) => text.split('|').any(|one| match one.strip_suffix(".*") {
                Some(start) => asked.path.starts_with(start),
                None => asked.path == one,
            }),
        };
        path && self.method.is_none_or(|m| m == asked.method)
            && self.headers.iter().all(|wanted| asked.headers.contains(wanted))
            && self
                .query
                .iter()
                .all(|(n, v)| asked.query.iter().find(|(found, _)| found == n).is_some_and(|q| q.1 == *v))
    }

    /// Whether it goes before another, by the specification's list; `None` is a tie.
    fn beats(&self, other: &Self) -> Option<bool> {
        let exact = |w: &Self| matches!(w.path, Some(('e', _)));
        let length = |w: &Self| match w.path {
            None => 1,
            Some(('p', text)) => text.trim_end_matches('/').len().max(1),
            Some((_, text)) => text.len(),
        };
        let by = |a: usize, b: usize| (a != b).then_some(a > b);
        by(usize::from(exact(self)), usize::from(exact(other)))
            .or_else(|| if exact(self) { None } else { by(length(self), length(other)) })
            .or_else(|| by(usize::from(self.method.is_some()), usize::from(other.method.is_some())))
            .or_else(|| by(self.headers.len(), other.headers.len()))
            .or_else(|| by(self.query.len(), other.query.len()))
    }
}

/// Route, rule and match that the specification selects.
fn oracle(routes: &[WrittenRoute], asked: &Asked) -> Option<(String, usize)> {
    let everything = Written { path: None, method: None, headers: vec![], query: vec![] };
    let mut candidates = Vec::new();
    for route in routes {
        for (rule, matches) in route.rules.iter().enumerate() {
            let matches = if matches.is_empty() { std::slice::from_ref(&everything) } else { matches };
            candidates.extend(matches.iter().filter(|m| m.takes(asked)).map(|m| (route, rule, m)));
        }
    }
    let mut best: Option<(&WrittenRoute, usize, &Written)> = None;
    for candidate in candidates {
        let better = best.is_none_or(|best| {
            candidate.2.beats(best.2).unwrap_or_else(|| {
                let age = |c: (&WrittenRoute, usize, &Written)| (c.0.created, c.0.name.to_owned(), c.0.kind, c.1);
                age(candidate) < age(best)
            })
        });
        if better {
            best = Some(candidate);
        }
    }
    best.map(|(route, rule, _)| (format!("{}/{}", route.kind, route.name), rule))
}

fn table(routes: &[WrittenRoute]) -> RouteTable {
    let rule = |route: &WrittenRoute, index: usize| Rule {
        route: format!("{}/{}", route.kind, route.name).into(),
        name: index.to_string().into(),
        matches: route.rules[index].iter().map(Written::compile).collect(),
        ..Rule::default()
    };
    RouteTable::new(
        routes
            .iter()
            .map(|route| Route {
                name: format!("{}/{}", route.kind, route.name).into(),
                created: route.created,
                rules: (0..route.rules.len()).map(|index| rule(route, index)).collect(),
                ..Route::default()
            })
            .collect(),
    )
}

fn with_view<T>(asked: &Asked, run: impl FnOnce(&RequestView<'_>) -> T) -> T {
    let mut headers = HeaderMap::new();
    for (name, value) in &asked.headers {
        headers.append(*name, HeaderValue::from_static(value));
    }
    let query: Vec<String> = asked.query.iter().map(|(n, v)| format!("{n}={v}")).collect();
    let query = query.join("&");
    let method: Method = asked.method.parse().unwrap();
    run(&RequestView {
        method: &method,
        path: asked.path,
        query: (!query.is_empty()).then_some(query.as_str()),
        headers: (&headers).into(),
    })
}

fn mostly_one() -> impl Strategy<Value = &'static str> {
    prop_oneof![5 => Just("1"), 1 => Just("2")]
}

fn written() -> impl Strategy<Value = Written> {
    let path = prop_oneof![
        Just(None),
        (Just('e'), prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/ab"])).prop_map(Some),
        (Just('p'), prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c"])).prop_map(Some),
        (Just('r'), prop::sample::select(vec!["/a", "/a/.*", "/a|/ab", "/a/b/cc|/.*"])).prop_map(Some),
    ];
    let pairs = || {
        prop::collection::vec((prop::sample::select(vec!["x", "y", "z"]), mostly_one()), 0..3).prop_map(|mut pairs| {
            pairs.sort_unstable();
            pairs.dedup_by_key(|(name, _)| *name);
            pairs
        })
    };
    (path, prop::option::of(prop::sample::select(vec!["GET", "POST"])), pairs(), pairs())
        .prop_map(|(path, method, headers, query)| Written { path, method, headers, query })
}

fn routes() -> impl Strategy<Value = Vec<WrittenRoute>> {
    let name = prop::sample::select(vec!["ns/a", "ns/b", "ns-a/a", "ns/a-b"]);
    // Those of gRPC are ranked otherwise, and never among them.
    let kind = Just("HTTPRoute");
    let rules = prop::collection::vec(prop::collection::vec(written(), 0..4), 1..4);
    let route = (kind, name, 0u64..3, rules).prop_map(|(kind, name, created, rules)| WrittenRoute {
        kind,
        name,
        created,
        rules,
    });
    prop::collection::vec(route, 0..4).prop_map(|mut routes| {
        routes.sort_by_key(|route| (route.kind, route.name));
        routes.dedup_by_key(|route| (route.kind, route.name));
        routes
    })
}

fn asked() -> impl Strategy<Value = Asked> {
    let pairs = || prop::collection::vec((prop::sample::select(vec!["x", "y", "z"]), mostly_one()), 0..6);
    let path = prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/c", "/abc/d"]);
    (path, prop::sample::select(vec!["GET", "POST", "PUT"]), pairs(), pairs())
        .prop_map(|(path, method, headers, query)| Asked { path, method, headers, query })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn selects_what_the_specification_selects(routes in routes(), asked in asked(), turn in 0usize..4) {
        let expected = oracle(&routes, &asked);
        let mut turned = routes.clone();
        if !turned.is_empty() {
            let by = turn % turned.len();
            turned.rotate_left(by);
        }
        let table = table(&turned);
        let found = with_view(&asked, |view| {
            table.select(view).map(|(rule, _)| (rule.route.to_string(), rule.name.parse::<usize>().unwrap()))
        });
        prop_assert_eq!(found, expected);
    }
}

/// Gateway API's list, one step each: the second of a pair loses although all the rest speaks for it.
#[test]
fn each_step_of_the_precedence_outweighs_those_after_it() {
    type Pairs = Vec<(&'static str, &'static str)>;
    let of = |path, method, headers: Pairs, query: Pairs| Written { path: Some(path), method, headers, query };
    let (one, two): (Pairs, Pairs) = (vec![("x", "1")], vec![("x", "1"), ("y", "1")]);
    let all = || (two.clone(), two.clone());
    for (winner, (headers, query), path, method) in [
        (of(('e', "/a/b"), None, vec![], vec![]), all(), ('p', "/a/b"), Some("GET")),
        (of(('p', "/a/b"), None, vec![], vec![]), all(), ('p', "/a"), Some("GET")),
        (of(('p', "/a"), Some("GET"), vec![], vec![]), all(), ('p', "/a"), None),
        (of(('p', "/a"), None, two.clone(), vec![]), (one.clone(), two.clone()), ('p', "/a"), None),
        (of(('p', "/a"), None, one.clone(), two.clone()), (one.clone(), one.clone()), ('p', "/a/"), None),
    ] {
        let loser = of(path, method, headers, query);
        let asked = Asked { path: "/a/b", method: "GET", headers: two.clone(), query: two.clone() };
        for rules in [vec![vec![winner.clone()], vec![loser.clone()]], vec![vec![loser.clone()], vec![winner.clone()]]]
        {
            let expected = rules.iter().position(|rule| rule[0].beats(&loser) == Some(true));
            let table = table(&[WrittenRoute { kind: "HTTPRoute", name: "ns/a", created: 0, rules }]);
            let found = with_view(&asked, |view| table.select(view).map(|(_, index)| index));
            assert!(found.is_some() && found == expected, "{winner:?} against {loser:?}");
        }
    }
}

/// GRPCRoute's own list, in forms that its matches are compiled to; whatever stands first here goes first.
#[test]
fn of_grpc_the_service_counts_before_the_method_and_that_before_headers() {
    let of = |path, headers| Written { path: Some(path), method: None, headers, query: vec![] };
    let all = [
        of(('e', "/p.Service/Do"), vec![]),
        of(('p', "/p.Service"), vec![("x", "1")]),
        of(('r', "/(?:p[.]S.*)/(?:D.)"), vec![]),
        of(('r', "/(?:p[.].*)/[^/]+"), vec![("x", "1")]),
        of(('r', "/[^/]+/Do"), vec![]),
        Written { path: None, method: None, headers: vec![("x", "1")], query: vec![] },
        Written { path: None, method: None, headers: vec![], query: vec![] },
    ];
    let asked = Asked { path: "/p.Service/Do", method: "POST", headers: vec![("x", "1")], query: vec![] };
    for (first, winner) in all.iter().enumerate() {
        for loser in &all[first + 1..] {
            let rules = vec![vec![loser.clone()], vec![winner.clone()]];
            let table = table(&[WrittenRoute { kind: "GRPCRoute", name: "ns/a", created: 0, rules }]);
            let found = with_view(&asked, |view| table.select(view).map(|(_, index)| index));
            assert_eq!(found, Some(1), "{winner:?} against {loser:?}");
        }
    }
}

#[test]
fn rules_keep_their_order_and_index() {
    let everything = |name| WrittenRoute { kind: "HTTPRoute", name, created: 1, rules: vec![vec![], vec![]] };
    let mut older = everything("ns/z");
    older.created = 0;
    let table = table(&[everything("ns/b"), everything("ns/a"), older]);
    let names: Vec<&str> = table.rules().iter().map(|rule| &*rule.route).collect();
    assert_eq!(
        names.chunks(2).map(|pair| pair[0]).collect::<Vec<_>>(),
        ["HTTPRoute/ns/z", "HTTPRoute/ns/a", "HTTPRoute/ns/b"]
    );
    let any = Asked { path: "/", method: "GET", headers: vec![], query: vec![] };
    with_view(&any, |view| {
        let (rule, index) = table.select(view).unwrap();
        assert!(std::ptr::eq(rule, &raw const table.rules()[index]));
        assert_eq!(index, 0);
    });
}

#[test]
fn a_choice_has_a_usable_backend_or_a_reason() {
    let any = Asked { path: "/", method: "GET", headers: vec![], query: vec![] };
    let with = |backends: Vec<Backend>| {
        RouteTable::new(vec![Route { rules: vec![Rule { backends, ..Rule::default() }], ..Route::default() }])
    };
    let backend = |weight, invalid: Option<Arc<str>>| Backend { weight, invalid, ..Backend::default() };
    let choose = |table: &RouteTable, random| {
        let called = Called { authority: b"", address: ([10, 0, 0, 1], 80).into() };
        with_view(&any, |view| table.choose(view, &called, random).map(|choice| (choice.rule_index, choice.backend)))
    };
    assert_eq!(choose(&RouteTable::new(vec![]), 0), Err(Reason::NoRoute.into()));
    assert_eq!(choose(&with(vec![]), 0), Err(Reason::InvalidBackend.into()));
    assert_eq!(choose(&with(vec![backend(0, None)]), 0), Err(Reason::InvalidBackend.into()));
    let half = with(vec![backend(1, None), backend(1, Some("no such service".into()))]);
    assert_eq!(choose(&half, 0), Ok((0, 0)));
    assert_eq!(choose(&half, u64::MAX), Err(Reason::InvalidBackend.into()));
}

#[test]
fn a_filter_that_answers_needs_no_backend_and_one_of_a_backend_waits_for_it() {
    let any = Asked { path: "/a", method: "GET", headers: vec![], query: vec![] };
    let called = Called { authority: b"shop", address: ([10, 0, 0, 1], 80).into() };
    let redirect = |host: &str| {
        let host = Some(host.to_owned());
        Filter::Redirect(Redirect { scheme: None, host, port: None, path: None, status: StatusCode::FOUND })
    };
    let edit = HeaderEdit { set: vec![("x-a".parse().unwrap(), "b".parse().unwrap())], ..HeaderEdit::default() };
    let choose = |rule: Rule, random| {
        let table = RouteTable::new(vec![Route { rules: vec![rule], ..Route::default() }]);
        let chosen = with_view(&any, |view| table.choose(view, &called, random).map(|choice| choice.backend));
        chosen.map_err(|ended| match ended {
            Ended::Answered(answer) => (answer.status, format!("{:?}", answer.headers)),
            Ended::Refused(reason) => (reason.http_status(), reason.to_string()),
        })
    };
    let rule = Rule { filters: vec![Filter::ResponseHeaders(edit), redirect("one")], ..Rule::default() };
    let told = (StatusCode::FOUND, r#"{"location": "http://one/a", "x-a": "b"}"#.to_owned());
    assert_eq!(choose(rule, 0), Err(told));
    let one = Backend { weight: 1, ..Backend::default() };
    let two = Backend { filters: vec![redirect("two")], ..one.clone() };
    let rule = Rule { backends: vec![one, two], ..Rule::default() };
    assert_eq!(choose(rule.clone(), 0), Ok(0));
    assert_eq!(choose(rule, u64::MAX), Err((StatusCode::FOUND, r#"{"location": "http://two/a"}"#.to_owned())));
}
