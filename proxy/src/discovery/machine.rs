//! The proxy's end of a delta stream as a state machine: no I/O, no clock of its own, no locks.
//!
//! Algorithm
//! - Roots are the mesh's extent, our own workload, and the addresses that the application has called. What they point to comes beside
//!   them.
//! - On a new stream each type's first request says what is held (`initial_resource_versions`), so that nothing unchanged is sent
//!   again; of an endpoint set its digest stands there. A head that comes back for such a set says that it differs: then the
//!   members held are named, and the difference comes.
//! - A resource that does not decode is refused by name; the good ones of the same response are applied.
//!
//! Invariants
//! - Every response is answered with its nonce exactly once, and the answer is given to the caller only together with what must be in
//!   force before it is sent.
//! - Addresses are at most [`Limits::addresses`].

mod lost;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use weft_api::convert::{self, Decoded, ErrorCode, ResourceError, decode};
use weft_api::names::{self, ResourceType};
use weft_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use weft_api::wire::{rpc, v1};

use self::lost::ask_members;
use super::table::{Member, Node, Phase, TYPES, Table, type_index};
use crate::identity::trust::usable;

/// Bytes of the text of one refusal.
const MAX_MESSAGE: usize = 400;

/// Bounds of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Subscribed addresses.
    pub addresses: usize,
    /// Bytes of the versions in one request; the protocol's bound on a message is 1 MiB.
    pub request: usize,
    /// A set of which nothing has come for so long, though it is not whole, is asked for anew.
    pub loading: Duration,
    /// An address that lacks something so long after it was asked for is asked for again.
    pub asking: Duration,
    /// While something is missing nothing is forgotten, but for so long at most.
    pub partial: Duration,
    /// Refusals told one by one; more, and the whole response is refused.
    pub details: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            addresses: 4096,
            request: 900 * 1024,
            loading: Duration::from_secs(3),
            asking: Duration::from_secs(1),
            partial: Duration::from_mins(1),
            details: 512,
        }
    }
}

/// What became of a resource that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not held.
    New,
    /// Another version was held.
    Changed,
    /// This version was held: control need not have sent it.
    Unchanged,
    /// It does not exist any more.
    Removed,
    /// It could not be used.
    Refused,
}

impl Change {
    /// Every change, in the order of declaration.
    pub const ALL: [Self; 5] = [Self::New, Self::Changed, Self::Unchanged, Self::Removed, Self::Refused];

    /// The label's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Removed => "removed",
            Self::Refused => "refused",
        }
    }
}

/// What one response came to.
#[derive(Debug, Default)]
pub struct Heard {
    /// To be sent once what changed is in force.
    pub replies: Vec<DeltaDiscoveryRequest>,
    /// Something other than endpoints changed.
    pub structure: bool,
    /// Endpoint sets that changed and may be used.
    pub collections: HashSet<Arc<str>>,
    /// What came, by the type's place in [`TYPES`].
    pub received: Vec<(usize, Change)>,
    /// What was refused.
    pub refused: Vec<v1::ResourceError>,
}

/// One root: an address that the application has called.
#[derive(Clone, Copy, Debug)]
pub struct Root {
    /// When it was called first.
    pub since: Duration,
    /// When control was asked about it last.
    asked: Duration,
}

/// The state of the proxy's end.
#[derive(Debug)]
pub struct Machine {
    trust_domain: Arc<str>,
    limits: Limits,
    extent: Arc<str>,
    workload: Arc<str>,
    addresses: HashMap<Arc<str>, Root>,
    /// What is held.
    pub table: Table,
    /// Resources that were refused and of which no other version is held.
    refused: HashMap<Arc<str>, ResourceError>,
    open: bool,
    /// Sets whose digest this stream has been told.
    claimed: HashSet<Arc<str>>,
    /// Since when addresses have been asked for without any answer.
    unanswered: Option<Duration>,
    /// Types whose first question on this stream has no answer yet.
    owed: Vec<String>,
    /// Whether control has answered about addresses since the tables were read from disk.
    confirmed: bool,
    /// Whether nothing was missing when it was looked last, and no address was added since.
    whole: bool,
    /// Since when something has been missing, as far as [`Machine::heal`] has noticed.
    partial_since: Option<Duration>,
}

