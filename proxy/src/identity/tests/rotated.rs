//! A root is being exchanged: who comes with the old one, and who was given another.

use weft_certs::ca::rotation::{Kind, Waits};
use weft_certs::token;
use weft_control::{Config, Control};

use super::*;
use crate::control_channel::Target;
use crate::discovery::snapshot::Snapshot;
use crate::identity::authority::ControlAuthority;
use crate::identity::given;
use crate::resolver::resolver;

#[tokio::test]
async fn who_was_given_the_old_root_alone_joins_while_the_new_one_issues() {
    let dir = tempfile::tempdir().unwrap();
    let ca_dir = dir.path().join("ca");
    let before = Ca::open(&ca_dir, "cluster.local").unwrap();
    let now = SystemTime::now();
    let waits = Waits { copies: Duration::ZERO, leaves: HOUR };
    let begun = before.begin(Kind::Root, now).unwrap();
    begun.advance(waits, now).unwrap().advance(waits, now).unwrap();
    let mut config = Config::new(vec![dir.path().join("files")], ca_dir.clone());
    let anywhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    (config.listen, config.metrics) = (anywhere, anywhere);
    std::fs::create_dir(dir.path().join("files")).unwrap();
    let control = Control::start(config).await.unwrap();

    let resolver = resolver(&["127.0.0.1:53".parse().unwrap()], None).unwrap();
    let target = Target::new(&[control.listen.to_string()], None, resolver).unwrap();
    let trust = trusting(&before);
    let authority = ControlAuthority::new(target, Arc::clone(&trust), "cluster.local".into());
    let text: Arc<str> = token::sign(&ca_dir, &web(), HOUR, now).unwrap().into();
    let settings = Settings { identity: web(), trust: Arc::clone(&trust), token: Token::Text(text), state_dir: None };
    let store = IdentityStore::default();
    let mut changes = store.changes();
    tokio::select! {
        () = run(&store, &store, &settings, &authority, SystemTime::now) => {}
        taken = timeout(Duration::from_secs(20), changes.wait_for(|taken| *taken > 0)) => {
            taken.expect("a certificate under the new root was taken").unwrap();
        }
    }
    assert_eq!(store.counters.failed(Failure::SelfCheck), 0, "at the first attempt");
    let issued = Ca::load(&ca_dir).unwrap();
    assert_eq!(issued.authorities().issuing(), "issuer-2");
    let current = store.current().unwrap();
    assert_eq!(current.svid.chain_pem()[1..], issued.issue(&csr(), &web(), HOUR, now).unwrap()[1..]);
    // And peers of both are believed until control says more.
    check(&Current::believing(Arc::clone(&current.svid), &trust.now()).unwrap()).unwrap();
    check(&Current::believing(Arc::new(svid(&before)), &trust.now()).unwrap()).unwrap();
}

#[tokio::test]
async fn a_root_that_comes_with_a_bad_certificate_is_not_believed() {
    let ca = fake(SystemTime::now, &[Answer::OtherIdentity]);
    let stranger = fake(SystemTime::now, &[Answer::OtherIdentity]);
    let settings = Settings { trust: trusting(&stranger.ca), ..ca.settings() };
    let store = IdentityStore::default();
    let limit = Duration::from_millis(300);
    timeout(limit, run(&store, &store, &settings, &ca, SystemTime::now)).await.unwrap_err();
    assert!(store.counters.failed(Failure::BadAnswer) > 0);
    let believed = settings.trust.now();
    check(&Current::believing(Arc::new(svid(&stranger.ca)), &believed).unwrap()).unwrap();
    check(&Current::believing(Arc::new(svid(&ca.ca)), &believed).unwrap()).unwrap_err();
}

fn csr() -> String {
    KeyPair::generate().unwrap().csr(&web()).unwrap()
}

fn svid(ca: &Ca) -> Svid {
    let key = KeyPair::generate().unwrap();
    let chain = ca.issue(&key.csr(&web()).unwrap(), &web(), HOUR, SystemTime::now()).unwrap();
    Svid::new(key, &chain).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_given_file_may_be_exchanged_under_a_running_process() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let (old, new) = (Ca::open(&old, "cluster.local").unwrap(), Ca::open(&new, "cluster.local").unwrap());
    let file = dir.path().join("root.pem");
    std::fs::write(&file, old.root_pem()).unwrap();
    let mut shared = crate::testing::shared(web(), Snapshot::default());
    Arc::get_mut(&mut shared).unwrap().config.control_ca.clone_from(&file);
    let following = Arc::clone(&shared);
    let following = tokio::spawn(async move { given::follow(&following).await });
    let believed = |ca: &Ca| {
        let trust = shared.trust.now();
        check(&Current::believing(Arc::new(svid(ca)), &trust).unwrap()).is_ok()
    };
    let until = async |ca: &Ca| {
        while !believed(ca) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_mins(1), until(&old)).await.unwrap();
    assert!(!believed(&new));
    std::fs::write(&file, "half").unwrap();
    sleep(Duration::from_secs(10)).await;
    assert!(believed(&old), "a broken file changes nothing");
    std::fs::write(&file, format!("{}{}", old.root_pem(), new.root_pem())).unwrap();
    timeout(Duration::from_mins(1), until(&new)).await.unwrap();
    assert!(believed(&old));
    following.abort();
}
