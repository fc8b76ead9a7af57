//! `weft certs`: certificates, as people need to see them.

mod inspect;

use crate::args::Certs;
use crate::exit::{Exit, Failure};

/// Runs one of its commands.
pub fn run(command: &Certs) -> Result<Exit, Failure> {
    match command {
        Certs::Inspect(args) => inspect::run(args),
    }
}
