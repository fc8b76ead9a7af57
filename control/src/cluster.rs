//! The cluster's API server, as everything in control asks it.
//!
//! Invariants
//! - Names are resolved by hickory: a static binary has no other resolver.
//! - The server is verified, always; token and roots are read again when the kubelet exchanges them.
//! - No question waits for longer than [`QUESTION`] ([`ask`]); only watches are open for longer.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tower::filter::AsyncFilterLayer;
use tower::{BoxError, ServiceBuilder};

use crate::issue::Settings;
use crate::issue::secret::SecretFile;
use crate::model::SYSTEM_NAMESPACE;

/// For a whole question.
pub const QUESTION: Duration = Duration::from_secs(5);
/// Who writes, to the API server: the owner of the fields in a server-side apply.
pub const FIELD_MANAGER: &str = "weft-control";
/// The label that everything of ours has.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "weft");
/// Where the kubelet puts what a pod needs to call the API server.
const IN_CLUSTER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Set in every pod.
const IN_POD: &str = "KUBERNETES_SERVICE_HOST";

/// The API server cannot be asked, or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// What was told of it is of no use.
    #[error("the Kubernetes API server cannot be called: {0}")]
    Setup(String),
    /// It did not answer in time.
    #[error("the Kubernetes API server did not answer within {} s", QUESTION.as_secs())]
    Slow,
    /// It refused, or could not be reached.
    #[error("the Kubernetes API server: {}", said(.0))]
    Refused(Box<kube::Error>),
}

impl ClusterError {
    /// Whether it said that the object is not there.
    pub fn is_absent(&self) -> bool {
        self.status() == Some(404)
    }

    /// Whether the object is there already, or is not what was seen before.
    pub fn is_conflict(&self) -> bool {
        self.status() == Some(409)
    }

    /// The status of its answer, if it was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(error) => match &**error {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::Setup(_) | Self::Slow => None,
        }
    }
}

/// What it said, in its own words if there are any.
pub(crate) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Service(error) => causes(&**error),
        error => causes(error),
    }
}

/// An error and what is behind it.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

/// The roots to verify the API server by, as told or as the kubelet gives them to a pod.
pub fn roots(told: Option<&Path>) -> PathBuf {
    told.map_or_else(|| Path::new(IN_CLUSTER).join("ca.crt"), Path::to_owned)
}

/// The same of our own token.
pub fn token(told: Option<&Path>) -> PathBuf {
    told.map_or_else(|| Path::new(IN_CLUSTER).join("token"), Path::to_owned)
}

/// The namespace of control itself, as told, else that of its pod, else [`SYSTEM_NAMESPACE`].
pub fn namespace(told: Option<&str>) -> String {
    let of_pod = || std::fs::read_to_string(Path::new(IN_CLUSTER).join("namespace")).ok();
    let named = told.map(str::to_owned).or_else(of_pod).map(|name| name.trim().to_owned());
    named.filter(|name| !name.is_empty()).unwrap_or_else(|| SYSTEM_NAMESPACE.to_owned())
}

/// Asks one question, for [`QUESTION`] at most.
pub async fn ask<T>(question: impl Future<Output = kube::Result<T>>) -> Result<T, ClusterError> {
    match tokio::time::timeout(QUESTION, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(ClusterError::Refused(Box::new(error))),
        Err(_) => Err(ClusterError::Slow),
    }
}

/// Where the API server is, and as whom it is called: as told, else as the kubelet tells a pod, else by kubeconfig.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Its URL; with `roots` and `token`, which are those that the kubelet gives a pod if nothing else is said.
    pub api: Option<String>,
    /// Roots to verify it by.
    pub roots: Option<PathBuf>,
    /// Our token, read again when it changes.
    pub token: Option<PathBuf>,
    /// Kubeconfig to use instead.
    pub kubeconfig: Option<PathBuf>,
    /// Its context; none: the current one.
    pub context: Option<String>,
}

impl From<&Settings> for Access {
    fn from(settings: &Settings) -> Self {
        Self {
            api: settings.kubernetes_api.clone(),
            roots: settings.kubernetes_ca.clone(),
            token: settings.kubernetes_token.clone(),
            ..Self::default()
        }
    }
}

impl Access {
    /// A client. It connects when it is first asked.
    ///
    /// # Errors
    /// [`ClusterError::Setup`].
    pub async fn client(&self) -> Result<Client, ClusterError> {
        let (config, token) = match (&self.api, &self.kubeconfig) {
            (Some(url), _) => self.told(url)?,
            (None, None) if std::env::var_os(IN_POD).is_some() => (Config::incluster().map_err(setup)?, None),
            (None, file) => by_kubeconfig(file.as_deref(), self.context.clone()).await?,
        };
        connect(&config, token)
    }

    fn told(&self, url: &str) -> Result<(Config, Option<SecretFile>), ClusterError> {
        let uri: Uri = url.parse().map_err(|_| ClusterError::Setup(format!("`{url}` is no URL")))?;
        if uri.scheme_str() != Some("https") {
            return Err(ClusterError::Setup(format!("`{url}` is no https:// URL")));
        }
        let (roots, token) = (roots(self.roots.as_deref()), token(self.token.as_deref()));
        let mut config = Config::new(uri);
        config.root_cert = Some(certificates(&roots)?);
        config.root_cert_file = Some(roots);
        Ok((config, Some(SecretFile::new(&token))))
    }
}

