//! Tokens that were used.

use super::*;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn once(id: &str, expires: u64) -> Once {
    Once { id: format!("{id} {}", weft_certs::files::random_hex(8).unwrap()), expires: at(expires) }
}

impl Scene {
    /// Of one more replica.
    fn used(&self, most: usize) -> UsedTokens {
        match self {
            Self::Directory(dir) => {
                UsedTokens::new(Arc::new(directory::Directory::open(dir.path().join("used"), most).unwrap()))
            }
            Self::Cluster(..) => UsedTokens::new(Arc::new(leases::Leases::new("mesh".to_owned(), self.asking(), most))),
            Self::Real(_, name) => {
                UsedTokens::new(Arc::new(leases::Leases::new(name.namespace.clone(), self.asking(), most)))
            }
        }
    }

    /// How many marks there are.
    fn marks(&self) -> Option<usize> {
        match self {
            Self::Directory(dir) => Some(std::fs::read_dir(dir.path().join("used")).unwrap().count()),
            Self::Cluster(_, cluster) => {
                Some(cluster.lock().count("/apis/coordination.k8s.io/v1/namespaces/mesh/leases/weft-used-token-"))
            }
            // Other tests of it have theirs there too.
            Self::Real(..) => None,
        }
    }
}

#[test]
fn of_many_that_race_through_two_replicas_exactly_one_wins() {
    for scene in Scene::all() {
        let replicas = [(), ()].map(|()| scene.used(1000));
        for round in 0..20 {
            let token = once("token", FAR);
            let won: usize = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..16)
                    .map(|racer| {
                        let (replica, token) = (&replicas[racer % 2], &token);
                        scope.spawn(move || replica.take(token, &format!("key {racer}"), at(1000)).is_ok())
                    })
                    .collect();
                racers.into_iter().map(|racer| usize::from(racer.join().unwrap())).sum()
            });
            assert_eq!(won, 1, "round {round}");
        }
        assert!(scene.marks().is_none_or(|marks| marks == 20));
    }
}

#[test]
fn the_same_key_may_ask_again_after_a_restart_and_no_other() {
    for scene in Scene::all() {
        let token = once("../../etc/passwd", FAR);
        scene.used(1000).take(&token, "mine", at(1000)).unwrap();
        scene.used(1000).take(&token, "mine", at(1001)).unwrap();
        assert!(matches!(scene.used(1000).take(&token, "thief's", at(1001)), Err(UseError::Used)));
    }
}

/// Long after what the other tests call now: they share the Leases of a real cluster.
const FAR: u64 = 1_000_000;

#[test]
fn what_has_expired_is_forgotten_after_an_hour_and_the_number_is_bounded() {
    for scene in [Scene::Directory(tempfile::tempdir().unwrap()), Scene::cluster()] {
        let used = scene.used(2);
        let [a, b, c] = [once("a", 2000), once("b", FAR), once("c", FAR)];
        used.take(&a, "a", at(1000)).unwrap();
        used.take(&b, "b", at(1000)).unwrap();
        assert!(matches!(used.take(&c, "c", at(1000)), Err(UseError::Full(2))));
        used.take(&b, "b", at(1000)).unwrap();
        assert!(matches!(used.take(&c, "c", at(2000 + 3600)), Err(UseError::Full(2))), "for an hour more");
        // A Lease goes with all of its hour.
        used.take(&c, "c", at(7200 + 600)).unwrap();
        assert_eq!((used.count(), scene.marks()), (2, Some(2)));
        assert!(matches!(used.take(&b, "thief's", at(9000)), Err(UseError::Used)));
    }
}

#[test]
fn in_a_real_cluster_too() {
    let Some(scene) = real() else { return };
    let used = scene.used(1000);
    let token = once("a", 2000);
    used.take(&token, "a", at(1000)).unwrap();
    assert!(matches!(scene.used(1000).take(&token, "b", at(2000 + 3600)), Err(UseError::Used)));
    used.take(&once("b", FAR), "b", at(7200 + 600)).unwrap();
    scene.used(1000).take(&token, "b", at(1000)).unwrap();
}

#[test]
fn a_lost_answer_uses_the_token_up_for_the_same_key() {
    let scene = Scene::cluster();
    let Scene::Cluster(_, cluster) = &scene else { unreachable!() };
    let (used, token) = (scene.used(10), once("a", FAR));
    cluster.lock().lost = Some(0);
    let error = used.take(&token, "mine", at(1000)).unwrap_err();
    assert!(matches!(error, UseError::Store { .. }) && error.to_string().contains("Leases of mesh"), "{error}");
    used.take(&token, "mine", at(1001)).unwrap();
    assert!(matches!(used.take(&token, "thief's", at(1001)), Err(UseError::Used)));
    cluster.lock().away = true;
    assert!(matches!(used.take(&once("b", FAR), "mine", at(1002)), Err(UseError::Store { .. })), "never a yes");
}
