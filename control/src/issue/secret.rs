//! A file with a token of our own, read at each use: the kubelet puts a new one there while we run.

use std::path::{Path, PathBuf};

use weft_certs::jwt::MAX_LENGTH;

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
