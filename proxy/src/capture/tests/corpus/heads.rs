//! Lines, fields, targets, hosts and versions; and fields that ask the proxy for something.

use super::{BAD, Case, Expect, GET, POST, row};

pub fn cases() -> Vec<Case> {
    [lines(), fields(), targets(), hosts(), first_lines(), nominations()].into_iter().flatten().collect()
}

fn lines() -> Vec<Case> {
    vec![
        row("bare LF everywhere", "2.2", &b"GET /good HTTP/1.1\nHost: shop\n\n"[..], BAD),
        row("bare LF behind the first line", "2.2", &b"GET /good HTTP/1.1\nHost: shop\r\n\r\n"[..], BAD),
        row("bare LF behind a field", "2.2", get!("X: y\nContent-Length: 30\r\n"), BAD),
        row("bare LF as the empty line", "2.2", &b"GET /good HTTP/1.1\r\nHost: shop\r\n\n"[..], BAD),
        row("bare CR within a value", "2.2", get!("X: y\rContent-Length: 30\r\n"), BAD),
        row("bare CR behind the first line", "2.2", &b"GET /good HTTP/1.1\rHost: shop\r\n\r\n"[..], BAD),
        row("bare CR before the empty line", "2.2", &b"GET /good HTTP/1.1\r\nHost: shop\r\n\rX: y\r\n\r\n"[..], BAD),
        row("two CR before LF", "2.2", &b"GET /good HTTP/1.1\r\r\nHost: shop\r\r\n\r\r\n"[..], BAD),
        row("an empty line first", "2.2", &b"\r\nGET /good HTTP/1.1\r\nHost: shop\r\n\r\n"[..], GET),
        row("two empty lines first", "2.2", &b"\r\n\r\nGET /good HTTP/1.1\r\nHost: shop\r\n\r\n"[..], BAD),
        row("bare LF first", "2.2", &b"\nGET /good HTTP/1.1\r\nHost: shop\r\n\r\n"[..], BAD),
        row("bare CR first", "2.2", &b"\rGET /good HTTP/1.1\r\nHost: shop\r\n\r\n"[..], BAD),
        row("a space first", "2.2", &b" GET /good HTTP/1.1\r\nHost: shop\r\n\r\n"[..], BAD).opaque(),
        row("a byte of zero first", "2.2", &b"\0GET /good HTTP/1.1\r\nHost: shop\r\n\r\n"[..], BAD).opaque(),
        row("a byte order mark first", "2.2", "\u{feff}GET /good HTTP/1.1\r\nHost: shop\r\n\r\n".as_bytes(), BAD)
            .opaque(),
    ]
}

fn fields() -> Vec<Case> {
    vec![
        row("a byte of zero in a value", "9110 5.5", get!("X: y\0z\r\n"), BAD),
        row("a control in a value", "9110 5.5", get!("X: y\x01z\r\n"), BAD),
        row("escape in a value", "9110 5.5", get!("X: y\x1b[2Jz\r\n"), BAD),
        row("delete in a value", "9110 5.5", get!("X: y\x7fz\r\n"), BAD),
        row("a byte of zero in a name", "9110 5.1", get!("X\0: y\r\n"), BAD),
        row("a control in a name", "9110 5.1", get!("X\x01: y\r\n"), BAD),
        row("no ASCII in a name", "9110 5.1", get!("X\u{e9}: y\r\n"), BAD),
        row("a space in a name", "9110 5.1", get!("X Y: z\r\n"), BAD),
        row("parentheses in a name", "9110 5.1", get!("X(Y): z\r\n"), BAD),
        row("a space before the colon", "5.1", get!("Content-Length : 30\r\n"), BAD),
        row("no name", "5.1", get!(": y\r\n"), BAD),
        row("no colon", "5.1", get!("Content-Length 30\r\n"), BAD),
        row("the first field behind a space", "2.2", &b"GET /good HTTP/1.1\r\n Host: shop\r\n\r\n"[..], BAD),
        row("a line of spaces first", "2.2", &b"GET /good HTTP/1.1\r\n \r\nHost: shop\r\n\r\n"[..], BAD),
        row("a folded value", "5.2", get!("X: y\r\n z\r\n"), BAD),
        row("a value folded by a tab", "5.2", get!("X: y\r\n\tz\r\n"), BAD),
        row("a folded Host", "5.2", host!("Host:\r\n shop\r\n"), BAD),
        row("no ASCII in a value", "9110 5.5", get!("X: caf\u{e9}\r\n"), GET),
        row("an empty value", "9110 5.5", get!("X:\r\n"), GET),
    ]
}

