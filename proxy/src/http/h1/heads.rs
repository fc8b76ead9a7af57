//! Heads as they leave: what came, byte for byte, but for what a proxy must change.
//!
//! Invariants
//! - Names keep their case and fields their order.
//! - Fields that concern one connection only (RFC 9110 section 7.6.1), and those that `Connection` names, never pass to the next. Framing and
//!   the name of the server are not a client's to withdraw.
//! - What tells an application who its peer is comes from us alone.

use std::io::Write;
use std::net::SocketAddr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use weft_engine::head::{Field, Kind, RequestHead, ResponseBody, ResponseHead, tokens};
use weft_engine::route::{HeaderEdit, Rewritten};

/// A request's head as it came.
#[derive(Debug)]
pub struct Came {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// What they say.
    pub head: RequestHead,
    /// Their fields.
    pub fields: Vec<Field>,
    /// Whether it asks for another protocol by `Upgrade`. One that names `h2c` does not, whatever else it names: RFC 9113 dropped that, and
    /// an application that took it up would get requests that nobody has authorized.
    pub upgrades: bool,
}

impl Came {
    /// A head that was read.
    pub fn new(bytes: Vec<u8>, head: RequestHead, fields: Vec<Field>) -> Self {
        let mut came = Self { bytes, head, fields, upgrades: false };
        came.upgrades = head.http11 && !came.is_connect() && came.wants_upgrade();
        came
    }

    fn wants_upgrade(&self) -> bool {
        let mut protocols = self.values(Kind::Upgrade).flat_map(tokens).peekable();
        protocols.peek().is_some()
            && !protocols.any(|it| it.eq_ignore_ascii_case(b"h2c"))
            && self.connection(b"upgrade")
    }

    /// Whether it asks for a tunnel.
    pub fn is_connect(&self) -> bool {
        self.head.method.of(&self.bytes) == b"CONNECT"
    }

    /// Whether its client waits for `100 Continue` before it sends the body.
    pub fn waits(&self) -> bool {
        self.values(Kind::Expect).next().is_some()
    }

    fn connection(&self, option: &[u8]) -> bool {
        self.values(Kind::Connection).flat_map(tokens).any(|it| it.eq_ignore_ascii_case(option))
    }

    fn values(&self, kind: Kind) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |field| field.kind == kind).map(|field| field.value.of(&self.bytes))
    }

    /// Whether its connection can take another request afterwards, as far as the client is concerned.
    pub fn keeps_alive(&self) -> bool {
        !self.connection(b"close") && (self.head.http11 || self.connection(b"keep-alive"))
    }

    /// By what name its client calls the server, with its port; empty if it says none.
    pub fn called(&self) -> &[u8] {
        self.values(Kind::Host).next().or_else(|| self.authority()).unwrap_or_default()
    }

    // What a target in absolute form names.
    fn authority(&self) -> Option<&[u8]> {
        let before_path = &self.bytes[self.head.target.start as usize..self.head.origin_form().start as usize];
        before_path.splitn(2, |b| *b == b':').nth(1)?.strip_prefix(b"//")
    }

    /// Whether it is a gRPC call, whose refusals are gRPC's.
    pub fn is_grpc(&self) -> bool {
        self.values(Kind::ContentType).next().is_some_and(|value| value.starts_with(b"application/grpc"))
    }
}

/// A peer, as an application is told of it.
#[derive(Clone, Copy)]
pub struct Introduced<'a> {
    /// `X-Forwarded-Client-Cert`; `None`: it has shown no certificate.
    pub certificate: Option<&'a [u8]>,
    /// Its address.
    pub address: &'a [u8],
}

/// What a request's head gets besides what came.
pub struct Outgoing<'a> {
    /// Inbound: the application is told who its peer is.
    pub peer: Option<Introduced<'a>>,
    /// Of the route, in their order.
    pub edits: &'a [&'a HeaderEdit],
    /// The server's address for a client that did not say its name: HTTP/1.0 may leave it out, HTTP/1.1 may not.
    pub host: SocketAddr,
    /// By the route; nothing of CONNECT.
    pub rewritten: Rewritten<'a>,
}

