//! The sidecar as a small binary of its own; `weft proxy` is the same.

use std::process::ExitCode;

use clap::Parser;

/// The sidecar of a service mesh: captures a workload's TCP, and does discovery, balancing, mutual TLS and policy for it.
#[derive(Parser)]
#[command(name = "weft-proxy", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    args: weft_proxy::Args,
}

fn main() -> ExitCode {
    weft_proxy::main(Cli::parse().args)
}