fn targets() -> Vec<Case> {
    const ABSOLUTE: Expect = Expect::Passes(&[("GET /good", "")]);
    vec![
        row("absolute form", "3.2.2", line!("GET http://shop/good HTTP/1.1"), ABSOLUTE),
        row(
            "absolute form in capitals",
            "3.2.2",
            &b"GET http://shop/good HTTP/1.1\r\nHost: SHOP\r\n\r\n"[..],
            ABSOLUTE,
        ),
        row("absolute form of another Host", "3.2.2", line!("GET http://other/good HTTP/1.1"), BAD),
        row("absolute form of another port", "3.2.2", line!("GET http://shop:81/good HTTP/1.1"), BAD),
        row("absolute form with userinfo", "9110 4.2.4", line!("GET http://u@shop/good HTTP/1.1"), BAD),
        row("absolute form without authority", "3.2.2", line!("GET http:///good HTTP/1.1"), BAD),
        row("absolute form of an empty Host", "3.2.2", &b"GET http://other/good HTTP/1.1\r\nHost:\r\n\r\n"[..], BAD),
        row("no slash", "3.2", line!("GET good HTTP/1.1"), BAD),
        row("authority form beyond CONNECT", "3.2.3", line!("GET shop:80 HTTP/1.1"), BAD),
        row("a query alone", "3.2.1", line!("GET ?smuggled HTTP/1.1"), BAD),
        row("an asterisk beyond OPTIONS", "3.2.4", line!("GET * HTTP/1.1"), BAD),
        row("an asterisk", "3.2.4", line!("OPTIONS * HTTP/1.1"), Expect::Passes(&[("OPTIONS *", "")])),
        row("a fragment", "3.2.1", line!("GET /good#/smuggled HTTP/1.1"), BAD),
        row("a space in the target", "3", line!("GET /go od HTTP/1.1"), BAD),
        row("a version in the target", "3", line!("GET /smuggled HTTP/1.1 /good HTTP/1.1"), BAD),
        row("a control in the target", "3.2", line!("GET /go\x01od HTTP/1.1"), BAD),
        row("a byte of zero in the target", "3.2", line!("GET /go\0od HTTP/1.1"), BAD),
        row("a tab in the target", "3.2", line!("GET /go\tod HTTP/1.1"), BAD),
        row("delete in the target", "3.2", line!("GET /go\x7fod HTTP/1.1"), BAD),
        row(
            "no ASCII in the target",
            "3.2",
            line!("GET /caf\u{e9} HTTP/1.1"),
            Expect::Passes(&[("GET /caf\u{e9}", "")]),
        ),
        row("no UTF-8 in the target", "3.2", &b"GET /caf\xe9 HTTP/1.1\r\nHost: shop\r\n\r\n"[..], BAD),
        row("two slashes", "3.2.1", line!("GET //good HTTP/1.1"), Expect::Passes(&[("GET //good", "")])),
        row(
            "an encoded line end in the target",
            "3.2.1",
            line!("GET /good%0d%0aX HTTP/1.1"),
            Expect::Passes(&[("GET /good%0d%0aX", "")]),
        ),
        row("CONNECT to a path", "3.2.3", line!("CONNECT /good HTTP/1.1"), BAD),
        row("CONNECT without port", "3.2.3", line!("CONNECT shop HTTP/1.1"), BAD),
        row(
            "CONNECT with a length",
            "9110 9.3.6",
            &b"CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\nContent-Length: 4\r\n\r\nbody"[..],
            BAD,
        ),
        row(
            "CONNECT with a coding",
            "9110 9.3.6",
            &b"CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..],
            BAD,
        ),
        row(
            "CONNECT to another Host",
            "3.2.3",
            &b"CONNECT other:80 HTTP/1.1\r\nHost: shop:80\r\n\r\n"[..],
            Expect::Passes(&[("CONNECT other:80", "")]),
        ),
        row(
            "CONNECT",
            "3.2.3",
            &b"CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\n\r\n"[..],
            Expect::Passes(&[("CONNECT shop:80", "")]),
        ),
    ]
}

