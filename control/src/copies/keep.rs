//! Keeps the copies current: watches namespaces and ConfigMaps, looks at webhooks now and then, writes what is behind.
//!
//! Bounds: eight writes at a time, each for [`cluster::QUESTION`](crate::cluster::QUESTION) at most; what failed is tried again after
//! [`AGAIN`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_stream::StreamExt as _;

use super::view::{Held, Owned, Place, View};
use super::write::{Writer, map_says};
use super::{Behind, Roots, Settings};
use crate::cluster::ClusterError;
use crate::rotation::Authority;

/// What could not be written is tried again, and webhooks are looked at.
const AGAIN: Duration = Duration::from_secs(5);
const WRITES: usize = 8;

type Written = Result<Held, ClusterError>;

/// Ends when nobody has a CA any more.
pub(super) async fn keep(client: Client, settings: Settings, mut ca: Authority, behind: impl Fn(Behind)) {
    let name = settings.roots_configmap.clone().unwrap_or_default();
    let labelled = settings.roots_namespaces.iter().fold(watcher::Config::default(), |all, some| all.labels(some));
    let named = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut namespaces =
        Box::pin(watcher(Api::<PartialObjectMeta<Namespace>>::all(client.clone()), labelled).default_backoff());
    let mut maps = Box::pin(watcher(Api::<ConfigMap>::all(client.clone()), named).default_backoff());
    let mut again = interval(AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watched = settings.roots_configmap.is_some();
    let mut keeper = Keeper::new(settings.roots_webhook, watched, Writer::new(client, name));
    loop {
        // Before what is awaited next, so that whoever reads it never finds more than is there.
        let now = Roots::of(&**ca.borrow_and_update());
        keeper.write(&now);
        behind(keeper.behind(&now));
        tokio::select! {
            Some(event) = namespaces.next(), if watched => keeper.namespace(event),
            Some(event) = maps.next(), if watched => keeper.map(event),
            Some(Ok((place, written))) = keeper.writes.join_next() => keeper.written(place, written),
            changed = ca.changed() => match changed {
                Ok(()) => keeper.tried.clear(),
                Err(_) => return,
            },
            _ = again.tick() => {
                keeper.tried.clear();
                keeper.look_at_webhooks().await;
            }
        }
    }
}

struct Keeper {
    webhooks: Vec<String>,
    writer: Arc<Writer>,
    view: View,
    // What a list that is being read has said so far.
    namespaces: BTreeSet<Place>,
    maps: BTreeMap<Place, Held>,
    // Lists that have been read whole, once.
    namespaces_read: bool,
    maps_read: bool,
    webhooks_read: bool,
    writes: JoinSet<(Place, Written)>,
    writing: BTreeSet<Place>,
    // Have failed since the last look.
    tried: BTreeSet<Place>,
    said: Option<String>,
}

impl Keeper {
    fn new(webhooks: Vec<String>, watched: bool, writer: Writer) -> Self {
        Self {
            webhooks_read: webhooks.is_empty(),
            webhooks,
            writer: Arc::new(writer),
            view: View::default(),
            namespaces: BTreeSet::new(),
            maps: BTreeMap::new(),
            namespaces_read: !watched,
            maps_read: !watched,
            writes: JoinSet::new(),
            writing: BTreeSet::new(),
            tried: BTreeSet::new(),
            said: None,
        }
    }

    fn is_read(&self) -> bool {
        self.namespaces_read && self.maps_read && self.webhooks_read
    }

    fn behind(&self, roots: &Roots) -> Behind {
        if self.is_read() { self.view.behind(roots.told()) } else { Behind::unknown(roots.told()) }
    }

    fn namespace(&mut self, event: watcher::Result<Event<PartialObjectMeta<Namespace>>>) {
        let place = |found: &PartialObjectMeta<Namespace>| Place::Namespace(found.name_any());
        // Nothing can be made in one that is being deleted.
        let leaves = |found: &PartialObjectMeta<Namespace>| found.metadata.deletion_timestamp.is_some();
        match event {
            Ok(Event::Init) => self.namespaces.clear(),
            Ok(Event::InitApply(found)) if leaves(&found) => {}
            Ok(Event::InitApply(found)) => {
                self.namespaces.insert(place(&found));
            }
            Ok(Event::InitDone) => {
                self.view.want_namespaces(std::mem::take(&mut self.namespaces));
                self.namespaces_read = true;
                if self.view.left_out() > 0 {
                    self.say(format!("{} namespaces are too many, and get no copy of the roots", self.view.left_out()));
                }
            }
            Ok(Event::Apply(found)) if !leaves(&found) => self.view.want(place(&found)),
            Ok(Event::Apply(found) | Event::Delete(found)) => self.view.forget(&place(&found)),
            Err(error) => self.say(format!("namespaces cannot be watched: {error}")),
        }
    }

    fn map(&mut self, event: watcher::Result<Event<ConfigMap>>) {
        let place = |found: &ConfigMap| Place::Namespace(found.namespace().unwrap_or_default());
        match event {
            Ok(Event::Init) => self.maps.clear(),
            Ok(Event::InitApply(found)) => {
                self.maps.insert(place(&found), map_says(&found));
            }
            Ok(Event::InitDone) => {
                self.view.saw_all_maps(std::mem::take(&mut self.maps), Instant::now());
                self.maps_read = true;
            }
            Ok(Event::Apply(found)) => {
                self.tried.remove(&place(&found));
                self.view.saw(place(&found), map_says(&found), Instant::now());
            }
            Ok(Event::Delete(found)) => self.view.lost(&place(&found)),
            Err(error) => self.say(format!("ConfigMaps cannot be watched: {error}")),
        }
    }

    async fn look_at_webhooks(&mut self) {
        let mut first = None;
        for name in self.webhooks.clone() {
            let place = Place::Webhook(name.clone());
            match self.writer.webhook(&name).await {
                Ok(Some((held, owner))) => {
                    self.view.want(place.clone());
                    self.view.saw(place, held, Instant::now());
                    first.get_or_insert(owner);
                }
                // Not installed (yet): there is nothing to keep.
                Ok(None) => self.view.forget(&place),
                Err(error) => {
                    self.say(format!("{place} cannot be read: {error}"));
                    self.view.want(place.clone());
                    self.view.failed(place, error.to_string());
                    first = first.or_else(|| self.view.owner().cloned());
                }
            }
        }
        self.view.owned(match first {
            Some(owner) => Owned::By(owner),
            None if self.webhooks.is_empty() => Owned::No,
            None => Owned::Awaited,
        });
        self.webhooks_read = true;
    }

    /// Begins writes, as many as there is room for.
    fn write(&mut self, roots: &Roots) {
        if !self.is_read() {
            return;
        }
        let room = WRITES.saturating_sub(self.writes.len());
        let due = self.view.to_write(roots.told(), Instant::now());
        let due = due.filter(|(place, _)| !self.writing.contains(place) && !self.tried.contains(place));
        for (place, seen) in due.take(room).collect::<Vec<_>>() {
            self.writing.insert(place.clone());
            let (writer, roots, owner) = (Arc::clone(&self.writer), roots.clone(), self.view.owner().cloned());
            self.writes.spawn(async move {
                let held = seen.as_ref().map(|seen| &seen.held);
                let written = writer.write(&place, held, owner.as_ref(), &roots).await;
                (place, written)
            });
        }
    }

    fn written(&mut self, place: Place, written: Written) {
        self.writing.remove(&place);
        match written {
            Ok(held) => self.view.saw(place, held, Instant::now()),
            // Another replica was faster, or it has just gone: what is there now comes by the watch.
            Err(error) if error.is_conflict() || error.is_absent() => {
                self.tried.insert(place);
            }
            Err(error) => {
                self.say(format!("{place} cannot be written: {error}"));
                self.tried.insert(place.clone());
                self.view.failed(place, error.to_string());
            }
        }
    }

    /// Once, until something else is to be said.
    fn say(&mut self, what: String) {
        if self.said.as_ref() != Some(&what) {
            tracing::warn!("{what}");
            self.said = Some(what);
        }
    }
}
