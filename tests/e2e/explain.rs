//! What `weft explain` says is what the live proxy does (contract C10), on random requests.

use http::{Method, Request};
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;
use weft_tests::client::{Session, get, request, run};
use weft_tests::{Mesh, Service, Trial, test};

pub fn tests() -> Vec<Trial> {
    vec![test("explain_agrees_with_the_proxy_on_500_requests", agrees_with_the_proxy)]
}

const RULES: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
  - matches: [{path: {type: Exact, value: /exact}, method: GET}]
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /cart}, headers: [{name: x-user, value: '7'}]}]
    backendRefs: [{name: cart, port: 80}]
  - matches: [{path: {type: RegularExpression, value: '/item/[0-9]+'}}]
    backendRefs: [{name: web, port: 80, weight: 1}, {name: cart, port: 80, weight: 1}]
  - matches: [{path: {type: PathPrefix, value: /gone}}]
    backendRefs: [{name: nosuch, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /open}}, {queryParams: [{name: q, value: yes}]}]
    backendRefs: [{name: web, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: buyers, namespace: market}
spec:
  parentRefs: [{group: '', kind: Service, name: web, namespace: shop}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /open}}]
    filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-for, value: market}]}}]
    backendRefs: [{name: web, namespace: shop, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /cart}}]
    backendRefs: [{name: cart, namespace: shop, port: 80}]
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: friends, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  action: Allow
  rules:
  - from: [{identities: [shop/friend]}]
  - to: [{methods: [GET], paths: ['/open*', '/item/*']}]
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: secrets, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  action: Deny
  rules: [{to: [{paths: ['/open/secret*']}, {methods: [DELETE]}]}]
";

/// A small generator with a fixed seed: a failure can be had again.
struct Random(fastrand::Rng);

impl Random {
    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.0.usize(..choices.len())]
    }
}

fn agrees_with_the_proxy() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).deploy(Service::http("cart")).client("friend").client("stranger");
    mesh.deploy(Service { namespace: "market".to_owned(), ..Service::own("buyer") });
    mesh.write("rules.yaml", RULES);
    let to = mesh.address("web");
    // The last of the policies and the route are in force.
    for name in ["friend-0", "stranger-0", "buyer-0"] {
        mesh.until("the route to take effect", || match get(mesh.pod(name), to, "/nowhere").outcome() {
            (404, "no_route") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        mesh.until("the policies to take effect", || match get(mesh.pod(name), to, "/open/secret").outcome() {
            (403, "denied_by_policy") => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    let loaded = weft_control::sources::files::load(std::slice::from_ref(&mesh.files), "cluster.local");
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let compiled = weft_control::compile::compile(&loaded.model);

    // Routes of its own count for the clients of a namespace, and for no others.
    for (name, wanted) in [("buyer-0", "market"), ("stranger-0", "")] {
        let got = get(mesh.pod(name), to, "/open/door");
        assert_eq!((got.status.as_u16(), got.header("x-for")), (200, wanted), "{name}: {got:?}");
    }

    let mut random = Random(fastrand::Rng::with_seed(2_026));
    let mut reasons = std::collections::BTreeMap::<String, usize>::new();
    for number in 0..500 {
        let account = random.of(&["friend", "stranger", "buyer"]);
        let method: Method = random.of(&["GET", "GET", "POST", "DELETE"]).parse().unwrap();
        let path = random.of(&[
            "/",
            "/exact",
            "/exact/",
            "/exactly",
            "/cart",
            "/cart/7",
            "/carts",
            "/item/12",
            "/item/x",
            "/item/12/",
            "/gone",
            "/open",
            "/open/door",
            "/open/secret",
            "/open/secret/x",
            "/open/../cart",
            "/open//secret",
            "/open/%73ecret",
            "/opener",
            "/?q=yes",
            "/x?q=yes&q=no",
            "/x?q=no",
        ]);
        let user = random.of(&["7", "8", ""]);
        let headers: &[(&str, &str)] = if user.is_empty() { &[] } else { &[("x-user", user)] };

        let live = run(async {
            let mut session = Session::open(mesh.pod(&format!("{account}-0")), to).await.unwrap();
            session.send(request(method.clone(), "web.shop", path, headers)).await.unwrap()
        });
        let mut asked = Request::builder().method(method.clone()).uri(format!("http://web.shop{path}"));
        for (name, value) in headers {
            asked = asked.header(*name, *value);
        }
        let (parts, ()) = asked.body(()).unwrap().into_parts();
        let namespace = mesh.pod(&format!("{account}-0")).namespace().to_owned();
        let from = Identity::new("cluster.local", &namespace, account).unwrap();
        let told = weft::explain::explain(&compiled, &from, &parts);

        let reason = Reason::from_code(live.reason());
        let about =
            format!("request {number}: {account} {method} {path} x-user={user:?}: {live:?}\nexplained: {told:?}");
        assert!(live.reason().is_empty() || reason.is_some(), "{about}");
        assert!(told.foresees(reason), "{about}");
        if let Some(status) = told.status {
            assert_eq!(live.status.as_u16(), status, "{about}");
        }
        *reasons.entry(live.reason().to_owned()).or_default() += 1;
    }
    // The questions were not all alike.
    assert!(reasons.len() >= 4 && reasons.values().all(|count| *count >= 5), "{reasons:?}");
}
