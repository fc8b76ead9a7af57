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

use crate::output::{self, Paint};
use crate::plain_http;

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
    let failed =
        |what: String| format!("control cannot be asked at {control}: {what}; give its metrics address by --control");
    let answer = plain_http::get(control, "/debug/certificates").map_err(|error| failed(error.to_string()))?;
    if answer.status != 200 {
        return Err(failed(format!("it answers {} {}", answer.status, answer.body.trim())));
    }
    serde_json::from_str(&answer.body).map_err(|error| failed(format!("its answer cannot be read ({error})")))
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
    let lines: Vec<[String; 5]> = report.proxies.iter().map(|proxy| row(proxy, now)).collect();
    let head = ["WORKLOAD", "IDENTITY", "ISSUER", "CERTIFICATE", "STATE"].map(str::to_owned);
    let width = |column: usize| lines.iter().chain([&head]).map(|cells| cells[column].len()).max().unwrap_or_default();
    let widths = [width(0), width(1), width(2), width(3)];
    output::out(paint.faint(laid(&head, &widths)));
    for (cells, proxy) in lines.iter().zip(&report.proxies) {
        let text = laid(cells, &widths);
        output::out(if trouble(proxy, now).is_some() { paint.bad(text) } else { text });
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

fn row(proxy: &ProxyReport, now: SystemTime) -> [String; 5] {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let end = proxy.not_after.map_or_else(|| "-".to_owned(), |end| words::end(at(end), now));
    let issuer =
        if proxy.connected && proxy.issuer.is_none() { "another CA".to_owned() } else { or_dash(&proxy.issuer) };
    let state = trouble(proxy, now).unwrap_or("ok").to_owned();
    [proxy.workload.clone(), or_dash(&proxy.identity), issuer, end, state]
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

fn laid(cells: &[String; 5], widths: &[usize; 4]) -> String {
    let [workload, identity, issuer, end, state] = cells;
    let [w0, w1, w2, w3] = widths;
    format!("{workload:<w0$}  {identity:<w1$}  {issuer:<w2$}  {end:<w3$}  {state}")
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
