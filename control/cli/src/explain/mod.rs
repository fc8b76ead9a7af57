//! What would happen to a request, or to a connection that is no HTTP, step by step, and which line of which file decides it.
//!
//! Nothing is decided here (contract C10): control's compiler encodes the resources, [`weft_api::convert`] reads them as a proxy
//! does, [`weft_engine`] decides. This module asks them in the order in which a request meets them: the address, the service's routes,
//! each backend's endpoints, and each endpoint's own inbound side.

mod ask;
mod resources;
mod text;

use std::sync::Arc;

use serde::Serialize;
use weft_control::compile::Compiled;
use weft_control::sources::files;
use weft_engine::explain::Step;
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;

use crate::args;
use crate::exit::{Exit, Failure};
use crate::output::{self, Paint};

/// What would become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It reaches an application, whichever way it is routed (a rate limit may still refuse it: that depends on others), or its route answers it.
    Allowed,
    /// A proxy refuses it, always with the same reason.
    Refused,
    /// That depends on the backend or endpoint that is drawn: see the outcomes.
    Depends,
}

/// Where a request may end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Share of requests, within 0 and 1.
    pub share: f64,
    /// `service/NAMESPACE/NAME:PORT`; empty if the request is refused before a backend is drawn.
    pub backend: Arc<str>,
    /// `NAMESPACE/POD` (or the address) of the endpoints for which this holds.
    pub endpoints: Vec<Arc<str>>,
    /// The code that it is refused with; none: it reaches the application, or has a status.
    pub reason: Option<Reason>,
    /// The HTTP status of the refusal, or of the route's own answer; none of a connection that is no HTTP.
    pub status: Option<u16>,
    /// What the way decides from here on.
    pub steps: Vec<Step>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// What would become of it.
    pub verdict: Verdict,
    /// The code of the refusal, if there is one only.
    pub reason: Option<Reason>,
    /// The HTTP status of the refusal, if there is one only.
    pub status: Option<u16>,
    /// The way that is the same for every request like this.
    pub steps: Vec<Step>,
    /// Where the way parts, by backend and endpoint.
    pub outcomes: Vec<Outcome>,
}

impl Explanation {
    /// Whether a live answer is one of those that can be: `None` is an answer of the application.
    pub fn foresees(&self, reason: Option<Reason>) -> bool {
        self.outcomes.iter().any(|outcome| outcome.reason == reason)
    }
}

/// Says what would become of a request that the application with the identity `from` sends through its sidecar. The head's URI is
/// absolute (`http://HOST[:PORT]/PATH`); the field `Host` is made from it if it is not there.
pub fn explain(compiled: &Compiled, from: &Identity, request: &http::request::Parts) -> Explanation {
    ask::ask(compiled, from, request)
}

/// A connection of an application that speaks no HTTP on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The host that it calls: a service's name, or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether it begins with a ClientHello.
    pub tls: bool,
    /// The name that the ClientHello asks for.
    pub sni: Option<String>,
}

/// Says what would become of a connection that the application with the identity `from` opens.
pub fn explain_connection(compiled: &Compiled, from: &Identity, connection: &Connection) -> Explanation {
    ask::ask_connection(compiled, from, connection)
}

/// What `weft explain` is asked about.
enum Asked {
    Request(Box<http::request::Parts>),
    Connection(Connection),
}

/// `weft explain`.
pub fn run(args: &args::Explain) -> Result<Exit, Failure> {
    let from = crate::token::identity(&args.from, &args.trust_domain)?;
    let asked = asked(args)?;
    if let Some(missing) = args.files.iter().find(|path| !path.exists()) {
        return Err(Failure::input(format!("{}: there is no such file or directory", missing.display())));
    }
    let loaded = files::load(&args.files, &args.trust_domain);
    let paint = Paint::stderr();
    for problem in &loaded.problems {
        output::say(format_args!("{} {problem}", paint.warn("problem:")));
    }
    let compiled = weft_control::compile::compile(&loaded.model);
    let explanation = match &asked {
        Asked::Request(request) => explain(&compiled, &from, request),
        Asked::Connection(connection) => explain_connection(&compiled, &from, connection),
    };
    if args.json {
        let from = from.to_string();
        let url = args.asked.last();
        output::json(&serde_json::json!({
            "request": match &asked {
                Asked::Request(request) => serde_json::json!({ "from": from, "method": request.method.as_str(), "url": url }),
                Asked::Connection(connection) => serde_json::json!({ "from": from, "url": url, "sni": connection.sni }),
            },
            "explanation": explanation,
            "problems": loaded.problems,
        }));
    } else {
        let mut words = args.asked.join(" ");
        if let Asked::Connection(Connection { sni: Some(sni), .. }) = &asked {
            words = format!("{words} asking for {sni}");
        }
        output::raw(text::page(&explanation, &from, &words, Paint::stdout()).as_bytes());
    }
    Ok(if explanation.verdict == Verdict::Refused { Exit::Failed } else { Exit::Ok })
}

fn asked(args: &args::Explain) -> Result<Asked, Failure> {
    match args.asked.as_slice() {
        [url] => Ok(Asked::Connection(connection(url, args.sni.as_deref())?)),
        [method, url] if args.sni.is_none() => Ok(Asked::Request(Box::new(request(args, method, url)?))),
        _ => Err(Failure::input("--sni is for tls://HOST:PORT")),
    }
}

fn request(args: &args::Explain, method: &str, url: &str) -> Result<http::request::Parts, Failure> {
    let uri: http::Uri = url.parse().map_err(|error| Failure::input(format!("`{url}` is no URL: {error}")))?;
    if uri.scheme_str() != Some("http") || uri.host().is_none() {
        let wrong = format!("`{url}` is not of the form http://SERVICE.NAMESPACE[:PORT]/PATH");
        return Err(Failure::input(wrong));
    }
    let mut request = http::Request::builder().method(method).uri(uri);
    for (name, value) in &args.header {
        request = request.header(name, value);
    }
    let (parts, ()) = request.body(()).map_err(|error| Failure::input(error.to_string()))?.into_parts();
    Ok(parts)
}

fn connection(url: &str, sni: Option<&str>) -> Result<Connection, Failure> {
    let wrong = || {
        Failure::input(format!(
            "`{url}` is not of the form tls://HOST:PORT or tcp://HOST:PORT; a request is METHOD and http://..."
        ))
    };
    let uri: http::Uri = url.parse().map_err(|_| wrong())?;
    let (host, port) = uri.host().zip(uri.port_u16()).filter(|_| matches!(uri.path(), "" | "/")).ok_or_else(wrong)?;
    let named = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err();
    let (tls, sni) = match uri.scheme_str() {
        Some("tls") => (true, sni.or_else(|| named.then_some(host))),
        Some("tcp") if sni.is_none() => (false, None),
        _ => return Err(wrong()),
    };
    Ok(Connection { host: host.to_owned(), port, tls, sni: sni.map(str::to_owned) })
}

#[cfg(test)]
mod tests;
