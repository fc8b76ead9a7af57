//! The trust domain has another name than the process was started with, or gets one.

use weft_api::convert;
use weft_certs::ca::rotation::Waits;
use weft_certs::tls::Leaf;

use super::*;

const NEW: &str = "new.example";

/// A CA that issues in [`NEW`] now, for whoever was started with the name of before.
fn renamed() -> (FakeCa<fn() -> SystemTime>, Settings) {
    let mut ca = fake(SystemTime::now as fn() -> SystemTime, &[Answer::Issue(HOUR)]);
    let settings = ca.settings();
    let (now, waits) = (SystemTime::now(), Waits { copies: Duration::ZERO, leaves: HOUR });
    let begun = ca.ca.rename(NEW, false, now).unwrap();
    ca.ca = begun.advance(waits, now).unwrap().advance(waits, now).unwrap();
    (ca, settings)
}

fn told(ca: &Ca, own: &str, aliases: &[&str]) -> convert::Trust {
    let roots = tls::certificates(ca.root_pem()).unwrap();
    let roots = roots.iter().map(|root| bytes::Bytes::copy_from_slice(root)).collect();
    let aliases = aliases.iter().map(|name| (*name).into()).collect();
    convert::Trust { bundles: [(own.into(), roots)].into(), own: own.into(), aliases, svid_roots: Vec::new() }
}

fn shown(identity: Identity) -> Leaf {
    let (now, serial) = (SystemTime::now(), "01".to_owned());
    Leaf { identity, pod: None, number: serial.parse().unwrap(), serial, not_before: now, not_after: now + HOUR }
}

/// A certificate with this identity.
fn issued(ca: &FakeCa<fn() -> SystemTime>, domain: &str) -> Svid {
    let old = Ca::open(&ca.dir.path().join("ca"), "cluster.local").unwrap();
    let issuer = if old.trust_domain() == domain { old } else { old.abort(SystemTime::now()).unwrap() };
    let key = KeyPair::generate().unwrap();
    let chain = issuer.issue(&key.csr(&web()).unwrap(), &web(), HOUR, SystemTime::now()).unwrap();
    let svid = Svid::new(key, &chain).unwrap();
    assert_eq!(&*svid.identity().trust_domain, domain);
    svid
}

/// Whether a certificate with this identity would be taken, and who its holder is to us.
fn believed(ca: &FakeCa<fn() -> SystemTime>, settings: &Settings, domain: &str) -> Option<Identity> {
    let svid = issued(ca, domain);
    let holder = shown(svid.identity().clone());
    let taken = check(&Current::believing(Arc::new(svid), &settings.trust.now()).unwrap()).is_ok();
    taken.then(|| settings.trust.known(holder).identity)
}

#[tokio::test]
async fn what_control_gives_in_another_name_is_taken_and_believed_until_it_says_more() {
    let (ca, settings) = renamed();
    assert_eq!(believed(&ca, &settings, NEW), None, "nobody has said that it is ours");
    let store = IdentityStore::default();
    run_until(&store, &settings, &ca, SystemTime::now, |store| store.counters.issued() > 0).await;
    assert_eq!(failures(&store), 0, "at the first attempt");
    let current = store.current().unwrap();
    assert_eq!(current.identity.to_string(), "spiffe://new.example/ns/shop/sa/web");
    assert_eq!(believed(&ca, &settings, NEW), Some(web()), "known by the name that we were started with");
    // A process that starts from what was saved does so once the saved roots have said the name.
    let again = Settings { trust: trusting(&fake(SystemTime::now, &[]).ca), ..settings.clone() };
    again.trust.tell(&told(&ca.ca, NEW, &["cluster.local"])).unwrap();
    let second = IdentityStore::default();
    run_until(&second, &again, &ca, SystemTime::now, |store| store.current().is_ok()).await;
    assert_eq!((second.counters.issued(), &second.current().unwrap().serial), (0, &current.serial));
    // Control says more.
    settings.trust.tell(&told(&ca.ca, "cluster.local", &[])).unwrap();
    assert_eq!(believed(&ca, &settings, NEW), None);
}

#[tokio::test]
async fn a_certificate_that_is_believed_no_more_is_renewed_at_once() {
    let (ca, settings) = renamed();
    issued(&ca, "cluster.local").save(&ca.state_dir()).unwrap();
    let store = IdentityStore::default();
    let steps = async {
        let mut taken = store.changes();
        taken.wait_for(|taken| *taken == 1).await.unwrap();
        assert!(store.current().unwrap().believed, "the saved one");
        // While this proxy was away, the name was changed and the one before withdrawn.
        settings.trust.tell(&told(&ca.ca, NEW, &[])).unwrap();
        store.believe(&settings.trust.now()).unwrap();
        assert!(!store.current().unwrap().believed);
        taken.wait_for(|taken| *taken == 2).await.unwrap();
        let current = store.current().unwrap();
        assert_eq!((&*current.identity.trust_domain, store.counters.issued()), (NEW, 1));
    };
    tokio::select! {
        () = run(&store, &store, &settings, &ca, SystemTime::now) => unreachable!("the task never ends"),
        done = timeout(Duration::from_secs(20), steps) => done.expect("renewed long before it is due"),
    }
    assert!(store.current().unwrap().believed);
}

#[tokio::test]
async fn each_name_is_believed_for_as_long_as_control_says_it() {
    for (own, aliases, old, new) in [
        ("cluster.local", &[][..], true, false),
        ("cluster.local", &[NEW], true, true),
        (NEW, &["cluster.local"], true, true),
        (NEW, &[], false, true),
    ] {
        let (ca, settings) = renamed();
        settings.trust.tell(&told(&ca.ca, own, aliases)).unwrap();
        assert_eq!(believed(&ca, &settings, NEW), new.then(web), "{own} {aliases:?}");
        assert_eq!(believed(&ca, &settings, "cluster.local"), old.then(web), "{own} {aliases:?}");
        let bundles = settings.trust.bundles().borrow().keys().cloned().collect::<Vec<_>>();
        let names: BTreeSet<_> = std::iter::once(&own).chain(aliases).map(|name| format!("spiffe://{name}")).collect();
        assert_eq!(bundles, names.into_iter().collect::<Vec<_>>());
        // Control is known by the name that we were started with, and somebody else's stays that.
        assert_eq!(&*settings.trust.now().domain, "cluster.local");
        let other = Identity::new("partner.example", "shop", "web").unwrap();
        assert_eq!(settings.trust.known(shown(other.clone())).identity, other);
    }
}

#[tokio::test]
async fn another_workloads_certificate_is_not_taken_in_any_name() {
    let (mut ca, settings) = renamed();
    ca.script = Mutex::new(vec![Answer::OtherIdentity]);
    let store = IdentityStore::default();
    let limit = Duration::from_millis(300);
    timeout(limit, run(&store, &store, &settings, &ca, SystemTime::now)).await.unwrap_err();
    assert!(store.counters.failed(Failure::BadAnswer) > 0);
    assert_eq!(believed(&ca, &settings, NEW), None, "nor does it say what we are called");
}