async fn by_kubeconfig(
    file: Option<&Path>,
    context: Option<String>,
) -> Result<(Config, Option<SecretFile>), ClusterError> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let read = match file {
        Some(file) => Kubeconfig::read_from(file).map_err(setup)?,
        None => Kubeconfig::read().map_err(setup)?,
    };
    let mut config = Config::from_custom_kubeconfig(read, &options).await.map_err(setup)?;
    // A token that stands in the kubeconfig itself goes before one in a file, as in the library.
    let file = config.auth_info.token_file.take_if(|_| config.auth_info.token.is_none());
    match config.proxy_url {
        None => Ok((config, file.map(|file| SecretFile::new(Path::new(&file))))),
        Some(_) => Err(ClusterError::Setup("the kubeconfig names a proxy, which is not supported".to_owned())),
    }
}

fn certificates(file: &Path) -> Result<Vec<Vec<u8>>, ClusterError> {
    let wrong = |what: &dyn fmt::Display| ClusterError::Setup(format!("{}: {what}", file.display()));
    let found = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found.map_err(|error| wrong(&error))? {
        found if found.is_empty() => Err(wrong(&"no certificate is in it")),
        found => Ok(found.iter().map(|certificate| certificate.to_vec()).collect()),
    }
}

fn connect(config: &Config, token: Option<SecretFile>) -> Result<Client, ClusterError> {
    // kube's TLS takes the process's provider; whoever embeds this may have set it already, to the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let resolver = TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build).map_err(setup)?;
    let resolve = tower::service_fn(move |name: Name| {
        let resolver = resolver.clone();
        async move {
            let found = resolver.lookup_ip(name.as_str()).await.map_err(io::Error::other)?;
            Ok::<_, io::Error>(found.iter().map(|ip| SocketAddr::new(ip, 0)).collect::<Vec<_>>().into_iter())
        }
    });
    let mut tcp = HttpConnector::new_with_resolver(resolve);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(QUESTION));
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    let tls = config.rustls_https_connector_with_connector(tcp).map_err(setup)?;
    let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(tls);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(setup)?)
        .option_layer(token.map(|token| AsyncFilterLayer::new(move |request| bearing(token.clone(), request))))
        .layer(config.extra_headers_layer().map_err(setup)?)
        .map_err(BoxError::from)
        .service(pool);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// With the token as it is now: not the library's own reader of such files, which takes what an editor puts at the end of a file for a part
/// of the token.
async fn bearing(token: SecretFile, mut request: Request<Body>) -> Result<Request<Body>, BoxError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.read().await?))?;
    value.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, value);
    Ok(request)
}

fn setup(error: impl fmt::Display) -> ClusterError {
    ClusterError::Setup(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(access: Access) -> String {
        match access.client().await {
            Err(error) => error.to_string(),
            Ok(_) => "a client".to_owned(),
        }
    }

    #[tokio::test]
    async fn what_is_of_no_use_is_said_before_anything_is_asked() {
        let api = |url: &str| Access { api: Some(url.to_owned()), ..Access::default() };
        assert!(refused(api("http://127.0.0.1:6443")).await.contains("no https:// URL"));
        assert!(refused(api("not a url")).await.contains("no URL"));
        let roots = Some(PathBuf::from("/nowhere/ca.crt"));
        let absent = refused(Access { roots, ..api("https://127.0.0.1:6443") }).await;
        assert!(absent.contains("/nowhere/ca.crt"), "{absent}");
        let kubeconfig = Some(PathBuf::from("/nowhere/config"));
        let absent = refused(Access { kubeconfig, ..Access::default() }).await;
        assert!(absent.contains("/nowhere/config"), "{absent}");
    }

    #[tokio::test]
    async fn a_proxy_in_a_kubeconfig_is_not_passed_by_in_silence() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n\
                    users: [{name: u, user: {token: t}}]\n\
                    clusters: [{name: c, cluster: {server: 'https://127.0.0.1:6443', proxy-url: 'http://127.0.0.1:3128'}}]\n";
        std::fs::write(&file, text).unwrap();
        let said = refused(Access { kubeconfig: Some(file), ..Access::default() }).await;
        assert!(said.contains("proxy"), "{said}");
    }

    #[tokio::test]
    async fn a_token_file_of_a_kubeconfig_may_end_as_editors_end_files() {
        let dir = tempfile::tempdir().unwrap();
        let (file, token) = (dir.path().join("config"), dir.path().join("token"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             users: [{{name: u, user: {{tokenFile: {}}}}}]\nclusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:6443'}}}}]\n",
            token.display()
        );
        std::fs::write(&file, text).unwrap();
        std::fs::write(&token, "abc\n").unwrap();
        let (config, token) = by_kubeconfig(Some(&file), None).await.unwrap();
        assert!(config.auth_info.token_file.is_none(), "the library would read it too, and send what is at its end");
        assert_eq!(token.unwrap().read().await.unwrap(), "abc");
    }
}
