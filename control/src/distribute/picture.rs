//! Who runs what: for a resource, and for an object that a person wrote, the proxies that run it as it is now, lag behind it or refused it.
//!
//! It is put together when somebody asks, from the sessions of those concerned: whoever listens to the resource, and whoever listens to
//! what points to it now (who has not been told yet that a policy covers him does not hold it, and lags). Nothing is kept beside the sessions.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_api::names;

use super::hub::Hub;
use super::session::Standing;
use crate::compile::{Compiled, Topic, topics_of};
use crate::model::{Name, parent_name};

/// The kinds of objects that are compiled to resources.
pub const KINDS: [&str; 10] = [
    "AuthorizationPolicy",
    "EndpointSlice",
    "GRPCRoute",
    "HTTPRoute",
    "Namespace",
    "Pod",
    "RateLimitPolicy",
    "Service",
    "TCPRoute",
    "TLSRoute",
];
const ROUTES: [&str; 4] = ["GRPCRoute", "HTTPRoute", "TCPRoute", "TLSRoute"];
const POLICIES: [&str; 2] = ["AuthorizationPolicy", "RateLimitPolicy"];

/// Proxies by how they stand to something. Each (`NAMESPACE/POD`) is in one place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// They run it as it is now.
    pub applied: Vec<String>,
    /// They do not yet.
    pub lagging: Vec<String>,
    /// They refused it, by reason.
    pub refused: BTreeMap<String, Vec<String>>,
    /// They were connected lately and are not now: whether they use it is not known.
    pub away: Vec<String>,
}

impl Picture {
    /// By the worst that each proxy says.
    fn of(standings: BTreeMap<Name, Standing>, away: impl Iterator<Item = Name>) -> Self {
        let away = away.filter(|name| !standings.contains_key(name)).map(|name| name.to_string()).collect();
        let mut picture = Self { away, ..Self::default() };
        for (name, standing) in &standings {
            let list = match standing {
                Standing::Runs => &mut picture.applied,
                Standing::Lags => &mut picture.lagging,
                Standing::Refuses(why) => picture.refused.entry(why.to_string()).or_default(),
            };
            list.push(name.to_string());
        }
        picture
    }

    /// How many refused it.
    pub fn refusing(&self) -> usize {
        self.refused.values().map(Vec::len).sum()
    }

    /// As seen where something else is compiled: who runs what was, lags.
    #[must_use]
    pub fn outdated(mut self) -> Self {
        self.lagging.append(&mut self.applied);
        self
    }

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
        let mut seen = HashSet::new();
        let lists = self.refused.values_mut().chain([&mut self.lagging, &mut self.applied, &mut self.away]);
        for list in lists {
            list.sort();
            list.retain(|proxy| seen.insert(proxy.clone()));
        }
        self.refused.retain(|_, proxies| !proxies.is_empty());
    }

    /// The picture in one sentence, for the status of the object: `applied by 37 of 40 proxies, 3 refused: REASON`.
    pub fn sentence(&self) -> String {
        let (applied, lagging, refusing) = (self.applied.len(), self.lagging.len(), self.refusing());
        let all = applied + lagging + refusing;
        let proxies = if all == 1 { "proxy" } else { "proxies" };
        let mut said = match all {
            0 => "no proxy uses it".to_owned(),
            _ => format!("applied by {applied} of {all} {proxies}"),
        };
        let late = match lagging {
            0 => String::new(),
            1 => ", 1 lags behind".to_owned(),
            more => format!(", {more} lag behind"),
        };
        said.push_str(&late);
        // The reason of most of them; of as many, the first by the alphabet.
        if let Some((reason, _)) = self.refused.iter().rev().max_by_key(|(_, proxies)| proxies.len()) {
            let others = match self.refused.len() - 1 {
                0 => String::new(),
                1 => " (and another reason)".to_owned(),
                more => format!(" (and {more} other reasons)"),
            };
            said = format!("{said}, {refusing} refused: {reason}{others}");
        }
        match self.away.len() {
            0 => said,
            1 => said + "; 1 proxy is away",
            more => said + &format!("; {more} proxies are away"),
        }
    }
}

