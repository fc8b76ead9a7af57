//! Which policies cover a port, and what became of those that could not be had.

use std::collections::HashMap;
use std::sync::Arc;

use weft_engine::authz::{Action, Question, Rule, Verdict};
use weft_engine::identity::Identity;
use weft_engine::ratelimit::{Key, Limiter, Rate};
use weft_engine::reason::Reason;

use super::super::{InboundPort, Protocol};
use super::*;

type Resources = HashMap<&'static str, Result<Decoded, ResourceError>>;

const ALLOW: &str = "AuthorizationPolicy/shop/allow";
const DENY: &str = "AuthorizationPolicy/shop/deny";
const REFUSED: &str = "AuthorizationPolicy/shop/refused";
const UNKNOWN: &str = "AuthorizationPolicy/shop/unknown";
const BROKEN: &str = "AuthorizationPolicy/shop/broken";
const STRANGE: &str = "AuthorizationPolicy/shop/strange";
const LIMIT: &str = "RateLimitPolicy/shop/limit";
const OTHER_LIMIT: &str = "RateLimitPolicy/shop/other";
const REFUSED_LIMIT: &str = "RateLimitPolicy/shop/refused";
const BROKEN_LIMIT: &str = "RateLimitPolicy/shop/broken";
const STRANGE_LIMIT: &str = "RateLimitPolicy/shop/strange";
const ABSENT: &str = "AuthorizationPolicy/shop/absent";
const ABSENT_LIMIT: &str = "RateLimitPolicy/shop/absent";

fn policy(name: &str, action: Action, broken: Option<Reason>) -> Policy {
    let broken = broken.map(|reason| (reason, "why".into()));
    // One rule without conditions: everybody, everything.
    Policy { name: name.into(), source: "p.yaml:1".into(), action, rules: vec![Rule::default()], broken }
}

fn limit(name: &str, broken: Option<Reason>) -> RateLimitPolicy {
    let rate = Rate { requests: 5, per: std::time::Duration::from_secs(1), burst: 1 };
    let limiters = vec![Limiter::new("all", rate, Key::Service, Vec::new())];
    RateLimitPolicy {
        name: name.into(),
        source: "l.yaml:1".into(),
        limiters: if broken.is_some() { Vec::new() } else { limiters },
        broken: broken.map(|reason| (reason, "why".into())),
    }
}

fn resources() -> Resources {
    let authorization = |name, action, broken| (name, Ok(Decoded::AuthorizationPolicy(policy(name, action, broken))));
    let limits = |name, broken| (name, Ok(Decoded::RateLimitPolicy(limit(name, broken))));
    let refused = |name, code| (name, Err(ResourceError::new(code, "no good")));
    HashMap::from([
        authorization(ALLOW, Action::Allow, None),
        authorization(DENY, Action::Deny, None),
        authorization(BROKEN, Action::Allow, Some(Reason::PolicyUnsupported)),
        refused(REFUSED, ErrorCode::InvalidPath),
        refused(UNKNOWN, ErrorCode::UnknownValue),
        (STRANGE, Ok(Decoded::MeshExtent(Vec::new()))),
        limits(LIMIT, None),
        limits(OTHER_LIMIT, None),
        limits(BROKEN_LIMIT, Some(Reason::PolicyInvalid)),
        refused(REFUSED_LIMIT, ErrorCode::OutOfRange),
        (STRANGE_LIMIT, Ok(Decoded::MeshExtent(Vec::new()))),
    ])
}

/// Bound policies (name, ports) by their kinds.
fn workload(bound: &[(&str, &[u16])], default_deny: bool) -> Workload {
    let bindings = |kind: &str| {
        let ours = bound.iter().filter(|(name, _)| name.starts_with(kind));
        ours.map(|(name, ports)| Binding { policy: (*name).into(), ports: ports.to_vec() }).collect()
    };
    Workload {
        resource: "workload/shop/web-1".into(),
        name: "shop/web-1".into(),
        identity: Identity::new("cluster.local", "shop", "web").unwrap(),
        strict: true,
        other_mode: BTreeSet::new(),
        default_deny,
        ports: vec![InboundPort { port: 8080, protocol: Protocol::default(), services: vec!["shop/web".into()] }],
        authorization: bindings("Authorization"),
        place: weft_engine::balance::Place::default(),
        rate_limits: bindings("RateLimit"),
    }
}

fn join<'p>(workload: &'p Workload, resources: &'p Resources) -> Option<Bound<'p>> {
    Bound::join(workload, |name| resources.get(name).map(Result::as_ref))
}

