//! `weft proxies`: who is connected and runs what; of one pod, its tables.

use std::time::Duration;

use weft_certs::inspect::words;
use weft_control::distribute::describe::{Described, Held};
use weft_control::distribute::session::Version;

use super::{ask, lines};
use crate::args::Proxies;
use crate::exit::{Exit, Failure};
use crate::output::{self, Paint};

/// Prints who there is.
pub fn run(args: &Proxies) -> Result<Exit, Failure> {
    match &args.pod {
        Some(pod) if args.tables => tables(args, pod),
        Some(pod) => one(args, pod),
        None => all(args),
    }
}

fn all(args: &Proxies) -> Result<Exit, Failure> {
    let proxies: Vec<Described> = ask(args.asked.control, "/debug/proxies")?;
    let wrong = |one: &Described| !one.connected || one.refused > 0;
    if args.asked.json {
        output::json(&proxies);
    } else {
        let head = ["WORKLOAD", "IDENTITY", "SINCE", "SUBSCRIBED", "STATE", "VERSION", "CONTROL"];
        let paint = Paint::stdout();
        let rows: Vec<Vec<String>> = proxies.iter().map(row).collect();
        for (at, line) in output::columns(&head, &rows).into_iter().enumerate() {
            output::out(match at.checked_sub(1).map(|at| &proxies[at]) {
                None => paint.faint(line),
                Some(one) if wrong(one) => paint.bad(line),
                Some(one) if one.lagging() > 0 => paint.warn(line),
                Some(_) => line,
            });
        }
    }
    Ok(if proxies.iter().any(wrong) { Exit::Failed } else { Exit::Ok })
}

fn row(one: &Described) -> Vec<String> {
    let dash = || "-".to_owned();
    if !one.connected {
        return vec![one.workload.clone(), dash(), dash(), dash(), "not connected".to_owned(), dash(), dash()];
    }
    let since = words::span(Duration::from_secs(one.connected_seconds));
    let version = if one.version.is_empty() { dash() } else { one.version.clone() };
    let replica = if one.replica.is_empty() { dash() } else { one.replica.clone() };
    vec![one.workload.clone(), one.identity.clone(), since, one.subscriptions.to_string(), state(one), version, replica]
}

fn state(one: &Described) -> String {
    match (one.lagging(), one.refused) {
        (0, 0) => "in sync".to_owned(),
        (lags, 0) => format!("lags {lags}, for {:.1} s", one.waits_seconds),
        (0, refused) => format!("refused {refused}"),
        (lags, refused) => format!("refused {refused}, lags {lags}"),
    }
}

fn one(args: &Proxies, pod: &str) -> Result<Exit, Failure> {
    let streams: Vec<Described> = ask(args.asked.control, &format!("/debug/proxies?workload={pod}"))?;
    if streams.is_empty() {
        return Err(Failure::input(format!("{pod} has no stream to control; `weft proxies` lists who has")));
    }
    if args.asked.json {
        output::json(&streams);
    } else {
        for stream in &streams {
            output::out(Paint::stdout().strong(row(stream).join("  ")));
            let rows: Vec<Vec<String>> = stream.versions.iter().flatten().map(version).collect();
            for line in output::columns(&["RESOURCE", "IN FORCE", "STATE"], &rows) {
                output::out(line);
            }
        }
    }
    Ok(if streams.iter().any(|stream| stream.refused > 0) { Exit::Failed } else { Exit::Ok })
}

fn version(version: &Version) -> Vec<String> {
    let state = match &version.refused {
        Some(why) => format!("refused: {why}"),
        None if version.sent == version.acknowledged => "in force".to_owned(),
        None if version.sent.is_none() => "its removal was sent".to_owned(),
        None => "sent, not acknowledged".to_owned(),
    };
    let in_force = version.acknowledged.as_deref().map_or("-", |version| version.get(..12).unwrap_or(version));
    vec![version.name.to_string(), in_force.to_owned(), state]
}

fn tables(args: &Proxies, pod: &str) -> Result<Exit, Failure> {
    let held: Vec<Held> = ask(args.asked.control, &format!("/debug/tables?workload={pod}"))?;
    if args.asked.json {
        output::json(&held);
    } else {
        let paint = Paint::stdout();
        for held in &held {
            output::out(paint.strong(&held.name));
            if let Some(why) = &held.refused {
                output::out(paint.bad(format!("  refused: {why}")));
            }
            let data = held.runs.as_ref().and_then(|runs| runs.data.as_ref());
            for line in data.map(lines).unwrap_or_default() {
                output::out(format_args!("  {line}"));
            }
        }
    }
    Ok(if held.iter().any(|held| held.refused.is_some()) { Exit::Failed } else { Exit::Ok })
}
