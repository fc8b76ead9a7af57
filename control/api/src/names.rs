//! Names, type URLs and versions of resources.
//!
//! Names are unique over all types, so both ends of a stream keep one table from name to version.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::wire::v1;
use bytes::Bytes;
use prost::Message;

const PREFIX: &str = "type.googleapis.com/weft.v1.";

/// A resource message: it knows its type URL.
pub trait ResourceType: Message + Default {
    /// `type.googleapis.com/weft.v1.NAME`.
    const TYPE_URL: &'static str;
}

macro_rules! resource_types {
    ($($name:ident),*) => {$(
        impl ResourceType for v1::$name {
            const TYPE_URL: &'static str = concat!("type.googleapis.com/weft.v1.", stringify!($name));
        }
    )*};
}
resource_types!(
    Address,
    Service,
    Consumer,
    Route,
    EndpointHead,
    Endpoint,
    Workload,
    AuthorizationPolicy,
    RateLimitPolicy,
    MeshExtent,
    Trust,
    Revoked,
    NackDetails
);

/// How an identity of the mesh itself travels: by its path alone, since the mesh may have several names.
pub fn identity(namespace: &str, account: &str) -> String {
    format!("/ns/{namespace}/sa/{account}")
}

/// The path of a SPIFFE ID, or of the beginning of one, of a trust domain with one of these names.
pub fn path_in<'t>(text: &'t str, domains: &[String]) -> Option<&'t str> {
    let rest = text.strip_prefix("spiffe://")?;
    let domain = &rest[..rest.find('/')?];
    domains.iter().any(|name| name == domain).then(|| &rest[domain.len()..])
}

/// Name of the only [`v1::MeshExtent`].
pub const MESH_EXTENT: &str = "mesh-extent";

/// Name of the only [`v1::Trust`].
pub const TRUST: &str = "trust";

/// Name of the only [`v1::Revoked`].
pub const REVOKED: &str = "revoked";

/// Metadata of an answer of `CreateCertificate`, also of a refusal: how the next certificate is to be asked for, if not by this one.
pub const RENEW_BY: &str = "weft-renew-by";

/// Its value: a token has to be shown.
pub const TOKEN: &str = "token";

/// Metadata of the end of a stream: nothing is amiss, and the proxy goes to another replica of control if it knows one. Its value names those
/// that are to be preferred, `IP:PORT` with commas between them; anything else names none.
pub const MOVE: &str = "weft-move";

/// Whether this is the name of an [`v1::Address`], if it is one of ours at all.
pub fn is_address(name: &str) -> bool {
    !name.contains('/') && ![MESH_EXTENT, TRUST, REVOKED].contains(&name)
}

/// The type's short name (`Address`) from its URL, or the URL itself if it is not ours.
pub fn short_type(type_url: &str) -> &str {
    type_url.strip_prefix(PREFIX).unwrap_or(type_url)
}

/// Name of an [`v1::Address`] given by IP: `IP:PORT`, IPv6 in brackets.
pub fn address(addr: SocketAddr) -> String {
    addr.to_string()
}

/// What a ServiceImport is called among services. No Service has a dot in its name, so the two never meet.
pub fn imported(name: &str) -> String {
    format!("{name}{IMPORTED}")
}

/// Whether this service, by its own name, is a ServiceImport.
pub fn is_imported(name: &str) -> bool {
    name.ends_with(IMPORTED)
}

const IMPORTED: &str = ".clusterset";

/// Name of a [`v1::Service`].
pub fn service(namespace: &str, name: &str, port: u16) -> String {
    format!("service/{namespace}/{name}:{port}")
}

/// Name of the [`v1::Consumer`] that clients of a namespace have of a service, given by its resource name. None in the service's own
/// namespace: there its own routes are meant.
pub fn consumer(client: &str, service: &str) -> Option<String> {
    let service = service.strip_prefix("service/")?;
    let own = service.strip_prefix(client).is_some_and(|rest| rest.starts_with('/'));
    (!own).then(|| format!("{CONSUMER}{client}/{service}"))
}

/// Whether this is the name of a [`v1::Consumer`].
pub fn is_consumer(name: &str) -> bool {
    name.strip_prefix(CONSUMER).is_some_and(|rest| rest.split('/').filter(|part| !part.is_empty()).count() == 3)
}

const CONSUMER: &str = "consumer/";

/// Stands for the client's namespace where one resource points to another for clients of all namespaces.
pub const ANY_CLIENT: &str = "*";

/// Where a reference leads a client of a namespace, if anywhere.
pub fn followed(reference: &Arc<str>, client: &str) -> Option<Arc<str>> {
    let Some(service) = reference.strip_prefix("consumer/*/") else { return Some(Arc::clone(reference)) };
    consumer(client, &format!("service/{service}")).map(Arc::from)
}

