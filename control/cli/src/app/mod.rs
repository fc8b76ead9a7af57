//! Workloads for the demo and the tests: servers and a plain client that know nothing of the mesh.
//!
//! Invariants: no import of the mesh's crates here; names are read from `/etc/hosts` only, as a static binary must; a server ends on
//! SIGTERM after the requests in flight, in bounded time.

pub mod client;
mod grpc;
mod http;
mod serve;
mod tcp;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use crate::exit::Failure;

/// The generated messages and service of `proto/echo.proto`.
pub(crate) mod echo {
    #![allow(missing_docs, clippy::pedantic, rust_2018_idioms, unused_qualifications)]
    tonic::include_proto!("echo.v1");
}

/// What to be.
#[derive(Subcommand, Debug)]
pub enum App {
    /// An HTTP server (HTTP/1.1, and HTTP/2 by prior knowledge). Paths: /delay/MS, /status/CODE, /bytes/N, /echo; others say who answered
    Http(Server),
    /// A gRPC server of echo.v1.Echo
    Grpc(Server),
    /// A TCP server: greets with `hello NAME VERSION`, then echoes
    Tcp(Server),
    /// A client that sends at an even rate and prints what became of it, one JSON line an interval
    Client(client::Args),
}

/// Flags of every server.
#[derive(ClapArgs, Clone, Debug)]
pub struct Server {
    /// Where to listen
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// The name that answers carry
    #[arg(long, default_value = "app")]
    pub name: String,
    /// The version that answers carry
    #[arg(long, value_name = "VERSION", default_value = "v1")]
    pub version_label: String,
    /// Added to the time of every answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub slow: u64,
    /// How long to wait for requests in flight after SIGTERM, in seconds
    #[arg(long, value_name = "S", default_value_t = 10)]
    pub grace: u64,
}

impl Server {
    fn grace(&self) -> Duration {
        Duration::from_secs(self.grace)
    }
}

/// Plays the part until SIGTERM or SIGINT, or until the client has sent what it should.
///
/// # Errors
/// The address cannot be listened on, or the client's destination has no address.
pub fn run(app: App) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::here(format!("cannot start a runtime: {error}")))?;
    runtime.block_on(async move {
        match app {
            App::Http(server) => http::run(server).await,
            App::Grpc(server) => grpc::run(server).await,
            App::Tcp(server) => tcp::run(server).await,
            App::Client(args) => client::run(args).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
