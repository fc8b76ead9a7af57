//! `weft certs status`: which roots and issuers there are, and which certificate each proxy shows. Control is asked; or the CA is
//! read, which knows no proxies.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use weft_certs::ca::Ca;
use weft_certs::ca::rotation::{Kind, Phase};
use weft_certs::inspect::words;
use weft_control::rotation::{AuthorityReport, ProxyReport, Report, RotationReport};

use crate::args::CertsStatus;
use crate::exit::{Exit, Failure};

use crate::live;
use crate::output::{self, Paint};

/// Prints what control says.
pub fn run(args: &CertsStatus) -> Result<Exit, Failure> {
    let report = match args.ca.home()? {
        Some(home) => Report::of(&Ca::load(home).map_err(|error| Failure::input(error.to_string()))?),
        None => ask(args.control).map_err(Failure::here)?,
    };
    let now = SystemTime::now();
    let fine = report.proxies.iter().all(|proxy| trouble(proxy, now).is_none());
    if args.json {
        output::json(&report);
    } else {
        print(&report, now);
    }
    Ok(if fine { Exit::Ok } else { Exit::Failed })
}

/// Asks control's metrics port.
pub fn ask(control: SocketAddr) -> Result<Report, String> {
    live::ask(control, "/debug/certificates").map_err(|failure| failure.message)
}

fn print(report: &Report, now: SystemTime) {
    let paint = Paint::stdout();
    let too = if report.aliases.is_empty() { String::new() } else { format!(", also {}", report.aliases.join(", ")) };
    output::out(format_args!("{} {}{too}", paint.faint("trust domain"), paint.strong(&report.trust_domain)));
    if report.elsewhere {
        output::out(format_args!("{} {}", paint.faint("issued by"), paint.strong(&report.issuing)));
    }
    for authority in &report.authorities {
        output::out(line(authority, report, now));
        for one in &authority.held_up_by {
            output::out(paint.warn(format!("  {} {}", one.workload, one.why)));
        }
    }
    if let Some(rotation) = &report.rotation {
        for line in rotating(rotation, now) {
            output::out(paint.warn(line));
        }
    }
    if report.proxies.is_empty() {
        return;
    }
    let rows: Vec<Vec<String>> = report.proxies.iter().map(|proxy| row(proxy, now)).collect();
    let head = ["WORKLOAD", "IDENTITY", "ISSUER", "CERTIFICATE", "STATE"];
    for (at, line) in output::columns(&head, &rows).into_iter().enumerate() {
        output::out(match at.checked_sub(1).map(|at| &report.proxies[at]) {
            None => paint.faint(line),
            Some(proxy) if trouble(proxy, now).is_some() => paint.bad(line),
            Some(_) => line,
        });
    }
}

fn line(authority: &AuthorityReport, report: &Report, now: SystemTime) -> String {
    let state = match (authority.id == report.issuing, authority.published, &*authority.role) {
        (true, ..) => "issues",
        _ if authority.leaving => "leaving",
        (_, true, "root") => "published",
        (_, true, _) => "does not issue",
        (_, false, _) => "withdrawn",
    };
    let end = words::end(at(authority.not_after), now);
    format!("{:<7} {:<12} {state:<15} {end}", authority.role, authority.id)
}

/// Where a rotation is, and whom it waits for.
pub fn rotating(rotation: &RotationReport, now: SystemTime) -> Vec<String> {
    let since = now.duration_since(at(rotation.since)).unwrap_or_default();
    let (kind, phase) = (rotation.kind.label(), rotation.phase.label());
    let back = if rotation.aborted { ", turned back" } else { "" };
    let mut lines = vec![format!(
        "rotation of the {kind} from {} to {}: {phase} for {}{back}",
        rotation.from,
        rotation.to,
        words::span(since)
    )];
    if let Some(left) = rotation.until.and_then(|until| at(until).duration_since(now).ok()) {
        let left = words::span(left);
        lines.push(match rotation.phase {
            Phase::Turning => format!("  certificates of {} may be valid for another {left}", rotation.from),
            _ if rotation.kind == Kind::TrustDomain => format!("  other meshes have another {left} to learn the name"),
            _ => format!("  copies of the roots have another {left} to follow"),
        });
    }
    lines.extend(rotation.waiting.iter().map(|one| format!("  {} {}", one.workload, one.why)));
    lines
}

fn row(proxy: &ProxyReport, now: SystemTime) -> Vec<String> {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let end = proxy.not_after.map_or_else(|| "-".to_owned(), |end| words::end(at(end), now));
    let issuer =
        if proxy.connected && proxy.issuer.is_none() { "another CA".to_owned() } else { or_dash(&proxy.issuer) };
    let state = trouble(proxy, now).unwrap_or("ok").to_owned();
    vec![proxy.workload.clone(), or_dash(&proxy.identity), issuer, end, state]
}

/// What is not as it should be with a proxy.
fn trouble(proxy: &ProxyReport, now: SystemTime) -> Option<&'static str> {
    if !proxy.connected {
        Some("not connected")
    } else if proxy.not_after.is_some_and(|end| at(end) <= now) {
        Some("its certificate has expired")
    } else if !proxy.roots_acknowledged {
        Some("has not acknowledged the roots")
    } else {
        None
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