/// Name of the [`v1::EndpointHead`] of a service, from the service's resource name.
pub fn endpoints_of(service: &str) -> String {
    format!("endpoints/{}", service.strip_prefix("service/").unwrap_or(service))
}

/// The service's resource name from the name of its [`v1::EndpointHead`].
pub fn service_of(endpoints: &str) -> String {
    format!("service/{}", endpoints.strip_prefix("endpoints/").unwrap_or(endpoints))
}

/// Name of an [`v1::Endpoint`] in the collection `endpoints` (a name from [`endpoints_of`]).
pub fn endpoint(endpoints: &str, id: &str) -> String {
    format!("{endpoints}/{id}")
}

/// The collection that an endpoint's name belongs to; `None` if it is not an endpoint's name.
pub fn collection_of(endpoint: &str) -> Option<&str> {
    let rest = endpoint.strip_prefix("endpoints/")?;
    let mut slashes = rest.match_indices('/').map(|(at, _)| at);
    let (_, second) = (slashes.next()?, slashes.next()?);
    Some(&endpoint[.."endpoints/".len() + second])
}

/// Name of a [`v1::Workload`].
pub fn workload(namespace: &str, pod: &str) -> String {
    format!("workload/{namespace}/{pod}")
}

/// Name of a route or policy: `KIND/NAMESPACE/NAME`.
pub fn object(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}/{namespace}/{name}")
}

/// A resource's version: xxh3-128 of its bytes, in hex.
pub fn version(bytes: &[u8]) -> String {
    hex(xxhash_rust::xxh3::xxh3_128(bytes))
}

/// Digest of an endpoint set: exclusive or over its members, so that it can be kept up to date in O(1) for each change.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Digest(u128);

impl Digest {
    /// Adds a member, or takes out one that is in: the operation is its own inverse.
    pub fn toggle(&mut self, name: &str, version: &str) {
        let mut member = Vec::with_capacity(name.len() + version.len() + 1);
        member.extend_from_slice(name.as_bytes());
        member.push(0);
        member.extend_from_slice(version.as_bytes());
        self.0 ^= xxhash_rust::xxh3::xxh3_128(&member);
    }

    /// Hex of the digest: the version of the [`v1::EndpointHead`] resource that carries it.
    pub fn to_version(self) -> String {
        hex(self.0)
    }

    /// The 16 bytes as they travel in [`v1::EndpointHead::digest`].
    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0.to_be_bytes())
    }
}

fn hex(value: u128) -> String {
    let mut text = String::with_capacity(32);
    let _ = write!(text, "{value:032x}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_knows_its_collection() {
        let set = endpoints_of(&service("shop", "web", 80));
        assert_eq!(set, "endpoints/shop/web:80");
        assert_eq!(collection_of(&endpoint(&set, "web-1")), Some(set.as_str()));
        assert_eq!(collection_of(&set), None);
        assert_eq!(collection_of("10.0.0.1:80"), None);
        assert_eq!(service_of(&set), "service/shop/web:80");
    }

    #[test]
    fn a_digest_forgets_order_and_undoes_itself() {
        let (mut one, mut two) = (Digest::default(), Digest::default());
        one.toggle("a", "1");
        one.toggle("b", "2");
        two.toggle("b", "2");
        two.toggle("a", "1");
        assert_eq!(one, two);
        one.toggle("a", "1");
        assert_ne!(one, two);
        one.toggle("b", "2");
        assert_eq!(one, Digest::default());
    }

    #[test]
    fn a_consumer_is_of_another_namespace() {
        let web = service("shop", "web", 80);
        assert_eq!(consumer("client", &web).as_deref(), Some("consumer/client/shop/web:80"));
        // Not by the beginning of a name.
        assert!(consumer("sho", &web).is_some() && consumer("shop", &web).is_none());
        let any: Arc<str> = consumer(ANY_CLIENT, &web).unwrap().into();
        assert_eq!(followed(&any, "client").as_deref(), Some("consumer/client/shop/web:80"));
        assert_eq!(followed(&any, "shop"), None);
        let other: Arc<str> = "HTTPRoute/shop/web".into();
        assert_eq!(followed(&other, "shop"), Some(Arc::clone(&other)));
        assert!(is_consumer("consumer/client/shop/web:80") && !is_consumer("consumer/client/web:80"));
    }

    #[test]
    fn type_urls_are_ours() {
        assert_eq!(v1::Address::TYPE_URL, "type.googleapis.com/weft.v1.Address");
        assert_eq!(short_type(v1::Address::TYPE_URL), "Address");
    }
}
