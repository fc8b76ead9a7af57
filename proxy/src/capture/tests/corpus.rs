//! Requests that two parsers could read differently, one line of table each: what is sent, and what may come of it.
//!
//! Sections are those of RFC 9112 where nothing else is said. `good` stands in what may reach the application, `smuggled` in what
//! must not reach it as a request of its own.

use std::borrow::Cow;

/// What may come of a case.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// This status, then the end; nothing reaches the application.
    Refused(u16),
    /// The end, with this status or without; nothing reaches the application.
    Ended(u16),
    /// Exactly these requests reach the application, each by its first line without version and its body.
    Passes(&'static [(&'static str, &'static str)]),
    /// This request, then this status for what is behind it, and the end.
    Then(&'static str, u16),
    /// The end; a request that has begun at the application never becomes whole.
    Cut,
}

/// One row.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    pub rfc: &'static str,
    pub bytes: Cow<'static, [u8]>,
    pub expect: Expect,
    /// In the clear it is not recognised as HTTP, so where nobody has declared the port it passes as opaque bytes, each as it was.
    pub opaque: bool,
    /// The client says no more after it, and ends.
    pub last: bool,
}

impl Case {
    fn opaque(self) -> Self {
        Self { opaque: true, ..self }
    }

    fn last(self) -> Self {
        Self { last: true, ..self }
    }
}

fn row(name: &'static str, rfc: &'static str, bytes: impl Into<Cow<'static, [u8]>>, expect: Expect) -> Case {
    Case { name, rfc, bytes: bytes.into(), expect, opaque: false, last: false }
}

const BAD: Expect = Expect::Refused(400);
const LARGE: Expect = Expect::Refused(431);
const GET: Expect = Expect::Passes(&[("GET /good", "")]);
const POST: Expect = Expect::Passes(&[("POST /good", "body")]);
const CUT: Expect = Expect::Cut;

/// A POST with these fields (each ends with CRLF), an empty line, and this body.
macro_rules! post {
    ($fields:expr, $body:expr) => {
        concat!("POST /good HTTP/1.1\r\nHost: shop\r\n", $fields, "\r\n", $body).as_bytes()
    };
}

/// A POST whose body is what follows `Transfer-Encoding: chunked`.
macro_rules! chunked {
    ($body:expr) => {
        post!("Transfer-Encoding: chunked\r\n", $body)
    };
}

/// A GET with these fields.
macro_rules! get {
    ($fields:expr) => {
        concat!("GET /good HTTP/1.1\r\nHost: shop\r\n", $fields, "\r\n").as_bytes()
    };
}

/// A GET with this `Host` line or lines.
macro_rules! host {
    ($lines:expr) => {
        concat!("GET /good HTTP/1.1\r\n", $lines, "\r\n").as_bytes()
    };
}

/// A whole request of this first line.
macro_rules! line {
    ($line:expr) => {
        concat!($line, "\r\nHost: shop\r\n\r\n").as_bytes()
    };
}

/// All of it: heads, then what says where a body ends, then bodies.
pub fn cases() -> Vec<Case> {
    let parts = [heads::cases(), lengths(), codings(), chunks(), trailers(), bodies(), bounds()];
    parts.into_iter().flatten().collect()
}

mod heads;

