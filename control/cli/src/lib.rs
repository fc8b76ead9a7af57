//! The command that people type: `weft`. One binary plays every part of the mesh.
//!
//! - [`args`]: what can be typed.
//! - [`explain`]: what would happen to a request, decided by the engine on the encoded resources.
//! - [`cluster_check`]: can a cluster have Weft, and is it well there?
//! - [`install`]: the chart in a cluster, without Helm.
//! - `live`: how the mesh is now, asked of control.
//! - [`demo`]: a shop in network namespaces, its traffic, and what should hold while parts of it die.
//! - [`lab`]: pods as network namespaces with sidecars as processes; the demo and the tests build on it.
//! - [`app`]: workloads that know nothing of the mesh.
//! - [`output`]: the only place that writes to the terminal. [`exit`]: what exit codes mean.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

pub mod app;
pub mod args;
mod certs;
mod check;
pub mod cluster_check;
pub mod demo;
pub mod exit;
pub mod explain;
mod inject;
pub mod install;
pub mod lab;
mod live;
pub mod output;
mod plain_http;
mod token;

use args::{Cli, Command, Policy, Shell};
use exit::{Exit, Failure};

/// Runs the command line of this process to its end. To be called first thing in `main`, before any thread exists: the demo enters
/// namespaces.
pub fn main() -> ExitCode {
    let parsed = command().try_get_matches().and_then(|found| Cli::from_arg_matches(&found));
    let cli = parsed.unwrap_or_else(|error| error.exit());
    match run(cli.command) {
        Ok(code) => code,
        Err(failure) => {
            output::say(format_args!("{} {failure}", output::Paint::stderr().bad("weft:")));
            failure.exit.into()
        }
    }
}

/// The command line; `kubectl weft` where kubectl has found this binary as its plugin `kubectl-weft`.
fn command() -> clap::Command {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&called).file_stem().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
    if name == "kubectl-weft" { Cli::command().bin_name("kubectl weft") } else { Cli::command() }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    let exit = match command {
        Command::App(app) => return app::run(app),
        Command::LabExec(args) => return lab::exec::run(args),
        Command::Token(args) => token::run(&args)?,
        Command::Version(args) => version(args.json),
        Command::Completion { shell } => completion(shell),
        Command::Check(args) => cluster_check::run(&args)?,
        Command::Install(args) => install::install(&args)?,
        Command::Upgrade(args) => install::upgrade(&args)?,
        Command::Uninstall(args) => install::remove::run(&args)?,
        Command::Crds => {
            output::raw(weft_api::kinds::crd::definitions().as_bytes());
            Exit::Ok
        }
        Command::Demo(args) => demo::run(&args)?,
        Command::Inject(args) => inject::run(&args)?,
        Command::Status(args) => live::status(&args)?,
        Command::Proxies(args) => live::proxies(&args)?,
        Command::Diff(args) => live::diff(&args)?,
        Command::Events(args) => live::events(&args)?,
        Command::Certs(command) => certs::run(&command)?,
        Command::Policy(Policy::Check(args)) => check::run(&args)?,
        Command::Explain(args) => explain::run(&args)?,
        Command::Control(args) => return Ok(weft_control::main(*args)),
        Command::Proxy(args) => return Ok(weft_proxy::main(*args)),
    };
    Ok(exit.into())
}

fn version(json: bool) -> Exit {
    let version = env!("CARGO_PKG_VERSION");
    if json {
        output::json(&serde_json::json!({ "version": version, "features": weft_api::FEATURES }));
    } else {
        output::out(format_args!("weft {version}"));
    }
    Exit::Ok
}

fn completion(shell: Shell) -> Exit {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weft", &mut script);
    output::raw(&script);
    Exit::Ok
}
