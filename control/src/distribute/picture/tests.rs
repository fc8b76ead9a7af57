use super::*;
use crate::compile::compile;
use crate::testing::shop;

fn picture(applied: usize, lagging: usize, refused: &[(&str, usize)], away: usize) -> Picture {
    let pods = |what: &str, count: usize| (0..count).map(|number| format!("shop/{what}-{number}")).collect::<Vec<_>>();
    Picture {
        applied: pods("applied", applied),
        lagging: pods("lagging", lagging),
        refused: refused.iter().map(|(why, count)| ((*why).to_owned(), pods(why, *count))).collect(),
        away: pods("away", away),
    }
}

#[test]
fn the_sentence_says_how_many_run_it_and_why_the_others_do_not() {
    for (picture, sentence) in [
        (picture(0, 0, &[], 0), "no proxy uses it"),
        (picture(1, 0, &[], 0), "applied by 1 of 1 proxy"),
        (picture(40, 0, &[], 0), "applied by 40 of 40 proxies"),
        (picture(37, 0, &[("bad_port: no", 3)], 0), "applied by 37 of 40 proxies, 3 refused: bad_port: no"),
        (picture(1, 1, &[("no", 1)], 0), "applied by 1 of 3 proxies, 1 lags behind, 1 refused: no"),
        (picture(0, 2, &[], 1), "applied by 0 of 2 proxies, 2 lag behind; 1 proxy is away"),
        (picture(0, 0, &[], 2), "no proxy uses it; 2 proxies are away"),
        // The reason of most of them; of as many, the first.
        (picture(1, 0, &[("a", 1), ("b", 2)], 0), "applied by 1 of 4 proxies, 3 refused: b (and another reason)"),
        (
            picture(0, 0, &[("a", 1), ("b", 1), ("c", 1)], 0),
            "applied by 0 of 3 proxies, 3 refused: a (and 2 other reasons)",
        ),
    ] {
        assert_eq!(picture.sentence(), sentence);
    }
}

#[test]
fn a_proxy_counts_once_by_the_worst_that_it_says() {
    let pod = |name: &str| Name::new("shop", name);
    let standings =
        [(pod("a"), Standing::Runs), (pod("b"), Standing::Lags), (pod("c"), Standing::Refuses("no".into()))];
    // One that is here is not away, though another stream of it has ended.
    let picture = Picture::of(standings.into(), [pod("a"), pod("d")].into_iter());
    assert_eq!(picture.applied, ["shop/a"]);
    assert_eq!(picture.lagging, ["shop/b"]);
    assert_eq!(picture.refused["no"], ["shop/c"]);
    assert_eq!(picture.away, ["shop/d"]);
    assert!(Standing::Runs < Standing::Lags && Standing::Lags < Standing::Refuses("".into()));
}

fn object(versions: &[(&str, &str)], picture: Picture) -> ObjectPicture {
    let versions = versions.iter().map(|(name, version)| (Arc::from(*name), Arc::from(*version))).collect();
    ObjectPicture::new(("HTTPRoute".to_owned(), "shop/web".to_owned()), Vec::new(), versions, picture)
}

#[test]
fn replicas_count_as_one_where_they_have_compiled_the_same() {
    let of = |applied: &[&str], lagging: &[&str], refused: &[&str]| {
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let refused = (!refused.is_empty()).then(|| ("no".to_owned(), all(refused)));
        Picture {
            applied: all(applied),
            lagging: all(lagging),
            refused: refused.into_iter().collect(),
            away: all(&["shop/d", "shop/x"]),
        }
    };
    let own = || object(&[("HTTPRoute/shop/web", "1")], of(&["shop/a", "shop/b"], &[], &[]));
    let other = |version, picture| object(&[("HTTPRoute/shop/web", version)], picture);
    // One that is moving is seen at both, and counts once, by the worst; one that is away to one replica is connected to the other.
    let whole = own().and(other("1", of(&["shop/b", "shop/d"], &["shop/a"], &["shop/c"])));
    assert_eq!(whole.sentence, "applied by 2 of 4 proxies, 1 lags behind, 1 refused: no; 1 proxy is away");
    assert_eq!(
        (&whole.picture.applied[..], &whole.picture.away[..]),
        (&["shop/b".to_owned(), "shop/d".to_owned()][..], &["shop/x".to_owned()][..])
    );
    // What they run there is not what is compiled here.
    let (newer, older) = (other("2", of(&["shop/c"], &[], &[])), object(&[], of(&["shop/c"], &[], &[])));
    for other in [newer, older] {
        assert!(!own().is_as(&other));
        assert_eq!(own().and(other).picture.lagging, ["shop/c"]);
    }
}

#[test]
fn the_versions_of_a_route_are_its_own_and_those_of_what_lists_it() {
    let mut model = shop();
    let hub = |model: &crate::model::Model| {
        let hub =
            Hub::new(crate::distribute::session::Limits::default(), Arc::new(crate::metrics::Metrics::new().unwrap()));
        hub.publish(crate::model::Model::default().changes_to(model));
        hub
    };
    let (one, other) = (hub(&model), hub(&model));
    let of = |hub: &Hub, kind, name| hub.object(kind, name).unwrap();
    for (kind, name) in
        [("Service", "shop/web"), ("EndpointSlice", "shop/web"), ("HTTPRoute", "shop/gone"), ("Namespace", "shop")]
    {
        assert!(of(&one, kind, name).is_as(&of(&other, kind, name)), "the same objects give the same versions");
    }
    model.services.remove(&Name::new("shop", "web"));
    other.publish([crate::model::Change::Service(Name::new("shop", "web"), None)]);
    assert!(!of(&one, "Service", "shop/web").is_as(&of(&other, "Service", "shop/web")));
}

#[test]
fn resources_and_objects_lead_to_each_other() {
    let compiled = compile(&shop());
    for (kind, name, resources) in [
        ("Service", "shop/web", &["service/shop/web:80"][..]),
        ("EndpointSlice", "shop/web", &["endpoints/shop/web:80"]),
        ("Pod", "shop/web-1", &["workload/shop/web-1", "endpoints/shop/web:80/web-1"]),
        ("HTTPRoute", "shop/gone", &["HTTPRoute/shop/gone"]),
        ("Namespace", "shop", &["workload/shop/cart-1", "workload/shop/web-1", "workload/shop/web-2"]),
        ("Service", "nonsense", &[]),
    ] {
        let found = resources_of(&compiled, kind, name).unwrap();
        assert_eq!(found.iter().map(|name| &**name).collect::<Vec<_>>(), resources, "{kind} {name}");
        if let Some(first) = found.first().filter(|_| kind != "Namespace") {
            assert_eq!(object_of(first), Some((kind, name)));
        }
    }
    assert!(resources_of(&compiled, "ConfigMap", "shop/web").is_none());
    for none in ["trust", "mesh-extent", "10.0.0.1:80", "web.shop:80", "ConfigMap/shop/web"] {
        assert_eq!(object_of(none), None, "{none}");
    }
    assert_eq!(object_of("endpoints/shop/web:80/web-1"), Some(("EndpointSlice", "shop/web")));
}
