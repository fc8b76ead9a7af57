//! Who is on the deny list is refused in the handshake, whichever side he is; nobody else is.

use super::failures::shake;
use super::*;
use crate::failure::Failure;
use crate::revoked::{DenyList, Serial};

/// The handshakes of `web` as client with `cart` as server, each of them denying.
fn both_ways(mesh: &Mesh, web: &Svid, cart: &Svid, denied: &Denied) -> [(Option<Failure>, Option<Failure>); 2] {
    let roots = mesh.ca.roots().clone().denying(denied);
    let (client, server) = (mesh.client(Some(web)), mesh.server(cart, ClientAuth::Required));
    let denying_client = client_config(Some(web), &roots, ALPN, TD).unwrap();
    let denying_server = server_config(cart, &roots, ALPN, ClientAuth::Required, TD).unwrap();
    [shake(&denying_client, &server), shake(&client, &denying_server)]
}

#[test]
fn by_identity_or_by_number_at_once_and_no_longer_than_it_is_there() {
    let mesh = mesh(TD);
    let (web, cart, other) = (mesh.svid("web"), mesh.svid("cart"), mesh.svid("cart"));
    let number = |svid: &Svid| svid.serial().parse::<Serial>().unwrap();
    let revoked = (Some(Failure::Revoked), Some(Failure::RefusedByPeer));
    let turned = (Some(Failure::RefusedByPeer), Some(Failure::Revoked));
    let good = (None, None);
    // One list for all: what is in force when a handshake is made decides, not what was when its configuration was.
    let denied = Denied::default();
    for (identities, serials, of_server, of_client) in [
        (vec![], vec![], good, good),
        (vec![mesh.identity("cart")], vec![], revoked, good),
        (vec![mesh.identity("web")], vec![], good, turned),
        (vec![], vec![number(&cart)], revoked, good),
        (vec![], vec![number(&web)], good, turned),
        (vec![mesh.identity("admin")], vec![number(&other)], good, good),
        (vec![Identity::new("other.example", "shop", "cart").unwrap()], vec![], good, good),
        (vec![], vec![], good, good),
    ] {
        denied.set(Arc::new(DenyList::new(identities, serials)));
        assert_eq!(both_ways(&mesh, &web, &cart, &denied), [of_server, of_client], "{denied:?}");
    }
}

#[test]
fn a_stranger_is_a_stranger_first() {
    let (ours, theirs) = (mesh(TD), mesh(TD));
    let (web, cart) = (ours.svid("web"), theirs.svid("cart"));
    let denied = Denied::default();
    denied.set(Arc::new(DenyList::new([ours.identity("cart")], [])));
    let client = client_config(Some(&web), &ours.ca.roots().clone().denying(&denied), ALPN, TD).unwrap();
    assert_eq!(shake(&client, &theirs.server(&cart, ClientAuth::Required)).0, Some(Failure::Untrusted));
}

#[test]
fn control_is_never_denied() {
    let mesh = mesh(TD);
    let denied = Denied::default();
    denied.set(Arc::new(DenyList::new([mesh.identity("cart")], [])));
    let roots = mesh.ca.roots().clone().denying(&denied);
    let client = client_config(None, &roots.own_and(&roots), ALPN, TD).unwrap();
    assert_eq!(shake(&client, &mesh.server(&mesh.svid("cart"), ClientAuth::Optional)), (None, None));
}

#[test]
fn what_a_peer_has_shown_is_read_whole() {
    let mesh = mesh(TD);
    let svid = mesh.svid("cart");
    let chain = svid.certified().cert.clone();
    let found = peer_leaf(Some(&chain)).unwrap();
    assert_eq!((found.identity, found.not_after), (mesh.identity("cart"), svid.not_after()));
    assert_eq!((found.number, &*found.serial), (svid.serial().parse().unwrap(), svid.serial()));
}