/// A request's head for the next hop.
pub fn request(came: &Came, outgoing: &Outgoing<'_>) -> Vec<u8> {
    let Came { bytes, head, fields, .. } = came;
    let mut out = Vec::with_capacity(head.len + 256);
    request_line(&mut out, came, outgoing.rewritten.path.as_deref());
    let dropped = Dropped::new(bytes, fields, outgoing.edits);
    let mut addresses = Vec::new();
    let mut named = false;
    for field in fields {
        let value = field.value.of(bytes);
        match field.kind {
            Kind::Connection | Kind::KeepAlive | Kind::ProxyConnection | Kind::Http2Settings => {}
            Kind::Upgrade if !came.upgrades => {}
            Kind::Host if outgoing.rewritten.host.is_some() => {}
            // The only one there is (RFC 9110 section 10.1.1). Who asks in HTTP/1.0 does not know what it asks for.
            Kind::Expect if !head.http11 || !value.eq_ignore_ascii_case(b"100-continue") => {}
            // Whatever its case was: there are servers that look for this one.
            Kind::TransferEncoding => push(&mut out, field.name.of(bytes), b"chunked"),
            Kind::ClientCert | Kind::Ours if outgoing.peer.is_some() => {}
            Kind::Te => {
                if tokens(value).any(|coding| coding.eq_ignore_ascii_case(b"trailers")) {
                    push(&mut out, field.name.of(bytes), b"trailers");
                }
            }
            Kind::ForwardedFor if outgoing.peer.is_some() && !dropped.drops(bytes, field) => {
                if !value.is_empty() {
                    addresses.extend_from_slice(value);
                    addresses.extend_from_slice(b", ");
                }
            }
            _ if dropped.drops(bytes, field) => {}
            kind => {
                named |= kind == Kind::Host;
                push(&mut out, field.name.of(bytes), value);
            }
        }
    }
    if let Some(host) = outgoing.rewritten.host {
        push(&mut out, b"host", host.as_bytes());
    } else if !named && !dropped.sets(&http::header::HOST) {
        push_host(&mut out, came.authority(), outgoing.host);
    }
    if came.upgrades {
        push(&mut out, b"connection", b"upgrade");
    }
    if let Some(peer) = outgoing.peer {
        if let Some(certificate) = peer.certificate {
            push(&mut out, b"x-forwarded-client-cert", certificate);
        }
        addresses.extend_from_slice(peer.address);
        push(&mut out, b"x-forwarded-for", &addresses);
    }
    dropped.finish(&mut out);
    out
}

fn request_line(out: &mut Vec<u8>, came: &Came, path: Option<&str>) {
    let Came { bytes, head, .. } = came;
    out.extend_from_slice(head.method.of(bytes));
    out.push(b' ');
    if came.is_connect() {
        out.extend_from_slice(head.target.of(bytes));
    } else if let Some(path) = path {
        out.extend_from_slice(path.as_bytes());
        if let Some(query) = head.query(bytes) {
            out.push(b'?');
            out.extend_from_slice(query.as_bytes());
        }
    } else {
        // RFC 9112 section 3.2.1; what an absolute form says besides is in `Host`, or we would not be here.
        if head.needs_slash(bytes) {
            out.push(b'/');
        }
        out.extend_from_slice(head.origin_form().of(bytes));
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

fn push_host(out: &mut Vec<u8>, authority: Option<&[u8]>, address: SocketAddr) {
    match authority {
        Some(authority) => push(out, b"host", authority),
        None => {
            // Writing into memory does not fail.
            let _ = write!(out, "host: {address}\r\n");
        }
    }
}

/// What a response's head depends on besides what came.
pub struct Returning<'a> {
    /// Fields of the mesh (`x-weft-`, identities) are this sender's to say.
    pub meshed: bool,
    /// Of the route, in their order.
    pub edits: &'a [&'a HeaderEdit],
    /// The connection ends with it, as far as the client is told.
    pub close: bool,
    /// The client speaks HTTP/1.1.
    pub http11: bool,
    /// The response ends HTTP on this connection: it grants an upgrade, or a tunnel.
    pub leaves: bool,
}

