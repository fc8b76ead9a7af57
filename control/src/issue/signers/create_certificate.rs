//! A CA that speaks `istio.v1.auth.IstioCertificateService/CreateCertificate`: istio-csr, or the control of another Weft.
//!
//! Invariants
//! - The server is verified before a token is shown to it; roots and our own token are read when they are needed.
//! - One connection is kept; a lost one is made anew at the next question.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use weft_api::wire::ca::IstioCertificateRequest;
use weft_api::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use weft_certs::outside::MAX_BYTES;

use super::line::{Failed, Question};
use crate::issue::https::{HttpsError, Server};
use crate::issue::secret::SecretFile;

/// Name, TCP and TLS together.
const CONNECT_TIME: Duration = Duration::from_secs(4);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const ALPN: &[u8] = b"h2";

/// How to reach it.
#[derive(Debug)]
struct Place {
    url: String,
    roots: PathBuf,
    name: Option<String>,
}

impl Place {
    fn server(&self) -> Result<Server, HttpsError> {
        Server::speaking(&self.url, &self.roots, self.name.as_deref(), ALPN)
    }
}

/// The CA.
#[derive(Debug)]
pub struct CreateCertificate {
    url: String,
    client: IstioCertificateServiceClient<Channel>,
    /// Control's own token.
    pub own: SecretFile,
}

impl CreateCertificate {
    /// The CA at a URL, whose certificate leads to the roots in a file and has a name (default: the URL's host). `own` has control's token.
    ///
    /// # Errors
    /// The URL or the roots are of no use.
    pub fn new(url: &str, roots: &Path, name: Option<&str>, own: SecretFile) -> Result<Self, HttpsError> {
        let place = Place { url: url.to_owned(), roots: roots.to_owned(), name: name.map(str::to_owned) };
        place.server()?;
        let place = Arc::new(place);
        // The connector does the TLS; the URI only gives `:authority` and `:scheme`.
        let endpoint = Endpoint::from_static("http://ca").origin(http::Uri::from_static("https://ca"));
        let endpoint = endpoint.connect_timeout(CONNECT_TIME).http2_keep_alive_interval(KEEPALIVE_INTERVAL);
        let endpoint = endpoint.keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let place = Arc::clone(&place);
            async move {
                // Anew each time: the roots may have been exchanged.
                let server = place.server().map_err(io::Error::other)?;
                let stream = server.open().await?;
                if stream.get_ref().1.alpn_protocol() == Some(ALPN) {
                    Ok(TokioIo::new(stream))
                } else {
                    Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP/2 there"))
                }
            }
        }));
        let client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_BYTES);
        Ok(Self { url: url.to_owned(), client, own })
    }

    /// Its URL.
    pub fn name(&self) -> &str {
        &self.url
    }

    /// Asks.
    pub async fn ask(&self, question: &Question<'_>) -> Result<Vec<String>, Failed> {
        let token = question.token.ok_or(Failed::TokenNeeded)?;
        let validity_duration = i64::try_from(question.life.as_secs()).unwrap_or(i64::MAX);
        let message = IstioCertificateRequest { csr: question.csr.to_owned(), validity_duration, metadata: None };
        let mut request = Request::new(message);
        let shown = AsciiMetadataValue::try_from(format!("Bearer {}", token.text()));
        let mut shown = shown.map_err(|_| Failed::Refused("the token has characters that no token has".to_owned()))?;
        shown.set_sensitive(true);
        request.metadata_mut().insert("authorization", shown);
        let answer = self.client.clone().create_certificate(request).await;
        answer.map(|answer| answer.into_inner().cert_chain).map_err(|status| failed(&status))
    }
}

fn failed(status: &Status) -> Failed {
    // The causes say what tonic's own message leaves out: "transport error" of what kind.
    let mut why = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        why = format!("{why}: {error}");
        cause = error.source();
    }
    // A stranger's words, for the log and for the workload.
    let why: String = why.chars().filter(|char| !char.is_control()).take(300).collect();
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::NotFound => Failed::Refused(why),
        Code::OutOfRange | Code::Unimplemented | Code::DataLoss => Failed::Wrong(why),
        Code::Internal | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Aborted => Failed::Slow(why),
        _ => Failed::Away(why),
    }
}
