//! Renewal against a fake CA, in paused time where time matters; and once over TLS and gRPC.

mod away;
mod further;
mod lost;
mod over_grpc;
mod renamed;
mod rotated;
mod workload_api;

use std::collections::BTreeSet;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};
use weft_certs::ca::{Ca, check_request};
use weft_certs::svid::KeyPair;

use super::authority::{AskError, Authority, Credential, Token};
use super::renew::{Settings, run};
use super::*;
use crate::testing::trusting;

const HOUR: Duration = Duration::from_hours(1);

fn web() -> Identity {
    Identity::new("cluster.local", "shop", "web").unwrap()
}

/// The wall clock of a test: moves with tokio's, paused or not. rustls reads the real one, so a test must not run ahead of it by more
/// than the minute that leaves are dated back.
fn clock() -> impl Fn() -> SystemTime + Sync + Clone {
    let (wall, start) = (SystemTime::now(), Instant::now());
    move || wall + start.elapsed()
}

/// How the fake CA answers one request.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Issue(Duration),
    /// The chain ends with the issuer.
    WithoutRoot(Duration),
    Fail(Failure),
    RefuseCertificates(Duration),
    /// As a refusal within the TLS handshake looks.
    DropCertificates(Duration),
    OtherIdentity,
    OtherKey,
    Garbage,
    Silence,
}

/// A CA in memory: answers by a script whose last line stays.
struct FakeCa<C> {
    dir: tempfile::TempDir,
    ca: Ca,
    now: C,
    script: Mutex<Vec<Answer>>,
    asked: Mutex<Vec<&'static str>>,
    /// The key of each request.
    keys: Mutex<Vec<String>>,
}

fn fake<C: Fn() -> SystemTime + Sync>(now: C, script: &[Answer]) -> FakeCa<C> {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(&dir.path().join("ca"), "cluster.local").unwrap();
    let script = Mutex::new(script.iter().rev().copied().collect());
    FakeCa { dir, ca, now, script, asked: Mutex::default(), keys: Mutex::default() }
}

impl<C: Fn() -> SystemTime + Sync> FakeCa<C> {
    fn settings(&self) -> Settings {
        Settings {
            identity: web(),
            trust: trusting(&self.ca),
            token: Token::Text("token".into()),
            state_dir: Some(self.state_dir()),
        }
    }

    fn state_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    fn issue(&self, csr: &str, identity: &Identity, life: Duration) -> Vec<String> {
        self.ca.issue(csr, identity, life, (self.now)()).unwrap()
    }

    fn svid(&self, identity: &Identity, life: Duration, at: SystemTime) -> Svid {
        let key = KeyPair::generate().unwrap();
        let chain = self.ca.issue(&key.csr(identity).unwrap(), identity, life, at).unwrap();
        Svid::new(key, &chain).unwrap()
    }

    fn asked(&self) -> Vec<&'static str> {
        self.asked.lock().clone()
    }
}

impl<C: Fn() -> SystemTime + Sync> Authority for FakeCa<C> {
    async fn create(&self, csr: String, credential: Credential) -> Result<Vec<String>, AskError> {
        let by = match credential {
            Credential::Certificate(_) => "certificate",
            Credential::Token(_) => "token",
        };
        self.asked.lock().push(by);
        self.keys.lock().push(check_request(&csr, &web(), &["cluster.local"]).unwrap());
        let answer = {
            let mut script = self.script.lock();
            if script.len() > 1 { script.pop() } else { script.last().copied() }
        };
        let refuse = |failure| Err(AskError { failure, message: "by the script".into() });
        match answer.unwrap() {
            Answer::RefuseCertificates(_) if by == "certificate" => refuse(Failure::Refused),
            Answer::DropCertificates(_) if by == "certificate" => refuse(Failure::Unreachable),
            Answer::Issue(life) | Answer::RefuseCertificates(life) | Answer::DropCertificates(life) => {
                Ok(self.issue(&csr, &web(), life))
            }
            Answer::WithoutRoot(life) => Ok(self.issue(&csr, &web(), life)[..2].to_vec()),
            Answer::Fail(failure) => refuse(failure),
            Answer::OtherIdentity => {
                let other = Identity::new("cluster.local", "shop", "admin").unwrap();
                let csr = KeyPair::generate().unwrap().csr(&other).unwrap();
                Ok(self.issue(&csr, &other, HOUR))
            }
            Answer::OtherKey => Ok(self.issue(&KeyPair::generate().unwrap().csr(&web()).unwrap(), &web(), HOUR)),
            Answer::Garbage => Ok(vec!["no certificate".into()]),
            Answer::Silence => std::future::pending().await,
        }
    }
}

