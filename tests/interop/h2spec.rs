//! h2spec, the conformance suite of HTTP/2 servers, against both listeners of real sidecars before a real HTTP/2 application.
//!
//! - Outbound: from a meshed pod, whose sidecar answers in the clear what its application sends.
//! - Inbound: from a pod outside of the mesh, to the permissive port in the clear. Over mesh TLS it cannot be run: h2spec shows no client
//!   certificate and offers `h2` alone in its ALPN. Behind the handshake the same code serves both.
//!
//! By hand: `h2spec --strict --host ADDRESS --port PORT` in a pod.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use weft_tests::{Mesh, Service, tools};

/// Cases that fail, with the reason why that is right or cannot be mended here. One that passes after all fails the test, too.
const OTHERWISE: &[(&str, &str)] = &[(
    "http2/3.5: Sends invalid connection preface",
    "The port is not declared to speak HTTP/2, and the line that the case sends is one of HTTP/1, which is answered 400 and closed; \
     the case takes no answer but GOAWAY.",
)];

/// The least number of cases that a run has: a report that was cut off proves nothing.
const CASES: usize = 140;

/// From a meshed pod.
pub fn outbound() {
    let mesh = mesh();
    check(&mesh, "client-0", mesh.address("web"));
    assert!(mesh.metric("web-0", "weft_requests_total", &["direction=\"inbound\"", "tls=\"mtls\""]) > 0.0);
}

/// From a pod outside of the mesh, to the application's own port.
pub fn inbound() {
    let mesh = mesh();
    check(&mesh, "stranger-0", (mesh.pod("web-0").ip(), 8080).into());
    assert!(mesh.metric("web-0", "weft_requests_total", &["direction=\"inbound\"", "tls=\"plain\""]) > 0.0);
}

fn mesh() -> Mesh {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).deploy(Service::own("stranger").unmeshed()).client("client");
    mesh
}

fn check(mesh: &Mesh, from: &str, to: SocketAddr) {
    let pod = mesh.pod(from);
    let report = pod.dir().unwrap().join("h2spec.xml");
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    let file = report.display().to_string();
    let args = ["--strict", "--timeout", "5", "--junit-report", &file, "--host", &host, "--port", &port];
    let output = pod.output(tools::program("h2spec"), args).unwrap();
    let text = std::fs::read_to_string(&report).unwrap_or_default();
    let cases = cases(&text);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(cases.len() >= CASES, "only {} cases:\n{said}\n{}", cases.len(), String::from_utf8_lossy(&output.stderr));
    let failed: BTreeSet<&str> = cases.iter().filter(|case| !case.passed).map(|case| &*case.name).collect();
    let known: BTreeSet<&str> = OTHERWISE.iter().map(|(name, _)| *name).collect();
    let (new, mended): (Vec<_>, Vec<_>) = (failed.difference(&known).collect(), known.difference(&failed).collect());
    assert!(new.is_empty() && mended.is_empty(), "fail now: {new:#?}\npass after all: {mended:#?}\n{said}");
}

struct Case {
    /// `SECTION: DESCRIPTION`.
    name: String,
    passed: bool,
}

/// The cases of a JUnit report. One that was skipped has not passed.
fn cases(report: &str) -> Vec<Case> {
    let each = report.split("<testcase ").skip(1);
    let case = |text: &str| {
        let attribute = |name: &str| {
            let value = text.split_once(&format!("{name}=\""))?.1.split_once('"')?.0;
            Some(value.replace("&#34;", "\"").replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">"))
        };
        let broken = ["<failure>", "<error>", "<skipped>"].iter().any(|outcome| text.contains(outcome));
        let name = format!("{}: {}", attribute("package")?, attribute("classname")?);
        Some(Case { name: name.replace("&amp;", "&"), passed: !broken })
    };
    each.filter_map(case).collect()
}
