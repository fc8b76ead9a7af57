//! Files that change -> [`Edit`]s at once, and a new [`Loaded`] when they rest.
//!
//! One thread of its own: the kernel's notices (inotify on the directories, which sees an editor's rename and the swap of a
//! ConfigMap volume's `..data` alike) only say *when* to look; what changed is found by looking at every file's stamp. A look each second makes up
//! for notices that never came.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};

use super::Loaded;
use super::saved::FILE;
use super::store::{Edited, News, Store};
use crate::model::Change;
use crate::sources::saved::{self, Keep, Saver};

/// How often files are looked at without a notice.
const POLL: Duration = Duration::from_secs(1);
/// Notices are gathered until there was none for this long ...
const QUIET: Duration = Duration::from_millis(10);
/// ... and at most for this long,
const GATHER: Duration = Duration::from_millis(50);
/// or, while somebody has a file open for writing, this long: half a file must not be taken for the whole.
const WRITING: Duration = Duration::from_millis(300);
/// Longest rest after a walk that took long.
const MAX_REST: Duration = Duration::from_millis(400);
/// Notices under way between the kernel's thread and ours; one that does not fit is made up for by the next look.
const NOTICES: usize = 1024;

/// All of it is put together when nothing was edited between two looks, and at the latest after this long.
const UNSETTLED: Duration = Duration::from_secs(5);
/// Edits under way; then files are not looked at.
const EDITS: usize = 16;

/// Objects that were changed, added or removed in the files.
#[derive(Debug)]
pub struct Edit {
    /// The how manieth thing it is that is told.
    pub number: u64,
    /// What it comes to.
    pub changes: Vec<Change>,
}

/// Files that are followed. An edit is told at once; what all of it comes to, with what is doubtful about it, when there was none for a while, or
/// when an edit is more than some good objects for others.
#[derive(Debug)]
pub struct Watch {
    /// All of it. What is told here before an edit was seen here before that is.
    pub newest: watch::Receiver<Arc<Loaded>>,
    /// Each edit. Who does not want them drops this, and is told all of it each time.
    pub edits: mpsc::Receiver<Edit>,
}

/// Reads files and directories and goes on watching them until the receiver is dropped. With `keep`, last good versions survive a restart.
///
/// # Errors
/// If no thread can be started.
pub fn watch(paths: &[PathBuf], trust_domain: &str, keep: Option<Keep>) -> std::io::Result<Watch> {
    let mut store = Store::new(paths, trust_domain);
    let mut saver = None;
    if let Some(keep) = keep {
        let saved = saved::recall(&keep, FILE);
        saver = Some(Saver::start(keep, FILE, saved.as_ref())?);
        store = store.keeping(saved.unwrap_or_default());
    }
    let (notices, inbox) = sync_channel(NOTICES);
    let mut eyes = Eyes::new(notices);
    // The first walk finds the directories; what changes between it and the watches is found by a second look.
    let mut first = store.refresh().unwrap_or_else(Loaded::empty);
    eyes.follow(&store.directories);
    if let Some(again) = store.refresh() {
        first = again;
    }
    let (newest, receiver) = watch::channel(Arc::new(first));
    let (edits, edited) = mpsc::channel(EDITS);
    let newest = Arc::new(newest);
    let assembling = assembler(Arc::clone(&newest))?;
    let mut teller = Teller { store, saver, newest, edits, assembling, told: 0, since: Instant::now() };
    teller.save();
    std::thread::Builder::new().name("files".to_owned()).spawn(move || {
        let (mut took, mut ended) = (Duration::ZERO, Instant::now());
        while !teller.newest.is_closed() {
            let noticed = wait(&inbox);
            if noticed.is_some() {
                // A busy directory next to ours must not keep us walking: at most a fifth of the time goes into it. A notice that comes alone
                // is looked after at once.
                std::thread::sleep((took * 4).min(MAX_REST).saturating_sub(ended.elapsed()));
            }
            let start = Instant::now();
            teller.look(noticed.is_some());
            if let Some(gone) = noticed {
                eyes.forget(&gone);
                (took, ended) = (start.elapsed(), Instant::now());
            }
            eyes.follow(&teller.store.directories);
        }
    })?;
    Ok(Watch { newest: receiver, edits: edited })
}

/// Puts all of it together beside the thread that looks at files, so that an edit does not wait for it. It ends with whoever gives it something.
fn assembler(newest: Arc<watch::Sender<Arc<Loaded>>>) -> std::io::Result<SyncSender<(u64, Edited)>> {
    let (give, given) = sync_channel::<(u64, Edited)>(1);
    let assemble = move || {
        for (number, edited) in given {
            let loaded = Arc::new(Loaded { number, news: false, ..edited.assemble() });
            newest.send_if_modified(|told| {
                let newer = told.number <= number;
                if newer {
                    *told = loaded;
                }
                newer
            });
        }
    };
    std::thread::Builder::new().name("files-all".to_owned()).spawn(assemble)?;
    Ok(give)
}

/// Tells what the store finds.
struct Teller {
    store: Store,
    saver: Option<Saver>,
    newest: Arc<watch::Sender<Arc<Loaded>>>,
    edits: mpsc::Sender<Edit>,
    assembling: SyncSender<(u64, Edited)>,
    /// How many things were told, and when the first edit was since all of it was.
    told: u64,
    since: Instant,
}

