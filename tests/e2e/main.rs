//! The mesh end to end: what the issues promise, one test each, on real processes in network namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod lab;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    trials.extend(lab::tests());
    weft_tests::main(env!("CARGO_BIN_EXE_weft-under-test"), trials)
}
