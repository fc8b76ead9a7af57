//! Which replicas live, by Leases in Kubernetes: each holds one of its own, which says where it serves, and looks at those of the others.
//!
//! ```text
//! Lease NAMESPACE/weft-replica-NAME    label `weft.dev/replica: control`; annotation `weft.dev/serves: IP:PORT`
//! ```
//!
//! Invariants
//! - A replica lives until its Lease has run out by our own clock, or was given back. One that lives and is not heard may have any proxy.
//! - While the API server is away, or says nothing, those that lived live on, and nobody else does.
//! - Leases of pods that are gone are removed, over exactly the version that was seen: they would pile up until those that live are not found.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, Client};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::cluster::{ClusterError, ask};
use crate::distribute::Hub;
use crate::leases::{Record, Settings, Sighting, Timing, hold, identity};

const LABEL: (&str, &str) = ("weft.dev/replica", "control");
const SERVES: &str = "weft.dev/serves";
/// Leases that are looked at, and of one answer.
const MOST: usize = 1000;
const PAGE: u32 = 100;
/// What nobody has held for so long, nobody comes back to.
const FORGET: Duration = Duration::from_mins(10);
/// Of those so many are removed at one look.
const REMOVED: usize = 4;

/// Where others reach us, and where the Leases are.
#[derive(Clone, Debug)]
pub struct Presence {
    /// The namespace of control.
    pub namespace: String,
    /// What this replica is called.
    pub name: String,
    /// Its address.
    pub serves: SocketAddr,
}

/// Begins to say that this replica is there, and to look who else is. Ends with `stopping`: the Lease is given back.
pub fn start(client: &Client, own: &Presence, hub: &Arc<Hub>, stopping: &CancellationToken) -> AbortOnDropHandle<()> {
    let settings = Settings {
        what: "replica",
        namespace: own.namespace.clone(),
        name: lease_name(&own.name),
        holder: identity(),
        annotations: [(SERVES.to_owned(), own.serves.to_string())].into(),
        labels: [(LABEL.0.to_owned(), LABEL.1.to_owned())].into(),
        timing: Timing::default(),
    };
    let (_, holding) = hold(client, settings, Arc::clone(&hub.metrics), stopping.clone());
    // Who is gone without having been told to stop renews nothing.
    let holding = AbortOnDropHandle::new(holding);
    let leases = Api::namespaced(client.clone(), &own.namespace);
    let (hub, serves) = (Arc::clone(hub), own.serves);
    AbortOnDropHandle::new(tokio::spawn(async move {
        let looking = look(leases, serves, &hub);
        tokio::select! {
            () = looking => {}
            _ = holding => {}
        }
    }))
}

/// Letters, digits and dashes, as the API server has it.
fn lease_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = name.chars().map(plain).take(200).collect();
    format!("weft-replica-{}", name.trim_matches('-'))
}

async fn look(leases: Api<Lease>, own: SocketAddr, hub: &Hub) {
    let mut seen = Seen::default();
    let (mut said, mut kept) = (None, None);
    loop {
        match all(&leases).await {
            Ok(found) => {
                said = None;
                let mut live = seen.look(&found, Instant::now());
                live.remove(&own);
                hub.replicas.live(live);
                match tidy(&leases, seen.forgotten(Instant::now())).await {
                    Ok(()) => kept = None,
                    Err(error) => tell("those of pods that are gone stay", &error, &mut kept),
                }
            }
            Err(error) => {
                seen.missed();
                tell("those that were there are taken to be there still", &error, &mut said);
            }
        }
        sleep(Timing::default().every).await;
    }
}

async fn all(leases: &Api<Lease>) -> Result<Vec<Lease>, ClusterError> {
    let mut page = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1)).limit(PAGE);
    let mut found = Vec::new();
    loop {
        let listed = ask(leases.list(&page)).await?;
        found.extend(listed.items);
        match listed.metadata.continue_.filter(|next| !next.is_empty() && found.len() < MOST) {
            Some(next) => page = page.continue_token(&next),
            None => return Ok(found),
        }
    }
}

