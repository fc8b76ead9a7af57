//! Routes that a namespace has for the services of others.

use super::*;

const CONSUMED: &str = "consumer/market/shop/web:80";

fn key(namespace: &str, route: &str) -> (String, Name) {
    ("HTTPRoute".to_owned(), Name::new(namespace, route))
}

/// The shop with a route of its own on `web`, and one of the namespace `market`.
fn consumed() -> Model {
    let mut model = shop();
    model.routes.insert(key("shop", "own"), route(&["service/shop/web:80"]));
    model.routes.insert(key("market", "theirs"), route(&["service/shop/web:80"]));
    model
}

fn service_of(compiled: &Compiled, name: &str) -> v1::Service {
    v1::Service::decode(&*compiled.get(name).unwrap().bytes).unwrap()
}

fn consumer(compiled: &Compiled, name: &str) -> v1::Consumer {
    v1::Consumer::decode(&*compiled.get(name).unwrap().bytes).unwrap()
}

fn closure(compiled: &Compiled, client: &str) -> BTreeSet<String> {
    compiled.closure("web.shop:80", client).iter().map(|(name, _)| name.to_string()).collect()
}

#[test]
fn a_route_of_another_namespace_is_for_its_clients_only() {
    let compiled = compile(&consumed());
    let web = service_of(&compiled, "service/shop/web:80");
    assert_eq!((web.routes, web.consumed, web.requires), (vec!["HTTPRoute/shop/own".to_owned()], true, Vec::new()));
    let theirs = consumer(&compiled, CONSUMED);
    assert_eq!(
        (theirs.routes, theirs.requires),
        (vec!["HTTPRoute/market/theirs".to_owned()], vec!["consumer-routes".to_owned()])
    );
    // Who has none is told so, by one resource for all of them.
    assert_eq!(consumer(&compiled, "consumer/third/shop/web:80"), v1::Consumer::default());
    assert!(!service_of(&compiled, "service/shop/cart:80").consumed);
    let beside = |client: &str| {
        let shop = closure(&compiled, "shop");
        closure(&compiled, client).difference(&shop).cloned().collect::<Vec<_>>()
    };
    assert_eq!(beside("market"), ["HTTPRoute/market/theirs", CONSUMED]);
    assert_eq!(beside("third"), ["consumer/third/shop/web:80"]);
    assert!(closure(&compiled, "shop").iter().all(|name| !names::is_consumer(name)));
}

#[test]
fn an_edit_of_one_namespaces_routes_says_nothing_to_the_others() {
    let mut model = consumed();
    for number in 0..300 {
        model.routes.insert(key(&format!("ns-{number}"), "theirs"), route(&["service/shop/web:80"]));
    }
    let mut compiled = compile(&model);
    // Hundreds of namespaces cost the service's other clients nothing.
    let bytes = compiled.get("service/shop/web:80").unwrap().bytes.len();
    assert!(bytes < 100, "{bytes}");
    model.routes.insert(key("market", "more"), route(&["service/shop/web:80"]));
    let changes = update(&mut compiled, &model);
    let named: BTreeSet<&str> = changes.names.iter().map(|name| &**name).collect();
    assert_eq!(named, ["HTTPRoute/market/more", CONSUMED].into());
    // The service was looked at, too.
    assert_eq!(changes.recomputed, 3);
    assert_eq!(consumer(&compiled, CONSUMED).routes, ["HTTPRoute/market/more", "HTTPRoute/market/theirs"]);
}

#[test]
fn consumer_routes_come_and_go_with_ports_services_and_the_last_of_them() {
    let mut model = consumed();
    let parents = vec![ServiceParent { section: Some("late".into()), ..parent_of("web") }];
    model.routes.insert(key("third", "late"), Route { parents, ..route(&[]) });
    let mut compiled = compile(&model);
    let late = |compiled: &Compiled, port: u16| consumer(compiled, &format!("consumer/third/shop/web:{port}")).routes;
    assert!(late(&compiled, 80).is_empty());
    model.services.get_mut(&name("web")).unwrap().ports.push(port("late", 81));
    update(&mut compiled, &model);
    assert_eq!(compiled, compile(&model));
    assert_eq!((late(&compiled, 80).len(), late(&compiled, 81).len()), (0, 1));
    model.services.remove(&name("web"));
    update(&mut compiled, &model);
    assert!(late(&compiled, 81).is_empty() && consumer(&compiled, CONSUMED).routes.is_empty());
    assert_eq!(compiled, compile(&model));
    model.services.insert(name("web"), service(1));
    model.routes.remove(&key("market", "theirs"));
    update(&mut compiled, &model);
    assert!(!service_of(&compiled, "service/shop/web:80").consumed);
    assert_eq!(compiled, compile(&model));
}

#[test]
fn ones_own_parent_needs_no_grant() {
    let to = |name: &str| ForeignRef { namespace: "shop".into(), name: name.into(), ..ForeignRef::default() };
    let foreign = vec![to("web"), to("cart")];
    let mut model = consumed();
    let theirs = Route { foreign, ..route(&["service/shop/web:80", "service/shop/cart:80"]) };
    model.routes.insert(key("market", "theirs"), theirs);
    let compiled = compile(&model);
    let made = v1::Route::decode(&*compiled.get("HTTPRoute/market/theirs").unwrap().bytes).unwrap();
    let invalid: Vec<&str> = made.rules[0].backends.iter().map(|backend| backend.invalid.as_str()).collect();
    assert_eq!(invalid, ["", "no ReferenceGrant in shop lets HTTPRoute/market/theirs use Service shop/cart"]);
}
