//! Follows the sources that control was given, and sends what they come to.
//!
//! Invariants
//! - Nothing is sent before all that was given could be read once: what was never read is not "nothing" (contract C6).
//! - A source that is lost takes nothing away; its state and age are in the metrics.
//! - What a source told at once goes on at once; while it waits for its place, what comes next gathers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::State;
use super::files::{Edit, Loaded, Watch};
use super::join::Join;
use super::kubernetes::{Kubernetes, Told};
use crate::distribute::Feed;
use crate::metrics::Metrics;
use crate::model::{Change, Model};

/// What could not be read yet is named so often.
const MISSING: Duration = Duration::from_secs(10);

/// Follows manifests and an API server until it is dropped. Files are preferred: somebody has put them there for this very control.
pub async fn follow(mut files: Option<Watch>, mut kubernetes: Option<Kubernetes>, feed: Feed, metrics: Arc<Metrics>) {
    let mut following = Following::new(files.is_some(), kubernetes.is_some(), metrics);
    if let Some(files) = &mut files {
        let loaded = Arc::clone(&files.newest.borrow_and_update());
        following.loaded(loaded).await;
    }
    let mut age = tokio::time::interval(Duration::from_secs(1));
    loop {
        following.measure(kubernetes.as_ref());
        if let Some(Told { changes, subjects }) = following.due(kubernetes.as_ref()) {
            feed.send_with(changes, subjects).await;
        }
        tokio::select! {
            filed = filed(&mut files) => following.hear(filed).await,
            all = told(&mut kubernetes) => following.told(all),
            _ = age.tick() => {}
        }
    }
}

/// What the files tell.
enum Filed {
    /// Behind what was told of all of it before, if that was not seen yet.
    Edit(Option<Arc<Loaded>>, Edit),
    All(Arc<Loaded>),
    /// Nothing more: they are not watched any more. Said once.
    End,
}

async fn filed(files: &mut Option<Watch>) -> Filed {
    let Some(watch) = files else { return std::future::pending().await };
    tokio::select! {
        Some(edit) = watch.edits.recv() => {
            let unseen = watch.newest.has_changed().is_ok_and(|changed| changed);
            return Filed::Edit(unseen.then(|| Arc::clone(&watch.newest.borrow_and_update())), edit);
        }
        changed = watch.newest.changed() => if changed.is_ok() {
            return Filed::All(Arc::clone(&watch.newest.borrow_and_update()));
        }
    }
    *files = None;
    Filed::End
}

async fn told(kubernetes: &mut Option<Kubernetes>) -> Told {
    match kubernetes {
        Some(kubernetes) => kubernetes.next().await,
        None => std::future::pending().await,
    }
}

struct Following {
    join: Join,
    /// The number of the API server among the sources.
    kubernetes: usize,
    /// Whether there are files, and what they say.
    filed: bool,
    files: Option<Arc<Loaded>>,
    /// What was edited since then, by the number of the edit; and of the last thing that they told.
    edited: Vec<(u64, Change)>,
    known: u64,
    /// Since when nobody looks at them any more.
    unwatched: Option<Instant>,
    /// What was not sent yet, and whether anything was.
    waiting: Told,
    begun: bool,
    missing_said: Option<Instant>,
    metrics: Arc<Metrics>,
}

impl Following {
    fn new(files: bool, kubernetes: bool, metrics: Arc<Metrics>) -> Self {
        Self {
            join: Join::new(usize::from(files) + usize::from(kubernetes)),
            kubernetes: usize::from(files),
            filed: files,
            files: None,
            edited: Vec::new(),
            known: 0,
            unwatched: None,
            waiting: Told::default(),
            begun: false,
            missing_said: None,
            metrics,
        }
    }

    async fn hear(&mut self, filed: Filed) {
        match filed {
            Filed::Edit(before, edit) => {
                if let Some(before) = before {
                    self.loaded(before).await;
                }
                self.edit(edit);
            }
            Filed::All(loaded) => self.loaded(loaded).await,
            Filed::End => {
                // What was read stays in force, and is said to be of the past.
                tracing::error!("the files are not watched any more; restart control");
                self.unwatched = Some(Instant::now());
            }
        }
    }

    fn edit(&mut self, edit: Edit) {
        // It is in what was told of all of it.
        if edit.number <= self.known {
            return;
        }
        self.known = edit.number;
        self.edited.extend(edit.changes.iter().map(|change| (edit.number, change.clone())));
        self.take(0, edit.changes);
    }

    async fn loaded(&mut self, loaded: Arc<Loaded>) {
        self.metrics.loaded(&loaded);
        for problem in loaded.problems.iter().chain(&loaded.warnings) {
            tracing::warn!("{problem}");
        }
        if !loaded.complete {
            tracing::error!("some of the files have never been readable: nobody is answered from what there is so far");
            if self.files.as_ref().is_none_or(|files| !files.complete) {
                self.files = Some(loaded);
            }
            return;
        }
        if !loaded.news && loaded.number <= self.known {
            self.edited.retain(|(number, _)| *number > loaded.number);
            self.files = Some(loaded);
            return;
        }
        self.known = loaded.number;
        // The files say all there is; what differs is found by looking at each object, not on the runtime's threads.
        let (old, now) = (self.files.clone().filter(|files| files.complete), Arc::clone(&loaded));
        let edited = std::mem::take(&mut self.edited);
        let differs = move || {
            let nothing = Model::default();
            let mut changes = old.as_ref().map_or(&nothing, |old| &old.model).changes_to(&now.model);
            // It may be now as it was before it was edited.
            changes.extend(edited.iter().map(|(_, edited)| now.model.held(edited)));
            changes
        };
        match tokio::task::spawn_blocking(differs).await {
            Ok(changes) => {
                self.files = Some(loaded);
                self.take(0, changes);
            }
            Err(error) => tracing::error!(%error, "the files could not be compared; what was in force stays"),
        }
    }

    fn told(&mut self, told: Told) {
        self.take(self.kubernetes, told.changes);
        self.waiting.subjects.extend(told.subjects);
    }

    fn take(&mut self, source: usize, changes: Vec<Change>) {
        self.waiting.changes.extend(self.join.take(source, changes));
    }

    /// What is to be sent, if all was read once. At first that is all there is, be it nothing.
    fn due(&mut self, kubernetes: Option<&Kubernetes>) -> Option<Told> {
        if let Some(kubernetes) = kubernetes.filter(|kubernetes| !kubernetes.complete()) {
            if self.missing_said.is_none_or(|said| said.elapsed() >= MISSING) {
                self.missing_said = Some(Instant::now());
                tracing::info!(
                    "nobody is answered before the API server has listed {}",
                    kubernetes.missing().join(", ")
                );
            }
            return None;
        }
        let read = !self.filed || self.files.as_ref().is_some_and(|files| files.complete);
        let due = read && (!self.begun || !self.waiting.is_empty());
        self.begun |= due;
        due.then(|| std::mem::take(&mut self.waiting))
    }

    fn measure(&self, kubernetes: Option<&Kubernetes>) {
        let files = self.filed.then(|| match (self.unwatched, &self.files) {
            (Some(since), _) => State::Lost { since },
            (None, Some(files)) => files.state,
            (None, None) => State::Synced,
        });
        let state = match (files, kubernetes.map(Kubernetes::state)) {
            (Some(files), Some(kubernetes)) => files.and(kubernetes),
            (one, other) => one.or(other).unwrap_or(State::Synced),
        };
        let problems = self.files.as_ref().map_or(0, |files| files.problems.len());
        self.metrics.source.state(state, problems + kubernetes.map_or(0, Kubernetes::problems));
    }
}
