//! What was sent of one resource, and what came back.
//!
//! A proxy runs nearly all that it was sent, and for that one pointer is enough: what is on its way or was refused has a place of its own, which
//! goes with the answer.

use std::sync::Arc;

use crate::compile::Resource;

/// What a proxy has of one resource.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// It runs what it was sent last.
    Settled(Arc<Resource>),
    /// It has not said so, or not of what was sent last.
    Open(Box<Open>),
    /// It was taken away, and the proxy has said so.
    Gone,
}

/// What was sent last is not what the proxy runs, or was its removal.
#[derive(Clone, Debug)]
pub(super) struct Open {
    /// Sent last; `None`: its removal was.
    sent: Option<Arc<Resource>>,
    /// What the proxy runs.
    acked: Option<Arc<Resource>>,
    /// Response in which `sent` went.
    nonce: u64,
    /// Why the proxy refused `sent`.
    refused: Option<Arc<str>>,
}

/// A look at it.
#[derive(Clone, Copy, Debug)]
pub(in crate::distribute) struct Seen<'h> {
    /// Sent last; `None`: its removal was.
    pub(in crate::distribute) sent: Option<&'h Arc<Resource>>,
    /// What the proxy runs. Of what it brought along, and is not as it is now, the version is known and no bytes.
    pub(in crate::distribute) acked: Option<&'h Arc<Resource>>,
    /// Why the proxy refused what was sent last.
    pub(in crate::distribute) refused: Option<&'h Arc<str>>,
    /// It has not answered what was sent last: what it runs may be another in a moment.
    pub(in crate::distribute) waits: bool,
}

impl<'h> Seen<'h> {
    /// The proxy runs it.
    pub(super) fn settled(resource: &'h Arc<Resource>) -> Self {
        Self { sent: Some(resource), acked: Some(resource), refused: None, waits: false }
    }

    /// The version that was sent last; `None`: its removal was.
    pub(in crate::distribute) fn sent_version(self) -> Option<&'h Arc<str>> {
        self.sent.map(|sent| &sent.version)
    }

    /// The version that the proxy runs.
    pub(in crate::distribute) fn acked_version(self) -> Option<&'h Arc<str>> {
        self.acked.map(|acked| &acked.version)
    }
}

impl Held {
    /// `sent`, or its removal, goes in the response `nonce` to a proxy that has what was `before`.
    pub(super) fn sending(sent: Option<Arc<Resource>>, nonce: u64, before: Option<Seen<'_>>) -> Self {
        let acked = before.and_then(|before| before.acked).cloned();
        Self::Open(Box::new(Open { sent, acked, nonce, refused: None }))
    }

    pub(super) fn seen(&self) -> Seen<'_> {
        match self {
            Self::Settled(resource) => Seen::settled(resource),
            Self::Open(open) => {
                let (sent, acked, refused) = (open.sent.as_ref(), open.acked.as_ref(), open.refused.as_ref());
                Seen { sent, acked, refused, waits: refused.is_none() }
            }
            Self::Gone => Seen { sent: None, acked: None, refused: None, waits: false },
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }

    /// The proxy answered the response `nonce`, in which `resource` or its removal went: it runs it, or has refused it. An answer to something
    /// older than what it runs says nothing new.
    pub(super) fn answered(&mut self, nonce: u64, resource: Option<&Arc<Resource>>, refusal: Option<String>) {
        let Self::Open(open) = self else { return };
        match (refusal, resource) {
            (Some(refusal), _) if open.nonce == nonce => open.refused = Some(refusal.into()),
            (Some(_), _) => {}
            (None, Some(resource)) if open.nonce == nonce => *self = Self::Settled(Arc::clone(resource)),
            (None, None) if open.nonce == nonce => *self = Self::Gone,
            (None, resource) => open.acked = resource.cloned(),
        }
    }
}
