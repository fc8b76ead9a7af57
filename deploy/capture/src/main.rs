//! `weft-capture`: installs, removes, shows or proves the rules that bring a pod's traffic to its sidecar. Init containers run it.

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use weft_capture::netns::NetNs;
use weft_capture::rules::{Capture, Error, Exclude, describe, install, installed, remove};
use weft_capture::settings::Settings;
use weft_capture::validate::{self, validate};

/// Brings a pod's TCP traffic to its sidecar, by network rules written over netlink.
#[derive(Parser)]
#[command(name = "weft-capture", version)]
struct Command {
    /// Work in this network namespace (a path such as /proc/PID/ns/net) instead of the caller's.
    #[arg(long, global = true, value_name = "PATH")]
    netns: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Install the rules, instead of those that were there.
    Install(Flags),
    /// Remove the rules; that there are none is fine.
    Remove,
    /// Say whether rules are installed, and which ones these flags would install.
    Show(Flags),
    /// Prove, by connections of its own and without any capability, that the rules of these settings hold here; exit 95 if they don't.
    Validate {
        /// What is captured, as the injector writes it into the pod's annotation weft.dev/capture.
        #[arg(long, value_name = "JSON")]
        settings: String,
        /// Keep trying for so long: the node's agent may be about to repair.
        #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=600))]
        wait: u64,
    },
}

#[derive(Args)]
struct Flags {
    /// All of it as one JSON, as the injector writes it into the pod's annotation weft.dev/capture.
    #[arg(long, value_name = "JSON", conflicts_with = "flags")]
    settings: Option<String>,
    #[command(flatten)]
    each: Each,
}

#[derive(Args)]
#[group(id = "flags", multiple = true)]
struct Each {
    /// Where connections that the application opens go.
    #[arg(long, default_value_t = 15001, value_name = "PORT")]
    outbound_port: u16,
    /// Where connections to the application go.
    #[arg(long, default_value_t = 15006, value_name = "PORT")]
    inbound_port: u16,
    /// The sidecar's own traffic is what this uid sends.
    #[arg(long, default_value_t = 1337, value_name = "UID")]
    exclude_uid: u32,
    /// The sidecar's own traffic is what carries this mark, decimal or 0x...; --exclude-uid then says nothing.
    #[arg(long, value_name = "MARK", value_parser = parse_mark)]
    exclude_mark: Option<u32>,
    /// Ports of the pod that are reached directly, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    exclude_inbound_ports: Vec<u16>,
    /// Ports elsewhere that are called directly, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    exclude_outbound_ports: Vec<u16>,
    /// Ranges of addresses that are called directly, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "CIDRS")]
    exclude_cidrs: Vec<IpNet>,
}

impl Flags {
    fn capture(self) -> Result<Capture, Error> {
        match self.settings {
            Some(json) => Ok(Capture::from(&Settings::parse(&json)?)),
            None => Ok(self.each.into()),
        }
    }
}

impl From<Each> for Capture {
    fn from(flags: Each) -> Self {
        Self {
            outbound_port: flags.outbound_port,
            inbound_port: flags.inbound_port,
            exclude: flags.exclude_mark.map_or(Exclude::Uid(flags.exclude_uid), Exclude::Mark),
            exclude_inbound_ports: flags.exclude_inbound_ports,
            exclude_outbound_ports: flags.exclude_outbound_ports,
            exclude_cidrs: flags.exclude_cidrs,
            ..Self::new(Exclude::Uid(flags.exclude_uid))
        }
    }
}

fn parse_mark(text: &str) -> Result<u32, std::num::ParseIntError> {
    text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u32::from_str_radix(hex, 16))
}

fn run(command: Command) -> anyhow::Result<()> {
    if let Some(path) = command.netns {
        NetNs::open(&path)?.enter()?;
    }
    match command.action {
        Action::Install(flags) => install(&flags.capture()?)?,
        Action::Remove => remove()?,
        Action::Show(flags) => {
            let capture = flags.capture()?;
            let state = if installed()? { "installed" } else { "not installed" };
            write!(std::io::stdout(), "rules are {state}; these flags give\n{}", describe(&capture))?;
        }
        Action::Validate { settings, wait } => {
            let proved = validate(&Settings::parse(&settings)?, Duration::from_secs(wait))?;
            writeln!(std::io::stdout(), "captured: {proved}")?;
        }
    }
    Ok(())
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if matches!(error.downcast_ref(), Some(Error::Invalid(_))) {
        4
    } else if matches!(error.downcast_ref(), Some(validate::Error::NotCaptured(_))) {
        validate::NOT_CAPTURED
    } else {
        3
    }
}

fn main() -> ExitCode {
    match run(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "weft-capture: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}
