//! Whose proxies are connected, whose ought to be, and whose have been a moment ago.
//!
//! Invariant: a proxy is here before it is away no more, and away before it is here no more. Who waits for it never finds it nowhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::{Cause, Client, Hub, RECONNECT_GRACE, Session, Stream};
use crate::auth::Proved;
use crate::compile::Topic;
use crate::model::{Name, Workload};
use crate::replicas::Moved;

impl Hub {
    /// Whether a workload is known and is whom a certificate proves. `None`: it is not known.
    pub fn owns(&self, proved: &Proved, workload: &Name) -> Option<bool> {
        let compiled = self.compiled.read();
        let (found, identity) = (compiled.model().workloads.get(workload)?, &proved.identity);
        let same_pod = proved.pod.as_ref().is_none_or(|uid| **uid == *found.uid);
        let accounts = (&*identity.service_account, &*found.service_account);
        Some(same_pod && *identity.namespace == *workload.namespace && accounts.0 == accounts.1)
    }

    /// A workload that is gone keeps its stream: its pod may be serving its last requests.
    pub(super) fn disowned(&self, client: &Client) -> bool {
        self.owns(&client.proved, &client.workload) == Some(false)
    }

    /// A new stream.
    pub fn open(&self, client: Client) -> Arc<Stream> {
        self.restarted(&client);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let session = Session::new(client.workload.clone(), self.limits);
        let session = if client.can(weft_api::BRIEF_TYPES) { session } else { session.spelt_out() };
        let stream = Arc::new(Stream::new(id, client, session));
        // It is here before it is away no more: who waits for it never finds it nowhere.
        self.streams.write().insert(&stream);
        self.absent.lock().remove(&stream.client.workload);
        // Between the check of its identity and now the model may have changed.
        if self.disowned(&stream.client) {
            stream.revoked.cancel();
        }
        self.metrics.streams.inc();
        self.progressed(&stream);
        self.has_moved(Moved::Proxy(stream.client.workload.clone()));
        stream
    }

    /// A proxy that was started anew does not leave any more.
    fn restarted(&self, client: &Client) {
        let Some(instance) = &client.instance else { return };
        let mut leaves = self.leaves.lock();
        if leaves.seen(&client.workload, instance) {
            self.recompile(&mut leaves, [], Cause::of("restart", Some(client.workload.to_string())));
            self.has_moved(Moved::Leave(client.workload.clone()));
        }
    }

    /// The stream has ended.
    pub fn close(&self, stream: &Stream) {
        let mut streams = self.streams.write();
        if streams.remove(stream) {
            // As at its beginning: it is away before it is here no more.
            let mut absent = self.absent.lock();
            absent.retain(|_, since| since.elapsed() < RECONNECT_GRACE);
            absent.insert(stream.client.workload.clone(), Instant::now());
        }
        drop(streams);
        let topics = stream.session.lock().topics();
        self.status.changed(topics.iter().filter_map(Topic::name));
        self.events.closed(stream.id, self.now());
        let mut subscribers = self.subscribers.lock();
        for topic in topics {
            subscribers.remove(stream.id, &topic);
        }
        drop(subscribers);
        self.metrics.streams.dec();
        self.progressed(stream);
        self.has_moved(Moved::Proxy(stream.client.workload.clone()));
    }

    /// These proxies were connected to another replica and are not now.
    pub(crate) fn have_gone(&self, proxies: &[Name]) {
        let mut absent = self.absent.lock();
        absent.retain(|_, since| since.elapsed() < RECONNECT_GRACE);
        absent.extend(proxies.iter().map(|name| (name.clone(), Instant::now())));
    }

    /// All open streams.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        self.streams.read().all().cloned().collect()
    }

    /// The open streams of one workload's proxy.
    pub fn streams_of(&self, workload: &Name) -> Vec<Arc<Stream>> {
        self.streams.read().of(workload).to_vec()
    }

    /// Proxies that ought to be connected and are not, for no longer than [`RECONNECT_GRACE`].
    /// One that leaves is not waited for.
    pub(in crate::distribute) fn absent(&self) -> Vec<(Name, Instant)> {
        let recent: Vec<(Name, Instant)> = {
            let absent = self.absent.lock();
            let recent = absent.iter().filter(|(_, since)| since.elapsed() < RECONNECT_GRACE);
            recent.map(|(name, since)| (name.clone(), *since)).collect()
        };
        // No lock is held while another is taken: there is no order between these.
        let mut away: Vec<_> = recent.into_iter().filter(|(name, _)| !self.is_connected(name)).collect();
        self.compiled(|compiled| away.retain(|(name, _)| !compiled.is_leaving(name)));
        away
    }

    /// Whether all who ought to be connected are, or were waited for.
    pub fn is_settled(&self) -> bool {
        self.absent().is_empty()
    }

    /// The same of one proxy: since when it is away.
    pub(in crate::distribute) fn absent_since(&self, workload: &Name) -> Option<Instant> {
        let since = self.absent.lock().get(workload).copied().filter(|since| since.elapsed() < RECONNECT_GRACE);
        let away =
            |_: &Instant| !self.compiled(|compiled| compiled.is_leaving(workload)) && !self.is_connected(workload);
        since.filter(away)
    }

    /// Whether a proxy has a stream, to whichever replica.
    fn is_connected(&self, workload: &Name) -> bool {
        !self.streams.read().of(workload).is_empty() || self.replicas.have(workload)
    }

    /// The workloads that ought to have a proxy now, by the source: not those that leave, nor those without an address, which have ended or
    /// were never started (a pod that waits for a place would be waited for without end).
    pub fn live(&self) -> Vec<Name> {
        let compiled = self.compiled.read();
        let workloads = compiled.model().workloads.iter();
        let lives = |found: &Workload| found.meshed && !found.terminating && !found.ips.is_empty();
        workloads.filter(|(_, found)| lives(found)).map(|(name, _)| name.clone()).collect()
    }
}