fn verdict(rules: &PortRules<'_>) -> Option<Reason> {
    match rules.policies.decide(&Question { peer: None, http: None }) {
        Verdict::Allow { .. } => None,
        Verdict::Deny { reason, .. } => Some(reason),
    }
}

#[test]
fn a_port_may_have_the_other_mode() {
    let resources = resources();
    let workload = Workload { other_mode: [9].into(), ..workload(&[(ALLOW, &[8080])], true) };
    let bound = join(&workload, &resources).unwrap();
    assert_eq!(bound.ports(), [9, 8080].into());
    assert_eq!([bound.on(8080).strict, bound.on(9).strict, bound.elsewhere().strict], [true, false, true]);
}

/// Bindings; what 8080, 9 and every other port then say.
type Case = (&'static [(&'static str, &'static [u16])], bool, [Option<Reason>; 3]);

#[test]
fn what_is_bound_covers_its_ports_and_what_is_unusable_closes_them() {
    use Reason::{DeniedByPolicy, NotAllowed, PolicyInvalid, PolicyUnsupported};
    let all = |reason| [Some(reason); 3];
    let cases: [Case; 18] = [
        (&[], false, [None; 3]),
        (&[], true, all(NotAllowed)),
        (&[(ALLOW, &[8080])], true, [None, Some(NotAllowed), Some(NotAllowed)]),
        (&[(ALLOW, &[])], true, [None; 3]),
        (&[(DENY, &[])], false, all(DeniedByPolicy)),
        (&[(DENY, &[9])], false, [None, Some(DeniedByPolicy), None]),
        (&[(ALLOW, &[]), (DENY, &[8080, 9])], false, [Some(DeniedByPolicy), Some(DeniedByPolicy), None]),
        (&[(REFUSED, &[8080])], false, [Some(PolicyInvalid), None, None]),
        (&[(REFUSED, &[])], false, all(PolicyInvalid)),
        (&[(ALLOW, &[]), (UNKNOWN, &[9])], false, [None, Some(PolicyUnsupported), None]),
        (&[(ALLOW, &[]), (BROKEN, &[9])], false, [None, Some(PolicyUnsupported), None]),
        (&[(ALLOW, &[]), (STRANGE, &[9])], false, [None, Some(PolicyInvalid), None]),
        (&[(LIMIT, &[])], false, [None; 3]),
        (&[(LIMIT, &[])], true, all(NotAllowed)),
        (&[(ALLOW, &[]), (REFUSED_LIMIT, &[9])], false, [None, Some(PolicyInvalid), None]),
        (&[(ALLOW, &[]), (BROKEN_LIMIT, &[8080])], false, [Some(PolicyInvalid), None, None]),
        (&[(ALLOW, &[]), (STRANGE_LIMIT, &[])], false, all(PolicyInvalid)),
        // Of two that close, the first of the authorization policies tells why.
        (&[(REFUSED_LIMIT, &[]), (UNKNOWN, &[])], false, all(PolicyUnsupported)),
    ];
    let resources = resources();
    for (bindings, default_deny, expected) in cases {
        let workload = workload(bindings, default_deny);
        let bound = join(&workload, &resources).unwrap();
        let found = [bound.on(8080), bound.on(9), bound.elsewhere()];
        assert_eq!(found.each_ref().map(verdict), expected, "{bindings:?}, default deny {default_deny}");
        assert!(found.iter().all(|rules| rules.strict));
    }
}

#[test]
fn limits_stand_where_they_are_bound() {
    let (resources, bindings) = (resources(), [(LIMIT, &[][..]), (OTHER_LIMIT, &[8080, 9]), (REFUSED_LIMIT, &[10])]);
    let workload = workload(&bindings, false);
    let bound = join(&workload, &resources).unwrap();
    let names = |rules: PortRules<'_>| rules.limits.iter().map(|limit| limit.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(bound.on(8080)), [LIMIT, OTHER_LIMIT]);
    assert_eq!(names(bound.on(10)), [LIMIT], "its own closes instead");
    assert_eq!(names(bound.elsewhere()), [LIMIT]);
    assert_eq!(
        bound.limits().map(|limit| Arc::clone(&limit.name)).collect::<Vec<_>>(),
        [LIMIT.into(), OTHER_LIMIT.into()]
    );
    assert_eq!(Vec::from_iter(bound.ports()), [9, 10, 8080], "ports of bindings and of services");
}

#[test]
fn without_all_of_its_policies_a_workload_has_no_rules() {
    let resources = resources();
    for absent in [ABSENT, ABSENT_LIMIT] {
        for ports in [&[][..], &[9]] {
            assert!(join(&workload(&[(ALLOW, &[]), (LIMIT, &[]), (absent, ports)], false), &resources).is_none());
        }
    }
}
