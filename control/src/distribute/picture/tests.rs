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
