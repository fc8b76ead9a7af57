//! The roots that the process was given (`--control-ca`): read at the start, and again whenever the file changes.

use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use tokio::time::sleep;
use weft_certs::tls::Roots;

use super::trust::enforce;
use super::workload_api::serve::bundle;
use crate::Shared;

/// How often the file is read.
const LOOK: Duration = Duration::from_secs(3);

/// As the TLS configurations take them, and as applications do.
///
/// # Errors
/// The file cannot be read, or is not what it should be.
pub fn read(path: &Path) -> anyhow::Result<(Roots, Bytes)> {
    let shown = path.display();
    let pem = std::fs::read_to_string(path)
        .with_context(|| format!("--control-ca {shown}: give the root.pem of control's --ca-dir"))?;
    let roots = Roots::from_pem(&pem).with_context(|| format!("--control-ca {shown}"))?;
    Ok((roots, bundle(&pem)))
}

/// Looks at the given file for as long as it is polled: the kubelet exchanges it in a running pod, and one that was given the roots of
/// yesterday finds control by those of today. A file that is broken changes nothing.
pub async fn follow(shared: &Arc<Shared>) {
    let mut before = None;
    loop {
        sleep(LOOK).await;
        let path = shared.config.control_ca.clone();
        let Ok(read) = tokio::task::spawn_blocking(move || read(&path)).await else { return pending().await };
        match read {
            Ok((_, bundle)) if before.as_ref() == Some(&Ok(bundle.clone())) => {}
            Ok((roots, bundle)) => {
                shared.trust.give(roots, bundle.clone());
                if let Err(error) = enforce(shared) {
                    tracing::error!(%error, "roots cannot be used; those before go on");
                }
                before = Some(Ok(bundle));
            }
            Err(error) => {
                let error = format!("{error:#}");
                if before.as_ref() != Some(&Err(error.clone())) {
                    tracing::warn!("{error}; the roots of before go on");
                    before = Some(Err(error));
                }
            }
        }
    }
}
