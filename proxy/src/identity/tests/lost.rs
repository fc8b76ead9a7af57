//! An answer that is lost on its way costs no join token.

use std::sync::atomic::AtomicUsize;

use weft_certs::token;
use weft_control::Config;

use super::*;
use crate::control_channel::Target;
use crate::identity::authority::ControlAuthority;
use crate::resolver::resolver;

/// Control, over a network that loses its first answers.
struct Losing {
    control: ControlAuthority,
    left: AtomicUsize,
    keys: Mutex<Vec<String>>,
}

impl Authority for Losing {
    async fn create(&self, csr: String, credential: Credential) -> Result<Vec<String>, AskError> {
        self.keys.lock().push(check_request(&csr, &web(), &["cluster.local"]).unwrap());
        let answer = self.control.create(csr, credential).await;
        let lost = |left: usize| left.checked_sub(1);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lost).is_ok() {
            answer.expect("control has issued it");
            return Err(AskError { failure: Failure::Unreachable, message: "the answer was lost".into() });
        }
        answer
    }
}

#[tokio::test]
async fn the_token_is_good_for_another_try_with_its_key_and_for_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(vec![dir.path().join("files")], dir.path().join("ca"));
    let anywhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    (config.listen, config.metrics, config.leaf_ttl) = (anywhere, anywhere, Duration::from_secs(2));
    std::fs::create_dir(dir.path().join("files")).unwrap();
    let control = weft_control::Control::start(config).await.unwrap();
    let ca = Ca::open(&dir.path().join("ca"), "cluster.local").unwrap();
    let token: Arc<str> = token::sign(&dir.path().join("ca"), &web(), HOUR, SystemTime::now()).unwrap().into();

    let resolver = resolver(&["127.0.0.1:53".parse().unwrap()], None).unwrap();
    let target = Target::new(&[control.listen.to_string()], None, resolver).unwrap();
    let authority = ControlAuthority::new(target, trusting(&ca), "cluster.local".into());
    let losing = Losing { control: authority, left: 2.into(), keys: Mutex::default() };
    let settings =
        Settings { identity: web(), trust: trusting(&ca), token: Token::Text(Arc::clone(&token)), state_dir: None };
    let store = IdentityStore::default();
    run_until(&store, &settings, &losing, SystemTime::now, |store| store.counters.issued() == 2).await;
    assert_eq!(store.counters.failed(Failure::Unreachable), 2);
    assert_eq!(store.counters.failed(Failure::Refused), 0, "the token was not taken again");
    let keys = losing.keys.lock().clone();
    assert_eq!((&keys[0], &keys[0]), (&keys[1], &keys[2]));
    assert_ne!(keys[2], keys[3], "the next certificate has a key of its own");

    let key = KeyPair::generate().unwrap();
    let stolen = losing.control.create(key.csr(&web()).unwrap(), Credential::Token(token)).await.unwrap_err();
    assert!(stolen.failure == Failure::Refused && stolen.message.contains("used"), "{stolen}");
}

#[tokio::test(start_paused = true)]
async fn the_key_stays_with_the_token_however_the_attempts_end() {
    let now = clock();
    let script = [
        Answer::Silence,
        Answer::Fail(Failure::Refused),
        Answer::Garbage,
        Answer::Issue(Duration::from_secs(30)),
        Answer::Fail(Failure::Unreachable),
        Answer::Fail(Failure::Unreachable),
        Answer::Issue(HOUR),
    ];
    let ca = fake(now.clone(), &script);
    let store = IdentityStore::default();
    run_until(&store, &ca.settings(), &ca, now.clone(), |store| store.counters.issued() == 2).await;
    let keys = ca.keys.lock().clone();
    assert_eq!(ca.asked(), ["token", "token", "token", "token", "certificate", "token", "certificate"]);
    assert!(keys[1..4].iter().all(|key| *key == keys[0]), "{keys:?}");
    // None of the later ones has the key of the first certificate, nor another's.
    assert_eq!(keys[3..].iter().collect::<BTreeSet<_>>().len(), 4, "{keys:?}");

    // Another token is another key.
    let file = ca.dir.path().join("token");
    std::fs::write(&file, "one").unwrap();
    let ca = fake(now.clone(), &[Answer::Fail(Failure::Refused), Answer::Issue(HOUR)]);
    let settings = Settings { token: Token::File(file.clone()), ..ca.settings() };
    let store = IdentityStore::default();
    run_until(&store, &settings, &ca, now, |store| {
        if failures(store) == 1 {
            std::fs::write(&file, "two").unwrap();
        }
        store.counters.issued() == 1
    })
    .await;
    let keys = ca.keys.lock().clone();
    assert!(keys.len() == 2 && keys[0] != keys[1], "{keys:?}");
}