/// Runs the task until `done` is true of the store; fails after ten minutes of the test's time.
async fn run_until(
    store: &IdentityStore,
    settings: &Settings,
    authority: &impl Authority,
    now: impl Fn() -> SystemTime + Sync,
    mut done: impl FnMut(&IdentityStore) -> bool,
) {
    let watch = async {
        while !done(store) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let both = async {
        tokio::select! {
            () = run(store, store, settings, authority, now) => unreachable!("the task never ends"),
            () = watch => {}
        }
    };
    timeout(Duration::from_mins(10), both).await.expect("the condition never came");
}

fn failures(store: &IdentityStore) -> u64 {
    Failure::ALL.iter().map(|failure| store.counters.failed(*failure)).sum()
}

#[tokio::test(start_paused = true)]
async fn ten_second_leaves_are_renewed_with_a_new_key_each_and_never_missing() {
    let now = clock();
    let ca = fake(now.clone(), &[Answer::Issue(Duration::from_secs(10))]);
    let store = IdentityStore::default();
    let mut changes = store.changes();
    let (mut serials, mut keys) = (BTreeSet::new(), BTreeSet::new());
    let end = now() + Duration::from_mins(1);
    run_until(&store, &ca.settings(), &ca, now.clone(), |store| {
        if store.counters.issued() > 0 {
            let current = store.current_at(now()).expect("no gap between certificates");
            serials.insert(current.serial.clone());
            keys.insert(current.key_id.clone());
        }
        now() >= end
    })
    .await;
    assert!(serials.len() >= 8, "{} serials", serials.len());
    assert_eq!(serials.len(), keys.len(), "a new key each");
    assert_eq!(failures(&store), 0);
    assert_eq!(store.counters.not_saved(), 0);
    assert!(changes.has_changed().unwrap());
    assert_eq!(*changes.borrow_and_update(), store.counters.issued());
    // The first by the token, each later one by the certificate before it.
    let asked = ca.asked();
    assert_eq!(asked[0], "token");
    assert!(asked[1..].iter().all(|by| *by == "certificate"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn the_old_one_serves_until_it_expires_and_not_after() {
    let now = clock();
    let script = [Answer::Issue(Duration::from_secs(30)), Answer::Fail(Failure::Unreachable)];
    let ca = fake(now.clone(), &script);
    let store = IdentityStore::default();
    run_until(&store, &ca.settings(), &ca, now.clone(), |store| store.current_at(now()).is_ok()).await;
    let first = store.current_at(now()).unwrap();
    let settings = ca.settings();
    run_until(&store, &settings, &ca, now.clone(), |store| {
        let current = store.current_at(now());
        if now() < first.not_after {
            assert_eq!(current.unwrap().serial, first.serial);
            return false;
        }
        assert_eq!(current.unwrap_err(), Reason::IdentityExpired);
        true
    })
    .await;
    let failed = store.counters.failed(Failure::Unreachable);
    assert!((3..=12).contains(&failed), "backs off: {failed} attempts in 10 s");

    // Once expired the certificate proves nothing any more: the token is asked with.
    let before = ca.asked().len();
    ca.script.lock()[0] = Answer::Issue(HOUR);
    run_until(&store, &settings, &ca, now.clone(), |store| store.current_at(now()).is_ok()).await;
    assert!(ca.asked()[before..].iter().all(|by| *by == "token"), "{:?}", ca.asked());
}

#[tokio::test(start_paused = true)]
async fn a_bad_answer_is_counted_and_never_used() {
    for (answer, failure) in [
        (Answer::OtherIdentity, Failure::BadAnswer),
        (Answer::OtherKey, Failure::BadAnswer),
        (Answer::Garbage, Failure::BadAnswer),
        (Answer::Silence, Failure::Unreachable),
        (Answer::Fail(Failure::Refused), Failure::Refused),
    ] {
        let now = clock();
        let ca = fake(now.clone(), &[answer, Answer::Issue(HOUR)]);
        let store = IdentityStore::default();
        run_until(&store, &ca.settings(), &ca, now, |store| store.current().is_ok()).await;
        assert_eq!(store.counters.failed(failure), 1, "{answer:?}");
        assert_eq!((failures(&store), store.counters.issued()), (1, 1), "{answer:?}");
        assert_eq!(store.current().unwrap().identity, web());
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_another_ca_does_not_pass_its_check() {
    let now = clock();
    let (ours, theirs) = (fake(now.clone(), &[]), fake(now.clone(), &[Answer::WithoutRoot(HOUR)]));
    let store = IdentityStore::default();
    run_until(&store, &ours.settings(), &theirs, now, |store| store.counters.failed(Failure::SelfCheck) > 2).await;
    assert_eq!(store.current().unwrap_err(), Reason::IdentityExpired);
    assert_eq!(store.counters.issued(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_certificate_falls_back_to_the_token() {
    let now = clock();
    let ca = fake(now.clone(), &[Answer::RefuseCertificates(Duration::from_mins(1))]);
    let store = IdentityStore::default();
    run_until(&store, &ca.settings(), &ca, now, |store| store.counters.issued() == 2).await;
    assert_eq!(ca.asked(), ["token", "certificate", "token"]);
    assert_eq!(failures(&store), 0);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_refused_within_the_handshake_falls_back_to_the_token_before_it_expires() {
    let now = clock();
    let ca = fake(now.clone(), &[Answer::DropCertificates(Duration::from_secs(30))]);
    let store = IdentityStore::default();
    run_until(&store, &ca.settings(), &ca, now, |store| store.counters.issued() == 2).await;
    assert_eq!(ca.asked(), ["token", "certificate", "token"]);
    assert_eq!(store.counters.failed(Failure::Unreachable), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restart_uses_what_was_saved_without_asking() {
    let now = clock();
    let ca = fake(now.clone(), &[Answer::Issue(HOUR)]);
    let first = IdentityStore::default();
    let saved = ca.state_dir().join("svid.pem");
    run_until(&first, &ca.settings(), &ca, now.clone(), |_| saved.exists()).await;

    let away = fake(now.clone(), &[Answer::Fail(Failure::Unreachable)]);
    let second = IdentityStore::default();
    run_until(&second, &ca.settings(), &away, now, |store| store.current().is_ok()).await;
    assert_eq!(second.current().unwrap().serial, first.current().unwrap().serial);
    assert_eq!(second.counters.issued(), 0);
    assert_eq!(second.current().unwrap().not_after, first.current().unwrap().not_after);
    assert_eq!(away.asked(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_was_saved_is_not_used_if_it_is_not_good() {
    let other = Identity::new("cluster.local", "shop", "admin").unwrap();
    let stranger = fake(SystemTime::now, &[]);
    for what in ["expired", "another identity", "another CA", "damaged"] {
        let now = clock();
        let ca = fake(now.clone(), &[Answer::Issue(HOUR)]);
        let saved = match what {
            "expired" => ca.svid(&web(), HOUR, now() - 2 * HOUR),
            "another identity" => ca.svid(&other, HOUR, now()),
            "another CA" => stranger.svid(&web(), HOUR, now()),
            _ => ca.svid(&web(), HOUR, now()),
        };
        saved.save(&ca.state_dir()).unwrap();
        if what == "damaged" {
            let path = ca.state_dir().join("svid.pem");
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        }
        let store = IdentityStore::default();
        run_until(&store, &ca.settings(), &ca, now, |store| store.current().is_ok()).await;
        assert_eq!(store.counters.issued(), 1, "{what}");
        assert_eq!(ca.asked(), ["token"], "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_directory_that_cannot_be_written_is_counted_and_the_certificate_used() {
    let now = clock();
    let ca = fake(now.clone(), &[Answer::Issue(HOUR)]);
    let mut settings = ca.settings();
    std::fs::write(ca.dir.path().join("file"), "").unwrap();
    settings.state_dir = Some(ca.dir.path().join("file/state"));
    let store = IdentityStore::default();
    run_until(&store, &settings, &ca, now, |store| store.counters.not_saved() == 1).await;
    assert!(store.current().is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_token_file_is_read_at_each_use() {
    let now = clock();
    let ca = fake(now.clone(), &[Answer::Issue(HOUR)]);
    let path = ca.dir.path().join("token");
    let mut settings = ca.settings();
    settings.token = Token::File(path.clone());
    let store = IdentityStore::default();
    run_until(&store, &settings, &ca, now.clone(), |store| store.counters.failed(Failure::NoCredential) > 0).await;
    std::fs::write(&path, "\n").unwrap();
    let seen = store.counters.failed(Failure::NoCredential);
    run_until(&store, &settings, &ca, now.clone(), |store| store.counters.failed(Failure::NoCredential) > seen).await;
    assert_eq!(ca.asked(), [""; 0], "nothing is asked without a credential");
    std::fs::write(&path, "token\n").unwrap();
    run_until(&store, &settings, &ca, now, |store| store.current().is_ok()).await;
}

#[tokio::test]
async fn without_token_or_certificate_nothing_is_asked() {
    let ca = fake(SystemTime::now, &[Answer::Issue(HOUR)]);
    let settings = Settings { token: Token::None, ..ca.settings() };
    let store = IdentityStore::default();
    run_until(&store, &settings, &ca, SystemTime::now, |store| store.counters.failed(Failure::NoCredential) > 0).await;
    assert_eq!(ca.asked(), [""; 0]);
}

#[test]
fn debug_output_holds_no_token() {
    let ca = fake(SystemTime::now, &[]);
    let settings = Settings { token: Token::Text("hush".into()), ..ca.settings() };
    assert!(!format!("{settings:?}").contains("hush"));
}
