//! What can be seen of a session from outside: who stands how, and what is in force.

use super::*;
use crate::distribute::describe::{Content, differences, tables};

#[test]
fn how_a_proxy_stands_to_a_resource_follows_what_it_says() {
    let mut model = shop();
    let mut server = Server::new(&model, Limits::default());
    let (service, member) = ("service/shop/web:80", "endpoints/shop/web:80/web-2");
    let standing = |server: &Server, name: &str| server.session.standing(&server.compiled, name);
    assert_eq!(standing(&server, service), None, "it has nothing to do with it");
    server.hear(subscribe(ADDRESS, &["web.shop:80"]));
    assert_eq!(standing(&server, "web.shop:80"), Some(Standing::Lags), "asked for, not answered");
    let said = server.next().unwrap();
    assert_eq!(standing(&server, service), Some(Standing::Lags), "sent, not acknowledged");
    assert_eq!(standing(&server, WEB), Some(Standing::Lags));
    server.now = Duration::from_secs(3);
    assert_eq!(server.session.waits(server.now), Some(Duration::from_secs(3)));
    server.hear(ack(&said));
    assert_eq!((standing(&server, service), standing(&server, member)), (Some(Standing::Runs), Some(Standing::Runs)));
    assert_eq!((standing(&server, WEB), server.session.waits(server.now)), (Some(Standing::Runs), None));

    web(&mut model, vec![ready(1, Some("web-1"))]);
    server.publish(&model);
    assert_eq!(server.session.unanswered(), Some(server.now));
    assert_eq!((standing(&server, member), standing(&server, WEB)), (Some(Standing::Lags), Some(Standing::Lags)));
    let said = server.next().unwrap();
    server.hear(nack(&said, &[member]));
    let refuses = Some(Standing::Refuses("invalid_port: no".into()));
    assert_eq!((standing(&server, member), standing(&server, WEB)), (refuses.clone(), refuses));
    assert_eq!(server.session.unanswered(), None, "a refusal is an answer");
    // Back to what it runs.
    server.publish(&shop());
    assert_eq!(standing(&server, member), Some(Standing::Runs));
}

#[test]
fn what_is_on_its_way_may_come_into_force_after_all() {
    let mut model = shop();
    let mut server = Server::new(&model, Limits::default());
    server.hear(subscribe(ADDRESS, &["web.shop:80"]));
    server.drain();
    let member = "endpoints/shop/web:80/web-2";
    web(&mut model, vec![ready(1, Some("web-1"))]);
    server.publish(&model);
    server.next().unwrap();
    server.publish(&shop());
    assert!(!server.session.settled(&server.compiled, member), "its removal may be applied any moment");
    server.drain();
}

#[test]
fn a_table_and_its_differences_are_data() {
    let mut model = shop();
    let mut server = Server::new(&model, Limits::default());
    server.hear(subscribe(ADDRESS, &["web.shop:80"]));
    let missing: Vec<_> = differences(&server.session, &server.compiled);
    let name = |at: usize| missing[at].held.name.to_string();
    assert_eq!(
        (name(0), name(1)),
        ("endpoints/shop/web:80/web-1".to_owned(), "endpoints/shop/web:80/web-2".to_owned())
    );
    assert!(missing.iter().all(|one| one.held.runs.is_none() && one.now.is_some()), "{missing:?}");
    server.drain();
    assert!(differences(&server.session, &server.compiled).is_empty());
    let held = tables(&server.session);
    let endpoint = held.iter().find(|one| &*one.name == "endpoints/shop/web:80/web-2").unwrap();
    let data = |content: &Option<Content>| content.clone().unwrap().data.unwrap();
    assert_eq!((endpoint.type_.as_str(), &data(&endpoint.runs)["ip"]), ("Endpoint", &"10.0.0.2".into()));

    // One that moved, one that came, one that went.
    web(&mut model, vec![ready(7, Some("web-1")), ready(3, Some("cart-1"))]);
    server.publish(&model);
    let said = server.next().unwrap();
    server.hear(nack(&said, &["endpoints/shop/web:80/cart-1"]));
    let [one] = &differences(&server.session, &server.compiled)[..] else { panic!("one is refused") };
    assert_eq!(one.held.refused.as_deref(), Some("invalid_port: no"));
    assert_eq!((&one.held.runs, &data(&one.now)["ip"]), (&None, &"10.0.0.3".into()));
    server.publish(&shop());
    let now = differences(&server.session, &server.compiled);
    let moved = now.iter().find(|one| one.held.name.ends_with("/web-1")).unwrap();
    assert_eq!((&data(&moved.held.runs)["ip"], &data(&moved.now)["ip"]), (&"10.0.0.7".into(), &"10.0.0.1".into()));
    server.drain();
    assert!(differences(&server.session, &server.compiled).is_empty(), "{now:?}");
}

#[test]
fn what_is_wanted_no_more_needs_no_answer() {
    let mut model = shop();
    let mut server = Server::new(&model, Limits::default());
    server.hear(subscribe(ADDRESS, &["web.shop:80"]));
    server.drain();
    web(&mut model, vec![ready(1, Some("web-1"))]);
    server.publish(&model);
    assert_eq!(server.session.unanswered(), Some(server.now));
    server.hear(DeltaDiscoveryRequest {
        type_url: ADDRESS.to_owned(),
        resource_names_unsubscribe: vec!["web.shop:80".to_owned()],
        ..Default::default()
    });
    assert_eq!(server.session.unanswered(), None);
    assert!(server.next().is_none());
}
