//! Issuers of tokens, the audit log, and an API server for tests.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use parking_lot::Mutex;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tracing::subscriber::DefaultGuard;

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Who signs tokens with ES256.
pub struct Signer {
    kid: String,
    private: EncodingKey,
    pub public: Value,
}

impl Signer {
    pub fn new(kid: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let key = DecodingKey::from_ec_der(pair.public_key_raw());
        let mut public = serde_json::to_value(Jwk::from_decoding_key(&key, None).unwrap()).unwrap();
        public["kid"] = kid.into();
        Self { kid: kid.to_owned(), private: EncodingKey::from_ec_der(&pair.serialize_der()), public }
    }

    pub fn key_set(&self) -> String {
        json!({ "keys": [self.public] }).to_string()
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.key_set()).unwrap();
    }

    pub fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.private).unwrap()
    }

    /// The public key, which everybody knows, as an HMAC secret.
    pub fn confused(&self, claims: &Value) -> String {
        let secret = EncodingKey::from_secret(self.public["x"].as_str().unwrap().as_bytes());
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, claims, &secret).unwrap()
    }

    /// `alg: none`.
    pub fn unsigned(&self, claims: &Value) -> String {
        let part = |value: &Value| {
            let made = jsonwebtoken::encode(&Header::default(), value, &EncodingKey::from_secret(b"x")).unwrap();
            made.split('.').nth(1).unwrap().to_owned()
        };
        format!("{}.{}.", part(&json!({"alg": "none", "kid": self.kid})), part(claims))
    }
}

/// The audit log of what this thread does, which in these tests is all that control does.
pub struct Audit {
    text: Arc<Mutex<Vec<u8>>>,
    _here: DefaultGuard,
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Audit {
    pub fn begin() -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&text);
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(move || Writer(Arc::clone(&writer)))
            .finish();
        Self { text, _here: tracing::subscriber::set_default(subscriber) }
    }

    /// The last line of the audit log.
    pub fn last(&self) -> Value {
        let text = self.text.lock();
        let mut lines = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        lines.rfind(|line| line["target"] == "weft::audit").unwrap()
    }

    /// How often the text is in what was logged.
    pub fn count(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.text.lock()).matches(text).count()
    }

    /// Whether the text is anywhere in what was logged.
    pub fn tells(&self, text: &str) -> bool {
        self.count(text) > 0
    }
}

/// An API server over TLS: what it answers to a path and a body, and by what roots it is verified.
pub async fn api_server(
    roots: &Path,
    answer: impl Fn(&str, &str, Value) -> Option<Value> + Send + Sync + 'static,
) -> SocketAddr {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(roots, cert.pem()).unwrap();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(tls) = acceptor.accept(tcp).await else { continue };
            let answer = Arc::clone(&answer);
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = Arc::clone(&answer);
                async move {
                    let bearer =
                        request.headers().get("authorization").map_or("", |value| value.to_str().unwrap()).to_owned();
                    let accepts = request.headers()["accept"].to_str().unwrap().to_owned();
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                    let (status, said) = match answer(&path, &bearer, body) {
                        // As the real one does.
                        Some(_) if path.ends_with("/jwks") && !accepts.contains("application/jwk-set+json") => {
                            (406, String::new())
                        }
                        Some(said) => (200, said.to_string()),
                        None => (401, String::new()),
                    };
                    let response = Response::builder().status(status).body(Full::new(Bytes::from(said)));
                    Ok::<_, std::convert::Infallible>(response.unwrap())
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service));
        }
    });
    address
}
