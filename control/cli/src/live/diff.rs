//! `weft diff POD`: what a sidecar runs against what control has for it now.

use weft_control::distribute::describe::{Content, Difference};

use super::{ask, lines};
use crate::args::Diff;
use crate::exit::{Exit, Failure};
use crate::output::{self, Paint};

/// Prints what differs.
pub fn run(args: &Diff) -> Result<Exit, Failure> {
    let differences: Vec<Difference> = ask(args.asked.control, &format!("/debug/diff?workload={}", args.pod))?;
    if args.asked.json {
        output::json(&differences);
    } else {
        let paint = Paint::stdout();
        for difference in &differences {
            for line in told(difference) {
                output::out(match line.as_bytes().first() {
                    Some(b'-') => paint.bad(line),
                    Some(b'+') => paint.good(line),
                    Some(b' ') => paint.warn(line),
                    _ => paint.strong(line),
                });
            }
        }
    }
    Ok(if differences.is_empty() { Exit::Ok } else { Exit::Failed })
}

fn told(difference: &Difference) -> Vec<String> {
    let (runs, now) = (&difference.held.runs, &difference.now);
    let what = match (runs, now) {
        (None, None) => "is on its way out",
        (None, Some(_)) => "is not there yet",
        (Some(_), None) => "should not be there any more",
        (Some(_), Some(_)) => "is another one",
    };
    let mut said = vec![format!("{} {what}", difference.held.name)];
    said.extend(difference.held.refused.iter().map(|why| format!("  refused: {why}")));
    let content = |content: &Option<Content>| match content {
        None => Vec::new(),
        Some(Content { data: Some(data), .. }) => lines(data),
        Some(Content { version, data: None }) => vec![format!("version: {version} (what it says is not known)")],
    };
    let (before, after) = (content(runs), content(now));
    said.extend(before.iter().filter(|line| !after.contains(line)).map(|line| format!("- {line}")));
    said.extend(after.iter().filter(|line| !before.contains(line)).map(|line| format!("+ {line}")));
    said
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_differs_is_told_and_why_it_was_refused() {
        let difference = |runs, now| -> Difference {
            serde_json::from_value(
                json!({ "name": "a", "type": "Service", "runs": runs, "now": now, "refused": "bad: no" }),
            )
            .unwrap()
        };
        let content = |port: u16| json!({ "version": "v", "data": { "name": "web", "port": port } });
        let said = told(&difference(content(80), content(81)));
        assert_eq!(said, ["a is another one", "  refused: bad: no", "- port: 80", "+ port: 81"]);
        let unknown = json!({ "version": "v", "data": null });
        let said = told(&difference(unknown, json!(null)));
        assert_eq!(said[2..], ["- version: v (what it says is not known)"]);
    }
}
