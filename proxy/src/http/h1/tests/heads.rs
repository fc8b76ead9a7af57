//! Heads as they leave.

use std::net::SocketAddr;

use weft_engine::head::{Asked, read_request, read_response};
use weft_engine::route::{HeaderEdit, Rewritten};

use super::super::heads::{Came, Introduced, Outgoing, Returning, request, response};

fn came(text: &str) -> Came {
    let mut fields = Vec::new();
    let head = read_request(text.as_bytes(), 1 << 16, &mut fields).unwrap().unwrap();
    assert_eq!(head.len, text.len());
    Came::new(text.into(), head, fields)
}

fn host() -> SocketAddr {
    "10.0.0.7:80".parse().unwrap()
}

// Out of our own application.
fn sent_with(text: &str, edits: &[&HeaderEdit]) -> String {
    String::from_utf8(request(
        &came(text),
        &Outgoing { peer: None, edits, host: host(), rewritten: Rewritten::default() },
    ))
    .unwrap()
}

fn sent(text: &str) -> String {
    sent_with(text, &[])
}

// To our own application.
fn given(text: &str, certificate: Option<&str>) -> String {
    let peer = Some(Introduced { certificate: certificate.map(str::as_bytes), address: b"10.0.0.9" });
    String::from_utf8(request(
        &came(text),
        &Outgoing { peer, edits: &[], host: host(), rewritten: Rewritten::default() },
    ))
    .unwrap()
}

// The fields of a GET with these.
fn fields(lines: &str) -> String {
    let out = sent(&format!("GET / HTTP/1.1\r\nHost: shop\r\n{lines}\r\n"));
    out.strip_prefix("GET / HTTP/1.1\r\nHost: shop\r\n").unwrap().to_owned()
}

