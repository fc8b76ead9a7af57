//! How the CA is asked for a certificate: `istio.v1.auth.IstioCertificateService/CreateCertificate`.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::ClientConfig;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Request, Status};
use weft_api::names::{RENEW_BY, TOKEN};
use weft_api::wire::ca::IstioCertificateRequest;
use weft_api::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use weft_certs::tls::control_client_config;

use super::trust::Trust;
use super::{Current, Failure};
use crate::control_channel::{self, Target};

/// Longer answers are refused: a chain has three certificates of about 1 KiB.
const MAX_ANSWER: usize = 256 * 1024;
/// Longer tokens are refused: Kubernetes' are about 1 KiB.
const MAX_TOKEN: usize = 16 * 1024;

/// Where the join token is.
#[derive(Clone)]
pub enum Token {
    /// There is none: only a certificate can prove who we are.
    None,
    /// Given on the command line.
    Text(Arc<str>),
    /// In a file, which is read at each use: Kubernetes renews it there.
    File(PathBuf),
    /// This one, for a CA that wants a token each time, and none for any other.
    IfWanted(Box<Self>),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Text(_) => f.write_str("Text(secret)"),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::IfWanted(token) => write!(f, "IfWanted({token:?})"),
        }
    }
}

impl Token {
    /// What there is for a CA that wants a token each time, or for any other.
    pub fn wanted(&self, wanted: bool) -> &Self {
        match self {
            Self::IfWanted(token) if wanted => token,
            other => other,
        }
    }

    /// The token's text now; `None` if there is none.
    pub async fn read(&self) -> Result<Option<Arc<str>>, AskError> {
        let text = match self {
            Self::None | Self::IfWanted(_) => return Ok(None),
            Self::Text(text) => Arc::clone(text),
            Self::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(text) => text.trim().into(),
                Err(e) => {
                    let message = format!("cannot read the token file {}: {e}", path.display());
                    return Err(AskError { failure: Failure::NoCredential, message });
                }
            },
        };
        if text.is_empty() || text.len() > MAX_TOKEN {
            let message = format!("the token is empty or longer than {MAX_TOKEN} bytes");
            return Err(AskError { failure: Failure::NoCredential, message });
        }
        Ok(Some(text))
    }
}

/// What proves to the CA who asks.
#[derive(Clone)]
pub enum Credential {
    /// The certificate in use, while it is valid.
    Certificate(Arc<Current>),
    /// A join token.
    Token(Arc<str>),
}

/// No certificate was had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AskError {
    /// For the metric.
    pub failure: Failure,
    /// One sentence for the log; holds no secret.
    pub message: String,
}

/// Something that issues certificates.
pub trait Authority: Sync {
    /// A chain for the request: PEM, leaf first, root last.
    fn create(&self, csr: String, credential: Credential)
    -> impl Future<Output = Result<Vec<String>, AskError>> + Send;

    /// Whether it has said that it wants a token each time, and takes no certificate for one.
    fn wants_token(&self) -> bool {
        false
    }
}

/// Control's CA, over gRPC.
pub struct ControlAuthority {
    target: Target,
    trust: Arc<Trust>,
    trust_domain: Arc<str>,
    wants_token: AtomicBool,
}

impl ControlAuthority {
    /// The CA at `target`, which must prove to be control of `trust_domain`.
    pub fn new(target: Target, trust: Arc<Trust>, trust_domain: Arc<str>) -> Self {
        Self { target, trust, trust_domain, wants_token: AtomicBool::new(false) }
    }

    fn without_certificate(&self) -> Result<Arc<ClientConfig>, AskError> {
        control_client_config(None, &self.trust.now().control, &self.trust_domain)
            .map_err(|error| AskError { failure: Failure::Internal, message: error.to_string() })
    }
}

impl Authority for ControlAuthority {
    async fn create(&self, csr: String, credential: Credential) -> Result<Vec<String>, AskError> {
        // Validity 0: the CA's own.
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 0, metadata: None });
        let tls = match credential {
            Credential::Certificate(current) => current.control.clone(),
            Credential::Token(token) => {
                let mut value = AsciiMetadataValue::try_from(format!("Bearer {token}")).map_err(|_| AskError {
                    failure: Failure::NoCredential,
                    message: "the token has characters that no token has".into(),
                })?;
                value.set_sensitive(true);
                request.metadata_mut().insert("authorization", value);
                self.without_certificate()?
            }
        };
        // A connection of its own: renewals are rare, and each may come with another certificate.
        let (channel, reached) = control_channel::channel(&self.target, tls);
        let mut client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let answer = client.create_certificate(request).await;
        let told = match &answer {
            Ok(answer) => answer.metadata(),
            Err(status) => status.metadata(),
        };
        // Control issues by a CA elsewhere, or does so no more. One that is away says nothing.
        let wants_token = told.get(RENEW_BY).is_some_and(|by| by == TOKEN);
        if wants_token || answer.is_ok() {
            self.wants_token.store(wants_token, Ordering::Relaxed);
        }
        let answer = answer.map_err(|status| refused("control", &status)).inspect_err(|error| {
            if matches!(error.failure, Failure::Unreachable | Failure::Busy) {
                // Another replica is asked the next time.
                reached.shun();
            }
        });
        Ok(answer?.into_inner().cert_chain)
    }

    fn wants_token(&self) -> bool {
        self.wants_token.load(Ordering::Relaxed)
    }
}

/// What an answer that is none means, by who gave it.
pub(super) fn refused(who: &str, status: &Status) -> AskError {
    let failure = match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => {
            Failure::Refused
        }
        Code::ResourceExhausted => Failure::Busy,
        Code::OutOfRange | Code::Unimplemented => Failure::BadAnswer,
        _ => Failure::Unreachable,
    };
    // The causes say what tonic's own message leaves out: "transport error" of what kind.
    let mut message = format!("{who} answered {:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    AskError { failure, message }
}
