//! A small HTTPS client for the few questions that issuing asks: an issuer's keys, a token review; and for federation: others' roots.
//!
//! Bounds: 5 s for the whole of it, an answer of 512 KiB, no redirects, one connection a question. Names are resolved by hickory. Plain HTTP
//! is taken to loopback alone, where a local agent (Nomad's) may publish its keys.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hickory_resolver::TokioResolver;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;

/// For a whole question.
const TIME: Duration = Duration::from_secs(5);
/// Keys come as the one (Kubernetes has them as nothing else), all the rest as the other.
const ACCEPT: &str = "application/jwk-set+json, application/json";
/// Bytes of an answer.
const MAX_ANSWER: usize = 512 * 1024;
/// Where systems keep the roots of the public PKI.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// A server cannot be asked, or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// Not a URL that is taken.
    #[error("`{0}` is no https:// URL (http:// is taken for 127.0.0.1 and [::1] alone)")]
    Url(String),
    /// No roots to verify the server by.
    #[error("the roots in {path} cannot be used: {what}", path = path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// This system keeps no roots where they are looked for.
    #[error("no roots of the public PKI are on this machine; name a file of roots")]
    NoRoots,
    /// rustls or the resolver does not start.
    #[error("the client cannot be set up: {0}")]
    Setup(String),
    /// No answer.
    #[error("{host} does not answer: {what}")]
    Unreachable {
        /// Whom.
        host: String,
        /// Why.
        what: String,
    },
    /// Another answer than 200 or 201.
    #[error("{host} answered {status}")]
    Status {
        /// Whom.
        host: String,
        /// What.
        status: StatusCode,
    },
}

/// A URL that can be asked.
pub struct Server {
    host: String,
    port: u16,
    path: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// `None` if the host is an address.
    resolver: Option<TokioResolver>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({}:{}{})", self.host, self.port, self.path)
    }
}

impl Server {
    /// The server of a URL, verified by the roots in a file, or by the system's.
    pub fn new(url: &str, roots: Option<&Path>) -> Result<Self, HttpsError> {
        Self::of(url, || client_config(roots))
    }

    /// The server of a URL, verified as the configuration says.
    pub fn verified_by(url: &str, config: Arc<ClientConfig>) -> Result<Self, HttpsError> {
        Self::of(url, || Ok(config))
    }

    /// A server that speaks another protocol over TLS, verified by the roots in a file, by the name of the URL's host or by another one.
    pub fn speaking(url: &str, roots: &Path, name: Option<&str>, alpn: &[u8]) -> Result<Self, HttpsError> {
        let mut config = ClientConfig::clone(&*client_config(Some(roots))?);
        config.alpn_protocols = vec![alpn.to_vec()];
        let mut server = Self::of(url, || Ok(Arc::new(config)))?;
        match (&mut server.tls, name) {
            (None, _) => return Err(HttpsError::Url(url.to_owned())),
            (Some((_, verified)), Some(name)) => {
                *verified = ServerName::try_from(name.to_owned()).map_err(|_| HttpsError::Url(name.to_owned()))?;
            }
            _ => {}
        }
        Ok(server)
    }

    /// A connection whose server is verified.
    pub async fn open(&self) -> io::Result<TlsStream<TcpStream>> {
        let Some((tls, name)) = &self.tls else { return Err(io::ErrorKind::Unsupported.into()) };
        tls.connect(name.clone(), self.connect().await?).await
    }

    /// From now on it is verified as the configuration says.
    pub fn verify_by(&mut self, config: Arc<ClientConfig>) {
        if let Some((tls, _)) = &mut self.tls {
            *tls = TlsConnector::from(config);
        }
    }

