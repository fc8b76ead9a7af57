//! What operators ask, answered for all replicas: each is asked for its own page, and what they say is put together.
//!
//! A replica that does not answer within [`ANSWER`] is left out, and `weft status` says that it is silent.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::DeserializeOwned;
use weft_api::wire::replicas as wire;
use weft_api::wire::replicas::replicas_client::ReplicasClient;

use crate::distribute::Hub;
use crate::distribute::describe::{Described, ResourcePicture};
use crate::distribute::picture::{ObjectPicture, Picture};
use crate::rotation::Report;

const ANSWER: Duration = Duration::from_secs(3);
/// Of a page: 10,000 proxies are about 4 MB.
const MAX_PAGE: usize = 64 << 20;

/// What each other replica says on a page of its own; its name first. Who has nothing to say is left out.
pub async fn others<T: DeserializeOwned>(hub: &Hub, page: &str) -> Vec<(String, T)> {
    let mut asked = tokio::task::JoinSet::new();
    for (at, (name, channel)) in hub.replicas.channels().into_iter().enumerate() {
        let request = wire::LookRequest { page: page.to_owned() };
        asked.spawn(async move {
            let mut client = ReplicasClient::new(channel).max_decoding_message_size(MAX_PAGE);
            let answer = tokio::time::timeout(ANSWER, client.look(request)).await;
            (at, name, answer)
        });
    }
    let mut said = BTreeMap::new();
    while let Some(Ok((at, name, answer))) = asked.join_next().await {
        match answer {
            Ok(Ok(page)) if page.get_ref().status == 200 => match serde_json::from_slice(&page.get_ref().body) {
                Ok(read) => drop(said.insert(at, (name, read))),
                Err(error) => tracing::warn!(replica = name, %error, "what another control says cannot be read"),
            },
            // It has nothing of that name.
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(replica = name, %error, "another control does not show its proxies"),
            Err(_) => tracing::warn!(replica = name, "another control does not show its proxies in time"),
        }
    }
    said.into_values().collect()
}

/// What the first of the others says that has anything to say.
pub async fn elsewhere<T: DeserializeOwned>(hub: &Hub, page: &str) -> Option<T> {
    others(hub, page).await.into_iter().next().map(|(_, said)| said)
}

/// The proxies of all replicas, each with the replica that it is connected to.
pub async fn proxies(hub: &Hub, own: Vec<Described>, page: &str) -> Vec<Described> {
    let mut all: BTreeMap<(String, String), Described> = BTreeMap::new();
    let ours = (hub.replicas.name(), own);
    for (replica, described) in std::iter::once(ours).chain(others(hub, page).await) {
        for one in described {
            let replica = if one.connected { replica.clone() } else { String::new() };
            all.insert((one.workload.clone(), replica.clone()), Described { replica, ..one });
        }
    }
    without_absent(all.into_values(), |one| (&one.workload, one.connected))
}

/// Those that are away to one replica may be connected to another.
fn without_absent<T>(all: impl Iterator<Item = T>, how: impl Fn(&T) -> (&String, bool)) -> Vec<T> {
    let all: Vec<T> = all.collect();
    let connected: std::collections::BTreeSet<String> = all
        .iter()
        .filter_map(|one| Some(how(one)).filter(|(_, connected)| *connected).map(|(name, _)| name.clone()))
        .collect();
    all.into_iter().filter(|one| how(one).1 || !connected.contains(how(one).0)).collect()
}

impl Picture {
    /// With what another replica knows of its own proxies.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.applied.extend(other.applied);
        self.lagging.extend(other.lagging);
        for (why, proxies) in other.refused {
            self.refused.entry(why).or_default().extend(proxies);
        }
        self.away.extend(other.away);
        self.put_in_order();
        self
    }

    /// Each proxy once, by the worst that is said of it.
    fn put_in_order(&mut self) {
        let mut seen = std::collections::HashSet::new();
        let lists = self.refused.values_mut().chain([&mut self.lagging, &mut self.applied, &mut self.away]);
        for list in lists {
            list.sort();
            list.retain(|proxy| seen.insert(proxy.clone()));
        }
        self.refused.retain(|_, proxies| !proxies.is_empty());
    }
}

/// An object, and who runs it wherever.
pub async fn object(hub: &Hub, own: ObjectPicture) -> ObjectPicture {
    let page = format!("/debug/objects?kind={}&name={}", own.kind, own.name);
    let others = others::<ObjectPicture>(hub, &page).await;
    others.into_iter().fold(own, |all, (_, other)| together(all, other))
}

fn together(all: ObjectPicture, other: ObjectPicture) -> ObjectPicture {
    let picture = all.picture.and(other.picture);
    ObjectPicture { sentence: picture.sentence(), picture, ..all }
}

/// The objects of which anybody refuses something, wherever.
pub async fn refused_objects(hub: &Hub, own: Vec<ObjectPicture>) -> Vec<ObjectPicture> {
    let others = others::<Vec<ObjectPicture>>(hub, "/debug/objects").await;
    let mut all: BTreeMap<(String, String), ObjectPicture> = BTreeMap::new();
    for object in own.into_iter().chain(others.into_iter().flat_map(|(_, objects)| objects)) {
        let key = (object.kind.clone(), object.name.clone());
        let merged = match all.remove(&key) {
            Some(before) => together(before, object),
            None => object,
        };
        all.insert(key, merged);
    }
    // Who refuses nothing of it there may run it there.
    let mut whole = Vec::new();
    for one in all.into_values() {
        let own = hub.object(&one.kind, &one.name).unwrap_or_else(|| one.clone());
        whole.push(if own.kind.is_empty() { one } else { object(hub, own).await });
    }
    whole
}

/// A resource, and who runs it wherever.
pub async fn resource(hub: &Hub, own: ResourcePicture) -> ResourcePicture {
    let page = format!("/debug/resource?name={}", own.name);
    let others = others::<ResourcePicture>(hub, &page).await;
    others.into_iter().fold(own, |all, (_, other)| {
        let picture = all.picture.and(other.picture);
        ResourcePicture { sentence: picture.sentence(), picture, ..all }
    })
}

/// The report on certificates, with the proxies of all replicas.
pub async fn report(hub: &Hub, mut own: Report) -> Report {
    let others = others::<Report>(hub, "/debug/certificates").await;
    let all = own.proxies.into_iter().chain(others.into_iter().flat_map(|(_, other)| other.proxies));
    let mut all = without_absent(all, |one| (&one.workload, one.connected));
    all.sort_by(|one, two| one.workload.cmp(&two.workload));
    all.dedup_by(|one, two| !one.connected && one.workload == two.workload);
    own.proxies = all;
    own
}