impl Teller {
    /// `noticed`: more may follow at once.
    fn look(&mut self, noticed: bool) {
        let was_behind = self.store.behind;
        match self.store.look() {
            News::Nothing => {}
            News::All(loaded) => self.tell(*loaded),
            News::Edit(changes) => {
                if !was_behind {
                    self.since = Instant::now();
                }
                if !self.edit(changes) {
                    let all = self.store.all();
                    self.tell(all);
                }
            }
        }
        if self.store.behind && (!noticed || self.since.elapsed() >= UNSETTLED) {
            // If it is still busy with what it was given last, it gets the next.
            self.store.behind = self.assembling.try_send((self.told, self.store.edited())).is_err();
            self.save();
        }
    }

    /// False if nobody wants to hear of it.
    fn edit(&mut self, changes: Vec<Change>) -> bool {
        if changes.is_empty() {
            return true;
        }
        self.told += 1;
        self.edits.blocking_send(Edit { number: self.told, changes }).is_ok()
    }

    fn tell(&mut self, loaded: Loaded) {
        self.told += 1;
        self.newest.send_replace(Arc::new(Loaded { number: self.told, ..loaded }));
        self.save();
    }

    fn save(&self) {
        if let Some((saver, snapshot)) = self.saver.as_ref().zip(self.store.snapshot()) {
            saver.save(|| snapshot);
        }
    }
}

enum Notice {
    Opened(PathBuf),
    Closed(PathBuf),
    Gone(PathBuf),
    Other,
}

/// Waits for a notice, and then until no more come; at most until the next look is due. Says what is gone; `None` without any notice.
fn wait(inbox: &Receiver<Notice>) -> Option<Vec<PathBuf>> {
    let (mut writing, mut gone) = (HashSet::new(), Vec::new());
    match inbox.recv_timeout(POLL) {
        Ok(notice) => note(notice, &mut writing, &mut gone),
        Err(RecvTimeoutError::Timeout) => return None,
        Err(RecvTimeoutError::Disconnected) => {
            // No watcher could be made: looking each second is all there is.
            std::thread::sleep(POLL);
            return None;
        }
    }
    let start = Instant::now();
    loop {
        let most = if writing.is_empty() { GATHER } else { WRITING };
        let left = most.saturating_sub(start.elapsed());
        let pause = if writing.is_empty() { QUIET.min(left) } else { left };
        match inbox.recv_timeout(pause) {
            Ok(notice) => note(notice, &mut writing, &mut gone),
            Err(_) => return Some(gone),
        }
        if left.is_zero() {
            return Some(gone);
        }
    }
}

fn note(notice: Notice, writing: &mut HashSet<PathBuf>, gone: &mut Vec<PathBuf>) {
    match notice {
        Notice::Opened(path) => _ = writing.insert(path),
        Notice::Closed(path) => _ = writing.remove(&path),
        Notice::Gone(path) => {
            writing.remove(&path);
            gone.push(path);
        }
        Notice::Other => {}
    }
}

/// The kernel's notices, as far as they can be had.
struct Eyes {
    watcher: Option<RecommendedWatcher>,
    // Path as it is reached -> what it leads to: after the swap of a link the same path is another directory.
    followed: BTreeMap<PathBuf, PathBuf>,
}

impl Eyes {
    fn new(notices: SyncSender<Notice>) -> Self {
        let tell = move |event: notify::Result<notify::Event>| {
            for notice in event.map_or_else(|_| vec![Notice::Other], read) {
                // Full: a look is due anyway.
                let _ = notices.try_send(notice);
            }
        };
        let watcher = notify::recommended_watcher(tell);
        if let Err(error) = &watcher {
            tracing::warn!(%error, "no notices of changed files: they are looked at once a second");
        }
        Self { watcher: watcher.ok(), followed: BTreeMap::new() }
    }

    /// The watch of a directory goes with it, even if another one has taken its place since.
    fn forget(&mut self, gone: &[PathBuf]) {
        self.followed.retain(|_, path| !gone.contains(path));
    }

    fn follow(&mut self, directories: &BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        let now: BTreeMap<PathBuf, PathBuf> =
            directories.iter().filter_map(|path| Some((path.clone(), std::fs::canonicalize(path).ok()?))).collect();
        if now == self.followed {
            return;
        }
        let (old, new): (BTreeSet<_>, BTreeSet<_>) = (self.followed.values().collect(), now.values().collect());
        for gone in old.difference(&new) {
            // A directory that is gone took its watch along.
            let _ = watcher.unwatch(gone);
        }
        for added in new.difference(&old) {
            if let Err(error) = watcher.watch(added, RecursiveMode::NonRecursive) {
                tracing::warn!(%error, path = %added.display(), "no notices of this directory: it is looked at once a second");
            }
        }
        self.followed = now;
    }
}

fn read(event: notify::Event) -> Vec<Notice> {
    let kind: fn(PathBuf) -> Notice = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Notice::Closed,
        EventKind::Modify(ModifyKind::Data(_)) => Notice::Opened,
        EventKind::Remove(_) => Notice::Gone,
        EventKind::Access(_) => return Vec::new(),
        _ => return vec![Notice::Other],
    };
    event.paths.into_iter().map(kind).collect()
}
