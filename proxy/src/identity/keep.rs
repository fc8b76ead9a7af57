//! All that keeps certificates on the admin thread: our own, and the application's if it may have one.

use std::future::pending;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tracing::Instrument as _;

use super::authority::{ControlAuthority, Token};
use super::renew::{self, Settings};
use super::workload_api::follow::follow;
use super::workload_api::serve::{HOLD, WorkloadApi};
use crate::Shared;

/// Who gives us our certificate.
pub enum Giver {
    /// Control's CA.
    Control(Box<ControlAuthority>),
    /// SPIFFE's Workload API at this socket.
    WorkloadApi(PathBuf),
}

/// What is to be kept.
pub struct Keeper {
    /// Whose certificate is wanted.
    pub settings: Settings,
    /// Who gives it.
    pub giver: Giver,
    /// Where the application asks for its own, if control's CA gives it one.
    pub socket: Option<UnixListener>,
}

impl Keeper {
    /// Keeps them for as long as it is polled.
    ///
    /// # Errors
    /// If the application's socket cannot be served.
    pub async fn run(self, shared: &Arc<Shared>) -> io::Result<()> {
        let Self { settings, giver, socket } = self;
        let store = &shared.identity;
        match giver {
            Giver::WorkloadApi(path) => follow(store, &settings, &path, SystemTime::now).await,
            Giver::Control(authority) => tokio::select! {
                () = renew::run(store, store, &settings, &*authority, SystemTime::now) => {}
                served = for_application(shared, &settings, &authority, socket) => served?,
            },
        }
        Ok(())
    }
}

async fn for_application(
    shared: &Arc<Shared>,
    settings: &Settings,
    authority: &ControlAuthority,
    socket: Option<UnixListener>,
) -> io::Result<()> {
    let Some(socket) = socket else { return pending().await };
    let api = WorkloadApi::new(Arc::clone(shared), settings.trust.bundles(), HOLD);
    // Proved by our own certificate where that is enough, and on no disk: after a restart another is asked for.
    let token = Token::IfWanted(Box::new(settings.token.clone()));
    let settings = Settings { token, state_dir: None, ..settings.clone() };
    let renewals = async {
        let mut ours = shared.identity.changes();
        if ours.wait_for(|taken| *taken > 0).await.is_ok() {
            renew::run(&shared.application, &shared.identity, &settings, authority, SystemTime::now).await;
        }
    };
    tokio::select! {
        () = renewals.instrument(tracing::info_span!("application")) => Ok(()),
        served = api.serve(socket) => served,
    }
}
