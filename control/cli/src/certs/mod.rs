//! `weft certs`: certificates, as people need to see them.

mod inspect;
mod rotate;
mod status;

use weft_certs::ca::rotation::Kind;

use self::rotate::What;
use crate::args::Certs;
use crate::exit::{Exit, Failure};

/// Runs one of its commands.
pub fn run(command: &Certs) -> Result<Exit, Failure> {
    match command {
        Certs::Inspect(args) => inspect::run(args),
        Certs::Status(args) => status::run(args),
        Certs::RotateRoot(args) => rotate::run(What::Exchange(Kind::Root), args),
        Certs::RotateIssuer(args) => rotate::run(What::Exchange(Kind::Issuer), args),
        Certs::RotateTrustDomain(args) => rotate::run(What::Rename(args), &args.rotate),
    }
}