/// A response's head for the client.
pub fn response(bytes: &[u8], head: &ResponseHead, fields: &[Field], returning: &Returning<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.len + 64);
    status_line(&mut out, head.status, head.reason.of(bytes));
    let dropped = Dropped::new(bytes, fields, returning.edits);
    let upgrades = returning.leaves && head.status == 101;
    // What can have no body has no length either (RFC 9110 section 8.6, RFC 9112 section 6.1); not every client knows.
    let unframed = returning.leaves || matches!(head.status, 100..=199 | 204);
    let mut length_said = unframed || head.body == ResponseBody::Chunked;
    for field in fields {
        match field.kind {
            Kind::Connection | Kind::KeepAlive | Kind::ProxyConnection | Kind::Http2Settings => {}
            Kind::Upgrade if !upgrades => {}
            Kind::ClientCert | Kind::Ours if !returning.meshed => {}
            Kind::TransferEncoding if unframed || !returning.http11 => {}
            // Said several times it is the same; clients take it once.
            Kind::ContentLength => {
                if !length_said && let Some(length) = tokens(field.value.of(bytes)).next() {
                    push(&mut out, field.name.of(bytes), length);
                    length_said = true;
                }
            }
            _ if dropped.drops(bytes, field) => {}
            _ => push(&mut out, field.name.of(bytes), field.value.of(bytes)),
        }
    }
    let connection: &[u8] = match returning {
        _ if upgrades => b"upgrade",
        Returning { leaves: true, .. } => b"",
        Returning { close: true, .. } => b"close",
        Returning { http11: false, .. } => b"keep-alive",
        _ => b"",
    };
    if !connection.is_empty() {
        push(&mut out, b"connection", connection);
    }
    dropped.finish(&mut out);
    out
}

/// The first line of a response.
pub fn status_line(out: &mut Vec<u8>, status: u16, phrase: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    let digit = |n: u16| b'0' + (n % 10) as u8;
    out.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status), b' ']);
    out.extend_from_slice(phrase);
    out.extend_from_slice(b"\r\n");
}

/// One field.
pub fn push(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

// Fields that do not pass as they came, and what the route's edits make of them.
struct Dropped<'a> {
    nominated: Vec<&'a [u8]>,
    edited: HeaderMap,
    touched: Vec<&'a HeaderName>,
}

impl<'a> Dropped<'a> {
    fn new(bytes: &'a [u8], fields: &[Field], edits: &[&'a HeaderEdit]) -> Self {
        let mut nominated = Vec::new();
        for field in fields.iter().filter(|field| field.kind == Kind::Connection) {
            let plain =
                |name: &[u8]| [&b"keep-alive"[..], b"close", b"upgrade"].iter().any(|it| name.eq_ignore_ascii_case(it));
            nominated.extend(tokens(field.value.of(bytes)).filter(|name| !plain(name)));
        }
        let (mut touched, mut edited) = (Vec::new(), HeaderMap::new());
        if !edits.is_empty() {
            for edit in edits {
                touched.extend(edit.set.iter().map(|(name, _)| name));
                touched.extend(edit.add.iter().map(|(name, _)| name));
                touched.extend(edit.remove.iter());
            }
            for field in fields {
                let name = field.name.of(bytes);
                let value = HeaderValue::from_bytes(field.value.of(bytes));
                if let (Some(name), Ok(value)) =
                    (touched.iter().find(|it| name.eq_ignore_ascii_case(it.as_str().as_bytes())), value)
                {
                    edited.append((*name).clone(), value);
                }
            }
            for edit in edits {
                edit.apply(&mut edited);
            }
        }
        Self { nominated, edited, touched }
    }

    fn drops(&self, bytes: &[u8], field: &Field) -> bool {
        if self.nominated.is_empty() && self.touched.is_empty() {
            return false;
        }
        let name = field.name.of(bytes);
        let kept =
            [Kind::Host, Kind::ContentLength, Kind::TransferEncoding, Kind::Upgrade, Kind::Te].contains(&field.kind);
        !kept && self.nominated.iter().any(|it| it.eq_ignore_ascii_case(name))
            || self.touched.iter().any(|it| it.as_str().as_bytes().eq_ignore_ascii_case(name))
    }

    fn sets(&self, name: &HeaderName) -> bool {
        self.edited.contains_key(name)
    }

    // What the edits have made, and the end of the head.
    fn finish(&self, out: &mut Vec<u8>) {
        for (name, value) in &self.edited {
            push(out, name.as_str().as_bytes(), value.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
}