/// An object that a person wrote, and who runs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ObjectPicture {
    /// Its kind.
    pub kind: String,
    /// `NAMESPACE/NAME`; of a namespace its name.
    pub name: String,
    /// The resources that it compiles to.
    pub resources: Vec<Arc<str>>,
    /// Which versions these have here, and what lists a route. Where a replica has others, its proxies run something else.
    #[serde(default)]
    pub versions: BTreeMap<Arc<str>, Arc<str>>,
    /// [`Picture::sentence`].
    pub sentence: String,
    /// Who runs it.
    pub picture: Picture,
}

impl ObjectPicture {
    fn new((kind, name): (String, String), resources: Vec<Arc<str>>, versions: Versions, picture: Picture) -> Self {
        let sentence = picture.sentence();
        Self { kind, name, resources, versions, sentence, picture }
    }

    /// Whether another replica has compiled the same.
    pub fn is_as(&self, other: &Self) -> bool {
        self.versions == other.versions
    }

    /// With what another replica knows of its own proxies. Of those that run what is compiled there nobody runs what is compiled here, unless
    /// that is the same.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let same = self.is_as(&other);
        let picture = self.picture.and(if same { other.picture } else { other.picture.outdated() });
        Self { sentence: picture.sentence(), picture, ..self }
    }
}

type Versions = BTreeMap<Arc<str>, Arc<str>>;

/// The versions by which replicas see whether they have compiled the same of an object.
fn versions_of(compiled: &Compiled, kind: &str, name: &str, resources: &[Arc<str>]) -> Versions {
    let route = name.split_once('/').filter(|_| ROUTES.contains(&kind));
    let lists = route.map(|(namespace, name)| attached_by(compiled, kind, &Name::new(namespace, name)));
    let all = resources.iter().cloned().chain(lists.unwrap_or_default());
    all.filter_map(|name| compiled.get(&name).map(|found| (name, Arc::clone(&found.version)))).collect()
}

/// The object that a resource is made of first of all; none for what comes from no object.
pub fn object_of(resource: &str) -> Option<(&str, &str)> {
    let (kind, name) = resource.split_once('/')?;
    match kind {
        // Of a service port: the port is no part of the object's name.
        "service" => Some(("Service", name.rsplit_once(':')?.0)),
        "endpoints" => Some(("EndpointSlice", name.split_once(':')?.0)),
        "workload" => Some(("Pod", name)),
        kind => KINDS.contains(&kind).then_some((kind, name)),
    }
}

/// The resources that an object compiles to, whether they exist or not; `None` if the kind is none of [`KINDS`]. An EndpointSlice goes by
/// the name of its service.
pub fn resources_of(compiled: &Compiled, kind: &str, name: &str) -> Option<Vec<Arc<str>>> {
    let model = compiled.model();
    let whose = || name.split_once('/').map(|(namespace, name)| Name::new(namespace, name)).unwrap_or_default();
    Some(match kind {
        "Namespace" => {
            let own = model.workloads.range(Name::new(name, "")..).take_while(|(found, _)| found.namespace == name);
            own.map(|(pod, _)| names::workload(&pod.namespace, &pod.name).into()).collect()
        }
        "Service" | "EndpointSlice" => {
            let whose = whose();
            let ports = model.services.get(&whose).into_iter().flat_map(|service| &service.ports);
            let services = ports.map(|port| names::service(&whose.namespace, &whose.name, port.port));
            let sets = kind == "EndpointSlice";
            services.map(|name| if sets { names::endpoints_of(&name).into() } else { name.into() }).collect()
        }
        "Pod" => {
            let pod = whose();
            let own: Arc<str> = names::workload(&pod.namespace, &pod.name).into();
            std::iter::once(own).chain(compiled.endpoints_of(&pod)).collect()
        }
        kind if ROUTES.contains(&kind) => {
            let own: Arc<str> = format!("{kind}/{name}").into();
            let pointers = attached_by(compiled, kind, &whose()).into_iter();
            // Who refuses the list of a namespace's routes has no use for the route itself.
            std::iter::once(own).chain(pointers.filter(|pointer| names::is_consumer(pointer))).collect()
        }
        kind if KINDS.contains(&kind) => vec![format!("{kind}/{name}").into()],
        _ => return None,
    })
}

/// What lists a route, as far as it is attached: the ports of its parents, or what its namespace has of those.
fn attached_by(compiled: &Compiled, kind: &str, route: &Name) -> Vec<Arc<str>> {
    let found = compiled.model().routes.get(&(kind.to_owned(), route.clone()));
    let parents: BTreeSet<Name> = found.into_iter().flat_map(|found| &found.parents).map(parent_name).collect();
    let ports = parents.iter().filter_map(|parent| resources_of(compiled, "Service", &parent.to_string())).flatten();
    ports.map(|port| names::consumer(&route.namespace, &port).map_or(port, Arc::from)).collect()
}

