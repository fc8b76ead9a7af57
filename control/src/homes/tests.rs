//! One table of tests over each home that a CA and used tokens may have: a directory; the cluster, here in memory; and, where the variable
//! WEFT_TEST_KUBECONFIG names one, a real API server (`tests/e2e/api-secret`).

use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::runtime::Runtime;
use weft_certs::ca::rotation::{Kind, Phase, Waits};
use weft_certs::ca::store::{Held, MANIFEST, MAX_BYTES};
use weft_certs::ca::{Ca, CaError, Given};

use super::*;
use crate::ca_secret::SecretName;
use crate::issue::used::{Once, UseError};
use crate::testing::cluster::{self, Shared};

mod cluster_only;
mod tokens;

pub const TD: &str = "cluster.local";
const WAITS: Waits = Waits { copies: Duration::ZERO, leaves: Duration::ZERO };

/// A home, and a way around it.
pub enum Scene {
    Directory(TempDir),
    /// In memory.
    Cluster(Runtime, Shared),
    /// A real one, and the name of the test's Secret in it.
    Real(Blocking, SecretName),
}

pub fn secret() -> SecretName {
    SecretName { namespace: "mesh".to_owned(), name: "weft-ca".to_owned() }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn real() -> Option<Scene> {
    let kubeconfig = std::env::var_os("WEFT_TEST_KUBECONFIG")?;
    let asking = Blocking::alone(&Access { kubeconfig: Some(kubeconfig.into()), ..Access::default() }).unwrap();
    let name = format!("weft-test-{}", weft_certs::files::random_hex(8).unwrap());
    Some(Scene::Real(asking, SecretName { namespace: "default".to_owned(), name }))
}

impl Scene {
    /// Each kind, with nothing in it.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Directory(tempfile::tempdir().unwrap()), Self::cluster()].into_iter().chain(real())
    }

    pub fn cluster() -> Self {
        Self::Cluster(runtime(), Shared::default())
    }

    /// What one more replica asks by.
    pub fn asking(&self) -> Blocking {
        match self {
            Self::Directory(_) => unreachable!(),
            Self::Cluster(runtime, cluster) => {
                let _entered = runtime.enter();
                Blocking::new(cluster::client(cluster), runtime.handle().clone())
            }
            Self::Real(asking, _) => asking.clone(),
        }
    }

    /// Of one more replica.
    pub fn home(&self) -> Home {
        match self {
            Self::Directory(dir) => Home::from(&dir.path().join("ca")),
            Self::Cluster(..) => SecretHome::new(secret(), self.asking()).home(),
            Self::Real(_, name) => SecretHome::new(name.clone(), self.asking()).home(),
        }
    }

    pub fn open(&self) -> Result<Ca, CaError> {
        Ca::open(self.home(), TD)
    }

    /// The copy of the roots that people are given.
    pub fn published(&self) -> String {
        match self {
            Self::Directory(dir) => std::fs::read_to_string(dir.path().join("ca/root.pem")).unwrap(),
            Self::Cluster(_, cluster) => {
                let cluster = cluster.lock();
                let copy = cluster.get("/api/v1/namespaces/mesh/configmaps/weft-ca").unwrap();
                copy["data"]["root.pem"].as_str().unwrap().to_owned()
            }
            Self::Real(asking, SecretName { namespace, name }) => {
                let (api, name) = (kube::Api::namespaced(asking.client.clone(), namespace), name.clone());
                let copy: k8s_openapi::api::core::v1::ConfigMap =
                    asking.ask(async move { api.get(&name).await }).unwrap();
                copy.data.unwrap().remove("root.pem").unwrap()
            }
        }
    }

    /// The CA is removed by mistake.
    pub fn lose(&self) {
        match self {
            Self::Directory(dir) => std::fs::remove_dir_all(dir.path().join("ca")).unwrap(),
            Self::Cluster(_, cluster) => cluster.lock().remove("/api/v1/namespaces/mesh/secrets/weft-ca"),
            Self::Real(asking, SecretName { namespace, name }) => {
                let (api, name) = (kube::Api::namespaced(asking.client.clone(), namespace), name.clone());
                let removed = asking.ask(async move {
                    let api: kube::Api<k8s_openapi::api::core::v1::Secret> = api;
                    api.delete(&name, &kube::api::DeleteParams::default()).await
                });
                removed.map(drop).unwrap();
            }
        }
    }

    fn held(&self) -> Held {
        self.home().read().unwrap().unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.held().files.into_keys().collect()
    }

    /// Changes a file behind everybody's back; `None` takes it away.
    fn alter(&self, file: &str, bytes: Option<Vec<u8>>) {
        let Held { version, mut files } = self.held();
        match bytes {
            Some(bytes) => drop(files.insert(file.to_owned(), bytes)),
            None => drop(files.remove(file)),
        }
        self.home().replace(&version, &files).unwrap();
    }
}

