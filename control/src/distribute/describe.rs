//! What each proxy runs, for people: one line a stream, its tables, and where they differ from what control has now.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_api::names::{ResourceType, short_type};
use weft_api::show;
use weft_api::wire::v1;

use super::hub::{Hub, Stream};
use super::session::{Session, Version};
use crate::compile::{Compiled, Resource};

/// A stream, or a proxy that ought to have one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Described {
    /// `NAMESPACE/POD`.
    pub workload: String,
    /// The replica of control that it is connected to, by what that calls itself.
    #[serde(default)]
    pub replica: String,
    /// It has a stream. Without one, all below is empty.
    pub connected: bool,
    /// The SPIFFE ID of its certificate.
    pub identity: String,
    /// Where it calls from.
    pub address: Option<SocketAddr>,
    /// Of its build.
    pub version: String,
    /// What its build can enforce.
    pub features: Vec<String>,
    /// For how long its stream has been open.
    pub connected_seconds: u64,
    /// Names that it has subscribed to.
    pub subscriptions: usize,
    /// Resources that it holds, endpoints included.
    pub resources: usize,
    /// Responses that it has not answered.
    pub unacknowledged: usize,
    /// For how long the oldest of them has waited.
    pub waits_seconds: f64,
    /// Resources that it does not run as they were sent last, those that it refuses included.
    pub behind: usize,
    /// Names that it has not been sent yet.
    pub queued: usize,
    /// Resources that it refuses.
    pub refused: usize,
    /// By resource; only where one proxy is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Vec<Version>>,
}

impl Described {
    /// How many resources it does not run yet, those that it refuses left out.
    pub fn lagging(&self) -> usize {
        self.behind.saturating_sub(self.refused) + self.queued
    }
}

/// What a resource says, in one version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// The version.
    pub version: Arc<str>,
    /// Decoded; none where only the version is known: the proxy brought it along from before this control knew of it.
    pub data: Option<Value>,
}

impl Content {
    fn of(resource: &Resource) -> Self {
        let data = (!resource.bytes.is_empty()).then(|| show::resource(resource.type_url, &resource.bytes)).flatten();
        Self { version: Arc::clone(&resource.version), data }
    }
}

/// A resource that a proxy holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Its name.
    pub name: Arc<str>,
    /// Its type, without the package.
    #[serde(rename = "type")]
    pub type_: String,
    /// What is in force at the proxy; none if nothing is yet.
    pub runs: Option<Content>,
    /// Why what was sent last is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Arc<str>>,
}

/// A resource that a proxy does not run as control has it now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Difference {
    /// What the proxy has.
    #[serde(flatten)]
    pub held: Held,
    /// What control has; none if it should not be there.
    pub now: Option<Content>,
}

/// The tables in force at one proxy, in the order of their names.
pub fn tables(session: &Session) -> Vec<Held> {
    let held = session.all_held().filter_map(|(name, held)| {
        let any = held.acked.or(held.sent)?;
        let type_ = short_type(any.type_url).to_owned();
        let runs = held.acked.map(|acked| Content::of(acked));
        Some(Held { name: Arc::clone(name), type_, runs, refused: held.refused.cloned() })
    });
    let mut held: Vec<Held> = held.collect();
    held.sort_by(|one, two| one.name.cmp(&two.name));
    held
}

/// What the proxy runs against what is true now of what it subscribes to. The head of a set says nothing after the first time: its members
/// are compared instead. Of a pod whose object is gone, the last rules stay in force and are no difference.
pub fn differences(session: &Session, compiled: &Compiled) -> Vec<Difference> {
    let compared = |resource: &Resource| resource.type_url != v1::EndpointHead::TYPE_URL;
    let (gone, there): (Vec<_>, Vec<_>) = session.roots().partition(|root| compiled.get(root).is_none());
    let kept = session.reach(gone.into_iter());
    let client = session.client();
    let wanted = there.into_iter().flat_map(|root| compiled.closure(root, client));
    let mut wanted: BTreeMap<Arc<str>, Arc<Resource>> = wanted.filter(|(_, resource)| compared(resource)).collect();
    let mut differences: BTreeMap<Arc<str>, Difference> = BTreeMap::new();
    for (name, held) in session.all_held() {
        let Some(any) = held.acked.or(held.sent).filter(|any| compared(any)) else {
            continue;
        };
        let now = wanted.remove(name);
        if now.is_none() && kept.contains(name) {
            continue;
        }
        if held.acked_version() != now.as_ref().map(|now| &now.version) {
            let (type_, refused) = (short_type(any.type_url).to_owned(), held.refused.cloned());
            let runs = held.acked.map(|acked| Content::of(acked));
            let held = Held { name: Arc::clone(name), type_, runs, refused };
            differences.insert(Arc::clone(name), Difference { held, now: now.as_deref().map(Content::of) });
        }
    }
    for (name, now) in wanted {
        let type_ = short_type(now.type_url).to_owned();
        let held = Held { name: Arc::clone(&name), type_, runs: None, refused: None };
        differences.insert(name, Difference { held, now: Some(Content::of(&now)) });
    }
    differences.into_values().collect()
}

