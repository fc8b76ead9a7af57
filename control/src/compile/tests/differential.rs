//! Whatever changes, in batches of any size: what comes of it is what compiling anew gives, and what differs was said.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::testing::{change, ip6};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    /// The one property that lets everything else trust an update: whatever changes, in batches of any size, it is the same as compiling anew.
    #[test]
    fn an_update_is_the_same_as_compiling_anew(
        edits in prop::collection::vec((any::<[u8; 5]>(), 0..4u8, any::<u8>()), 1..60),
    ) {
        let mut model = shop();
        let mut compiled = compile(&model);
        let (mut batch, mut leaving) = (Vec::new(), BTreeSet::new());
        for (bytes, more, leaves) in edits {
            let edit = change(bytes);
            model.apply(edit.clone());
            batch.push(edit);
            if more == 0 {
                continue;
            }
            if leaves.is_multiple_of(4) {
                leaving = (0..4).filter(|pod| leaves & (16 << pod) != 0).map(|pod| name(&format!("pod-{pod}"))).collect();
            }
            let before = compiled.clone();
            let changes = compiled.update(std::mem::take(&mut batch), leaving.clone());
            let mut anew = Compiled::default();
            anew.update(Model::default().changes_to(&model), leaving.clone());
            prop_assert_eq!(&compiled, &anew);
            said_what_changed(&before, &compiled, &changes)?;
            said_nothing_else(&before, &compiled, &changes)?;
        }
    }
}

/// No resource is among the changes that is what it was.
fn said_nothing_else(before: &Compiled, after: &Compiled, changes: &Changes) -> Result<(), TestCaseError> {
    let version = |compiled: &Compiled, name: &Arc<str>| Some(compiled.get(name)?.version.clone());
    for name in changes.names.iter().chain(changes.members.values().flatten()) {
        let (old, new) = (version(before, name), version(after, name));
        let came_or_went = before.resources.contains_key(name) != after.resources.contains_key(name);
        prop_assert!(old != new || came_or_went, "{} is what it was", name);
    }
    Ok(())
}

/// Every address, service, route and endpoint whose answer differs is among the changes.
fn said_what_changed(before: &Compiled, after: &Compiled, changes: &Changes) -> Result<(), TestCaseError> {
    let names = before.resources().chain(after.resources()).map(|(name, _)| Arc::clone(name));
    let addresses = (0..6u8)
        .flat_map(|last| [ip(0, 0, last), ip(0, 0, last + 100), ip(96, 0, last), ip6(last), ip(0, 0, 50)])
        .map(|ip| SocketAddr::new(ip, 80).to_string().into());
    let hosts = [
        "web.shop:80",
        "cart.shop:81",
        "db.shop:80",
        "far.other:80",
        "first.far.other:80",
        "first.db.shop:80",
        "first.web.shop.svc:8080",
        "ext.shop:9",
    ];
    let on_demand =
        ["service/shop/web:99", "service/shop/ext:9", "consumer/shop/other/far:80", "consumer/third/shop/web:81"];
    let hosts = hosts.iter().chain(&on_demand).map(|name| (*name).into());
    for name in names.chain(addresses).chain(hosts).collect::<BTreeSet<Arc<str>>>() {
        let (old, new) = (before.get(&name), after.get(&name));
        let is_head = name.starts_with("endpoints/") && names::collection_of(&name).is_none();
        if is_head || old.as_ref().map(|old| &old.version) == new.as_ref().map(|new| &new.version) {
            continue;
        }
        let said = match names::collection_of(&name) {
            Some(set) => changes.members.get(set).is_some_and(|members| members.contains(&name)),
            None => topics_of(&name).iter().any(|topic| match topic {
                Topic::Name(name) => changes.names.contains(name),
                Topic::Ip(ip) => changes.ips.contains(ip),
                Topic::Service(service) => changes.services.contains(service),
            }),
        };
        prop_assert!(said, "{} changed unsaid", name);
    }
    Ok(())
}