fn now() -> SystemTime {
    SystemTime::now()
}

fn phase(ca: &Ca) -> Option<Phase> {
    ca.authorities().rotation().map(|rotation| rotation.phase)
}

/// Goes on until the rotation is over.
fn to_the_end(mut ca: Ca) -> Ca {
    let mut at = now();
    while ca.authorities().rotation().is_some() {
        at += Duration::from_secs(10);
        ca = ca.advance(WAITS, at).unwrap();
    }
    ca
}

#[test]
fn of_many_that_start_at_once_one_makes_the_ca_and_all_open_it() {
    for scene in Scene::all() {
        let roots: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| scene.open().unwrap().root_pem().to_owned())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(roots.iter().all(|root| *root == roots[0]));
        assert_eq!(scene.published(), roots[0]);
        let names = ["ca.json", "issuer.key", "issuer.pem", "root.key", "root.pem", "token.key"];
        assert_eq!(scene.names(), names);
        assert_eq!(scene.open().unwrap().root_pem(), roots[0], "it is there after a restart");
    }
}

#[test]
fn where_there_is_none_none_is_loaded() {
    for scene in Scene::all() {
        let error = Ca::load(scene.home()).unwrap_err();
        assert!(matches!(error, CaError::Absent(_)) && error.to_string().contains("--ca-secret"), "{error}");
    }
}

#[test]
fn another_trust_domain_is_refused() {
    for scene in Scene::all() {
        scene.open().unwrap();
        let error = Ca::open(scene.home(), "other.example").unwrap_err();
        let told = error.to_string();
        assert!(matches!(error, CaError::OtherTrustDomain { .. }) && told.contains(&scene.home().place()), "{told}");
    }
}

#[test]
fn damage_is_said_with_the_file_and_never_mended_in_silence() {
    for scene in Scene::all() {
        let ca = scene.open().unwrap();
        for file in ["ca.json", "root.pem", "issuer.key", "issuer.pem", "token.key"] {
            let whole = scene.held().files[file].clone();
            for damage in [Some(whole[..whole.len() / 2].to_vec()), Some(b"\xff\xfe".to_vec()), None] {
                // Nothing rules out that the file which says what the others are is taken away, except for a store that writes it last.
                if file == MANIFEST && damage.is_none() {
                    continue;
                }
                scene.alter(file, damage);
                let error = scene.open().unwrap_err();
                assert!(matches!(error, CaError::Damaged { .. }) && error.to_string().contains(file), "{error}");
                assert!(ca.begin(Kind::Root, now()).is_err(), "nor is anything written over it");
                // Of a directory `ca.json` alone is looked at.
                let seen = ca.reload();
                assert!(seen.is_err() || (matches!(scene, Scene::Directory(_)) && file != MANIFEST), "{file}");
            }
            scene.alter(file, Some(whole));
            scene.open().unwrap();
            assert!(ca.reload().unwrap().is_none(), "put right, it is the same");
        }
        scene.alter("more.pem", Some(vec![b'x'; MAX_BYTES]));
        assert!(matches!(scene.open(), Err(CaError::Damaged { .. })), "it is too large");
    }
}

#[test]
fn of_two_who_change_it_at_once_one_is_told_and_the_other_is_followed() {
    for scene in Scene::all() {
        let (one, other) = (scene.open().unwrap(), scene.open().unwrap());
        let begun = one.begin(Kind::Root, now()).unwrap();
        assert!(matches!(other.begin(Kind::Root, now()), Err(CaError::Conflict)));
        let seen = other.reload().unwrap().unwrap();
        assert_eq!((seen.root_pem(), seen.revision()), (begun.root_pem(), 2));
        assert!(seen.reload().unwrap().is_none());
        let back = seen.abort(now()).unwrap();
        assert!(matches!(begun.advance(WAITS, now()), Err(CaError::Conflict)));
        assert_eq!(to_the_end(back).root_pem(), one.root_pem());
    }
}