/// Removes Leases by name and version.
async fn tidy(leases: &Api<Lease>, forgotten: Vec<(String, String)>) -> Result<(), ClusterError> {
    for (name, version) in forgotten {
        let seen = Preconditions { resource_version: Some(version), uid: None };
        let how = DeleteParams { preconditions: Some(seen), ..DeleteParams::default() };
        match ask(leases.delete(&name, &how)).await {
            Ok(_) => tracing::info!(lease = name, "nobody has held the Lease of a replica for long; it is removed"),
            // Another replica was first, or its owner is back.
            Err(error) if matches!(error.status(), Some(404 | 409)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Once, until something else is to be said.
fn tell(so: &str, error: &ClusterError, said: &mut Option<String>) {
    let advice = if error.status() == Some(403) { "; give control the Role of docs/kubernetes.md" } else { "" };
    let text = format!("the Leases of other replicas: {error}; {so}{advice}");
    if said.as_ref() != Some(&text) {
        tracing::warn!("{text}");
        *said = Some(text);
    }
}

/// The Leases as they were seen, by name.
#[derive(Debug, Default)]
struct Seen {
    leases: BTreeMap<String, Sighting>,
    /// When they were seen last, and whether they could not be since.
    looked: Option<Instant>,
    missed: bool,
}

impl Seen {
    /// Who lives, by what there is now.
    fn look(&mut self, found: &[Lease], now: Instant) -> BTreeSet<SocketAddr> {
        let mut live = BTreeSet::new();
        let mut leases = BTreeMap::new();
        for lease in found {
            let Some(name) = lease.metadata.name.clone() else { continue };
            let record = Record::from(lease);
            // What happened while nobody could look is not held against it; what had run out before that has, until it is renewed.
            let before = self.leases.remove(&name);
            let before = before.filter(|before| !self.missed || self.looked.is_some_and(|at| !before.is_held(at)));
            let sighting = match before {
                Some(mut before) => {
                    before.see(record, now);
                    before
                }
                None => Sighting::new(record, now),
            };
            let serves = lease.metadata.annotations.as_ref().and_then(|found| found.get(SERVES)?.parse().ok());
            if sighting.is_held(now) {
                live.extend::<Option<SocketAddr>>(serves);
            }
            leases.insert(name, sighting);
        }
        self.leases = leases;
        (self.looked, self.missed) = (Some(now), false);
        live
    }

    /// Those to be removed now: name and version.
    fn forgotten(&self, now: Instant) -> Vec<(String, String)> {
        let forgotten = self.leases.iter().filter(|(_, lease)| lease.is_forgotten(FORGET, now));
        forgotten.map(|(name, lease)| (name.clone(), lease.record.version.clone())).take(REMOVED).collect()
    }

    /// Nothing could be seen.
    fn missed(&mut self) {
        self.missed = true;
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::distribute::session::Limits;
    use crate::metrics::Metrics;
    use crate::testing::cluster::{Shared, client};

    fn lease(name: &str, version: u64, holder: &str, serves: &str) -> Lease {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            resource_version: Some(version.to_string()),
            annotations: Some([(SERVES.to_owned(), serves.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    #[test]
    fn a_replica_lives_until_its_lease_runs_out_or_is_given_back() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (one, other) = ("10.0.0.1:15012", "10.0.0.2:15012");
        let both = [lease("a", 1, "a", one), lease("b", 1, "b", other)];
        let addresses =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<SocketAddr>>();
        assert_eq!(seen.look(&both, at(0)), addresses(&[one, other]));
        // One is renewed, the other is not.
        let renewed = [lease("a", 2, "a", one), lease("b", 1, "b", other)];
        assert_eq!(seen.look(&renewed, at(10)), addresses(&[one, other]));
        assert_eq!(seen.look(&renewed, at(16)), addresses(&[one]));
        // Nobody could look for a while: who had not run out by then lives, who had does not come back by that.
        seen.missed();
        assert_eq!(seen.look(&renewed, at(100)), addresses(&[one]));
        let back = [lease("a", 2, "a", one), lease("b", 2, "b", other)];
        assert_eq!(seen.look(&back, at(101)), addresses(&[one, other]));
        assert_eq!(seen.look(&[lease("a", 3, "", one)], at(101)), addresses(&[]));
        assert_eq!(seen.look(&[lease("a", 4, "a", "nowhere")], at(102)), addresses(&[]));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_gone_renews_nothing_and_who_stops_gives_it_back() {
        let (cluster, hub) = (Shared::default(), Hub::new(Limits::default(), Arc::new(Metrics::new().unwrap())));
        let (hub, stopping) = (Arc::new(hub), CancellationToken::new());
        let own =
            Presence { namespace: "weft".to_owned(), name: "a".to_owned(), serves: "10.0.0.1:1".parse().unwrap() };
        let lease = || {
            let path = "/apis/coordination.k8s.io/v1/namespaces/weft/leases/weft-replica-a";
            let lease = cluster.lock().get(path).cloned().unwrap();
            (lease["metadata"]["resourceVersion"].clone(), lease["spec"]["holderIdentity"].clone())
        };
        let begun = start(&client(&cluster), &own, &hub, &stopping);
        sleep(Duration::from_secs(30)).await;
        drop(begun);
        let last = lease();
        sleep(Duration::from_mins(1)).await;
        assert_eq!(lease(), last);
        // Another run of it, which is told to stop.
        let begun = start(&client(&cluster), &own, &hub, &stopping);
        sleep(Duration::from_secs(30)).await;
        assert!(lease().0 != last.0 && lease().1 != "");
        stopping.cancel();
        begun.await.unwrap();
        assert!(lease().1.is_null() || lease().1 == "", "{:?}", lease());
    }

    #[tokio::test(start_paused = true)]
    async fn leases_of_pods_that_are_gone_do_not_pile_up() {
        let (cluster, hub) = (Shared::default(), Hub::new(Limits::default(), Arc::new(Metrics::new().unwrap())));
        let (hub, stopping) = (Arc::new(hub), CancellationToken::new());
        let path = "/apis/coordination.k8s.io/v1/namespaces/weft/leases";
        let own = |name: &str, last: u8| Presence {
            namespace: "weft".to_owned(),
            name: name.to_owned(),
            serves: SocketAddr::from(([10, 0, 0, last], 1)),
        };
        // Many rollouts: each pod was told to stop, and a last one died.
        for number in 0..10 {
            let stops = CancellationToken::new();
            let begun = start(&client(&cluster), &own(&format!("old-{number}"), number), &hub, &stops);
            sleep(Duration::from_secs(10)).await;
            if number < 9 {
                stops.cancel();
                begun.await.unwrap();
            }
        }
        let lives = start(&client(&cluster), &own("a", 100), &hub, &stopping);
        let other = start(&client(&cluster), &own("b", 101), &hub, &stopping);
        sleep(FORGET / 2).await;
        assert_eq!(cluster.lock().count(path), 12, "they may come back");
        sleep(FORGET).await;
        assert_eq!(cluster.lock().count(path), 2, "those that live, however long");
        drop((lives, other));
    }

    #[test]
    fn a_lease_has_a_name_that_the_api_server_takes() {
        assert_eq!(lease_name("weft-control-7d9.x:15012"), "weft-replica-weft-control-7d9-x-15012");
    }
}