fn hosts() -> Vec<Case> {
    vec![
        row("no Host", "3.2", host!("X: y\r\n"), BAD),
        row("two Hosts", "3.2", host!("Host: shop\r\nHost: other\r\n"), BAD),
        row("the same Host twice", "3.2", host!("Host: shop\r\nX: y\r\nhost: shop\r\n"), BAD),
        row("a list of Hosts", "9110 7.2", host!("Host: shop, other\r\n"), BAD),
        row("a Host with userinfo", "9110 7.2", host!("Host: u@shop\r\n"), BAD),
        row("a Host with a space", "9110 7.2", host!("Host: sh op\r\n"), BAD),
        row("a Host with a control", "9110 7.2", host!("Host: sh\x01op\r\n"), BAD),
        row("a Host with a path", "9110 7.2", host!("Host: shop/good\r\n"), BAD),
        row("a Host with a query", "9110 7.2", host!("Host: shop?x\r\n"), BAD),
        row("a Host with a backslash", "9110 7.2", host!("Host: shop\\other\r\n"), BAD),
        row("a Host with two ports", "9110 7.2", host!("Host: shop:80:81\r\n"), BAD),
        row("a Host with a port of letters", "9110 7.2", host!("Host: shop:80x\r\n"), BAD),
        row("a Host with an open bracket", "9110 7.2", host!("Host: [::1\r\n"), BAD),
        row("a Host behind a bracket", "9110 7.2", host!("Host: [::1]other\r\n"), BAD),
        row("no ASCII in a Host", "9110 7.2", host!("Host: sh\u{f6}p\r\n"), BAD),
        row("a Host with underscore beside Host", "CGI 4.1.18", host!("Host: shop\r\nH_o_s_t: other\r\n"), GET),
        row("a Host of an address and port", "9110 7.2", host!("Host: [fd00::1]:80\r\n"), GET),
        row("an empty Host", "3.2", host!("Host:\r\n"), GET),
        row("no Host in HTTP/1.0", "3.2", &b"GET /good HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"[..], GET),
    ]
}

