//! What survives a restart of control: the last good versions, and nothing that was deleted.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use prometheus::IntCounter;

use super::super::object::Thing;
use super::super::saved::{FILE, objects};
use super::*;
use crate::sources::saved::{self, Keep, Saver};

/// Files, a state directory, and the processes that use them one after the other.
struct Kept {
    files: Files,
    errors: IntCounter,
}

/// A control, as far as files go; dropped, it has saved what it had.
struct Process {
    store: Store,
    saver: Saver,
}

impl Process {
    fn refresh(&mut self) -> Loaded {
        let loaded = self.store.refresh().expect("something has changed");
        if let Some(snapshot) = self.store.snapshot() {
            self.saver.save(|| snapshot);
        }
        loaded
    }
}

impl Kept {
    fn new(files: &[(&str, &str)]) -> Self {
        Self { files: Files::new(files), errors: IntCounter::new("errors", "e").unwrap() }
    }

    fn dir(&self) -> PathBuf {
        self.files.dir.path().join("state")
    }

    fn keep(&self) -> Keep {
        Keep { dir: self.dir(), errors: self.errors.clone() }
    }

    fn start(&self) -> Process {
        let saved = saved::load(&self.dir(), FILE).unwrap();
        let saver = Saver::start(self.keep(), FILE, Some(&saved)).unwrap();
        Process { store: Store::new(&[self.files.path("")], "cluster.local").keeping(saved), saver }
    }

    /// A whole life of a process.
    fn once(&self) -> Loaded {
        self.start().refresh()
    }

    fn watch(&self) -> Newest {
        watch(&[self.files.path("")], "cluster.local", Some(self.keep())).unwrap().newest
    }
}

async fn within_seconds(what: &str, fits: impl Fn() -> bool) {
    let start = Instant::now();
    while !fits() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn limit(requests: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {{name: web, namespace: shop}}\nspec:\n  targetRefs: [{{kind: Service, name: web}}]\n  limits: [{{name: all, requests: {requests}, per: 1s}}]\n"
    )
}

#[test]
fn an_object_that_is_broken_at_start_is_what_it_was_before() {
    let (allow, route, limit) = (policy("web", "Allow"), route("/a"), limit("5"));
    let kept = Kept::new(&[("service.yaml", SERVICE), ("a.yaml", &allow), ("r.yaml", &route), ("l.yaml", &limit)]);
    let good = kept.once();
    assert!(good.problems.is_empty(), "{:?}", good.problems);
    kept.files.write("a.yaml", &allow.replace("action: Allow", "action: Alow"));
    kept.files.write("r.yaml", &route.replace("rules:", "ruels:"));
    kept.files.write("l.yaml", &limit.replace("requests: 5", "requests: many"));
    kept.files.write("service.yaml", &SERVICE.replace("port: 80", "port: 800000"));
    // Not once only: what is broken stays saved.
    for _ in 0..3 {
        let again = kept.once();
        assert_eq!(again.model, good.model);
        let told = kept.files.told(&again);
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(told.iter().all(|told| told.contains(" (the last good version stays)")), "{told:?}");
    }
    // Without the state directory, the policy closes its target.
    let closed = load(&[kept.files.path("")], "cluster.local");
    assert!(invalid(&closed, "web").is_some_and(|why| why.contains("a.yaml")) && closed.model.routes.is_empty());
    assert_eq!(kept.errors.get(), 0);
}

#[test]
fn the_newest_good_version_counts_and_the_files_are_private() {
    let kept = Kept::new(&[("a.yaml", &policy("web", "Allow"))]);
    let mut process = kept.start();
    process.refresh();
    kept.files.write("a.yaml", &format!("# One line down\n---\n{}", policy("web", "Deny")));
    let good = process.refresh();
    drop(process);
    kept.files.write("a.yaml", &policy("web", "None"));
    let again = kept.once();
    // Where it stands in the file is part of it.
    assert_eq!((&again.model, action(&again)), (&good.model, 1));
    assert!(again.model.authorization[&shop("web")].policy.source.ends_with("a.yaml:3"));
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(kept.dir()), mode(kept.dir().join("objects"))), (0o700, 0o600));
    // Nothing has changed since: nothing is written.
    let written = || fs::metadata(kept.dir().join("objects")).unwrap().ino();
    let before = written();
    kept.once();
    assert_eq!(written(), before);
}

#[test]
fn what_was_deleted_while_control_was_away_stays_deleted() {
    let all = format!("{}---\n{}---\n{}", policy("web", "Allow"), policy("old", "Allow"), route("/a"));
    let kept = Kept::new(&[("all.yaml", &all), ("gone.yaml", &policy("gone", "Allow"))]);
    let good = kept.once();
    fs::remove_file(kept.files.path("gone.yaml")).unwrap();
    // A document that is no YAML at all still says which object it was; `old` is named nowhere.
    let broken = policy("web", "Allow").replace("rules: [", "rules: [[");
    kept.files.write("all.yaml", &format!("{broken}---\n{}", route("/b")));
    let mut process = kept.start();
    let again = process.refresh();
    assert_eq!(again.model.authorization.keys().collect::<Vec<_>>(), [&shop("web")]);
    assert_eq!(again.model.authorization[&shop("web")], good.model.authorization[&shop("web")]);
    assert_ne!(again.model.routes, good.model.routes);
    assert_eq!(kept.files.told(&again).len(), 1);
    // What comes back later, and broken, is not what it was in another life.
    kept.files.write("gone.yaml", &policy("gone", "Alow"));
    assert!(invalid(&process.refresh(), "gone").is_some_and(|why| !why.is_empty()));
}

