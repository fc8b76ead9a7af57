//! `weft status`, `weft proxies`, `weft diff`, `weft events`: how the mesh is now, asked of control.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args as ClapArgs;
use weft_control::config::duration;

/// Where control is asked, and how it is told.
#[derive(ClapArgs, Clone, Debug)]
pub struct Asked {
    /// Control's metrics address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15014")]
    pub control: SocketAddr,
    /// Print what control says, as JSON
    #[arg(long)]
    pub json: bool,
}

pub(super) const STATUS_HELP: &str = "\
Control and its sources, how many proxies run what they were sent, which objects some proxy refuses, and what has to be mended, one
sentence each. Asks control's metrics port: on another machine than control's, forward that port, or start control with --debug-remote.

Examples:
  weft status                            is anything wrong?
  weft status --json | jq -r '.mend[]'   what, as lines
  weft status --object HTTPRoute/shop/canary
                                         who runs this route, who lags, who refused it and why

Exit code 0 if nothing has to be mended (of an object: if all who use it run it), 1 if something has, 3 if control cannot be asked, 4 if
control compiles nothing from that kind.";

/// `weft status`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Status {
    /// Of one object only; of an EndpointSlice, its service's name; of a Namespace, KIND/NAME
    #[arg(long, value_name = "KIND/NS/NAME")]
    pub object: Option<String>,
    /// Whom to ask.
    #[command(flatten)]
    pub asked: Asked,
}

pub(super) const PROXIES_HELP: &str = "\
Without a pod: a line for each proxy that is connected or ought to be. In sync: it runs all that control has for it. lags N: N resources
are not in force there yet; refused N: it refused N, and runs what it had before.
With a pod: each resource that it holds, the version in force and why another one is not; with --tables what they say.

Examples:
  weft proxies                           who is connected, since when, and who is behind?
  weft proxies shop/web-1                what does this sidecar hold?
  weft proxies shop/web-1 --tables       and what do these tables say?
  weft proxies shop/web-1 --tables --json | jq '.[] | select(.type == \"Endpoint\") | .runs.data.ip'

Exit code 0, 1 if one of them is not connected or refuses something, 3 if control cannot be asked, 4 if the pod has no stream to control.";

/// `weft proxies`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Proxies {
    /// NAMESPACE/POD: everything about this one
    #[arg(value_name = "POD")]
    pub pod: Option<String>,
    /// The tables that are in force there, as data
    #[arg(long, requires = "pod")]
    pub tables: bool,
    /// Whom to ask.
    #[command(flatten)]
    pub asked: Asked,
}

pub(super) const DIFF_HELP: &str = "\
Resource by resource, field by field: - is what the sidecar runs, + is what control has now. Nothing is printed if they are the same. What
control has sent and the sidecar has not acknowledged counts as not there; a reason is printed where it refused it.

Examples:
  weft diff shop/web-1                   does this sidecar run what it should?
  weft diff shop/web-1 --json

Exit code 0 if they are the same, 1 if not, 3 if control cannot be asked, 4 if the pod has no stream to control.";

/// `weft diff`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Diff {
    /// NAMESPACE/POD
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Whom to ask.
    #[command(flatten)]
    pub asked: Asked,
}

pub(super) const EVENTS_HELP: &str = "\
Why was this pushed, and did it arrive? A line for each change that control has seen: the objects, the resources that came of them, how
many proxies were told, and when the last of them had answered. Control remembers the last 4,096, no more than 2 MiB.

Examples:
  weft events --since 5m
  weft events --object HTTPRoute/shop/canary
  weft events --object service/shop/web:80     the same of a resource
  weft events --json | jq '.[] | select(.answered_ms > 250)'

Exit code 0, 3 if control cannot be asked.";

/// `weft events`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Events {
    /// Only what is about this object (KIND/NS/NAME, of a namespace KIND/NAME) or resource
    #[arg(long, value_name = "OBJECT")]
    pub object: Option<String>,
    /// Not older than this
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub since: Duration,
    /// Whom to ask.
    #[command(flatten)]
    pub asked: Asked,
}
