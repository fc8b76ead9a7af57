//! Resources as data for people: what `weft diff` and `weft proxies --tables` print.
//!
//! Every field is shown, by the name that the schema gives it: the code is made with the schema (build.rs).

use std::net::IpAddr;

use bytes::Bytes;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::names::{self, ResourceType};
use crate::wire::v1;

/// What a resource says; `None` if the bytes are not of a type that we know.
pub fn resource(type_url: &str, bytes: &[u8]) -> Option<Value> {
    match type_url {
        v1::Address::TYPE_URL => shown::<v1::Address>(bytes),
        v1::Service::TYPE_URL => shown::<v1::Service>(bytes),
        v1::Consumer::TYPE_URL => shown::<v1::Consumer>(bytes),
        v1::Route::TYPE_URL => shown::<v1::Route>(bytes),
        v1::EndpointHead::TYPE_URL => shown::<v1::EndpointHead>(bytes),
        v1::Endpoint::TYPE_URL => shown::<v1::Endpoint>(bytes),
        v1::Workload::TYPE_URL => shown::<v1::Workload>(bytes),
        v1::AuthorizationPolicy::TYPE_URL => shown::<v1::AuthorizationPolicy>(bytes),
        v1::RateLimitPolicy::TYPE_URL => shown::<v1::RateLimitPolicy>(bytes),
        v1::MeshExtent::TYPE_URL => shown::<v1::MeshExtent>(bytes),
        v1::Trust::TYPE_URL => shown::<v1::Trust>(bytes),
        v1::Revoked::TYPE_URL => shown::<v1::Revoked>(bytes),
        _ => None,
    }
}

fn shown<M: ResourceType + Serialize>(bytes: &[u8]) -> Option<Value> {
    serde_json::to_value(M::decode(bytes).ok()?).ok()
}

/// A value of an enumeration by its word; one that this build does not know by its number.
#[allow(clippy::trivially_copy_pass_by_ref)] // serde gives a reference
pub(crate) fn word<E: TryFrom<i32> + Serialize, S: Serializer>(number: &i32, to: S) -> Result<S::Ok, S::Error> {
    match E::try_from(*number) {
        Ok(word) => word.serialize(to),
        Err(_) => to.serialize_i32(*number),
    }
}

/// 4 or 16 bytes as the address that they are.
pub(crate) fn ip<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
    let four = <[u8; 4]>::try_from(&bytes[..]).map(IpAddr::from);
    match four.or_else(|_| <[u8; 16]>::try_from(&bytes[..]).map(IpAddr::from)) {
        Ok(ip) => to.collect_str(&ip),
        Err(_) => hex(bytes, to),
    }
}

/// Bytes in hex.
pub(crate) fn hex<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&in_hex(bytes))
}

/// Each in hex.
pub(crate) fn hexes<S: Serializer>(all: &[Bytes], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(all.iter().map(|bytes| in_hex(bytes)))
}

/// Certificates by the hash that versions are made with: which they are, not what is in them.
pub(crate) fn fingerprints<S: Serializer>(all: &[Bytes], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(all.iter().map(|der| format!("xxh3:{}", names::version(der))))
}

fn in_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resource_is_shown_in_words() {
        let endpoint = v1::Endpoint { ip: vec![10, 0, 0, 7].into(), port: 80, ..Default::default() };
        let address = v1::Address { target: Some(v1::address::Target::Workload(endpoint)) };
        let said = resource(v1::Address::TYPE_URL, &address.encode_to_vec()).unwrap();
        assert_eq!(said["target"]["workload"]["ip"], "10.0.0.7");
        let workload = v1::Workload { mode: v1::MtlsMode::Strict.into(), ..Default::default() };
        assert_eq!(resource(v1::Workload::TYPE_URL, &workload.encode_to_vec()).unwrap()["mode"], "strict");
        let unknown = v1::Service { protocol: 77, port: 80, ..Default::default() };
        let said = resource(v1::Service::TYPE_URL, &unknown.encode_to_vec()).unwrap();
        assert_eq!((&said["protocol"], &said["port"]), (&json!(77), &json!(80)));
        let policy = v1::AuthorizationPolicy { action: 1, ..Default::default() };
        assert_eq!(
            resource(v1::AuthorizationPolicy::TYPE_URL, &policy.encode_to_vec()).unwrap()["action"],
            json!("deny")
        );
        let trust = v1::Trust { svid_roots: vec![vec![1, 2].into()], ..Default::default() };
        let said = resource(v1::Trust::TYPE_URL, &trust.encode_to_vec()).unwrap();
        assert!(said["svid_roots"][0].as_str().unwrap().starts_with("xxh3:"), "{said}");
    }

    #[test]
    fn what_is_no_resource_is_not_shown() {
        assert_eq!(resource("type.googleapis.com/other", b""), None);
        assert_eq!(resource(v1::Service::TYPE_URL, b"\xff\xff"), None);
    }
}
