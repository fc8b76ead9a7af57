//! Every way in which a handshake fails has its word: each made to happen, for the side that refuses and the one that is refused.

use rustls::{ClientConnection, ServerConnection};

use super::pins::{give, written};
use super::*;
use crate::failure::Failure;

/// What each side's handshake ended with; `None`: it did not.
pub(super) fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (Option<Failure>, Option<Failure>) {
    let mut client = ClientConnection::new(Arc::clone(client), "web.shop.80.weft".try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let (mut of_client, mut of_server) = (None, None);
    for _ in 0..4 {
        give(&mut server, &written(&mut client));
        of_server = of_server.or(server.process_new_packets().err());
        give(&mut client, &written(&mut server));
        of_client = of_client.or(client.process_new_packets().err());
    }
    (of_client.map(|error| Failure::of_tls(&error)), of_server.map(|error| Failure::of_tls(&error)))
}

#[test]
fn who_refuses_says_why_and_who_is_refused_says_that() {
    let (ours, theirs) = (mesh(TD), mesh(TD));
    let now = SystemTime::now();
    let good = ours.svid("web");
    for (bad, failure) in [
        (theirs.svid("web"), Failure::Untrusted),
        (ours.svid_at("web", now - 2 * HOUR), Failure::Expired),
        (ours.svid_at("web", now + 2 * HOUR), Failure::NotYetValid),
    ] {
        let server = server_config(&bad, ours.ca.roots(), ALPN, ClientAuth::Required, TD).unwrap();
        assert_eq!(shake(&ours.client(Some(&good)), &server), (Some(failure), Some(Failure::RefusedByPeer)));
        let client = client_config(Some(&bad), ours.ca.roots(), ALPN, TD).unwrap();
        let server = ours.server(&good, ClientAuth::Required);
        assert_eq!(shake(&client, &server), (Some(Failure::RefusedByPeer), Some(failure)));
    }
}

#[test]
fn names_are_told_from_chains() {
    let (ours, theirs) = (mesh(TD), mesh("other.example"));
    let both = Roots::from_pem(&format!("{}{}", ours.ca.root_pem(), theirs.ca.root_pem())).unwrap();
    let (web, foreign) = (ours.svid("web"), theirs.svid("web"));
    let client = client_config(Some(&foreign), &both, ALPN, TD).unwrap();
    let server = server_config(&web, &both, ALPN, ClientAuth::Required, TD).unwrap();
    assert_eq!(shake(&client, &server).1, Some(Failure::OtherTrustDomain));

    let client = client_config_for(&ours.identity("admin"), Some(&web), ours.ca.roots(), ALPN).unwrap();
    assert_eq!(shake(&client, &ours.server(&web, ClientAuth::Required)).0, Some(Failure::UnexpectedIdentity));

    let nameless = Arc::new(odd_svid(&ours, vec![SanType::DnsName("web.shop.80.weft".try_into().unwrap())]));
    let mut client = ClientConfig::clone(&ours.client(None));
    client.client_auth_cert_resolver = nameless;
    let server = ours.server(&web, ClientAuth::Required);
    assert_eq!(shake(&Arc::new(client), &server).1, Some(Failure::Untrusted));
}

#[test]
fn no_certificate_and_no_protocol_in_common() {
    let mesh = mesh(TD);
    let web = mesh.svid("web");
    let server = mesh.server(&web, ClientAuth::Required);
    assert_eq!(shake(&mesh.client(None), &server), (Some(Failure::RefusedByPeer), Some(Failure::NoCertificate)));
    let client = client_config(Some(&web), mesh.ca.roots(), &[b"h2"], TD).unwrap();
    assert_eq!(shake(&client, &server), (Some(Failure::RefusedByPeer), Some(Failure::Protocol)));
    let mut server = ServerConnection::new(server).unwrap();
    give(&mut server, b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(Failure::of_tls(&server.process_new_packets().unwrap_err()), Failure::Protocol);
}