fn edit(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderEdit {
    let pairs = |them: &[(&str, &str)]| them.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
    HeaderEdit { set: pairs(set), add: pairs(add), remove: remove.iter().map(|name| name.parse().unwrap()).collect() }
}

#[test]
fn what_concerns_nobody_passes_byte_for_byte() {
    let text = "PATCH /a%2f/../b?c=d&é HTTP/1.1\r\nhOsT: Shop:80\r\nX-CaSe: \"a, b\"\r\nx_y: 1\r\nx-case: 2\r\nContent-Length: 4\r\nEmpty: \r\n\r\n";
    assert_eq!(sent(text), text);
}

#[test]
fn what_concerns_one_connection_stays_there() {
    let lines = "Connection: keep-alive, X-Private,\tAuthorization\r\nX-PRIVATE: 1\r\nKeep-Alive: timeout=5\r\n\
        Proxy-Connection: keep-alive\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nauthorization: a\r\nAccept: */*\r\n";
    assert_eq!(fields(lines), "TE: trailers\r\nAccept: */*\r\n\r\n");
    assert_eq!(fields("TE: gzip\r\n"), "\r\n");
    // A field of its own each.
    assert_eq!(fields("Connection: close\r\nConnection: x-a\r\nX-A: 1\r\nX-B: 2\r\n"), "X-B: 2\r\n\r\n");
}

#[test]
fn framing_and_the_servers_name_are_not_a_clients_to_withdraw() {
    let text = |framing: &str| {
        format!(
            "POST / HTTP/1.1\r\nConnection: host, content-length, transfer-encoding, te\r\nHost: shop\r\n{framing}\r\n\r\n"
        )
    };
    assert_eq!(sent(&text("Content-Length: 4")), "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(
        sent(&text("Transfer-Encoding: ChunkeD")),
        "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
}

#[test]
fn targets_in_absolute_form_become_paths() {
    for (target, path) in
        [("http://shop/a?b", "/a?b"), ("http://shop", "/"), ("http://shop?b", "/?b"), ("/a:b//c", "/a:b//c")]
    {
        let out = sent(&format!("GET {target} HTTP/1.1\r\nHost: shop\r\n\r\n"));
        assert_eq!(out, format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n"));
    }
    assert_eq!(sent("OPTIONS * HTTP/1.1\r\nHost: shop\r\n\r\n"), "OPTIONS * HTTP/1.1\r\nHost: shop\r\n\r\n");
}

#[test]
fn an_old_client_gets_a_host_if_it_has_none() {
    assert_eq!(sent("GET /a HTTP/1.0\r\n\r\n"), "GET /a HTTP/1.1\r\nhost: 10.0.0.7:80\r\n\r\n");
    assert_eq!(sent("GET http://shop:81/a HTTP/1.0\r\n\r\n"), "GET /a HTTP/1.1\r\nhost: shop:81\r\n\r\n");
    assert_eq!(sent("GET /a HTTP/1.0\r\nHOST: x\r\n\r\n"), "GET /a HTTP/1.1\r\nHOST: x\r\n\r\n");
    let set = edit(&[("host", "y")], &[], &[]);
    assert_eq!(sent_with("GET /a HTTP/1.0\r\n\r\n", &[&set]), "GET /a HTTP/1.1\r\nhost: y\r\n\r\n");
    let removed = edit(&[], &[], &["host"]);
    assert_eq!(
        sent_with("GET / HTTP/1.1\r\nHost: x\r\n\r\n", &[&removed]),
        "GET / HTTP/1.1\r\nhost: 10.0.0.7:80\r\n\r\n"
    );
}

#[test]
fn expectations_pass_if_they_can_be_met() {
    assert_eq!(fields("Expect: 100-Continue\r\n"), "Expect: 100-Continue\r\n\r\n");
    assert_eq!(fields("Expect: more\r\n"), "\r\n");
    let old = sent("POST / HTTP/1.0\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n");
    assert!(!old.contains("Expect"), "{old}");
}

#[test]
fn only_who_asks_properly_leaves_http() {
    let upgrades = |lines: &str| came(&format!("GET / HTTP/1.1\r\nHost: shop\r\n{lines}\r\n")).upgrades;
    assert!(upgrades("Connection: Keep-Alive, UPGRADE\r\nUpgrade: websocket\r\n"));
    assert!(upgrades("Connection: close\r\nConnection: upgrade\r\nUpgrade: a/1, b\r\n"));
    for lines in [
        "Upgrade: websocket\r\n",
        "Connection: upgrade\r\n",
        "Connection: upgrade\r\nUpgrade: \r\n",
        "Connection: upgrade\r\nUpgrade: H2C\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: foo,h2c\r\n",
    ] {
        assert!(!upgrades(lines), "{lines}");
        assert!(!fields(lines).contains("pgrade"), "{lines}");
    }
    assert!(!came("GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").upgrades);
    let lines = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n";
    assert_eq!(fields(lines), "Upgrade: websocket\r\nSec-WebSocket-Key: a\r\nconnection: upgrade\r\n\r\n");
    let connect = "CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(!came(connect).upgrades && came(connect).is_connect());
    assert_eq!(sent(connect), "CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\n\r\n");
}

#[test]
fn connections_go_on_if_the_client_says_so() {
    for (lines, keeps) in [
        ("1.1\r\nHost: a\r\n", true),
        ("1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n", false),
        ("1.0\r\n", false),
        ("1.0\r\nConnection: Keep-Alive\r\n", true),
        ("1.0\r\nConnection: keep-alive, close\r\n", false),
    ] {
        assert_eq!(came(&format!("GET / HTTP/{lines}\r\n")).keeps_alive(), keeps, "{lines}");
    }
}

#[test]
fn an_application_learns_its_peer_from_us_alone() {
    let forged = "X-Forwarded-Client-Cert: URI=admin\r\nx_forwarded_client_cert: URI=admin\r\nX-Weft-Reason: a\r\nx_weft_b: c\r\n\
        X-Forwarded_For: 1.1.1.1\r\nX-Wefted: 1\r\n";
    let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{forged}\r\n");
    let plain = given(&text, None);
    assert_eq!(plain, "GET / HTTP/1.1\r\nHost: a\r\nX-Wefted: 1\r\nx-forwarded-for: 10.0.0.9\r\n\r\n");
    let proved = given(&text, Some("By=x;URI=y"));
    assert!(proved.contains("\r\nx-forwarded-client-cert: By=x;URI=y\r\n"), "{proved}");
    // Nor is it the peer's to withdraw what we say.
    let text = "GET / HTTP/1.1\r\nHost: a\r\nConnection: x-forwarded-client-cert, x-forwarded-for\r\n\r\n";
    let proved = given(text, Some("URI=y"));
    assert!(proved.contains("client-cert: URI=y\r\nx-forwarded-for: 10.0.0.9\r\n"), "{proved}");
}

#[test]
fn addresses_are_one_list_to_which_ours_is_added() {
    for (lines, list) in [
        ("X-Forwarded-For: 1.1.1.1\r\n", "1.1.1.1, 10.0.0.9"),
        (
            "X-Forwarded-For: 1.1.1.1, 2.2.2.2\r\nX: y\r\nx-FORWARDED-for: 3.3.3.3\r\n",
            "1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.9",
        ),
        ("X-Forwarded-For: \r\n", "10.0.0.9"),
        ("Connection: x-forwarded-for\r\nX-Forwarded-For: 1.1.1.1\r\n", "10.0.0.9"),
    ] {
        let out = given(&format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"), None);
        assert!(out.ends_with(&format!("\r\nx-forwarded-for: {list}\r\n\r\n")), "{out}");
        assert_eq!(out.to_lowercase().matches("forwarded-for").count(), 1, "{out}");
    }
}

#[test]
fn edits_are_made_in_their_order_whatever_the_case() {
    let route = edit(&[("x-set", "1")], &[("x-add", "2")], &["x-gone"]);
    let backend = edit(&[("x-gone", "3")], &[("x-set", "4"), ("x-add", "5")], &[]);
    let text = "GET / HTTP/1.1\r\nHost: a\r\nX-Set: 0\r\nX-SET: 00\r\nX-Add: 0\r\nX-Gone: 0\r\nX-Kept: 0\r\n\r\n";
    let out = sent_with(text, &[&route, &backend]);
    let mut lines: Vec<&str> = out.trim_end().split("\r\n").skip(2).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["X-Kept: 0", "x-add: 0", "x-add: 2", "x-add: 5", "x-gone: 3", "x-set: 1", "x-set: 4"], "{out}");
    let only = edit(&[], &[], &["x-none"]);
    assert_eq!(sent_with(text, &[&only]), text);
}

// A response of these bytes for a client.
fn back(text: &str, asked: Asked, returning: &Returning<'_>) -> String {
    let mut fields = Vec::new();
    let head = read_response(text.as_bytes(), 1 << 16, asked, &mut fields).unwrap().unwrap();
    String::from_utf8(response(text.as_bytes(), &head, &fields, returning)).unwrap()
}

const PLAIN: Returning<'_> = Returning { meshed: false, edits: &[], close: false, http11: true, leaves: false };

#[test]
fn responses_pass_but_for_what_concerns_one_connection() {
    let text = "HTTP/1.1 200\r\nConnection: close, x-a\r\nX-A: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nSet-Cookie: a\r\nSET-cookie: b\r\n\
        X-Weft-Reason: not_processed\r\nContent-Length: 4\r\n\r\n";
    let passes = "HTTP/1.1 200 \r\nSet-Cookie: a\r\nSET-cookie: b\r\nContent-Length: 4\r\n";
    assert_eq!(back(text, Asked::Other, &PLAIN), format!("{passes}\r\n"));
    assert_eq!(
        back(text, Asked::Other, &Returning { close: true, ..PLAIN }),
        format!("{passes}connection: close\r\n\r\n")
    );
    let meshed = back(text, Asked::Other, &Returning { meshed: true, ..PLAIN });
    assert!(meshed.contains("X-Weft-Reason: not_processed\r\n"), "{meshed}");
    let old = Returning { http11: false, ..PLAIN };
    assert_eq!(back(text, Asked::Other, &old), format!("{passes}connection: keep-alive\r\n\r\n"));
    let lf = back("HTTP/1.0 404 Not here\nA: b\n\n", Asked::Other, &PLAIN);
    assert_eq!(lf, "HTTP/1.1 404 Not here\r\nA: b\r\n\r\n");
}

#[test]
fn edits_of_responses() {
    let made = edit(&[("server", "weft")], &[("x-add", "1")], &["x-powered-by"]);
    let text = "HTTP/1.1 200 OK\r\nServer: a\r\nX-Powered-By: b\r\nContent-Length: 0\r\n\r\n";
    let out = back(text, Asked::Other, &Returning { edits: &[&made], ..PLAIN });
    assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nserver: weft\r\nx-add: 1\r\n\r\n");
}

#[test]
fn a_response_says_its_length_once_and_in_one_way() {
    for (lines, asked, said) in [
        ("200 OK\r\nContent-Length: 4, 4\r\n", Asked::Other, "Content-Length: 4\r\n"),
        ("200 OK\r\nContent-Length: 4\r\nX: y\r\ncontent-length: 4\r\n", Asked::Other, "Content-Length: 4\r\nX: y\r\n"),
        (
            "200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
            Asked::Other,
            "Transfer-Encoding: chunked\r\n",
        ),
        ("200 OK\r\nContent-Length: 4,4\r\n", Asked::Head, "Content-Length: 4\r\n"),
        ("304 No\r\nContent-Length: 4\r\n", Asked::Other, "Content-Length: 4\r\n"),
        ("204 No\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n", Asked::Other, ""),
        ("103 Hints\r\nContent-Length: 4\r\nLink: a\r\n", Asked::Other, "Link: a\r\n"),
    ] {
        let out = back(&format!("HTTP/1.1 {lines}\r\n"), asked, &PLAIN);
        assert!(out.ends_with(&format!("\r\n{said}\r\n")), "{lines}: {out}");
        assert_eq!(out.matches("\r\n").count(), said.matches("\r\n").count() + 2, "{lines}: {out}");
    }
    // The client does not know chunks, and gets none.
    let old = Returning { http11: false, close: true, ..PLAIN };
    let out = back("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Asked::Other, &old);
    assert_eq!(out, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
}

#[test]
fn what_leaves_http_is_told_so() {
    let leaving = Returning { leaves: true, ..PLAIN };
    let out = back("HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", Asked::Other, &leaving);
    assert_eq!(out, "HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nconnection: upgrade\r\n\r\n");
    let out = back("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nUpgrade: a\r\nX: y\r\n\r\n", Asked::Connect, &leaving);
    assert_eq!(out, "HTTP/1.1 200 OK\r\nX: y\r\n\r\n");
}

#[test]
fn a_rewritten_head_says_the_new_path_and_name() {
    let name = "b.example".parse().unwrap();
    let rewritten = |host, path: Option<&str>| Rewritten { host, path: path.map(str::to_owned) };
    let sent = |text: &str, rewritten| {
        let outgoing = Outgoing { peer: None, edits: &[], host: host(), rewritten };
        String::from_utf8(request(&came(text), &outgoing)).unwrap()
    };
    let text = "GET /a?b=c HTTP/1.1\r\nX-A: 1\r\nHost: shop:80\r\n\r\n";
    assert_eq!(sent(text, rewritten(None, Some("/new"))), text.replace("/a?", "/new?"));
    let named = "GET /a?b=c HTTP/1.1\r\nX-A: 1\r\nhost: b.example\r\n\r\n";
    assert_eq!(sent(text, rewritten(Some(&name), None)), named);
    let absolute = "GET http://shop/a HTTP/1.1\r\nHost: shop\r\n\r\n";
    let wanted = "GET /n HTTP/1.1\r\nhost: b.example\r\n\r\n";
    assert_eq!(sent(absolute, rewritten(Some(&name), Some("/n"))), wanted);
    // HTTP/1.0 may say no name.
    assert_eq!(sent("GET / HTTP/1.0\r\n\r\n", rewritten(Some(&name), Some("/n"))), wanted);
}
