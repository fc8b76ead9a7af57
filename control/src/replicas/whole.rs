//! What operators ask, answered for all replicas: each is asked for its own page, and what they say is put together.
//!
//! A replica that does not answer within [`ANSWER`] is left out, and `weft status` says that it is silent. Who has to know of that asks for
//! [`Elsewhere`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::error::Elapsed;
use tonic::transport::Channel;
use tonic::{Response, Status};
use weft_api::wire::replicas as wire;
use weft_api::wire::replicas::replicas_client::ReplicasClient;

use super::members::Member;
use super::tell::OBJECTS;
use crate::distribute::Hub;
use crate::distribute::describe::{Described, ResourcePicture};
use crate::distribute::picture::{KINDS, ObjectPicture};
use crate::rotation::Report;

const ANSWER: Duration = Duration::from_secs(3);
/// Of a page: 10,000 proxies are about 4 MB.
const MAX_PAGE: usize = 64 << 20;

/// What each other replica says on a page of its own; its name first. Who has nothing to say is left out.
pub async fn others<T: DeserializeOwned>(hub: &Hub, page: &str) -> Vec<(String, T)> {
    let mut asked = tokio::task::JoinSet::new();
    let heard = hub.replicas.members().into_iter().filter_map(|member| Some((member.name, member.way?)));
    for (at, (name, channel)) in heard.enumerate() {
        let request = wire::LookRequest { page: page.to_owned() };
        asked.spawn(async move {
            let mut client = ReplicasClient::new(channel).max_decoding_message_size(MAX_PAGE);
            let answer = tokio::time::timeout(ANSWER, client.look(request)).await;
            (at, name, answer)
        });
    }
    let mut said = BTreeMap::new();
    while let Some(Ok((at, name, answer))) = asked.join_next().await {
        if let Some(read) = read(&name, answer) {
            said.insert(at, (name, read));
        }
    }
    said.into_values().collect()
}

/// What a page says. `None`: nothing, or nothing that can be read, which is a line of the log.
fn read<T: DeserializeOwned>(name: &str, answer: Result<Result<Response<wire::Page>, Status>, Elapsed>) -> Option<T> {
    match answer {
        Ok(Ok(page)) if page.get_ref().status == 200 => match serde_json::from_slice(&page.get_ref().body) {
            Ok(read) => return Some(read),
            Err(error) => tracing::warn!(replica = name, %error, "what another control says cannot be read"),
        },
        // It has nothing of that name.
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(replica = name, %error, "another control does not show its proxies"),
        Err(_) => tracing::warn!(replica = name, "another control does not show its proxies in time"),
    }
    None
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
    let connected: HashSet<String> = all
        .iter()
        .filter_map(|one| Some(how(one)).filter(|(_, connected)| *connected).map(|(name, _)| name.clone()))
        .collect();
    all.into_iter().filter(|one| how(one).1 || !connected.contains(how(one).0)).collect()
}

/// By kind and name.
type Pictures = HashMap<(String, String), ObjectPicture>;

/// What other replicas say of some objects.
#[derive(Debug, Default)]
pub struct Elsewhere {
    said: Vec<(String, Pictures)>,
    /// Those that have not answered, as they call themselves.
    silent: Vec<String>,
    /// Those of them that could have: the numbers of their runs.
    pub late: Vec<String>,
}

/// Who runs an object, of the proxies of all replicas.
#[derive(Clone, Debug)]
pub struct Whole {
    /// The object.
    pub object: ObjectPicture,
    /// Replicas that may have any proxy and have not said how theirs are.
    pub silent: Vec<String>,
    /// Replicas that have compiled something else of it: as they are behind, or this one is.
    pub apart: Vec<String>,
}

impl Elsewhere {
    /// Of those nobody is asked.
    pub fn without(members: Vec<Member>) -> Self {
        Self { silent: members.into_iter().map(|member| member.name).collect(), ..Self::default() }
    }

