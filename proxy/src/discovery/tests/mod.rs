//! Discovery without a network: the machine and the builder by hand, then both against control's own session; the waiting of requests in
//! paused time.

mod against_control;
mod building;
mod hearing;
mod resolving;
mod waiting;
mod whole;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_api::names::{self, Digest, ResourceType};
use weft_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use weft_api::wire::v1;

use super::machine::{Heard, Limits, Machine};

pub const ADDRESS: &str = v1::Address::TYPE_URL;
pub const WEB: &str = "service/shop/web:80";
pub const WEB_SET: &str = "endpoints/shop/web:80";
pub const VIP: &str = "10.96.0.1:80";
pub const NOW: Duration = Duration::from_secs(100);

pub fn machine() -> Machine {
    Machine::new("workload/shop/cart-1".into(), "cluster.local".into(), Limits::default())
}

pub fn resource<M: ResourceType>(name: &str, message: &M) -> Resource {
    let bytes = message.encode_to_vec();
    Resource {
        name: name.to_owned(),
        version: names::version(&bytes),
        resource: Some(prost_types::Any { type_url: M::TYPE_URL.to_owned(), value: bytes }),
    }
}

pub fn response(nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { type_url: ADDRESS.to_owned(), nonce: nonce.to_owned(), resources, ..Default::default() }
}

pub fn to_service(service: &str) -> Resource {
    resource(VIP, &v1::Address { target: Some(v1::address::Target::Service(service.to_owned())) })
}

pub fn web(routes: &[&str]) -> Resource {
    let routes = routes.iter().map(ToString::to_string).collect();
    let message =
        v1::Service { namespace: "shop".into(), name: "web".into(), port: 80, routes, ..v1::Service::default() };
    resource(WEB, &message)
}

/// An endpoint of `set` at `10.0.0.LAST:8080`; meshed if `account` is given.
pub fn member_of(set: &str, last: u8, account: Option<&str>) -> Resource {
    let message = v1::Endpoint {
        ip: vec![10, 0, 0, last].into(),
        port: 8080,
        identity: account.map(|account| format!("spiffe://cluster.local/ns/shop/sa/{account}")).unwrap_or_default(),
        alpn: account.map(|_| vec!["weft1-h1".to_owned()]).unwrap_or_default(),
        workload: format!("shop/web-{last}"),
        ..v1::Endpoint::default()
    };
    resource(&format!("{set}/web-{last}"), &message)
}

pub fn member(last: u8) -> Resource {
    member_of(WEB_SET, last, Some("web"))
}

/// The head of a set that has exactly these members.
pub fn head_of(set: &str, members: &[Resource]) -> Resource {
    let mut digest = Digest::default();
    for member in members {
        digest.toggle(&member.name, &member.version);
    }
    let message = v1::EndpointHead { count: u32::try_from(members.len()).unwrap(), digest: digest.to_bytes() };
    Resource { version: digest.to_version(), ..resource(set, &message) }
}

pub fn head(members: &[Resource]) -> Resource {
    head_of(WEB_SET, members)
}

/// Our own workload, without any policy, the extent, and no word on roots.
pub fn roots() -> Vec<Resource> {
    let own = v1::Workload {
        namespace: "shop".into(),
        name: "cart-1".into(),
        service_account: "cart".into(),
        ..v1::Workload::default()
    };
    let extent = v1::MeshExtent { cidrs: vec!["10.0.0.0/8".into()] };
    vec![
        resource("workload/shop/cart-1", &own),
        resource("mesh-extent", &extent),
        resource("trust", &v1::Trust::default()),
        resource("revoked", &v1::Revoked::default()),
    ]
}

/// Subscribed to [`VIP`] on an open stream.
pub fn asking() -> Machine {
    let mut machine = machine();
    machine.open(NOW);
    assert!(machine.subscribe(&VIP.into(), NOW).is_some());
    machine
}

/// Holds all of `web` with these endpoints.
pub fn holding(members: &[u8]) -> Machine {
    let mut machine = asking();
    let members: Vec<Resource> = members.iter().map(|last| member(*last)).collect();
    let mut resources = vec![to_service(WEB), web(&[]), head(&members)];
    resources.extend(members);
    resources.extend(roots());
    let heard = machine.hear(response("1", resources), NOW);
    assert!(heard.refused.is_empty(), "{:?}", heard.refused);
    machine
}

/// The one ACK among the replies.
pub fn ack(heard: &Heard) -> &DeltaDiscoveryRequest {
    let mut acks = heard.replies.iter().filter(|reply| !reply.response_nonce.is_empty());
    let ack = acks.next().expect("an answer with the nonce");
    assert!(acks.next().is_none(), "one answer a response");
    ack
}

pub fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn name(text: &str) -> Arc<str> {
    text.into()
}
