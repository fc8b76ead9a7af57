//! Control as a program of its own.

use std::process::ExitCode;

use clap::Parser;

/// The control component of Weft.
#[derive(Parser)]
#[command(name = "weft-control", version)]
struct Command {
    #[command(flatten)]
    args: weft_control::Args,
}

fn main() -> ExitCode {
    weft_control::main(Command::parse().args)
}
