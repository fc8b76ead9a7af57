//! What replicas ask each other, answered for the proxies that are connected here: pure looks at the hub.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use weft_api::names;
use weft_api::wire::replicas::ask::About;
use weft_api::wire::v1;
use weft_certs::ca::rotation::{Kind, Phase, Rotation};
use xxhash_rust::xxh3::xxh3_128;

use crate::auth;
use crate::distribute::Hub;
use crate::distribute::drain::Concerned;
use crate::distribute::hub::Stream;
use crate::model::Name;

/// What the phase of a rotation waits for.
pub fn about(rotation: &Rotation, hub: &Hub) -> About {
    match (rotation.phase, rotation.kind) {
        (Phase::Publishing | Phase::Withdrawing, _) => About::Trust(digest_of_trust(hub)),
        (Phase::Turning, Kind::Root | Kind::Issuer) => About::Issuer(rotation.from.clone()),
        (Phase::Turning, Kind::TrustDomain) => About::Outside(rotation.to.clone()),
    }
}

/// Of the roots and names of our own trust domain, as proxies are told them now. What is said of others may differ between replicas.
pub fn digest_of_trust(hub: &Hub) -> Bytes {
    let told = hub.compiled(|compiled| compiled.get(names::TRUST));
    let told = told.and_then(|told| v1::Trust::decode(told.bytes.clone()).ok()).unwrap_or_default();
    let own = told.bundles.into_iter().filter(|bundle| bundle.trust_domain == told.own);
    let own = v1::Trust {
        bundles: own.collect(),
        own: told.own.clone(),
        requires: Vec::new(),
        svid_roots: Vec::new(),
        ..told
    };
    xxh3_128(&own.encode_to_vec()).to_be_bytes().to_vec().into()
}

/// Whether the proxy of a stream lacks what a rotation asks about.
pub fn lacks(about: &About, stream: &Stream, hub: &Hub) -> bool {
    let proved = &stream.client.proved;
    match about {
        About::Trust(digest) => !hub.believes(stream) || *digest != digest_of_trust(hub),
        About::Issuer(issuer) => proved.issuer.as_ref().is_some_and(|shown| **shown == **issuer),
        About::Outside(domain) => *proved.identity.trust_domain != **domain,
        About::Leave(_) | About::Objects(_) => false,
    }
}

/// What a proxy is to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    /// It does not concern it.
    Aside,
    /// It is waited for.
    Waits,
    /// It was waited for.
    Done,
}

/// A question that another replica has asked.
#[derive(Debug)]
pub struct Open {
    about: About,
    /// Of a workload that leaves.
    concerned: Option<Concerned>,
}

impl Open {
    /// Takes it up, and says whom it concerns at first. Compiles, for a workload that leaves: call it where blocking is allowed.
    pub fn begin(hub: &Hub, about: About) -> (Self, BTreeSet<Name>) {
        let leaving = match &about {
            About::Leave(leave) => auth::workload(&leave.workload).ok(),
            _ => None,
        };
        let concerned = leaving.map(|workload| {
            let concerned = Concerned::elsewhere(hub, &workload);
            if let About::Leave(leave) = &about {
                hub.learn_leaves(std::slice::from_ref(leave));
            }
            concerned
        });
        let mut open = Self { about, concerned };
        let names = match &mut open.concerned {
            Some(concerned) => {
                concerned.look_at_all(hub);
                concerned.names()
            }
            None => {
                let streams = hub.streams();
                let lack = streams.iter().filter(|stream| lacks(&open.about, stream, hub));
                lack.map(|stream| stream.client.workload.clone()).collect()
            }
        };
        (open, names)
    }

    /// How the proxy of these streams, which are all of this workload's, stands to it.
    pub fn look_at(&mut self, hub: &Hub, name: &Name, streams: &[Arc<Stream>]) -> Stands {
        match &mut self.concerned {
            Some(concerned) => concerned.look(hub, name, streams),
            None if streams.iter().any(|stream| lacks(&self.about, stream, hub)) => Stands::Waits,
            None => Stands::Aside,
        }
    }
}
