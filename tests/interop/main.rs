//! Programs of others, unmodified, through two sidecars.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::process::ExitCode;

fn main() -> ExitCode {
    weft_tests::main(env!("CARGO_BIN_EXE_weft-under-test"), Vec::new())
}