fn first_lines() -> Vec<Case> {
    vec![
        row("tabs for spaces", "3", line!("GET\t/good\tHTTP/1.1"), BAD).opaque(),
        row("a tab before the version", "3", line!("GET /good\tHTTP/1.1"), BAD),
        row("two spaces behind the method", "3", line!("GET  /good HTTP/1.1"), BAD),
        row("two spaces before the version", "3", line!("GET /good  HTTP/1.1"), BAD),
        row("a space behind the version", "3", line!("GET /good HTTP/1.1 "), BAD),
        row("no version", "3", line!("GET /good"), BAD),
        row("no version and no fields", "3", &b"GET /good\r\n"[..], BAD),
        row("no target", "3", line!("GET HTTP/1.1"), BAD).opaque(),
        row("HTTP/0.9", "2.3", line!("GET /good HTTP/0.9"), BAD),
        row("HTTP/1.2", "2.3", line!("GET /good HTTP/1.2"), BAD),
        row("HTTP/1.10", "2.3", line!("GET /good HTTP/1.10"), BAD),
        row("HTTP/2.0", "2.3", line!("GET /good HTTP/2.0"), BAD),
        row("HTTP/01.1", "2.3", line!("GET /good HTTP/01.1"), BAD),
        row("http/1.1", "2.3", line!("GET /good http/1.1"), BAD),
        row("ICE/1.1", "2.3", line!("GET /good ICE/1.1"), BAD),
        row("HTTP/1.1 with a letter more", "2.3", line!("GET /good HTTP/1.1x"), BAD),
        row("a method with parentheses", "3.1", line!("G(E)T /good HTTP/1.1"), BAD).opaque(),
        row("a method with a control", "3.1", line!("GET\x01 /good HTTP/1.1"), BAD).opaque(),
        row("a method with a byte of zero", "3.1", line!("GE\0T /good HTTP/1.1"), BAD).opaque(),
        row("a method with a colon", "3.1", line!("GET: /good HTTP/1.1"), BAD).opaque(),
        row("no ASCII in a method", "3.1", line!("G\u{c9}T /good HTTP/1.1"), BAD).opaque(),
        row("a method in small letters", "3.1", line!("get /good HTTP/1.1"), Expect::Passes(&[("get /good", "")]))
            .opaque(),
        row("a method of 40 letters", "3.1", line!("ABCDEFGHIJABCDEFGHIJABCDEFGHIJABCDEFGHIJ /good HTTP/1.1"), BAD)
            .opaque(),
        row("a method that nobody knows", "3.1", line!("BREW /good HTTP/1.1"), Expect::Passes(&[("BREW /good", "")])),
        row("a response", "4", &b"HTTP/1.1 200 OK\r\nHost: shop\r\nContent-Length: 0\r\n\r\n"[..], BAD).opaque(),
        row("the beginning of HTTP/2", "9113 3.4", &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], Expect::Ended(400)),
        row("the beginning of HTTP/2 as HTTP/1.1", "9113 3.4", line!("PRI * HTTP/1.1"), BAD),
    ]
}

fn nominations() -> Vec<Case> {
    vec![
        row("Connection names Host", "9110 7.6.1", get!("Connection: Host\r\n"), GET),
        row(
            "Connection names the length",
            "9110 7.6.1",
            post!("Connection: Content-Length\r\nContent-Length: 4\r\n", "body"),
            POST,
        ),
        row(
            "Connection names the coding",
            "9110 7.6.1",
            post!("Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n", "4\r\nbody\r\n0\r\n\r\n"),
            POST,
        ),
        row(
            "Connection names credentials",
            "9110 7.6.1",
            get!("Connection: Authorization\r\nAuthorization: Basic eDp5\r\n"),
            GET,
        ),
        row(
            "Connection names our fields",
            "9110 7.6.1",
            get!("Connection: X-Forwarded-Client-Cert, X-Forwarded-For\r\n"),
            GET,
        ),
        row("Connection names itself", "9110 7.6.1", get!("Connection: connection, keep-alive\r\n"), GET),
        row("Connection of many names", "9110 7.6.1", get!("Connection: a, b, ,, \"c\", d e\r\nA: 1\r\nB: 2\r\n"), GET),
        row(
            "an upgrade to h2c",
            "9113 3.1",
            get!("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
            GET,
        ),
        row("an upgrade that Connection does not name", "9110 7.8", get!("Upgrade: websocket\r\n"), GET),
        row("an upgrade with a list", "9110 7.8", get!("Connection: upgrade\r\nUpgrade: h2c, websocket\r\n"), GET),
        row(
            "an upgrade with a body",
            "9110 7.8",
            post!("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 4\r\n", "body"),
            POST,
        ),
        row("an odd expectation", "9110 10.1.1", get!("Expect: 200-ok\r\n"), GET),
        row(
            "an expectation and a body",
            "9110 10.1.1",
            post!("Expect: 100-continue, x\r\nContent-Length: 4\r\n", "body"),
            POST,
        ),
        row(
            "identity with underscores",
            "CGI 4.1.18",
            get!("X_Forwarded_Client_Cert: URI=x\r\nX_Weft_Reason: y\r\n"),
            GET,
        ),
    ]
}
