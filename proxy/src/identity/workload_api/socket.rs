//! The socket that applications connect to.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// Whoever is in the pod may connect, as whichever user.
const MODE: u32 = 0o666;

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// It is in use.
    #[error("--workload-api {}: another process serves there; stop it or give another path", .0.display())]
    Taken(PathBuf),
    /// It is something else.
    #[error("--workload-api {}: it exists and is no socket; remove it or give another path", .0.display())]
    NotASocket(PathBuf),
    /// The system refuses it.
    #[error("--workload-api {}: {source}; its directory must exist and be writable, and the path have less than 108 bytes", path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

/// Listens at `path`. A socket that an earlier process has left there is removed, one that is served is not.
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let system = |source| SocketError::System { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) if is_served(path).map_err(system)? => return Err(SocketError::Taken(path.to_owned())),
        Ok(_) => weft_certs::files::remove(path).map_err(system)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(system(error)),
    }
    let listener = UnixListener::bind(path).map_err(system)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE)).map_err(system)?;
    listener.set_nonblocking(true).map_err(system)?;
    Ok(listener)
}

/// Without blocking: one that is served by a process that hangs may have a full queue.
fn is_served(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_was_left_is_replaced_and_anybody_may_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the kernel leaves it");
        let listener = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        let refused = listen(&path).unwrap_err();
        assert!(matches!(refused, SocketError::Taken(_)), "{refused}");
        assert!(is_served(&path).unwrap(), "the one that serves was left alone");
        drop(listener);
        listen(&path).unwrap();
    }

    #[test]
    fn what_cannot_be_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "dear").unwrap();
        let long = dir.path().join("x".repeat(120));
        for (path, words) in [
            (file.clone(), "it exists and is no socket"),
            (dir.path().join("none/api.sock"), "its directory must exist"),
            (long, "less than 108 bytes"),
        ] {
            let error = listen(&path).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "dear");
    }
}
