//! Tokens: of our own, in a file that is read at each use, because the kubelet puts a new one there while we run; and of workloads.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_certs::jwt::MAX_LENGTH;

/// A token that is on its way. It never shows in `Debug`.
#[derive(Clone)]
pub struct Bearer(Arc<str>);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(secret)")
    }
}

impl Bearer {
    /// Of its text.
    pub fn new(text: &str) -> Self {
        Self(text.trim().into())
    }

    /// For whom it is to be shown to.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// A file with a bearer token.
#[derive(Clone, Debug)]
pub struct SecretFile(PathBuf);

impl SecretFile {
    /// The file is not read before it is needed.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The token; the error is one sentence and holds nothing of it.
    pub async fn read(&self) -> Result<String, String> {
        use std::io::Read as _;
        let path = self.0.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            std::fs::File::open(path)?.take(MAX_LENGTH as u64 + 1).read_to_string(&mut text)?;
            Ok::<_, std::io::Error>(text)
        });
        let text = read.await.map_err(|error| error.to_string())?;
        let text = text.map_err(|error| format!("the token in {} cannot be read: {error}", self.0.display()))?;
        let text = text.trim();
        if text.is_empty() || text.len() > MAX_LENGTH {
            return Err(format!("the token in {} is empty or longer than {MAX_LENGTH} bytes", self.0.display()));
        }
        Ok(text.to_owned())
    }
}
