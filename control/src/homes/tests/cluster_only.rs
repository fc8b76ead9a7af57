//! What only a Secret can meet.

use http::Method;
use serde_json::json;

use super::*;

const SECRET: &str = "/api/v1/namespaces/mesh/secrets/weft-ca";
const COPY: &str = "/api/v1/namespaces/mesh/configmaps/weft-ca";

fn scene() -> (Scene, Shared) {
    let scene = Scene::cluster();
    let Scene::Cluster(_, cluster) = &scene else { unreachable!() };
    let cluster = Shared::clone(cluster);
    (scene, cluster)
}

#[test]
fn an_answer_that_was_lost_leaves_the_ca_of_before_or_the_one_of_after() {
    // Of the writes that a start makes (the Secret, its content, the copy), each answer is lost once.
    for lost in 0..3 {
        let (scene, cluster) = scene();
        cluster.lock().lost = Some(lost);
        let error = scene.open().unwrap_err();
        assert!(matches!(error, CaError::Home { .. }), "{error}");
        let ca = scene.open().unwrap();
        assert_eq!(scene.open().unwrap().root_pem(), ca.root_pem());
        assert_eq!(scene.published(), ca.root_pem());

        // Of those that a change makes (the content, the copy), too.
        cluster.lock().lost = Some(lost % 2);
        let error = ca.begin(Kind::Root, now()).unwrap_err();
        assert!(matches!(error, CaError::Home { .. }), "{error}");
        let begun = ca.reload().unwrap().unwrap();
        assert_eq!(phase(&begun), Some(Phase::Publishing));
        assert_eq!(scene.published(), begun.root_pem(), "who sees the change first publishes it");
    }
}

#[test]
fn while_the_api_server_is_away_each_question_says_so_and_nothing_changes() {
    let (scene, cluster) = scene();
    cluster.lock().away = true;
    let error = scene.open().unwrap_err().to_string();
    assert!(error.contains("the Secret mesh/weft-ca") && error.contains("--kubernetes-api"), "{error}");
    cluster.lock().away = false;
    let ca = scene.open().unwrap();
    cluster.lock().away = true;
    assert!(matches!(ca.reload(), Err(CaError::Home { .. })));
    assert!(ca.begin(Kind::Root, now()).is_err());
    cluster.lock().away = false;
    assert!(ca.reload().unwrap().is_none());
}

#[test]
fn a_look_is_answered_from_the_cache_and_reads_no_secret() {
    let (scene, cluster) = scene();
    let ca = scene.open().unwrap();
    cluster.lock().asked.clear();
    for _ in 0..10 {
        assert!(ca.reload().unwrap().is_none());
    }
    assert_eq!(cluster.lock().asked, vec![(Method::GET, SECRET.to_owned(), true); 10]);
    // A change that is none of the CA's is read once.
    let mut touched = cluster.lock().get(SECRET).unwrap().clone();
    touched["metadata"]["labels"]["team"] = "mesh".into();
    cluster.lock().put(SECRET, touched);
    assert!(ca.reload().unwrap().is_none());
    cluster.lock().asked.clear();
    assert!(ca.reload().unwrap().is_none());
    assert_eq!(cluster.lock().asked.len(), 1);
}

#[test]
fn a_secret_that_was_made_empty_is_filled_and_one_of_another_kind_is_not_touched() {
    let (scene, cluster) = scene();
    let metadata = json!({"name": "weft-ca", "namespace": "mesh"});
    let of = |kind: &str| json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata});
    cluster.lock().put(SECRET, of("weft.dev/ca"));
    cluster.lock().put(COPY, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}));
    assert!(matches!(Ca::load(scene.home()), Err(CaError::Absent(_))));
    scene.open().unwrap();
    let posted = cluster.lock().asked.iter().any(|(method, ..)| method == Method::POST);
    assert!(!posted, "no right to make objects is needed then");
    cluster.lock().remove(SECRET);
    cluster.lock().put(SECRET, of("kubernetes.io/tls"));
    let error = scene.open().unwrap_err().to_string();
    assert!(error.contains("`kubernetes.io/tls`"), "{error}");
}

#[test]
fn a_roots_key_that_was_put_back_by_hand_goes_with_its_root() {
    let (scene, cluster) = scene();
    let ca = scene.open().unwrap();
    let key = cluster.lock().get(SECRET).unwrap()["data"]["root.key"].clone();
    scene.alter("root.key", None);
    let mut edited = cluster.lock().get(SECRET).unwrap().clone();
    edited["data"]["root.key"] = key;
    edited["data"]["note"] = "bm90ZQ==".into();
    cluster.lock().put(SECRET, edited);
    assert!(ca.reload().unwrap().is_none());
    to_the_end(ca.begin(Kind::Root, now()).unwrap());
    assert_eq!(scene.names(), ["ca.json", "issuer-2.key", "issuer-2.pem", "root-2.key", "root-2.pem", "token.key"]);
    let cluster = cluster.lock();
    assert_eq!(cluster.get(SECRET).unwrap()["data"]["note"], "bm90ZQ==", "what is none of the CA's stays");
}

#[test]
fn errors_and_debug_output_hold_no_secret() {
    let (scene, _) = scene();
    let ca = scene.open().unwrap();
    let text = format!("{ca:?} {:?} {:?}", scene.home(), scene.held());
    assert!(!text.contains("PRIVATE") && text.len() < 600, "{text}");
}
