//! The sidecar as a small binary of its own; `weft proxy` is the same.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The sidecar of a service mesh: captures a workload's TCP, and does discovery, balancing, mutual TLS and policy for it.
#[derive(Parser)]
#[command(name = "weft-proxy", version, arg_required_else_help = true, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    args: weft_proxy::Args,
    #[command(subcommand)]
    instead: Option<Instead>,
}

#[derive(Subcommand)]
enum Instead {
    /// Wait until the sidecar of this pod is ready
    Wait(weft_proxy::wait::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.instead {
        Some(Instead::Wait(args)) => weft_proxy::wait::main(&args),
        None => weft_proxy::main(cli.args),
    }
}
