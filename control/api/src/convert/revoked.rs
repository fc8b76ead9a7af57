//! Who is not believed any more although his certificate is good.

use bytes::Bytes;
use weft_engine::identity::Identity;

use super::error::{ErrorCode, ResourceError};
use super::{field, require_features};
use crate::wire::v1;

/// Entries of the list.
pub const MAX_REVOKED: usize = 10_000;
/// Bytes of it: with what comes beside it a response stays under the protocol's 1 MiB.
pub const MAX_REVOKED_BYTES: usize = 512 << 10;
/// Bytes of a serial number (RFC 5280 section 4.1.2.2).
const MAX_SERIAL: usize = 20;

/// Identities, and certificates by their serial numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Whatever certificate proves them.
    pub identities: Vec<Identity>,
    /// The highest byte first.
    pub serials: Vec<Bytes>,
}

// Never a part of it: an entry that cannot be read may be the one that matters.
pub(super) fn revoked(wire: v1::Revoked, own: &str) -> Result<Revoked, ResourceError> {
    require_features("revoked", &wire.requires)?;
    let entries = wire.identities.len() + wire.serials.len();
    if entries > MAX_REVOKED {
        let message = format!("{entries} revoked identities and certificates where {MAX_REVOKED} are the most");
        return Err(ResourceError::new(ErrorCode::OutOfRange, message));
    }
    if wire.serials.iter().any(|serial| serial.is_empty() || serial.len() > MAX_SERIAL) {
        let message = format!("a serial number must have 1 to {MAX_SERIAL} bytes");
        return Err(ResourceError::new(ErrorCode::OutOfRange, message));
    }
    let identities = wire.identities.iter().map(|identity| field::identity(identity, own));
    Ok(Revoked { identities: identities.collect::<Result<_, _>>()?, serials: wire.serials })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn read(identities: &[&str], serials: Vec<Bytes>) -> Result<Revoked, ErrorCode> {
        let identities = identities.iter().map(ToString::to_string).collect();
        revoked(v1::Revoked { identities, serials, requires: Vec::new() }, "cluster.local").map_err(|error| error.code)
    }

    #[test]
    fn it_is_read_whole_or_refused() {
        let serial = Bytes::from_static(&[0xf0; MAX_SERIAL]);
        let good = read(&[WEB], vec![serial.clone()]).unwrap();
        assert_eq!(good, Revoked { identities: vec![WEB.parse().unwrap()], serials: vec![serial] });
        assert_eq!(read(&[], vec![]).unwrap(), Revoked::default());
        assert_eq!(
            read(&["/ns/shop/sa/web"], vec![]).unwrap().identities,
            good.identities,
            "of the mesh, whatever its name"
        );
        assert_eq!(read(&["/ns/shop"], vec![]).unwrap_err(), ErrorCode::InvalidIdentity);
        assert_eq!(read(&[WEB, "shop/web"], vec![]).unwrap_err(), ErrorCode::InvalidIdentity);
        for bad in [Bytes::new(), Bytes::from_static(&[1; MAX_SERIAL + 1])] {
            assert_eq!(read(&[WEB], vec![bad]).unwrap_err(), ErrorCode::OutOfRange);
        }
        let many = vec![Bytes::from_static(&[1]); MAX_REVOKED];
        assert_eq!(read(&[WEB], many).unwrap_err(), ErrorCode::OutOfRange);
        let wire = v1::Revoked { requires: vec!["unheard-of".into()], ..v1::Revoked::default() };
        assert_eq!(revoked(wire, "cluster.local").unwrap_err().code, ErrorCode::UnsupportedFeature);
    }
}