    fn of(url: &str, config: impl FnOnce() -> Result<Arc<ClientConfig>, HttpsError>) -> Result<Self, HttpsError> {
        let wrong = || HttpsError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let address: Option<IpAddr> = host.parse().ok();
        let tls = match uri.scheme_str() {
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
                Some((TlsConnector::from(config()?), name))
            }
            Some("http") if address.is_some_and(|address| address.is_loopback()) => None,
            _ => return Err(wrong()),
        };
        let resolver = match address {
            Some(_) => None,
            None => Some(resolver().map_err(|error| HttpsError::Setup(error.to_string()))?),
        };
        let port = authority.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let path = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
        Ok(Self { host, port, path, tls, resolver })
    }

    /// GETs the URL; with a bearer token if there is one.
    pub async fn get(&self, bearer: Option<&str>) -> Result<Bytes, HttpsError> {
        self.ask(self.request(http::Method::GET, &self.path, bearer, Bytes::new())).await
    }

    /// POSTs JSON to a path of this server.
    pub async fn post(&self, path: &str, bearer: Option<&str>, json: Vec<u8>) -> Result<Bytes, HttpsError> {
        self.ask(self.request(http::Method::POST, path, bearer, json.into())).await
    }

    fn request(
        &self,
        method: http::Method,
        path: &str,
        bearer: Option<&str>,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let request = Request::builder().method(method).uri(path).header(header::HOST, format!("{host}:{}", self.port));
        let request = request.header(header::ACCEPT, ACCEPT).header(header::CONNECTION, "close");
        let request = match bearer {
            Some(bearer) => {
                let mut value = http::HeaderValue::try_from(format!("Bearer {bearer}"))?;
                value.set_sensitive(true);
                request.header(header::AUTHORIZATION, value)
            }
            None => request,
        };
        request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body))
    }

    async fn ask(&self, request: Result<Request<Full<Bytes>>, http::Error>) -> Result<Bytes, HttpsError> {
        let failed = |what: String| HttpsError::Unreachable { host: self.host.clone(), what };
        let request = request.map_err(|error| failed(error.to_string()))?;
        let asked = tokio::time::timeout(TIME, self.exchange(request)).await;
        let (status, body) = asked
            .map_err(|_| failed(format!("nothing came within {} s", TIME.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        match status {
            StatusCode::OK | StatusCode::CREATED => Ok(body),
            status => Err(HttpsError::Status { host: self.host.clone(), status }),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> io::Result<(StatusCode, Bytes)> {
        let tcp = self.connect().await?;
        match &self.tls {
            Some((tls, name)) => exchange(tls.connect(name.clone(), tcp).await?, request).await,
            None => exchange(tcp, request).await,
        }
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let addresses: Vec<IpAddr> = match (&self.resolver, self.host.parse()) {
            (_, Ok(address)) => vec![address],
            (Some(resolver), Err(_)) => {
                resolver.lookup_ip(self.host.as_str()).await.map_err(io::Error::other)?.iter().collect()
            }
            (None, Err(error)) => return Err(io::Error::other(error)),
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match TcpStream::connect(SocketAddr::new(address, self.port)).await {
                Ok(tcp) => return Ok(tcp),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> io::Result<(StatusCode, Bytes)>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(io::Error::other)?;
    Ok((status, body.to_bytes()))
}

fn resolver() -> Result<TokioResolver, hickory_resolver::net::NetError> {
    TokioResolver::builder_tokio()?.build()
}

fn client_config(roots: Option<&Path>) -> Result<Arc<ClientConfig>, HttpsError> {
    let path = match roots {
        Some(path) => path,
        None => SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists()).ok_or(HttpsError::NoRoots)?,
    };
    let unusable = |what: String| HttpsError::Roots { path: path.to_owned(), what };
    let mut store = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        // Of the system's roots some may be of kinds that nobody uses any more.
        let added = store.add(certificate);
        if roots.is_some() {
            added.map_err(|error| unusable(error.to_string()))?;
        }
    }
    if store.is_empty() {
        return Err(unusable("it holds no certificate".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| HttpsError::Setup(error.to_string()))?;
    Ok(Arc::new(config.with_root_certificates(store).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_verified_servers_and_loopback_are_asked() {
        for bad in
            ["", "file:///etc/passwd", "http://example.com/keys", "https://user@example.com/", "example.com/keys"]
        {
            assert!(matches!(Server::new(bad, None), Err(HttpsError::Url(_))), "{bad}");
        }
        assert!(Server::new("http://127.0.0.1:4646/.well-known/jwks.json", None).is_ok());
        assert!(Server::new("http://[::1]:4646/keys", None).is_ok());
        let absent = Server::new("https://127.0.0.1/keys", Some(Path::new("/nowhere/ca.pem"))).unwrap_err();
        assert!(matches!(absent, HttpsError::Roots { .. }), "{absent}");
    }
}