#[test]
fn an_object_of_a_list_comes_back_alone() {
    let [a, b] = ["a", "b"].map(|name| format!("- {}\n", policy(name, "Allow").trim_end().replace('\n', "\n  ")));
    let list = |items: &str| format!("apiVersion: v1\nkind: List\nitems:\n{items}");
    let kept = Kept::new(&[("list.yaml", &list(&format!("{a}{b}")))]);
    assert_eq!(kept.once().model.authorization.len(), 2);
    kept.files.write("list.yaml", &list(&a.replace("action: Allow", "action: Alow")));
    let again = kept.once();
    assert_eq!((again.model.authorization.len(), invalid(&again, "a").as_deref()), (1, Some("")));
    // Its text held `b` too, which was not in force when it was saved again.
    kept.files.write("list.yaml", &list(&format!("{a}{b}").replace("action: Allow", "action: Alow")));
    let last = kept.once();
    assert_eq!(invalid(&last, "a").as_deref(), Some(""));
    assert!(invalid(&last, "b").is_some_and(|why| !why.is_empty()));
}

#[test]
fn a_file_that_cannot_be_read_at_start_holds_what_it_held() {
    let kept = Kept::new(&[("service.yaml", SERVICE), ("a.yaml", &policy("web", "Allow"))]);
    let good = kept.once();
    fs::write(kept.files.path("a.yaml"), [0xff, 0xfe]).unwrap();
    let again = kept.once();
    assert_eq!(again.model, good.model);
    assert!(matches!(again.state, State::Stale { .. }) && again.problems.len() == 1);
}

#[test]
fn as_long_as_a_path_was_never_read_nothing_is_overwritten() {
    let kept = Kept::new(&[("service.yaml", SERVICE), ("a.yaml", &policy("web", "Allow"))]);
    kept.once();
    let (root, aside) = (kept.files.path(""), kept.files.dir.path().join("aside"));
    fs::rename(&root, &aside).unwrap();
    let mut process = kept.start();
    assert!(!process.refresh().complete && process.store.snapshot().is_none());
    fs::write(aside.join("a.yaml"), policy("web", "Alow")).unwrap();
    fs::rename(&aside, &root).unwrap();
    let found = process.refresh();
    assert!(found.complete);
    assert_eq!((invalid(&found, "web").as_deref(), found.problems.len()), (Some(""), 1));
}

#[test]
fn state_that_cannot_be_written_is_counted_and_not_left_behind_outdated() {
    let kept = Kept::new(&[("a.yaml", &policy("web", "Allow"))]);
    kept.once();
    // What an earlier write left cannot be removed: it is a directory.
    fs::create_dir(kept.dir().join(".objects.0123456789abcdef.new")).unwrap();
    kept.files.write("a.yaml", &policy("web", "Deny"));
    kept.once();
    assert_eq!((kept.errors.get(), kept.dir().join("objects").exists()), (1, false));
}

#[tokio::test]
async fn damaged_state_is_counted_ignored_and_written_anew() {
    let kept = Kept::new(&[("service.yaml", SERVICE), ("a.yaml", &policy("web", "Allow"))]);
    kept.once();
    let path = kept.dir().join("objects");
    let whole = fs::read(&path).unwrap();
    kept.files.write("a.yaml", &policy("web", "Alow"));
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (count, damaged) in [&flipped[..], &whole[..whole.len() / 2], b"", b"apiVersion: v1\n"].iter().enumerate() {
        fs::write(&path, damaged).unwrap();
        let watch = kept.watch();
        assert_eq!(kept.errors.get(), count as u64 + 1);
        assert!(invalid(&watch.borrow(), "web").is_some_and(|why| !why.is_empty()), "the policy closes its target");
        within_seconds("sound state", || saved::load(&kept.dir(), FILE).is_ok_and(|saved| objects(&saved).len() == 1))
            .await;
    }
}

#[tokio::test]
async fn a_change_that_is_seen_is_saved_and_found_by_the_next_watch() {
    let kept = Kept::new(&[("a.yaml", &policy("web", "Allow"))]);
    let mut watch = kept.watch();
    kept.files.write("a.yaml", &policy("web", "Deny"));
    let good = within_a_second(&mut watch, |loaded| action(loaded) == 1).await;
    let saved = || saved::load(&kept.dir(), FILE).map(|saved| objects(&saved)).unwrap_or_default();
    let deny = |thing: &Thing| matches!(thing, Thing::Authorization(policy) if policy.policy.action == 1);
    within_seconds("the change", || saved().values().any(|origin| deny(&origin.thing))).await;
    kept.files.write("a.yaml", &policy("web", "None"));
    let again = kept.watch();
    assert_eq!((&again.borrow().model, again.borrow().problems.len()), (&good.model, 1));
}
