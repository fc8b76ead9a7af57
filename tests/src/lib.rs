//! The harness: a small cluster in which a test reads like a story, and the few instruments that proofs need.
//!
//! A test binary's `main` is [`main`]: it enters namespaces before any thread exists, or says why it cannot and fails. A test builds
//! a [`Mesh`], deploys services, sends, and asserts. Everything waits for conditions, nothing sleeps for luck; when a test panics the
//! logs of all its processes are printed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "in a harness a panic is how a test says that something did not hold"
)]

pub mod client;
pub mod dns;
#[cfg(test)]
mod docs;
pub mod load;
pub mod manifests;
pub mod mesh;
pub mod sniff;
pub mod tools;

use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

pub use libtest_mimic::{Arguments, Failed, Trial};
pub use manifests::Service;
pub use mesh::Mesh;
use parking_lot::RwLock;

static PROGRAM: OnceLock<&'static Path> = OnceLock::new();

/// The binary that plays every part.
pub fn program() -> &'static Path {
    PROGRAM.get().expect("weft_tests::main sets it first")
}

/// The main of a test binary. `program` is `env!("CARGO_BIN_EXE_weft-under-test")`. Meshes are heavy, so at most two tests run at once
/// unless `--test-threads` says otherwise.
pub fn main(program: &'static str, trials: Vec<Trial>) -> ExitCode {
    // tests/as-user has copied it to where its user may read it.
    let moved = std::env::var("WEFT_UNDER_TEST").ok().filter(|path| !path.is_empty()).map(|path| &*path.leak());
    PROGRAM.get_or_init(|| Path::new(moved.unwrap_or(program)));
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(2));
    if !arguments.list
        && let Err(error) = weft::lab::enter()
    {
        eprintln!("these tests need network namespaces: {error}");
        return ExitCode::from(3);
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

// Held for reading by each test, and for writing by one that measures.
static RUNNING: RwLock<()> = RwLock::new(());

/// A test of this name; it fails by panicking.
pub fn test(name: &str, body: fn()) -> Trial {
    Trial::test(name, move || {
        let _beside = RUNNING.read();
        body();
        Ok(())
    })
}

/// A test that measures: no other runs beside it.
pub fn test_alone(name: &str, body: fn()) -> Trial {
    Trial::test(name, move || {
        let _alone = RUNNING.write();
        body();
        Ok(())
    })
}

/// A test that needs programs of [`tools`]. If one is absent it is ignored, and says so; in CI (`WEFT_SKIP_IS_FAILURE=1`) it fails.
pub fn test_with(name: &str, needs: &[&str], body: fn()) -> Trial {
    let missing: Vec<&str> = needs.iter().copied().filter(|name| tools::find(name).is_none()).collect();
    if missing.is_empty() {
        return test(name, body);
    }
    let reason = format!("not on this machine: {}; fetch with tests/tools/get", missing.join(", "));
    if std::env::var_os("WEFT_SKIP_IS_FAILURE").is_some() {
        return Trial::test(name, move || Err(reason.into()));
    }
    eprintln!("{name} is skipped: {reason}");
    Trial::test(name, || Ok(())).with_ignored_flag(true)
}