#[test]
fn many_writers_lose_nothing() {
    for scene in Scene::all() {
        scene.open().unwrap();
        let begun: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6)
                .map(|_| {
                    scope.spawn(|| {
                        let ca = Ca::load(scene.home()).unwrap();
                        usize::from(ca.begin(Kind::Root, now()).is_ok())
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(begun, 1);
        let ca = scene.open().unwrap();
        assert_eq!((ca.revision(), phase(&ca)), (2, Some(Phase::Publishing)));
        assert_eq!(scene.published(), ca.root_pem());
    }
}

#[test]
fn a_root_is_exchanged_and_the_old_keys_go() {
    for scene in Scene::all() {
        let first = scene.open().unwrap();
        let second = first.begin(Kind::Root, now()).unwrap();
        assert_eq!(scene.published(), second.root_pem());
        assert!(second.root_pem().starts_with(first.root_pem()) && second.root_pem() != first.root_pem());
        // Another replica takes over in each phase.
        let mut ca = scene.open().unwrap();
        let mut at = now();
        while phase(&ca).is_some() {
            at += Duration::from_secs(10);
            ca.advance(WAITS, at).unwrap();
            ca = scene.open().unwrap();
        }
        let names = ["ca.json", "issuer-2.key", "issuer-2.pem", "root-2.key", "root-2.pem", "token.key"];
        assert_eq!(scene.names(), names);
        assert_eq!(scene.published(), ca.root_pem());
        assert_eq!(first.reload().unwrap().unwrap().root_pem(), ca.root_pem(), "who has slept through it follows");
    }
}

#[test]
fn the_roots_key_may_be_kept_elsewhere() {
    for scene in Scene::all() {
        let ca = scene.open().unwrap();
        let key = scene.held().files["root.key"].clone();
        scene.alter("root.key", None);
        assert!(ca.reload().unwrap().is_none(), "that is no change of the CA");
        let error = scene.open().unwrap().begin(Kind::Issuer, now()).unwrap_err();
        let told = error.to_string();
        assert!(matches!(error, CaError::RootKey(_)) && told.contains("root.key"), "{told}");
        scene.alter("root.key", Some(key));
        let done = to_the_end(ca.begin(Kind::Issuer, now()).unwrap());
        assert_eq!(scene.names(), ["ca.json", "issuer-2.key", "issuer-2.pem", "root.key", "root.pem", "token.key"]);
        assert_eq!(done.root_pem(), ca.root_pem());
    }
}

/// What somebody else's CA in a directory gives.
fn given(theirs: &TempDir, ca: &Ca) -> Given {
    let keys = theirs.path().join("ca/keys");
    let (issuer, root) = (ca.authorities().issuing(), ca.authorities().published().last().unwrap());
    for (from, to) in
        [(format!("{issuer}.pem"), "tls.crt"), (format!("{issuer}.key"), "tls.key"), (format!("{root}.pem"), "ca.crt")]
    {
        std::fs::copy(keys.join(from), theirs.path().join(to)).unwrap();
    }
    Given::read(theirs.path()).unwrap()
}

#[test]
fn an_issuer_that_is_given_lives_in_any_home() {
    for scene in Scene::all() {
        let theirs = tempfile::tempdir().unwrap();
        let their_ca = Ca::open(&theirs.path().join("ca"), TD).unwrap();
        let ca = Ca::open_given(scene.home(), TD, &given(&theirs, &their_ca), now()).unwrap();
        assert_eq!((scene.published(), ca.root_pem()), (their_ca.root_pem().to_owned(), their_ca.root_pem()));
        assert!(!scene.names().contains(&"root.key".to_owned()), "nobody has given us that");
        let exchanged = to_the_end(their_ca.begin(Kind::Root, now()).unwrap());
        let begun = ca.follow(&given(&theirs, &exchanged), now()).unwrap().unwrap();
        assert_eq!(to_the_end(begun).root_pem(), exchanged.root_pem());
        assert_eq!(scene.open().unwrap().root_pem(), exchanged.root_pem());
    }
}

#[test]
fn what_is_gone_or_another_is_said_and_what_was_in_force_goes_on() {
    for scene in Scene::all() {
        let ca = scene.open().unwrap().begin(Kind::Root, now()).unwrap();
        let kept = scene.held();
        scene.lose();
        let error = ca.reload().unwrap_err();
        assert!(matches!(error, CaError::Gone(_)) && error.to_string().contains("backup"), "{error}");
        assert!(matches!(ca.advance(WAITS, now()), Err(CaError::Gone(_) | CaError::Conflict | CaError::File { .. })));
        assert!(scene.home().read().unwrap().is_none(), "and that makes none");
        // Somebody makes another one.
        let other = Scene::Directory(tempfile::tempdir().unwrap());
        other.open().unwrap();
        match scene.home().create(&other.held().files) {
            Ok(()) => {
                let error = ca.reload().unwrap_err();
                assert!(matches!(error, CaError::Another { found: 1, known: 2, .. }), "{error}");
                scene.lose();
                scene.home().create(&kept.files).unwrap();
                assert!(ca.reload().unwrap().is_none(), "put back, it is the same");
            }
            Err(error) => {
                // Where the copy of its roots is beside it and not in it, that tells of it.
                assert!(matches!(error, CaError::Gone(_)) && error.to_string().contains("ConfigMap"), "{error}");
                let error = scene.open().unwrap_err();
                assert!(matches!(error, CaError::Gone(_)), "nor does a replica that starts make one: {error}");
            }
        }
    }
}
