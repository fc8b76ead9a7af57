use http::Method;
use proptest::prelude::*;

use super::*;

fn identity(namespace: &str, account: &str) -> Identity {
    Identity::new("cluster.local", namespace, account).unwrap()
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::parse(text)).collect()
}

fn from(identities: &[&str], namespaces: &[&str]) -> From {
    From { identities: patterns(identities), namespaces: patterns(namespaces), trust_domain: None }
}

fn to(methods: &[&str], paths: &[&str]) -> To {
    To { methods: methods.iter().map(|text| (*text).into()).collect(), paths: patterns(paths) }
}

fn policy(name: &str, action: Action, rules: Vec<(Vec<From>, Vec<To>)>) -> Policy {
    let rules = rules.into_iter().enumerate();
    Policy {
        name: name.into(),
        source: "p.yaml:1".into(),
        action,
        rules: rules.map(|(at, (from, to))| Rule { source: format!("p.yaml:{}", at + 5).into(), from, to }).collect(),
        broken: None,
    }
}

fn code(verdict: &Verdict) -> Option<Reason> {
    match verdict {
        Verdict::Allow { .. } => None,
        Verdict::Deny { reason, .. } => Some(*reason),
    }
}

fn ask(set: &PolicySet, peer: Option<&Identity>, http: Option<(&Method, &str)>) -> Option<Reason> {
    code(&set.decide(&Question { peer, http }))
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[test]
fn the_order_is_broken_deny_allow_default() {
    let web = identity("shop", "web");
    let get = Some((&Method::GET, "/"));
    let allow = || policy("allow", Action::Allow, vec![(vec![from(&[WEB], &[])], vec![])]);
    let deny = || policy("deny", Action::Deny, vec![(vec![from(&[], &["shop"])], vec![])]);
    let broken = || Policy { broken: Some((Reason::PolicyInvalid, "misspelt".into())), ..allow() };
    for (policies, default_deny, expected) in [
        (vec![], false, None),
        (vec![], true, Some(Reason::NotAllowed)),
        (vec![allow()], false, None),
        (vec![allow()], true, None),
        (vec![allow(), deny()], false, Some(Reason::DeniedByPolicy)),
        (vec![deny()], false, Some(Reason::DeniedByPolicy)),
        (vec![allow(), deny(), broken()], false, Some(Reason::PolicyInvalid)),
        (vec![broken()], false, Some(Reason::PolicyInvalid)),
        (vec![policy("empty", Action::Allow, vec![])], false, Some(Reason::NotAllowed)),
        (vec![policy("empty", Action::Deny, vec![])], false, None),
        (vec![policy("empty", Action::Deny, vec![])], true, Some(Reason::NotAllowed)),
        (vec![policy("all", Action::Allow, vec![(vec![], vec![])])], true, None),
        (vec![policy("all", Action::Deny, vec![(vec![], vec![])])], false, Some(Reason::DeniedByPolicy)),
    ] {
        let set = PolicySet::new(policies, default_deny);
        assert_eq!(ask(&set, Some(&web), get), expected, "{set:?}");
    }
}

#[test]
fn a_verdict_names_policy_and_line() {
    let web = identity("shop", "web");
    let question = Question { peer: Some(&web), http: None };
    let by = |policies| match PolicySet::new(policies, false).decide(&question) {
        Verdict::Allow { by } | Verdict::Deny { by, .. } => by.to_string(),
    };
    let rules = || vec![(vec![from(&["nobody"], &[])], vec![]), (vec![from(&[WEB], &[])], vec![])];
    assert_eq!(by(vec![policy("p", Action::Allow, rules())]), "p at p.yaml:6");
    assert_eq!(by(vec![policy("p", Action::Deny, rules())]), "p at p.yaml:6");
    assert_eq!(by(vec![]), "");
    let broken =
        Policy { broken: Some((Reason::PolicyInvalid, "misspelt".into())), ..policy("p", Action::Allow, vec![]) };
    assert_eq!(by(vec![broken]), "p at p.yaml:1: misspelt");
}

#[test]
fn each_non_empty_list_of_an_entry_must_hold() {
    let (web, other) = (identity("shop", "web"), identity("shop", "other"));
    let entry = from(&[WEB], &["shop*"]);
    let set = PolicySet::new(
        vec![policy("p", Action::Allow, vec![(vec![entry], vec![to(&["GET", "HEAD"], &["/a/*", "/b"])])])],
        false,
    );
    for (peer, method, path, allowed) in [
        (Some(&web), Method::GET, "/a/x", true),
        (Some(&web), Method::HEAD, "/b", true),
        (Some(&web), Method::GET, "/b/x", false),
        (Some(&web), Method::POST, "/b", false),
        (Some(&other), Method::GET, "/b", false),
        (None, Method::GET, "/b", false),
    ] {
        assert_eq!(ask(&set, peer, Some((&method, path))).is_none(), allowed, "{peer:?} {method} {path}");
    }
}

#[test]
fn a_peer_without_identity_matches_no_entry_of_from() {
    let all = From::default();
    let denied = PolicySet::new(vec![policy("p", Action::Deny, vec![(vec![all.clone()], vec![])])], false);
    assert_eq!(ask(&denied, None, None), None);
    assert_eq!(ask(&denied, Some(&identity("a", "b")), None), Some(Reason::DeniedByPolicy));
    let allowed = PolicySet::new(vec![policy("p", Action::Allow, vec![(vec![all], vec![])])], false);
    assert_eq!(ask(&allowed, None, None), Some(Reason::NotAllowed));
}

#[test]
fn what_is_not_http_fails_closed() {
    let web = identity("shop", "web");
    let by_path = || vec![(vec![from(&[WEB], &[])], vec![to(&[], &["/admin/*"])])];
    let by_method = || vec![(vec![], vec![to(&["GET"], &[])])];
    for rules in [by_path(), by_method()] {
        let set = |action| PolicySet::new(vec![policy("p", action, rules.clone())], false);
        assert_eq!(ask(&set(Action::Allow), Some(&web), None), Some(Reason::NotAllowed));
        assert_eq!(ask(&set(Action::Deny), Some(&web), None), Some(Reason::DeniedByPolicy));
    }
    let others = PolicySet::new(vec![policy("p", Action::Deny, by_path())], false);
    assert_eq!(ask(&others, Some(&identity("shop", "other")), None), None);
    let anything = PolicySet::new(vec![policy("p", Action::Allow, vec![(vec![], vec![To::default()])])], false);
    assert_eq!(ask(&anything, None, None), None);
}

#[test]
fn spellings_of_a_path_are_seen_through() {
    let deny = PolicySet::new(vec![policy("p", Action::Deny, vec![(vec![], vec![to(&[], &["/admin*"])])])], false);
    let allow = PolicySet::new(vec![policy("p", Action::Allow, vec![(vec![], vec![to(&[], &["/public/*"])])])], false);
    for path in ["/x/../admin", "/%61dmin", "//admin", "/x%2f..%2fadmin", "/\\admin", "/%00", "/public/../admin"] {
        assert_eq!(ask(&deny, None, Some((&Method::GET, path))), Some(Reason::DeniedByPolicy), "{path}");
        assert_eq!(ask(&allow, None, Some((&Method::GET, path))), Some(Reason::NotAllowed), "{path}");
    }
    let spaced = PolicySet::new(vec![policy("p", Action::Allow, vec![(vec![], vec![to(&[], &["/a%20b"])])])], false);
    assert_eq!(ask(&spaced, None, Some((&Method::GET, "/a%20b"))), None);
    assert_eq!(ask(&spaced, None, Some((&Method::GET, "/a%20c"))), Some(Reason::NotAllowed));
}

#[test]
fn patterns_match_identities_without_their_text() {
    let web = identity("shop", "web");
    for (text, yes) in [
        (WEB, true),
        ("*", true),
        ("spiffe://*", true),
        ("spiffe://cluster.local/*", true),
        ("spiffe://cluster.local/ns/shop/sa/*", true),
        ("spiffe://cluster.local/ns/shop/sa/we*", true),
        ("spiffe://cluster.local/ns/shop/sa/web*", true),
        ("spiffe://cluster.local/ns/sh*", true),
        ("spiffe://cluster.local/ns/shop/sa/webx", false),
        ("spiffe://cluster.local/ns/shop/sa/we", false),
        ("spiffe://cluster.local/ns/shop2/sa/*", false),
        ("spiffe://cluster.local/ns/shop/sa/webx*", false),
        ("spiffe://other/ns/shop/sa/web", false),
        ("", false),
    ] {
        assert_eq!(Pattern::parse(text).matches_identity(&web), yes, "{text}");
    }
    assert_eq!(Pattern::parse("/a*").to_string(), "/a*");
}

#[test]
fn a_strict_port_takes_no_plain_peer() {
    let web = identity("shop", "web");
    assert_eq!(plain_may(true, None), Err(Reason::PlaintextRefused));
    assert_eq!(plain_may(true, Some(&web)), Ok(()));
    assert_eq!(plain_may(false, None), Ok(()));
}

/// The rules in the words of the module's text, on plain paths only.
fn oracle(
    policies: &[Policy],
    default_deny: bool,
    peer: Option<&Identity>,
    http: Option<(&str, &str)>,
) -> Option<Reason> {
    let text = |pattern: &Pattern, text: &str| match pattern {
        Pattern::Exact(wanted) => **wanted == *text,
        Pattern::Prefix(prefix) => text.len() >= prefix.len() && text[..prefix.len()] == **prefix,
    };
    let any = |patterns: &[Pattern], value: &str| patterns.iter().any(|pattern| text(pattern, value));
    let hit = |policy: &Policy| {
        policy.rules.iter().any(|rule| {
            let from = rule.from.is_empty()
                || rule.from.iter().any(|from| match peer {
                    None => false,
                    Some(peer) => {
                        (from.identities.is_empty() || any(&from.identities, &peer.to_string()))
                            && (from.namespaces.is_empty() || any(&from.namespaces, &peer.namespace))
                    }
                });
            let to = rule.to.is_empty()
                || rule.to.iter().any(|to| match http {
                    None => (to.methods.is_empty() && to.paths.is_empty()) || policy.action == Action::Deny,
                    Some((method, path)) => {
                        (to.methods.is_empty() || to.methods.iter().any(|wanted| **wanted == *method))
                            && (to.paths.is_empty() || any(&to.paths, path))
                    }
                });
            from && to
        })
    };
    if let Some(broken) = policies.iter().find_map(|policy| policy.broken.as_ref()) {
        return Some(broken.0);
    }
    if policies.iter().any(|policy| policy.action == Action::Deny && hit(policy)) {
        return Some(Reason::DeniedByPolicy);
    }
    let allows: Vec<&Policy> = policies.iter().filter(|policy| policy.action == Action::Allow).collect();
    let allowed = if allows.is_empty() { !default_deny } else { allows.iter().any(|policy| hit(policy)) };
    (!allowed).then_some(Reason::NotAllowed)
}

fn some<T: Clone + std::fmt::Debug + 'static>(of: &[T]) -> impl Strategy<Value = Vec<T>> + use<T> {
    prop::collection::vec(prop::sample::select(of.to_vec()), 0..3)
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let ids = [WEB, "spiffe://cluster.local/ns/shop/*", "*", "spiffe://cluster.local/ns/a/sa/b"];
    let who = (some(&ids), some(&["shop", "a*", "*", "b"])).prop_map(|(ids, namespaces)| from(&ids, &namespaces));
    let what = (some(&["GET", "POST"]), some(&["/", "/a", "/a*", "/a/*", "*"]))
        .prop_map(|(methods, paths)| to(&methods, &paths));
    let rule = (prop::collection::vec(who, 0..3), prop::collection::vec(what, 0..3));
    let action = prop::sample::select(vec![Action::Allow, Action::Deny]);
    let policy =
        (action, prop::collection::vec(rule, 0..3), prop::bool::weighted(0.03)).prop_map(|(action, rules, broken)| {
            let broken = broken.then(|| (Reason::PolicyUnsupported, "new".into()));
            Policy { broken, ..policy("p", action, rules) }
        });
    prop::collection::vec(policy, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn decides_as_the_text_says(
        policies in policies(),
        default_deny in any::<bool>(),
        peer in prop::option::of(prop::sample::select(vec![("shop", "web"), ("shop", "db"), ("a", "b"), ("ab", "c")])),
        http in prop::option::of((prop::sample::select(vec!["GET", "POST", "PUT"]), prop::sample::select(vec!["/", "/a", "/a/b", "/ab", "/c"]))),
    ) {
        let peer = peer.map(|(namespace, account)| identity(namespace, account));
        let method = http.map(|(method, _)| method.parse::<Method>().unwrap());
        let set = PolicySet::new(policies.clone(), default_deny);
        let asked = http.zip(method.as_ref()).map(|((_, path), method)| (method, path));
        prop_assert_eq!(ask(&set, peer.as_ref(), asked), oracle(&policies, default_deny, peer.as_ref(), http));
    }
}