impl Machine {
    /// Holds nothing. `workload` is our own resource's name.
    pub fn new(workload: Arc<str>, trust_domain: Arc<str>, limits: Limits) -> Self {
        let namespace = workload.split('/').nth(1).unwrap_or_default().into();
        Self {
            trust_domain,
            limits,
            extent: names::MESH_EXTENT.into(),
            workload,
            addresses: HashMap::new(),
            table: Table { namespace, ..Table::default() },
            refused: HashMap::new(),
            open: false,
            claimed: HashSet::new(),
            unanswered: None,
            owed: Vec::new(),
            confirmed: true,
            whole: false,
            partial_since: None,
        }
    }

    /// Our own workload, if control has told of it.
    pub fn own(&self) -> Option<&convert::Workload> {
        match self.table.decoded(&self.workload) {
            Some(Decoded::Workload(own)) => Some(own),
            _ => None,
        }
    }

    /// Name of our own workload's resource.
    pub fn workload(&self) -> &Arc<str> {
        &self.workload
    }

    /// The addresses asked for.
    pub fn addresses(&self) -> &HashMap<Arc<str>, Root> {
        &self.addresses
    }

    /// Why a resource of which nothing is held was refused.
    pub fn refusal(&self, name: &str) -> Option<&ResourceError> {
        self.refused.get(name)
    }

    /// Since when addresses have been asked for on this stream without any answer.
    pub fn unanswered(&self) -> Option<Duration> {
        self.unanswered
    }

    /// Whether everything that was asked for when the stream was opened has been answered: what is held is what control says now.
    pub fn caught_up(&self) -> bool {
        self.open && self.owed.is_empty()
    }

    /// Whether what is held is known to be true as of some moment of this process's life.
    pub fn confirmed(&self) -> bool {
        self.confirmed
    }

    /// A stream is open: what has to be said on it.
    pub fn open(&mut self, now: Duration) -> Vec<DeltaDiscoveryRequest> {
        self.open = true;
        self.claimed.clear();
        // A set that was on its way begins anew: what control would make of half of one is not known.
        for set in self.table.collections.values_mut().filter(|set| !set.is_steady()) {
            set.clear();
        }
        let mut requests = vec![
            self.first(v1::MeshExtent::TYPE_URL, &self.extent, |type_url| type_url == v1::MeshExtent::TYPE_URL),
            self.first(v1::Workload::TYPE_URL, &self.workload, |type_url| {
                let beside = [v1::AuthorizationPolicy::TYPE_URL, v1::RateLimitPolicy::TYPE_URL];
                let believed = [v1::Trust::TYPE_URL, v1::Revoked::TYPE_URL];
                type_url == v1::Workload::TYPE_URL || beside.contains(&type_url) || believed.contains(&type_url)
            }),
        ];
        self.unanswered = None;
        if !self.addresses.is_empty() {
            self.addresses.values_mut().for_each(|root| root.asked = now);
            requests.extend(self.first_addresses());
            self.unanswered = Some(now);
        }
        self.owed = requests.iter().map(|request| request.type_url.clone()).collect();
        requests
    }

    /// The stream has ended.
    pub fn closed(&mut self) {
        self.open = false;
        self.unanswered = None;
    }

