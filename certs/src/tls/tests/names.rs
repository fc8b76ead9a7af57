//! A trust domain that has several names: who is believed under which, and which of its certificates control shows.

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use super::failures::shake;
use super::federation::{claiming, roots};
use super::*;
use crate::failure::Failure;
use crate::revoked::DenyList;

const NEW: &str = "new.example";
const PARTNER: &str = "partner.example";

/// A name that a certificate of `signer` has, and what becomes of it where our domain has `names`.
fn outcome(names: &[&str], signer: &Mesh, name: &str, ours: &Mesh, partner: &Mesh) -> Option<Failure> {
    let names = names.iter().map(|name| (*name).into()).collect();
    let believed = roots(ours, &[partner]).called(TD.into(), names);
    let server = server_config(&ours.svid("web"), &believed, ALPN, ClientAuth::Required, TD).unwrap();
    let client = client_config(Some(&claiming(signer, name)), ours.ca.roots(), ALPN, TD).unwrap();
    shake(&client, &server).1
}

#[test]
fn each_name_that_we_have_now_leads_to_our_roots_and_to_no_others() {
    let (ours, partner) = (mesh(TD), mesh(PARTNER));
    let (old, new) = ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://new.example/ns/shop/sa/web");
    let (foreign, stranger) = ("spiffe://partner.example/ns/shop/sa/web", "spiffe://nobody.example/ns/shop/sa/web");
    let (no, other) = (Some(Failure::Untrusted), Some(Failure::OtherTrustDomain));
    for (names, signer, name, want) in [
        // Before: one name.
        (&[TD][..], &ours, old, None),
        (&[TD], &ours, new, other),
        // While both are ours, in either order.
        (&[TD, NEW], &ours, old, None),
        (&[TD, NEW], &ours, new, None),
        (&[NEW, TD], &ours, old, None),
        (&[TD, NEW], &ours, stranger, other),
        // A name of ours is vouched for by nobody else, and ours for no other.
        (&[TD, NEW], &partner, new, no),
        (&[TD, NEW], &partner, old, no),
        (&[TD, NEW], &ours, foreign, no),
        (&[TD, NEW], &partner, foreign, None),
        // After: the old one is nobody's, though it is the one that we are known as here.
        (&[NEW], &ours, new, None),
        (&[NEW], &ours, old, other),
        (&[NEW], &partner, old, no),
    ] {
        assert_eq!(outcome(names, signer, name, &ours, &partner), want, "{name} where we are called {names:?}");
    }
}

#[test]
fn who_is_denied_is_denied_under_every_name() {
    let ours = mesh(TD);
    let denied = Denied::default();
    denied.set(Arc::new(DenyList::new([ours.identity("cart")], [])));
    let believed = ours.ca.roots().clone().called(TD.into(), vec![NEW.into(), TD.into()]).denying(&denied);
    let client = client_config(Some(&ours.svid("web")), &believed, ALPN, TD).unwrap();
    for (name, want) in [("cart", Some(Failure::Revoked)), ("other", None)] {
        let cart = claiming(&ours, &format!("spiffe://new.example/ns/shop/sa/{name}"));
        let server = server_config(&cart, ours.ca.roots(), ALPN, ClientAuth::Optional, TD).unwrap();
        assert_eq!(shake(&client, &server).0, want, "{name}");
    }
    let known = believed.known(Identity::new(NEW, "shop", "cart").unwrap());
    assert_eq!(known, ours.identity("cart"));
    let foreign = Identity::new(PARTNER, "shop", "cart").unwrap();
    assert_eq!(believed.known(foreign.clone()), foreign);
}

/// Which trust domain the server shows to whoever calls it by this name.
fn shown(server: &Arc<ServerConfig>, ours: &Mesh, name: &str) -> String {
    let any = ours.ca.roots().clone().called(TD.into(), vec![TD.into(), NEW.into()]);
    let mut config = (*client_config(None, &any, ALPN, TD).unwrap()).clone();
    config.alpn_protocols.clear();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    for _ in 0..4 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        while !bytes.is_empty() {
            let read = server.read_tls(&mut &*bytes).unwrap();
            bytes.drain(..read);
            server.process_new_packets().unwrap();
        }
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        while !bytes.is_empty() {
            let read = client.read_tls(&mut &*bytes).unwrap();
            bytes.drain(..read);
            client.process_new_packets().unwrap();
        }
    }
    peer_identity(client.peer_certificates()).unwrap().trust_domain.to_string()
}

#[test]
fn control_is_known_by_the_name_that_a_client_says() {
    let ours = mesh(TD);
    let ca = ours.ca.rename(NEW, false, SystemTime::now()).unwrap();
    let svids = ca.issue_control(&[], HOUR, SystemTime::now()).unwrap();
    let discovery = control_server_config(&svids, ca.roots(), TD).unwrap();
    let bundle = public_server_config(&svids, &[], NEW).unwrap();
    for (name, of_discovery, of_bundle) in [
        ("weft-control", TD, NEW),
        ("weft-control.cluster.local", TD, TD),
        ("weft-control.new.example", NEW, NEW),
        ("bundle.new.example", NEW, NEW),
        ("bundle.not-new.example", TD, NEW),
        ("notnew.example", TD, NEW),
        ("192.0.2.1", TD, NEW),
    ] {
        assert_eq!(shown(&discovery, &ours, name), of_discovery, "{name}");
        assert_eq!(shown(&bundle, &ours, name), of_bundle, "{name}");
    }
    assert_eq!(control_server_name(NEW), "weft-control.new.example");
    for odd in ["a..b", &"a".repeat(70), &["b"; 126].join(".")] {
        assert_eq!(control_server_name(odd), CONTROL_SERVER_NAME, "{odd}");
    }
}
