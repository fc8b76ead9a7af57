//! What became of a response: ACK, or NACK with details.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use weft_api::names::{self, ResourceType};
use weft_api::wire::{rpc, v1};

use super::{Session, Violation};
use crate::compile::Compiled;
use crate::status::inbox::is_object;

/// What a request said beside its subscriptions, for logs and metrics.
#[derive(Debug, Default)]
pub struct Heard {
    /// It acknowledged a response, in whole or in part.
    pub acked: bool,
    /// What it refused.
    pub nacks: Vec<Nack>,
    /// What it answered about, as far as that is made of one object.
    pub answered: Vec<Arc<str>>,
    /// How long ago the change was made that is now in force.
    pub converged: Option<Duration>,
}

/// One refused resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// Name of the resource; empty if the whole response was refused.
    pub name: String,
    /// Code of `weft_api::convert::ErrorCode`, or `response`.
    pub code: String,
    /// What the proxy said.
    pub message: String,
}

impl Session {
    pub(super) fn acknowledge(
        &mut self,
        nonce: &str,
        error: Option<&rpc::Status>,
        compiled: &Compiled,
        now: Duration,
        heard: &mut Heard,
    ) -> Result<(), Violation> {
        let unknown = || Violation::Nonce(nonce.chars().take(40).collect());
        let number: u64 = nonce.parse().map_err(|_| unknown())?;
        let Some(sent) = self.outstanding.remove(&number) else {
            // Said twice is no harm.
            return if number <= self.nonce { Ok(()) } else { Err(unknown()) };
        };
        if self.outstanding.is_empty() {
            // An empty one keeps the room of a few.
            self.outstanding = BTreeMap::new();
        }
        let details = error.map(details).unwrap_or_default();
        let whole = error.filter(|_| details.is_empty());
        heard.acked = whole.is_none();
        if let Some(error) = whole {
            heard.nacks.push(Nack { name: String::new(), code: "response".to_owned(), message: error.message.clone() });
        }
        let refused: HashMap<&str, &v1::ResourceError> =
            details.iter().map(|error| (error.name.as_str(), error)).collect();
        let mut sets: Vec<Arc<str>> = Vec::new();
        for (name, resource) in &sent.resources {
            let refusal = match (refused.get(&**name), whole) {
                (Some(error), _) => Some(format!("{}: {}", error.code, error.message)),
                (None, Some(error)) => Some(format!("response: {}", error.message)),
                (None, None) => None,
            };
            if let Some(head) = names::collection_of(name) {
                if sets.last().is_none_or(|last| **last != *head) {
                    sets.push(head.into());
                }
                if let Some(members) = self.collections.get_mut(head) {
                    members.answered(name, number, resource.as_ref(), refusal);
                }
            } else if let Some(held) = self.nodes.get_mut(name) {
                held.answered(number, resource.as_ref(), refusal);
            }
            if is_object(name) {
                heard.answered.push(Arc::clone(name));
            }
        }
        for head in sets {
            if let Some(members) = self.collections.get_mut(&head) {
                members.rest(compiled.collection(&head).map(|set| &set.members));
            }
        }
        for error in details {
            heard.nacks.push(Nack { name: error.name, code: error.code, message: error.message });
        }
        if heard.nacks.is_empty() {
            heard.converged = sent.changed.map(|changed| now.saturating_sub(changed));
        }
        Ok(())
    }
}

/// The typed details of a NACK; none if there are none.
fn details(error: &rpc::Status) -> Vec<v1::ResourceError> {
    let ours = error.details.iter().filter(|any| any.type_url == v1::NackDetails::TYPE_URL);
    ours.filter_map(|any| v1::NackDetails::decode(any.value.as_slice()).ok()).flat_map(|nack| nack.errors).collect()
}
