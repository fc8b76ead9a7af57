//! What would happen to a request, step by step, and which line of which file decides it.
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
    /// It reaches an application, whichever way it is routed (a rate limit may still refuse it: that depends on others).
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
    /// The code that it is refused with; none: it reaches the application.
    pub reason: Option<Reason>,
    /// The HTTP status of the refusal.
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

/// `weft explain`.
pub fn run(args: &args::Explain) -> Result<Exit, Failure> {
    let from = crate::token::identity(&args.from, &args.trust_domain)?;
    let request = request(args)?;
    if let Some(missing) = args.files.iter().find(|path| !path.exists()) {
        return Err(Failure::input(format!("{}: there is no such file or directory", missing.display())));
    }
    let loaded = files::load(&args.files, &args.trust_domain);
    let paint = Paint::stderr();
    for problem in &loaded.problems {
        output::say(format_args!("{} {problem}", paint.warn("problem:")));
    }
    let compiled = weft_control::compile::compile(&loaded.model);
    let explanation = explain(&compiled, &from, &request);
    if args.json {
        output::json(&serde_json::json!({
            "request": { "from": from.to_string(), "method": args.method.as_str(), "url": args.url.to_string() },
            "explanation": explanation,
            "problems": loaded.problems,
        }));
    } else {
        output::raw(text::page(&explanation, &from, &request, Paint::stdout()).as_bytes());
    }
    Ok(if explanation.verdict == Verdict::Refused { Exit::Failed } else { Exit::Ok })
}

fn request(args: &args::Explain) -> Result<http::request::Parts, Failure> {
    if args.url.scheme_str() != Some("http") || args.url.host().is_none() {
        let wrong = format!("`{}` is not of the form http://SERVICE.NAMESPACE[:PORT]/PATH", args.url);
        return Err(Failure::input(wrong));
    }
    let mut request = http::Request::builder().method(args.method.clone()).uri(args.url.clone());
    for (name, value) in &args.header {
        request = request.header(name, value);
    }
    let (parts, ()) = request.body(()).map_err(|error| Failure::input(error.to_string()))?.into_parts();
    Ok(parts)
}

#[cfg(test)]
mod tests;
