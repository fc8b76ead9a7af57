//! One open stream, and who is at its other end.

use std::net::SocketAddr;
use std::sync::OnceLock;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Session;
use crate::auth::Proved;
use crate::model::Name;

/// Who is at the other end of a stream.
#[derive(Clone, Debug)]
pub struct Client {
    /// Whose sidecar it is.
    pub workload: Name,
    /// What its certificate proves.
    pub proved: Proved,
    /// What its build can enforce; `None`: all that this build knows ([`weft_api::FEATURES`]), and no more.
    pub features: Option<Box<[String]>>,
    /// A number of this run of the proxy, if it says one: another one means that it was started anew.
    pub instance: Option<String>,
    /// Where it calls from.
    pub addr: SocketAddr,
    /// Of its build, as it says.
    pub version: String,
}

impl Client {
    /// Whether its build has said that it can do this.
    pub fn can(&self, feature: &str) -> bool {
        self.features.as_ref().is_none_or(|features| features.iter().any(|one| one == feature))
    }
}

/// One open stream.
#[derive(Debug)]
pub struct Stream {
    pub(in crate::distribute) id: u64,
    /// Who is at the other end.
    pub client: Client,
    /// When it was opened.
    pub since: Instant,
    pub(super) session: Mutex<Session>,
    /// There may be something to send.
    pub wake: Notify,
    /// Cancelled when the stream has to end: its workload belongs to another identity now, or is another pod, or that is revoked.
    pub revoked: CancellationToken,
    /// It ends because its proxy is to go to another replica: to one of these, if there are any.
    sent_away: OnceLock<Box<[SocketAddr]>>,
}

impl Stream {
    /// A new one.
    pub(super) fn new(id: u64, client: Client, session: Session) -> Self {
        Self {
            id,
            session: Mutex::new(session),
            client,
            since: Instant::now(),
            wake: Notify::new(),
            revoked: CancellationToken::new(),
            sent_away: OnceLock::new(),
        }
    }

    /// Whether there may be something to send and the proxy can take it.
    pub fn has_work(&self) -> bool {
        self.session.lock().has_work()
    }

    /// Ends it so that its proxy goes to another replica: to one of `to`, if it can.
    pub(crate) fn send_away(&self, to: Vec<SocketAddr>) {
        // Whoever was first has said where.
        let _ = self.sent_away.set(to.into());
        self.revoked.cancel();
    }

    /// Where it was sent, if it was.
    pub(crate) fn sent_away(&self) -> Option<&[SocketAddr]> {
        self.sent_away.get().map(AsRef::as_ref)
    }

    /// Looks at its state.
    pub fn session<T>(&self, look: impl FnOnce(&Session) -> T) -> T {
        look(&self.session.lock())
    }
}