/// What points to a route or policy now. Only those do: what a service or workload points to comes with it.
fn pointing_to(compiled: &Compiled, resource: &str) -> Vec<Arc<str>> {
    let Some((kind, name)) = object_of(resource) else { return Vec::new() };
    let candidates: Vec<Arc<str>> = if ROUTES.contains(&kind) {
        let route = name.split_once('/').map(|(namespace, name)| Name::new(namespace, name)).unwrap_or_default();
        attached_by(compiled, kind, &route)
    } else if POLICIES.contains(&kind) {
        let namespace = name.split_once('/').map_or(name, |(namespace, _)| namespace);
        resources_of(compiled, "Namespace", namespace).unwrap_or_default()
    } else {
        return Vec::new();
    };
    let points =
        |from: &Arc<str>| compiled.get(from).is_some_and(|found| found.points_to.iter().any(|to| **to == *resource));
    candidates.into_iter().filter(points).collect()
}

impl Hub {
    /// Who runs these resources, taken together.
    pub fn picture(&self, resources: &[Arc<str>]) -> Picture {
        let standings = self.compiled(|compiled| {
            let mut standings: BTreeMap<Name, Standing> = BTreeMap::new();
            for resource in resources {
                self.standings(compiled, resource, &mut standings);
            }
            standings
        });
        let away = if resources.is_empty() { Vec::new() } else { self.absent() };
        Picture::of(standings, away.into_iter().map(|(name, _)| name))
    }

    fn standings(&self, compiled: &Compiled, resource: &Arc<str>, standings: &mut BTreeMap<Name, Standing>) {
        let pointers = pointing_to(compiled, resource);
        let own = names::collection_of(resource).map_or_else(|| Arc::clone(resource), Arc::from);
        let topics: BTreeSet<Topic> = std::iter::once(&own).chain(&pointers).flat_map(topics_of).collect();
        let exists = compiled.get(resource).is_some();
        for stream in self.listeners(topics.iter()) {
            let standing = stream.session(|session| {
                let told_to = || exists && pointers.iter().any(|pointer| session.holds(pointer));
                session.standing(compiled, resource).or_else(|| told_to().then_some(Standing::Lags))
            });
            if let Some(standing) = standing {
                let worst = standings.entry(stream.client.workload.clone()).or_insert(Standing::Runs);
                *worst = standing.max(worst.clone());
            }
        }
    }

    /// An object and who runs it; `None` if the kind is none of [`KINDS`].
    pub fn object(&self, kind: &str, name: &str) -> Option<ObjectPicture> {
        // The versions first: what is compiled meanwhile nobody runs yet, and is looked at again.
        let (resources, versions) = self.compiled(|compiled| {
            let resources = resources_of(compiled, kind, name)?;
            let versions = versions_of(compiled, kind, name, &resources);
            Some((resources, versions))
        })?;
        let picture = self.picture(&resources);
        Some(ObjectPicture::new((kind.to_owned(), name.to_owned()), resources, versions, picture))
    }

    /// The objects of which somebody refuses something. Looks at all that all proxies hold.
    pub fn refused_objects(&self) -> Vec<ObjectPicture> {
        let mut refused: BTreeSet<Arc<str>> = BTreeSet::new();
        for stream in self.streams() {
            stream.session(|session| refused.extend(session.refusals().map(|(name, _)| Arc::clone(name))));
        }
        let mut objects: BTreeMap<(String, String), Vec<Arc<str>>> = BTreeMap::new();
        for resource in refused {
            let (kind, name) = object_of(&resource).unwrap_or(("", &resource));
            objects.entry((kind.to_owned(), name.to_owned())).or_default().push(resource);
        }
        let with_picture = |(object, resources): ((String, String), Vec<Arc<str>>)| {
            let versions = self.compiled(|compiled| versions_of(compiled, &object.0, &object.1, &resources));
            let picture = self.picture(&resources);
            ObjectPicture::new(object, resources, versions, picture)
        };
        objects.into_iter().map(with_picture).collect()
    }
}

#[cfg(test)]
mod tests;
