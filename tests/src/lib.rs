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

mod beside;
pub mod bpf;
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

use beside::Kind;
pub use libtest_mimic::{Arguments, Failed, Trial};
pub use manifests::Service;
pub use mesh::Mesh;

static PROGRAM: OnceLock<&'static Path> = OnceLock::new();

/// The binary that plays every part.
pub fn program() -> &'static Path {
    PROGRAM.get().expect("weft_tests::main sets it first")
}

/// The main of a test binary. `program` is `env!("CARGO_BIN_EXE_weft-under-test")`. Which tests run beside each other says [`beside`].
pub fn main(program: &'static str, mut trials: Vec<Trial>) -> ExitCode {
    // tests/as-user has copied it to where its user may read it.
    let moved = std::env::var("WEFT_UNDER_TEST").ok().filter(|path| !path.is_empty()).map(|path| &*path.leak());
    PROGRAM.get_or_init(|| Path::new(moved.unwrap_or(program)));
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(beside::order(&mut trials)));
    if !arguments.list
        && let Err(error) = weft::lab::enter()
    {
        eprintln!("these tests need network namespaces: {error}");
        return ExitCode::from(3);
    }
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    beside::say_how_long();
    code
}

/// A test of this name; it fails by panicking.
pub fn test(name: &str, body: fn()) -> Trial {
    beside::trial(name, Kind::Works, body)
}

/// A test that waits most of its time, for ends of leaves and the like: it runs beside those that work.
pub fn test_that_waits(name: &str, body: fn()) -> Trial {
    beside::trial(name, Kind::Waits, body)
}

/// A test that fills the kernel's memory and this process's descriptors with thousands of connections: none of its kind runs beside it.
pub fn test_that_fills(name: &str, body: fn()) -> Trial {
    beside::trial(name, Kind::Fills, body)
}

/// A test that asserts how fast something is, or sends faster than a busy machine can: no other runs beside it.
pub fn test_alone(name: &str, body: fn()) -> Trial {
    beside::trial(name, Kind::Measures, body)
}

/// A test that needs programs of [`tools`]. If one is absent it is ignored, and says so; in CI (`WEFT_SKIP_IS_FAILURE=1`) it fails.
pub fn test_with(name: &str, needs: &[&str], body: fn()) -> Trial {
    with(test, name, needs, body)
}

/// [`test_with`], of a [`test_alone`].
pub fn test_alone_with(name: &str, needs: &[&str], body: fn()) -> Trial {
    with(test_alone, name, needs, body)
}

/// [`test_with`], of a [`test_that_waits`].
pub fn test_that_waits_with(name: &str, needs: &[&str], body: fn()) -> Trial {
    with(test_that_waits, name, needs, body)
}

fn with(made: fn(&str, fn()) -> Trial, name: &str, needs: &[&str], body: fn()) -> Trial {
    let missing: Vec<&str> = needs.iter().copied().filter(|name| tools::find(name).is_none()).collect();
    if missing.is_empty() {
        return made(name, body);
    }
    let reason = format!("not on this machine: {}; fetch with tests/tools/get", missing.join(", "));
    if std::env::var_os("WEFT_SKIP_IS_FAILURE").is_some() {
        return Trial::test(name, move || Err(reason.into()));
    }
    eprintln!("{name} is skipped: {reason}");
    Trial::test(name, || Ok(())).with_ignored_flag(true)
}