fn lengths() -> Vec<Case> {
    vec![
        row(
            "length beside coding",
            "6.1",
            post!("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            BAD,
        ),
        row(
            "coding beside length",
            "6.1",
            post!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
            BAD,
        ),
        row("the same length twice", "6.3", post!("Content-Length: 4\r\nContent-Length: 4\r\n", "body"), BAD),
        row("two lengths", "6.3", post!("Content-Length: 4\r\nContent-Length: 0\r\n", "body"), BAD),
        row("two lengths apart", "6.3", post!("content-length: 0\r\nX: y\r\nCONTENT-LENGTH: 4\r\n", "body"), BAD),
        row("list of lengths", "6.3", post!("Content-Length: 4, 4\r\n", "body"), BAD),
        row("length with plus", "9110 8.6", post!("Content-Length: +4\r\n", "body"), BAD),
        row("length with minus", "9110 8.6", post!("Content-Length: -4\r\n", "body"), BAD),
        row("length with space within", "9110 8.6", post!("Content-Length: 4 4\r\n", "body"), BAD),
        row("length in hex", "9110 8.6", post!("Content-Length: 0x4\r\n", "body"), BAD),
        row("length of letters", "9110 8.6", post!("Content-Length: 4e0\r\n", "body"), BAD),
        row("length with point", "9110 8.6", post!("Content-Length: 4.0\r\n", "body"), BAD),
        row("length with parameter", "9110 8.6", post!("Content-Length: 4;x=y\r\n", "body"), BAD),
        row("length with underscore", "9110 8.6", post!("Content-Length: 0_4\r\n", "body"), BAD),
        row("length beyond 64 bits", "9110 8.6", post!("Content-Length: 18446744073709551620\r\n", "body"), BAD),
        row("length of nothing", "9110 8.6", post!("Content-Length:\r\n", "body"), BAD),
        row("length behind vertical tab", "5.1", post!("Content-Length: \x0b4\r\n", "body"), BAD),
        row(
            "length behind no-break space",
            "5.1",
            &b"POST /good HTTP/1.1\r\nHost: shop\r\nContent-Length: \xa04\r\n\r\nbody"[..],
            BAD,
        ),
        row("length in fullwidth digits", "9110 8.6", post!("Content-Length: \u{ff14}\r\n", "body"), BAD),
        row("length with underscore in the name", "CGI 4.1.18", post!("Content_Length: 4\r\n", ""), BAD),
        row("length in optional space", "5.1", post!("Content-Length: \t 4 \t\r\n", "body"), POST),
        row("length with leading zeros", "9110 8.6", post!("Content-Length: 0004\r\n", "body"), POST),
    ]
}

fn codings() -> Vec<Case> {
    const BODY: &str = "4\r\nbody\r\n0\r\n\r\n";
    let coding = |name, value: &str| {
        let bytes =
            format!("POST /good HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding:{value}\r\n\r\n{BODY}").into_bytes();
        row(name, "6.1", bytes, BAD)
    };
    let legal = |name, value: &str| Case { expect: POST, ..coding(name, value) };
    vec![
        coding("two codings", " gzip, chunked"),
        coding("chunked and identity", " chunked, identity"),
        coding("chunked twice in a list", " chunked, chunked"),
        coding("chunked twice", " chunked\r\nTransfer-Encoding: chunked"),
        coding("chunked, then identity", " chunked\r\nTransfer-Encoding: identity"),
        coding("identity, then chunked", " identity\r\nTransfer-Encoding: chunked"),
        coding("identity", " identity"),
        coding("xchunked", " xchunked"),
        coding("chunked with a letter more", " chunkedx"),
        coding("chunked with a parameter", " chunked;q=1"),
        coding("chunked in quotes", " \"chunked\""),
        coding("chunked and a comma", " chunked,"),
        coding("a comma and chunked", " , chunked"),
        coding("chunked behind vertical tab", " \x0bchunked"),
        coding("chunked before vertical tab", " chunked\x0b"),
        coding("chunked before form feed", " chunked\x0c"),
        coding("chunked behind no-break space", " \u{a0}chunked"),
        coding("chunked with a byte of zero", " chunked\0"),
        coding("chunked folded", "\r\n chunked"),
        coding("chunked folded by a tab", "\r\n\tchunked"),
        coding("no coding", ""),
        coding("chunked behind bare CR", " \rchunked"),
        row(
            "coding in HTTP/1.0",
            "6.1",
            &b"POST /good HTTP/1.0\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..],
            BAD,
        ),
        row("coding before the colon's space", "5.1", post!("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), BAD),
        row("coding before the colon's tab", "5.1", post!("Transfer-Encoding\t: chunked\r\n", "0\r\n\r\n"), BAD),
        row("coding behind a space", "5.1", post!("X: y\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), BAD),
        row(
            "coding with a byte of zero in its name",
            "5.1",
            post!("Transfer-Encoding\0: chunked\r\n", "0\r\n\r\n"),
            BAD,
        ),
        row(
            "coding with underscore in its name",
            "CGI 4.1.18",
            post!("Transfer_Encoding: chunked\r\n", "0\r\n\r\n"),
            BAD,
        ),
        row(
            "coding with underscore beside length",
            "CGI 4.1.18",
            post!("Content-Length: 4\r\nTransfer_Encoding: chunked\r\n", "body"),
            BAD,
        ),
        legal("chunked", " chunked"),
        legal("chunked without space", "chunked"),
        legal("chunked in capitals", " CHUNKED"),
        legal("chunked behind a tab", "\tchunked"),
        legal("chunked in optional space", " \t chunked \t"),
    ]
}

fn chunks() -> Vec<Case> {
    vec![
        row("a chunk of 2^64 and more", "7.1", chunked!("10000000000000004\r\nbody\r\n0\r\n\r\n"), CUT),
        row("a chunk of 2^64-1", "7.1", chunked!("ffffffffffffffff\r\nbody\r\n0\r\n\r\n"), CUT),
        row(
            "a chunk of hundreds of zeros",
            "7.1",
            chunked!("000000000000000000000000000000000000000000000000000004\r\nbody\r\n0\r\n\r\n"),
            CUT,
        ),
        row("a size with 0x", "7.1", chunked!("0x4\r\nbody\r\n0\r\n\r\n"), CUT),
        row("a size with plus", "7.1", chunked!("+4\r\nbody\r\n0\r\n\r\n"), CUT),
        row("a size with minus", "7.1", chunked!("-4\r\nbody\r\n0\r\n\r\n"), CUT),
        row("a size with underscore", "7.1", chunked!("0_4\r\nbody\r\n0\r\n\r\n"), CUT),
        row("a size behind a space", "7.1", chunked!(" 4\r\nbody\r\n0\r\n\r\n"), CUT),
        row("no size", "7.1", chunked!("\r\nbody\r\n0\r\n\r\n"), CUT),
        row("a size of other letters", "7.1", chunked!("g\r\nbody\r\n0\r\n\r\n"), CUT),
        row("a size that ends with LF", "7.1", chunked!("4\nbody\r\n0\r\n\r\n"), CUT),
        row("a size that ends with CR", "7.1", chunked!("4\rbody\r\n0\r\n\r\n"), CUT),
        row("an extension with LF", "7.1.1", chunked!("4;x\nGET /smuggled HTTP/1.1\r\nbody\r\n0\r\n\r\n"), CUT),
        row("an extension with CR", "7.1.1", chunked!("4;x\ry\r\nbody\r\n0\r\n\r\n"), CUT),
        row("no CRLF behind a chunk", "7.1", chunked!("4\r\nbody0\r\n\r\n"), CUT),
        row("LF behind a chunk", "7.1", chunked!("4\r\nbody\n0\r\n\r\n"), CUT),
        row("two bytes for the CRLF behind a chunk", "7.1", chunked!("4\r\nbodyxx0\r\n\r\n"), CUT),
        row("a chunk longer than its size", "7.1", chunked!("4\r\nbodyGET /smuggled HTTP/1.1\r\n0\r\n\r\n"), CUT),
        row("the last chunk ends with LF", "7.1", chunked!("4\r\nbody\r\n0\n\r\n"), CUT),
        row("the last line ends with LF", "7.1", chunked!("4\r\nbody\r\n0\r\n\n"), CUT),
        row("the last line is a CR", "7.1", chunked!("4\r\nbody\r\n0\r\n\rX"), CUT),
        row("an extension", "7.1.1", chunked!("4;x=\"y\"\r\nbody\r\n0\r\n\r\n"), POST),
        row("space behind a size", "7.1", chunked!("4 \r\nbody\r\n0\r\n\r\n"), POST),
        row("capitals and zeros in sizes", "7.1", chunked!("0004\r\nbody\r\n00\r\n\r\n"), POST),
        row("many chunks", "7.1", chunked!("1\r\nb\r\n1\r\no\r\n2\r\ndy\r\n0\r\n\r\n"), POST),
        row(
            "requests within a chunk",
            "7.1",
            chunked!("20\r\nGET /smuggled HTTP/1.1\r\nX: y\r\n\r\n\r\n0\r\n\r\n"),
            Expect::Passes(&[("POST /good", "GET /smuggled HTTP/1.1\r\nX: y\r\n\r\n")]),
        ),
    ]
}

fn trailers() -> Vec<Case> {
    macro_rules! trailing {
        ($trailers:expr) => {
            post!(
                "Transfer-Encoding: chunked\r\nTrailer: Content-Length, X-Sum, Host\r\n",
                concat!("4\r\nbody\r\n0\r\n", $trailers)
            )
        };
    }
    vec![
        row("a length in the trailers", "9110 6.5.1", trailing!("Content-Length: 30\r\n\r\n"), POST),
        row("a coding in the trailers", "9110 6.5.1", trailing!("Transfer-Encoding: chunked\r\n\r\n"), POST),
        row("a Host in the trailers", "9110 6.5.1", trailing!("Host: other\r\n\r\n"), POST),
        row("credentials in the trailers", "9110 6.5.1", trailing!("Authorization: Basic eDp5\r\n\r\n"), POST),
        row("an identity in the trailers", "9110 6.5.1", trailing!("X-Forwarded-Client-Cert: URI=x\r\n\r\n"), POST),
        row("a trailer", "7.1.2", trailing!("X-Sum: 1\r\n\r\n"), POST),
        row("trailers that end with LF", "7.1.2", trailing!("X-Sum: 1\n\r\n"), CUT),
        row("trailers with CR", "7.1.2", trailing!("X-Sum: 1\rX: y\r\n\r\n"), CUT),
        row("a folded trailer", "5.2", trailing!("X-Sum: 1\r\n 2\r\n\r\n"), CUT),
        row("a trailer without colon", "7.1.2", trailing!("X-Sum\r\n\r\n"), CUT),
        row("a trailer with a space before the colon", "5.1", trailing!("X-Sum : 1\r\n\r\n"), CUT),
        row("a trailer with a byte of zero", "9110 5.5", trailing!("X-Sum: \0\r\n\r\n"), CUT),
        row("a request for a trailer", "7.1.2", trailing!("GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n"), CUT),
    ]
}

fn bodies() -> Vec<Case> {
    const WITH: Expect = Expect::Passes(&[("GET /good", "body")]);
    const TWO: Expect = Expect::Passes(&[("GET /good", "body"), ("GET /good", "")]);
    const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nX: y\r\n\r\n";
    vec![
        row(
            "GET with a body",
            "6",
            get!("Content-Length: 4\r\n").iter().chain(b"body").copied().collect::<Vec<u8>>(),
            WITH,
        ),
        row("GET with chunks", "6", [get!("Transfer-Encoding: chunked\r\n"), b"4\r\nbody\r\n0\r\n\r\n"].concat(), WITH),
        row(
            "GET with a body and another behind it",
            "9.3.2",
            [get!("Content-Length: 4\r\n"), b"body", get!("")].concat(),
            TWO,
        ),
        row(
            "HEAD with a body",
            "6",
            &b"HEAD /good HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody"[..],
            Expect::Passes(&[("HEAD /good", "body")]),
        ),
        row(
            "DELETE with a body",
            "6",
            &b"DELETE /good HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody"[..],
            Expect::Passes(&[("DELETE /good", "body")]),
        ),
        row("POST without a body", "6.3", post!("", ""), Expect::Passes(&[("POST /good", "")])),
        row(
            "a request for a body",
            "6.2",
            post!("Content-Length: 35\r\n", "GET /smuggled HTTP/1.1\r\nX: abcd\r\n\r\n"),
            Expect::Passes(&[("POST /good", "GET /smuggled HTTP/1.1\r\nX: abcd\r\n\r\n")]),
        ),
        row(
            "a body in HTTP/1.0",
            "6.3",
            [
                &b"POST /good HTTP/1.0\r\nHost: shop\r\nConnection: keep-alive\r\nContent-Length: 32\r\n\r\n"[..],
                SMUGGLED.as_bytes(),
            ]
            .concat(),
            Expect::Passes(&[("POST /good", SMUGGLED)]),
        ),
        row("less than its length", "6.3", post!("Content-Length: 5\r\n", "body"), CUT).last(),
        row("chunks without end", "8", chunked!("4\r\nbody\r\n"), CUT).last(),
        row("trailers without end", "8", chunked!("4\r\nbody\r\n0\r\nX-Sum: 1\r\n"), CUT).last(),
        row("half a head", "8", &b"GET /good HTTP/1.1\r\nHost: shop\r\n"[..], Expect::Ended(400)).last(),
        row("a body where none is said", "6.3", post!("", "body\r\n"), Expect::Then("POST /good", 400)),
    ]
}

fn bounds() -> Vec<Case> {
    let with = |fields: String| format!("GET /good HTTP/1.1\r\nHost: shop\r\n{fields}\r\n").into_bytes();
    vec![
        row("a hundred fields and one", "5", with("X: y\r\n".repeat(100)), LARGE),
        row("a value of 64 KiB", "5", with(format!("X: {}\r\n", "y".repeat(64 << 10))), LARGE),
        row("fields of 64 KiB", "5", with(format!("X: {}\r\n", "y".repeat(1 << 10)).repeat(65)), LARGE),
        row("a name of 64 KiB", "5", with(format!("{}: y\r\n", "X".repeat(64 << 10))), LARGE),
        row(
            "a target of 64 KiB",
            "3",
            format!("GET /{} HTTP/1.1\r\nHost: shop\r\n\r\n", "x".repeat(64 << 10)).into_bytes(),
            LARGE,
        ),
        row("ninety-nine fields", "5", with("X: y\r\n".repeat(99)), GET),
    ]
}
