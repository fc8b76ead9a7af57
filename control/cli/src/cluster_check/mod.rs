//! `weft check`: can this cluster have Weft, and is what is there right? Each finding is a sentence with its remedy; docs/check.md has more on each.
//!
//! [`seen`] asks, [`judge`] says. What could not be read is a finding too: nothing passes by not being looked at.

pub mod judge;
pub mod seen;

use serde::Serialize;

use crate::args::ClusterCheck;
use crate::exit::{Exit, Failure};
use crate::install::runtime;
use crate::output::{self, Paint};
use seen::Seen;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and deserves a look.
    Warning,
    /// It does not.
    Error,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its section in docs/check.md.
    pub id: &'static str,
    /// How bad it is.
    pub level: Level,
    /// One sentence.
    pub message: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
    /// Where there is more.
    pub docs: String,
}

/// `weft check`.
pub fn run(args: &ClusterCheck) -> Result<Exit, Failure> {
    let seen = runtime()?.block_on(Box::pin(Seen::gather(&args.cluster.access(), args.pre)))?;
    let findings = if args.pre { judge::before(&seen) } else { judge::after(&seen) };
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    let exit = if worst == Level::Error { Exit::Failed } else { Exit::Ok };
    if args.json {
        output::json(&serde_json::json!({"ok": worst != Level::Error, "findings": findings}));
        return Ok(exit);
    }
    let paint = Paint::stdout();
    for finding in &findings {
        let mark = match finding.level {
            Level::Ok => paint.good("ok"),
            Level::Warning => paint.warn("warning"),
            Level::Error => paint.bad("error"),
        };
        output::out(format_args!("{mark} {}: {}", finding.id, finding.message));
        if !finding.remedy.is_empty() {
            output::out(format_args!("   {}; see {}", finding.remedy, finding.docs));
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let said = format!("{} errors, {} warnings", count(Level::Error), count(Level::Warning));
    output::say(if worst == Level::Error { paint.bad(said) } else { paint.good(said) });
    Ok(exit)
}
