//! What is told about a CA elsewhere on the command line.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};

use super::create_certificate::CreateCertificate;
use super::csr::Requests;
use super::line::{Line, Upstream};
use crate::cluster::Access;
use crate::config::Config;
use crate::issue::secret::SecretFile;
use crate::metrics::Metrics;

/// Who signs, if it is not control itself.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct Settings {
    /// Have certificates issued by this CA, which speaks istio.v1.auth.IstioCertificateService: istio-csr, or the control of another Weft. It is
    /// shown each workload's own token, so it has to know the issuer of those, and take their audience.
    #[arg(
        long, value_name = "https://HOST:PORT", help_heading = "A CA elsewhere", conflicts_with = "issuer_from",
        requires_all = ["issue_by_ca", "issue_by_token", "roots"]
    )]
    pub issue_by: Option<String>,
    /// Roots to verify that server by; read again at each connection.
    #[arg(long, value_name = "FILE", help_heading = "A CA elsewhere", requires = "issue_by")]
    pub issue_by_ca: Option<PathBuf>,
    /// The name in that server's certificate, where it is not the host of the URL.
    #[arg(long, value_name = "NAME", help_heading = "A CA elsewhere", requires = "issue_by")]
    pub issue_by_name: Option<String>,
    /// Control's own token for that CA, which must prove weft-system/weft-control to it; read at each use.
    #[arg(long, value_name = "FILE", help_heading = "A CA elsewhere", requires = "issue_by")]
    pub issue_by_token: Option<PathBuf>,
    /// Have certificates issued through Kubernetes: a CertificateSigningRequest for the signer of this name, such as example.com/mesh. The API
    /// server is that of --kubernetes-api, else the pod's own, else that of the kubeconfig.
    #[arg(
        long, value_name = "NAME", help_heading = "A CA elsewhere", conflicts_with_all = ["issue_by", "issuer_from"],
        requires = "roots"
    )]
    pub signer: Option<String>,
    /// Leave it to somebody else to approve those requests; else control does, which needs the permission.
    #[arg(long, help_heading = "A CA elsewhere", requires = "signer")]
    pub approved_elsewhere: bool,
    /// The roots that certificates of the CA elsewhere lead to, PEM; read again when the file changes. A new root has to be here before anything
    /// is issued under it.
    #[arg(long, value_name = "FILE", help_heading = "A CA elsewhere")]
    pub roots: Option<PathBuf>,
}

impl Settings {
    /// The way to the CA elsewhere; none if control signs itself.
    ///
    /// # Errors
    /// What was told is not enough, or is of no use. That the CA does not answer is no error.
    pub(super) async fn line(&self, config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<Option<Line>> {
        let upstream = match (&self.issue_by, &self.signer) {
            (None, None) if self.roots.is_some() => bail!("--roots is of --issue-by or --signer; give one of them too"),
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => bail!("give one of --issue-by and --signer"),
            (Some(url), None) => {
                let roots = self.issue_by_ca.as_deref().context("--issue-by needs --issue-by-ca")?;
                let token = self.issue_by_token.as_deref().context("--issue-by needs --issue-by-token")?;
                let made = CreateCertificate::new(url, roots, self.issue_by_name.as_deref(), SecretFile::new(token));
                Upstream::CreateCertificate(made.context("--issue-by")?)
            }
            (None, Some(signer)) => {
                let client = Access::from(&config.issuing).client().await.context("--signer")?;
                Upstream::Requests(Requests::new(client, signer, !self.approved_elsewhere))
            }
        };
        Ok(Some(Line::new(upstream, Arc::clone(metrics))))
    }
}