    /// Asks these of objects (`KIND/NAMESPACE/NAME`). Who cannot be asked, or does not answer in time, is silent.
    pub async fn ask(members: Vec<Member>, names: Vec<String>, patience: Duration) -> Self {
        let mut asked = tokio::task::JoinSet::new();
        let mut open: BTreeMap<usize, Member> = members.into_iter().enumerate().collect();
        for (at, member) in &open {
            let Some(channel) = member.way.clone() else { continue };
            let (at, name, names) = (*at, member.name.clone(), names.clone());
            asked.spawn(async move { (at, ask_all(channel, &name, &names, patience).await) });
        }
        let mut elsewhere = Self::default();
        while let Some(answered) = asked.join_next().await {
            if let Ok((at, Some(objects))) = answered
                && let Some(member) = open.remove(&at)
            {
                let by_name = objects.into_iter().map(|object| ((object.kind.clone(), object.name.clone()), object));
                elsewhere.said.push((member.name, by_name.collect()));
            }
        }
        for member in open.into_values() {
            elsewhere.late.extend(member.way.is_some().then_some(member.id));
            elsewhere.silent.push(member.name);
        }
        elsewhere.said.sort_by(|one, other| one.0.cmp(&other.0));
        elsewhere
    }

    /// Puts what they say of an object to what this replica knows of its own proxies. That is to be looked at after they were asked: then a proxy
    /// that moves here meanwhile is not missed.
    pub fn with(&self, own: ObjectPicture) -> Whole {
        let key = (own.kind.clone(), own.name.clone());
        let mut whole = Whole { object: own, silent: self.silent.clone(), apart: Vec::new() };
        for (name, objects) in &self.said {
            match objects.get(&key).cloned() {
                Some(other) => {
                    if !whole.object.is_as(&other) {
                        whole.apart.push(name.clone());
                    }
                    whole.object = whole.object.and(other);
                }
                None => whole.silent.push(name.clone()),
            }
        }
        whole
    }
}

/// One replica's answer; it is asked for so many at a time as it will answer.
async fn ask_all(channel: Channel, name: &str, names: &[String], patience: Duration) -> Option<Vec<ObjectPicture>> {
    let mut client = ReplicasClient::new(channel).max_decoding_message_size(MAX_PAGE);
    let mut all: Vec<ObjectPicture> = Vec::new();
    for names in names.chunks(OBJECTS) {
        let request = wire::ObjectsRequest { names: names.to_vec() };
        let said: Vec<ObjectPicture> = read(name, tokio::time::timeout(patience, client.objects(request)).await)?;
        all.extend(said);
    }
    Some(all)
}

/// An object, and who runs it wherever; `None` if nothing is compiled from this kind.
pub async fn object(hub: &Hub, kind: &str, name: &str) -> Option<Whole> {
    if !KINDS.contains(&kind) {
        return None;
    }
    let elsewhere = Elsewhere::ask(hub.replicas.members(), vec![format!("{kind}/{name}")], ANSWER).await;
    hub.object(kind, name).map(|own| elsewhere.with(own))
}

/// The objects of which anybody refuses something, wherever.
pub async fn refused_objects(hub: &Hub, own: Vec<ObjectPicture>) -> Vec<ObjectPicture> {
    let others = others::<Vec<ObjectPicture>>(hub, "/debug/objects").await;
    let mut all: BTreeMap<(String, String), ObjectPicture> = BTreeMap::new();
    for object in own.into_iter().chain(others.into_iter().flat_map(|(_, objects)| objects)) {
        let key = (object.kind.clone(), object.name.clone());
        let merged = match all.remove(&key) {
            Some(before) => before.and(object),
            None => object,
        };
        all.insert(key, merged);
    }
    // Who refuses nothing of it there may run it there.
    let names = all.keys().map(|(kind, name)| format!("{kind}/{name}")).collect();
    let elsewhere = Elsewhere::ask(hub.replicas.members(), names, ANSWER).await;
    let whole = |((kind, name), found): ((String, String), ObjectPicture)| match hub.object(&kind, &name) {
        Some(own) => elsewhere.with(own).object,
        None => found,
    };
    all.into_iter().map(whole).collect()
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
