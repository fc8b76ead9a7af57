//! What became of a response: ACK, or NACK with details.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use weft_api::names::{self, ResourceType};
use weft_api::wire::{rpc, v1};

use super::{Held, Session, Violation};
use crate::compile::Resource;

/// What a request said beside its subscriptions, for logs and metrics.
#[derive(Debug, Default)]
pub struct Heard {
    /// It acknowledged a response, in whole or in part.
    pub acked: bool,
    /// What it refused.
    pub nacks: Vec<Nack>,
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
        now: Duration,
        heard: &mut Heard,
    ) -> Result<(), Violation> {
        let unknown = || Violation::Nonce(nonce.chars().take(40).collect());
        let number: u64 = nonce.parse().map_err(|_| unknown())?;
        let Some(sent) = self.outstanding.remove(&number) else {
            // Said twice is no harm.
            return if number <= self.nonce { Ok(()) } else { Err(unknown()) };
        };
        let details = error.map(details).unwrap_or_default();
        let whole = error.filter(|_| details.is_empty());
        heard.acked = whole.is_none();
        if let Some(error) = whole {
            heard.nacks.push(Nack { name: String::new(), code: "response".to_owned(), message: error.message.clone() });
        }
        let refused: HashMap<&str, &v1::ResourceError> =
            details.iter().map(|error| (error.name.as_str(), error)).collect();
        for (name, resource) in &sent.resources {
            let refusal = match (refused.get(&**name), whole) {
                (Some(error), _) => Some(format!("{}: {}", error.code, error.message)),
                (None, Some(error)) => Some(format!("response: {}", error.message)),
                (None, None) => None,
            };
            self.settle(name, resource.as_ref(), number, refusal);
        }
        for error in details {
            heard.nacks.push(Nack { name: error.name, code: error.code, message: error.message });
        }
        if heard.nacks.is_empty() {
            heard.converged = sent.changed.map(|changed| now.saturating_sub(changed));
        }
        Ok(())
    }

    fn settle(&mut self, name: &Arc<str>, resource: Option<&Arc<Resource>>, nonce: u64, refusal: Option<String>) {
        let members = names::collection_of(name).and_then(|head| self.collections.get_mut(head));
        let removed = resource.is_none() && refusal.is_none();
        let held: Option<&mut Held> = match members {
            Some(members) => {
                // A removal that is done and not overtaken leaves nothing to remember.
                if removed && members.held.get(name).is_some_and(|held| held.nonce == nonce) {
                    members.held.remove(name);
                    return;
                }
                members.held.get_mut(name)
            }
            None => self.nodes.get_mut(name).map(|node| &mut node.held),
        };
        let Some(held) = held else { return };
        match refusal {
            Some(refusal) if held.nonce == nonce => held.refused = Some(refusal.into()),
            Some(_) => {}
            None => held.acked = resource.cloned(),
        }
    }
}

/// The typed details of a NACK; none if there are none.
fn details(error: &rpc::Status) -> Vec<v1::ResourceError> {
    let ours = error.details.iter().filter(|any| any.type_url == v1::NackDetails::TYPE_URL);
    ours.filter_map(|any| v1::NackDetails::decode(any.value.as_slice()).ok()).flat_map(|nack| nack.errors).collect()
}