    fn first(&self, type_url: &str, root: &Arc<str>, with: impl Fn(&str) -> bool) -> DeltaDiscoveryRequest {
        let held = self.table.nodes.iter().filter(|(_, node)| with(node.type_url));
        DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec![root.to_string()],
            initial_resource_versions: held.map(|(name, node)| (name.to_string(), node.version.to_string())).collect(),
            ..Default::default()
        }
    }

    /// All addresses with the versions of everything that hangs on them. What does not fit into one request goes before it, with
    /// versions only.
    fn first_addresses(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let ours = [v1::Address::TYPE_URL, v1::Service::TYPE_URL, v1::Consumer::TYPE_URL, v1::Route::TYPE_URL];
        let nodes = self.table.nodes.iter().filter(|(_, node)| ours.contains(&node.type_url));
        let sets = self.table.collections.iter().filter(|(_, set)| set.is_steady());
        self.claimed = sets.clone().map(|(name, _)| Arc::clone(name)).collect();
        let nodes = nodes.map(|(name, node)| (name.to_string(), node.version.to_string()));
        let versions = nodes.chain(sets.map(|(name, set)| (name.to_string(), set.version())));
        let mut requests = vec![address_request()];
        let mut size = 0;
        for (name, version) in versions {
            size += name.len() + version.len() + 8;
            if size > self.limits.request {
                size = 0;
                requests.push(address_request());
            }
            if let Some(last) = requests.last_mut() {
                last.initial_resource_versions.insert(name, version);
            }
        }
        if size + self.addresses.keys().map(|name| name.len() + 4).sum::<usize>() > self.limits.request {
            requests.push(address_request());
        }
        if let Some(last) = requests.last_mut() {
            last.resource_names_subscribe = self.addresses.keys().map(Arc::to_string).collect();
        }
        requests
    }

    /// The application has called an address: the request to send, if there is something to ask now.
    ///
    /// The caller makes room first: beyond [`Limits::addresses`] nothing is added.
    pub fn subscribe(&mut self, name: &Arc<str>, now: Duration) -> Option<DeltaDiscoveryRequest> {
        if self.addresses.contains_key(name) || self.is_full() {
            return None;
        }
        self.addresses.insert(Arc::clone(name), Root { since: now, asked: now });
        self.whole = false;
        if !self.open {
            return None;
        }
        self.unanswered.get_or_insert(now);
        Some(DeltaDiscoveryRequest { resource_names_subscribe: vec![name.to_string()], ..address_request() })
    }

    /// Whether there is no room for another address.
    pub fn is_full(&self) -> bool {
        self.addresses.len() >= self.limits.addresses
    }

    /// Forgets addresses, and what only they pointed to. The request to send, if the stream is open.
    pub fn unsubscribe(&mut self, gone: &[Arc<str>]) -> Option<DeltaDiscoveryRequest> {
        let gone: Vec<String> =
            gone.iter().filter(|name| self.addresses.remove(*name).is_some()).map(Arc::to_string).collect();
        if gone.is_empty() {
            return None;
        }
        self.collect();
        self.open.then(|| DeltaDiscoveryRequest { resource_names_unsubscribe: gone, ..address_request() })
    }

    /// Takes a response.
    pub fn hear(&mut self, response: DeltaDiscoveryResponse, now: Duration) -> Heard {
        let mut heard = Heard::default();
        let mut touched = HashSet::new();
        self.owed.retain(|owed| *owed != response.type_url);
        if response.type_url == v1::Address::TYPE_URL {
            self.unanswered = None;
            if !self.confirmed {
                // What was left out until now may be used.
                self.confirmed = true;
                heard.structure = true;
                touched.extend(self.table.collections.keys().cloned());
            }
        }
        for mut resource in response.resources {
            if let Some(any) = resource.resource.as_mut().filter(|any| any.type_url.is_empty()) {
                // What is of the response's own type does not repeat it.
                any.type_url.clone_from(&response.type_url);
            }
            if let Err(refused) = self.take(resource, now, &mut heard, &mut touched) {
                heard.refused.push(refused);
            }
        }
        for name in response.removed_resources {
            self.remove(&name.into(), &mut heard, &mut touched);
        }
        if heard.structure {
            self.collect();
        }
        for name in touched {
            if let Some(set) = self.table.collections.get_mut(&name)
                && (set.settle() || set.is_steady())
            {
                heard.collections.insert(name);
            }
        }
        heard.replies.push(self.answer(response.type_url, response.nonce, &heard.refused));
        heard
    }

    /// A member or a set changed: `touched` gets the set's name.
    fn take(
        &mut self,
        resource: Resource,
        now: Duration,
        heard: &mut Heard,
        touched: &mut HashSet<Arc<str>>,
    ) -> Result<(), v1::ResourceError> {
        let Resource { version, resource: any, name } = resource;
        let prost_types::Any { type_url: given, value } = any.unwrap_or_default();
        let (Some(at), Some(type_url)) = index_and_url(&given) else {
            let error =
                ResourceError::new(ErrorCode::UnknownType, "resources of this type are not known to this build");
            return Err(error.to_wire(&given, &name, &version));
        };
        let bytes = Bytes::from(value);
        let decoded = decode(type_url, &bytes, &self.trust_domain)
            .and_then(|decoded| fits(&name, decoded))
            .and_then(Self::believable);
        let name: Arc<str> = name.as_str().into();
        let decoded = match decoded {
            Ok(decoded) => decoded,
            Err(error) => {
                heard.received.push((at, Change::Refused));
                let mut refused = error.to_wire(type_url, &name, &version);
                cut(&mut refused.message, MAX_MESSAGE);
                if !self.table.nodes.contains_key(&name) {
                    // Told, so that who needs it is refused instead of waiting; and our own policies close what they cover.
                    self.refused.insert(name, error);
                    heard.structure = true;
                }
                return Err(refused);
            }
        };
        self.refused.remove(&name);
        let change = self.put(name, type_url, version.as_str().into(), bytes, decoded, now, heard, touched);
        heard.received.extend(change.map(|change| (at, change)));
        Ok(())
    }

    // Roots that no handshake could use are refused with the rest of what is wrong.
    fn believable(decoded: Decoded) -> Result<Decoded, ResourceError> {
        match &decoded {
            Decoded::Trust(trust) if !trust.bundles.is_empty() => match usable(trust) {
                Ok(_) => Ok(decoded),
                Err(_) => Err(ResourceError::new(ErrorCode::Malformed, "something among the roots is no certificate")),
            },
            _ => Ok(decoded),
        }
    }

    #[allow(clippy::too_many_arguments)] // One resource in its parts.
    fn put(
        &mut self,
        name: Arc<str>,
        type_url: &'static str,
        version: Arc<str>,
        bytes: Bytes,
        decoded: Decoded,
        now: Duration,
        heard: &mut Heard,
        touched: &mut HashSet<Arc<str>>,
    ) -> Option<Change> {
        match decoded {
            Decoded::Endpoint(endpoint) => {
                // Of a set that has been forgotten meanwhile: nobody needs it.
                let (head, set) = self.set_of(&name)?;
                let held = set.members.contains_key(&name);
                if let Phase::Loading { since, .. } = &mut set.phase {
                    *since = now;
                }
                let changed = set.set(&name, Some(Member { version, bytes, endpoint }));
                if changed {
                    touched.insert(head);
                }
                Some(if !changed {
                    Change::Unchanged
                } else if held {
                    Change::Changed
                } else {
                    Change::New
                })
            }
            Decoded::EndpointHead(target) => {
                let claimed = self.claimed.remove(&name);
                let held = self.table.collections.contains_key(&name);
                let set = self.table.head(&name, target, claimed, now);
                // Control need not ask what is in an empty set: it sends the members at once.
                if claimed && !set.is_steady() && !set.members.is_empty() {
                    heard.replies.push(ask_members(&name, set, self.limits.request));
                }
                heard.structure |= !held;
                touched.insert(name);
                Some(if held { Change::Changed } else { Change::New })
            }
            decoded => {
                let node = Node { type_url, version, bytes, decoded };
                let before = self.table.nodes.get(&name).map(|held| held.version == node.version);
                heard.structure |= before != Some(true);
                self.table.nodes.insert(name, node);
                Some(match before {
                    None => Change::New,
                    Some(true) => Change::Unchanged,
                    Some(false) => Change::Changed,
                })
            }
        }
    }

    fn set_of(&mut self, member: &str) -> Option<(Arc<str>, &mut super::table::Collection)> {
        let head = names::collection_of(member)?;
        let (head, _) = self.table.collections.get_key_value(head)?;
        let head = Arc::clone(head);
        self.table.collections.get_mut(&head).map(|set| (head, set))
    }

    fn remove(&mut self, name: &Arc<str>, heard: &mut Heard, touched: &mut HashSet<Arc<str>>) {
        let index = |type_url: &str| type_index(type_url).unwrap_or_default();
        if let Some((head, set)) = self.set_of(name) {
            if set.set(name, None) {
                touched.insert(head);
                heard.received.push((index(v1::Endpoint::TYPE_URL), Change::Removed));
            }
        } else if let Some(node) = self.table.nodes.remove(name) {
            heard.received.push((index(node.type_url), Change::Removed));
            heard.structure = true;
        }
    }

    fn answer(&self, type_url: String, nonce: String, refused: &[v1::ResourceError]) -> DeltaDiscoveryRequest {
        let error_detail = refused.first().map(|first| {
            let message = format!("{} refused, the first: {}: {}", refused.len(), first.name, first.message);
            let details = v1::NackDetails { errors: refused.to_vec() };
            let details =
                prost_types::Any { type_url: v1::NackDetails::TYPE_URL.to_owned(), value: details.encode_to_vec() };
            // 3 is INVALID_ARGUMENT.
            let few = refused.len() <= self.limits.details;
            rpc::Status { code: 3, message, details: if few { vec![details] } else { Vec::new() } }
        });
        DeltaDiscoveryRequest { type_url, response_nonce: nonce, error_detail, ..Default::default() }
    }

    /// Puts in what an earlier process saved. `addresses` become roots.
    pub fn restore(&mut self, saved: impl Iterator<Item = Resource>, addresses: Vec<Arc<str>>, confirmed: bool) {
        let mut ignored = (Heard::default(), HashSet::new());
        // Heads first: a member of no set is not taken.
        let (first, rest): (Vec<_>, Vec<_>) = saved.partition(|saved| names::collection_of(&saved.name).is_none());
        for saved in first.into_iter().chain(rest) {
            if let Err(error) = self.take(saved, Duration::ZERO, &mut ignored.0, &mut ignored.1) {
                tracing::warn!(name = error.name, error = error.message, "a saved resource is not used");
            }
        }
        self.refused.clear();
        for name in addresses.into_iter().take(self.limits.addresses) {
            self.addresses.insert(name, Root { since: Duration::ZERO, asked: Duration::ZERO });
        }
        self.table.collections.values_mut().for_each(|set| {
            set.settle();
        });
        self.collect();
        self.confirmed = confirmed;
    }
}

fn address_request() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: v1::Address::TYPE_URL.to_owned(), ..Default::default() }
}

fn index_and_url(type_url: &str) -> (Option<usize>, Option<&'static str>) {
    let at = type_index(type_url);
    (at, at.and_then(|at| TYPES.get(at)).copied())
}

/// Whether a resource may travel under this name: one that says its name itself must say the same.
fn fits(name: &str, decoded: Decoded) -> Result<Decoded, ResourceError> {
    let ok = match &decoded {
        Decoded::Address(_) => super::address::is_name(name),
        Decoded::Consumer(_) => names::is_consumer(name),
        Decoded::EndpointHead(_) => name.starts_with("endpoints/") && names::collection_of(name).is_none(),
        Decoded::Endpoint(_) => names::collection_of(name).is_some(),
        other => other.own_name().as_deref() == Some(name),
    };
    if ok {
        return Ok(decoded);
    }
    let message = "the resource travels under a name that is not its own".to_owned();
    Err(ResourceError::new(ErrorCode::InvalidName, message))
}

/// Cuts a text to at most `max` bytes, at a character.
fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}
