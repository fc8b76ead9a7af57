//! An explanation for a person.

use std::fmt::Write as _;

use weft_engine::explain::Step;
use weft_engine::identity::Identity;

use super::{Explanation, Outcome, Verdict};
use crate::output::Paint;

/// The whole page.
pub fn page(told: &Explanation, from: &Identity, asked: &str, paint: Paint) -> String {
    let mut page = String::new();
    let _ = writeln!(page, "{}", paint.strong(format!("{asked} from {}", from.short())));
    for step in &told.steps {
        line(&mut page, "", step, paint);
    }
    for outcome in told.outcomes.iter().filter(|outcome| !outcome.steps.is_empty()) {
        let _ = writeln!(page, "{}", head(outcome, paint));
        for step in &outcome.steps {
            line(&mut page, "  ", step, paint);
        }
    }
    let verdict = match (told.verdict, told.reason, told.status) {
        (Verdict::Allowed, _, Some(status)) => paint.good(format!("answered: HTTP {status}")),
        (Verdict::Allowed, ..) => paint.good("allowed"),
        (Verdict::Refused, Some(reason), Some(status)) => paint.bad(format!("refused: {reason} (HTTP {status})")),
        (Verdict::Refused, Some(reason), None) => paint.bad(format!("refused: {reason} (reset)")),
        (Verdict::Refused, ..) => paint.bad("refused"),
        (Verdict::Depends, ..) => paint.warn("depends on the endpoint that is drawn"),
    };
    let _ = writeln!(page, "{verdict}");
    page
}

fn head(outcome: &Outcome, paint: Paint) -> String {
    let percent = outcome.share * 100.0;
    let mut text = format!("  {percent:.0}%");
    if !outcome.backend.is_empty() {
        let _ = write!(text, " at {}", outcome.backend);
    }
    if !outcome.endpoints.is_empty() {
        let names: Vec<&str> = outcome.endpoints.iter().map(|name| &**name).collect();
        let _ = write!(text, " ({})", names.join(", "));
    }
    let end = match (outcome.reason, outcome.status) {
        (Some(reason), _) => paint.bad(reason),
        (None, Some(status)) => paint.good(format!("answered {status}")),
        (None, None) => paint.good("goes on"),
    };
    format!("{text}: {end}")
}

fn line(page: &mut String, indent: &str, step: &Step, paint: Paint) {
    let _ = write!(page, "  {indent}{:<14} {}", step.room, step.decision);
    if !step.by.is_empty() {
        let _ = write!(page, "  {}", paint.faint(format!("[{}]", step.by)));
    }
    page.push('\n');
}
