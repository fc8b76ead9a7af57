//! `weft certs inspect`: what the certificates of a file are, and whether they hold together. The looking is weft-certs' work.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use weft_certs::inspect::{Certificate, Finding, MAX_BYTES, Report, SignedBy, inspect, inspect_chain, words};

use weft_control::server::admin::Shown;

use crate::args::Inspect;
use crate::exit::{Exit, Failure};
use crate::output::{self, Paint};
use crate::plain_http;

/// Prints what was found; a problem is exit code 1.
pub fn run(args: &Inspect) -> Result<Exit, Failure> {
    let now = SystemTime::now();
    let roots = args.roots.as_deref().map(read).transpose()?;
    if let (Some(roots), Some(path)) = (&roots, &args.roots)
        && let Err(error) = inspect(roots, None, now)
    {
        return Err(Failure::input(format!("{}: {error}", path.display())));
    }
    let report = match pod(&args.file) {
        Some(pod) => {
            let shown = shown(args.control, pod)?;
            inspect_chain(&shown.chain(), Some(roots.as_deref().unwrap_or(shown.roots.as_bytes())), now)
        }
        None => inspect(&read(&args.file)?, roots.as_deref(), now),
    };
    let report = report.map_err(|error| Failure::input(format!("{}: {error}", args.file.display())))?;
    if args.json {
        output::json(&report);
    } else {
        print(&report, now);
    }
    Ok(if report.ok { Exit::Ok } else { Exit::Failed })
}

/// `NAMESPACE/POD`, if it is no file.
fn pod(what: &Path) -> Option<&str> {
    let text = what.to_str().filter(|_| !what.exists())?;
    let (namespace, pod) = text.split_once('/')?;
    let name = |part: &str| {
        let letters = part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'));
        !part.is_empty() && letters && !part.starts_with('.')
    };
    // A file that is not there is more likely meant by a name that ends like one.
    (name(namespace) && name(pod) && Path::new(pod).extension().is_none_or(|end| end != "pem")).then_some(text)
}

/// What its sidecar has shown to control, which is asked.
fn shown(control: SocketAddr, pod: &str) -> Result<Shown, Failure> {
    let path = format!("/debug/certificates?workload={pod}");
    let failed = |what: String| {
        Failure::here(format!("control cannot be asked at {control}: {what}; give its metrics address by --control"))
    };
    let answer = plain_http::get(control, &path).map_err(|error| failed(error.to_string()))?;
    match answer.status {
        200 => {
            serde_json::from_str(&answer.body).map_err(|error| failed(format!("its answer cannot be read ({error})")))
        }
        404 => Err(Failure::input(format!("{}; `weft certs status` lists those that have", answer.body.trim()))),
        status => Err(failed(format!("it answers {status} {}", answer.body.trim()))),
    }
}

/// A file's bytes, or standard input's; one byte more than is taken at most.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let source: io::Result<Box<dyn Read>> = if path == Path::new("-") {
        Ok(Box::new(io::stdin()))
    } else {
        File::open(path).map(|file| Box::new(file) as Box<dyn Read>)
    };
    let mut bytes = Vec::new();
    source
        .and_then(|source| source.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| Failure::input(format!("cannot read {}: {error}", path.display())))?;
    Ok(bytes)
}

fn print(report: &Report, now: SystemTime) {
    let paint = Paint::stdout();
    for (index, certificate) in report.certificates.iter().enumerate() {
        for line in lines(index + 1, certificate, report, now, paint) {
            output::out(line);
        }
    }
    if report.private_keys > 0 {
        let keys = if report.private_keys == 1 { "a private key" } else { "private keys" };
        output::out(format_args!(
            "{} the file also holds {keys}, not shown: whoever reads it can be this identity, so keep it 0600",
            paint.warn("note:")
        ));
    }
    for warning in &report.warnings {
        output::out(format_args!("{} {}", paint.warn("warning:"), said(warning)));
    }
    for problem in &report.problems {
        output::out(format_args!("{} {}", paint.bad("problem:"), said(problem)));
    }
}

fn lines(number: usize, certificate: &Certificate, report: &Report, now: SystemTime, paint: Paint) -> Vec<String> {
    let title: &str = match (&certificate.identity, certificate.names.first()) {
        (Some(identity), _) => identity,
        (None, _) if !certificate.subject.is_empty() => &certificate.subject,
        (None, Some(name)) => name,
        (None, None) => "without a name",
    };
    let mut lines = vec![format!("{number}  {:<8}{}", certificate.role.label(), paint.strong(title))];
    let mut line = |name: &str, value: String| lines.push(format!("   {}{value}", paint.faint(format!("{name:<11}"))));
    if certificate.names.iter().any(|name| name.strip_prefix("URI:") != Some(title)) {
        line("names", certificate.names.join(", "));
    }
    if certificate.identity.is_some() && !certificate.subject.is_empty() {
        line("subject", certificate.subject.clone());
    }
    line("serial", certificate.serial.clone());
    let end = words::end(certificate.not_after, now);
    let end = if certificate.ends_in_s > 0 { end } else { paint.bad(end) };
    let (from, until) = (words::utc(certificate.not_before), words::utc(certificate.not_after));
    line("valid", format!("{from} to {until}: {end}"));
    line("key", certificate.key.clone());
    line("signed by", signer(certificate, report));
    if let Some(chain) = &certificate.chain {
        let verdict = if chain.verified { paint.good("verifies") } else { paint.bad("does not verify") };
        line("chain", format!("{verdict}: {}", chain.text));
    }
    lines
}

fn signer(certificate: &Certificate, report: &Report) -> String {
    let name = match &*certificate.issuer {
        "" => "nameless",
        name => name,
    };
    match certificate.signed_by {
        SignedBy::Itself => "itself".to_owned(),
        SignedBy::Certificate(by) => {
            let role = report.certificates.get(by - 1).map_or("certificate", |signer| signer.role.label());
            format!("{role} {by} ({name})")
        }
        SignedBy::GivenRoot => format!("one of the given roots ({name})"),
        SignedBy::Absent => format!("{name}, which is not here"),
    }
}

fn said(finding: &Finding) -> String {
    match finding.certificate {
        Some(number) => format!("certificate {number}: {}", finding.text),
        None => finding.text.clone(),
    }
}