impl Hub {
    /// One line for each open stream and each proxy that ought to have one, or everything about the streams of one workload.
    pub fn describe(&self, only: Option<&str>) -> Vec<Described> {
        let streams = self.streams();
        let mut described: Vec<Described> = streams
            .iter()
            .filter(|stream| only.is_none_or(|only| stream.client.workload.to_string() == only))
            .map(|stream| self.describe_stream(stream, only.is_some()))
            .collect();
        if only.is_none() {
            let connected: HashSet<_> = streams.iter().map(|stream| &stream.client.workload).collect();
            let absent = self.live().into_iter().filter(|workload| !connected.contains(workload));
            described.extend(absent.map(|name| Described { workload: name.to_string(), ..Described::default() }));
        }
        described.sort_by(|one, two| one.workload.cmp(&two.workload));
        described
    }

    fn describe_stream(&self, stream: &Stream, versions: bool) -> Described {
        let client = &stream.client;
        stream.session(|session| Described {
            workload: client.workload.to_string(),
            replica: String::new(),
            connected: true,
            identity: client.proved.identity.to_string(),
            address: Some(client.addr),
            version: client.version.clone(),
            features: match &client.features {
                Some(said) => said.to_vec(),
                None => weft_api::FEATURES.iter().map(ToString::to_string).collect(),
            },
            connected_seconds: stream.since.elapsed().as_secs(),
            subscriptions: session.subscriptions(),
            resources: session.len(),
            unacknowledged: session.unacknowledged(),
            waits_seconds: session.waits(self.now()).unwrap_or_default().as_secs_f64(),
            behind: session.behind(),
            queued: session.queued(),
            refused: session.refusals().count(),
            versions: versions.then(|| session.versions()),
        })
    }

    /// The newest stream of a workload's proxy.
    fn stream_of(&self, workload: &str) -> Option<Arc<Stream>> {
        let streams = self.streams().into_iter().filter(|stream| stream.client.workload.to_string() == workload);
        streams.max_by_key(|stream| stream.since)
    }

    /// The tables in force at the proxy of a workload; `None` if it has no stream.
    pub fn tables(&self, workload: &str) -> Option<Vec<Held>> {
        Some(self.stream_of(workload)?.session(tables))
    }

    /// What the proxy of a workload runs otherwise than control has it; `None` if it has no stream.
    pub fn differences(&self, workload: &str) -> Option<Vec<Difference>> {
        let stream = self.stream_of(workload)?;
        Some(self.compiled(|compiled| stream.session(|session| differences(session, compiled))))
    }
}

/// A resource, as control has it now, and who runs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResourcePicture {
    /// Its name.
    pub name: Arc<str>,
    /// Its type, without the package.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// As it is now; none if it is gone, or was never there.
    pub now: Option<Content>,
    /// [`super::picture::Picture::sentence`].
    pub sentence: String,
    /// Who runs it.
    pub picture: super::picture::Picture,
}

impl Hub {
    /// A resource and who runs it.
    pub fn resource(&self, name: &str) -> ResourcePicture {
        let found = self.compiled(|compiled| compiled.get(name));
        let name: Arc<str> = name.into();
        let picture = self.picture(std::slice::from_ref(&name));
        let type_ = found.as_ref().map(|found| short_type(found.type_url).to_owned());
        let now = found.as_deref().map(Content::of);
        ResourcePicture { name, type_, now, sentence: picture.sentence(), picture }
    }
}
