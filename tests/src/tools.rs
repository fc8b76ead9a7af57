//! Programs of others: where they are on this machine, or where `tests/tools/get` has put them.

use std::path::{Path, PathBuf};

/// Folders that hold programs, the machine's first. Not PATH alone: an ordinary user may lack the sbin ones, and a test must not
/// depend on whose shell it was started from.
fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"].iter().map(PathBuf::from).collect();
    let own = root();
    folders.extend([own.join("bin"), own.join("usr/bin"), own.join("usr/sbin")]);
    folders
}

/// Where `tests/tools/get` unpacks: `$WEFT_TOOLS`, else target/tools of the workspace.
pub fn root() -> PathBuf {
    std::env::var_os("WEFT_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools"), PathBuf::from)
}

/// A program by name. `grpcio`, `websockets` and `spiffe` are Python packages: found means that Python can import them. So is
/// `grpcio-tools`, found as the folder that `PYTHONPATH` must name. `ca-proto` is a file.
pub fn find(name: &str) -> Option<PathBuf> {
    if name == "ca-proto" {
        return Some(root().join("files/ca.proto")).filter(|path| path.is_file());
    }
    if name == "grpcio-tools" {
        let folder = root().join("python-grpcio-tools");
        return (folder.join("grpc_tools").exists() && find("python3").is_some()).then_some(folder);
    }
    if matches!(name, "grpcio" | "websockets" | "spiffe") {
        let module = if name == "grpcio" { "grpc" } else { name };
        let folder = python_path().join(module);
        return (folder.exists() && find("python3").is_some()).then_some(folder);
    }
    folders().into_iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A program that [`crate::test_with`] has found already.
///
/// # Panics
/// If it is not there.
pub fn program(name: &str) -> PathBuf {
    find(name).unwrap_or_else(|| panic!("{name} is not on this machine; fetch it with tests/tools/get {name}"))
}

/// What `PYTHONPATH` must be for the Python packages that `tests/tools/get` unpacked.
pub fn python_path() -> PathBuf {
    root().join("python")
}
