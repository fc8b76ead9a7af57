//! `weft status`: how control and its mesh are, and what has to be mended; of one object, who runs it.

use std::time::{Duration, SystemTime};

use weft_certs::inspect::words;
use weft_control::distribute::picture::ObjectPicture;
use weft_control::server::status::Status;

use super::ask;
use crate::args;
use crate::exit::{Exit, Failure};
use crate::output::{self, Paint};

/// Prints it.
pub fn run(args: &args::Status) -> Result<Exit, Failure> {
    if let Some(name) = &args.object {
        return object(args, name);
    }
    let status: Status = ask(args.asked.control, "/debug/status")?;
    if args.asked.json {
        output::json(&status);
    } else {
        print(&status, SystemTime::now());
    }
    Ok(if status.ok { Exit::Ok } else { Exit::Failed })
}

fn print(status: &Status, now: SystemTime) {
    let paint = Paint::stdout();
    let end = u64::try_from(status.certificate_not_after).unwrap_or_default();
    let end = words::end(SystemTime::UNIX_EPOCH + Duration::from_secs(end), now);
    let serves = if status.ready { format!("serves, its certificate {end}") } else { "does not serve yet".to_owned() };
    output::out(format_args!("{} {} {serves}", paint.faint("control"), status.version));
    let sources = &status.sources;
    for (source, state) in &sources.states {
        let source = if source.is_empty() { "source" } else { source };
        let age = if state == "synced" { String::new() } else { format!(", {:.0} s old", sources.age_seconds) };
        output::out(format_args!("{} {state}{age}, {} problems", paint.faint(source), sources.problems));
    }
    for replica in &status.replicas {
        let how = match (replica.heard, replica.stopping) {
            (false, _) => "is not heard".to_owned(),
            (true, true) => format!("is stopping, {} proxies", replica.proxies),
            (true, false) => format!("{} proxies", replica.proxies),
        };
        let zone = if replica.zone.is_empty() { String::new() } else { format!(" in zone {}", replica.zone) };
        output::out(format_args!("{} {} at {}{zone}: {how}", paint.faint("replica"), replica.name, replica.address));
    }
    let proxies = &status.proxies;
    output::out(format_args!(
        "{} {} of {} connected, {} in sync, {} late, {} refuse something",
        paint.faint("proxies"),
        proxies.connected,
        proxies.expected,
        proxies.in_sync,
        proxies.lagging.len(),
        proxies.refusing.len()
    ));
    if status.mend.is_empty() {
        output::out(paint.good("nothing has to be mended"));
    }
    for sentence in &status.mend {
        output::out(paint.bad(format!("! {sentence}")));
    }
}

fn object(args: &args::Status, object: &str) -> Result<Exit, Failure> {
    let wrong =
        || Failure::input(format!("`{object}` is no object: write KIND/NAMESPACE/NAME, as HTTPRoute/shop/canary"));
    let (kind, name) =
        object.split_once('/').filter(|(kind, name)| !kind.is_empty() && !name.is_empty()).ok_or_else(wrong)?;
    let found: ObjectPicture = ask(args.asked.control, &format!("/debug/objects?kind={kind}&name={name}"))?;
    let picture = &found.picture;
    if args.asked.json {
        output::json(&found);
    } else {
        let paint = Paint::stdout();
        output::out(format_args!("{} {}", paint.strong(object), found.sentence));
        for (why, proxies) in &picture.refused {
            output::out(paint.bad(format!("  refused ({why}): {}", proxies.join(" "))));
        }
        for (what, proxies) in [("lag", &picture.lagging), ("away", &picture.away), ("applied", &picture.applied)] {
            if !proxies.is_empty() {
                output::out(format_args!("  {what}: {}", proxies.join(" ")));
            }
        }
    }
    let all = picture.lagging.is_empty() && picture.refused.is_empty();
    Ok(if all { Exit::Ok } else { Exit::Failed })
}
