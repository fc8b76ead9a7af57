//! `weft certs rotate-root` and `rotate-issuer`: the first step is written where the CA lives, the others are control's; this
//! watches. What is true is there; control is only asked who is waited for.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use weft_certs::ca::rotation::{Kind, Phase, Rotation};
use weft_certs::ca::{Ca, CaError, Home};
use weft_control::rotation::Waiting;

use super::status;
use crate::args::Rotate;
use crate::exit::{Exit, Failure};
use crate::output::{self, Paint};

/// Between two looks at the CA.
const LOOK: Duration = Duration::from_millis(300);
/// Control is asked who lags after so long in a phase, and then as often.
const ASK: Duration = Duration::from_secs(2);
/// So many of those who lag are named.
const NAMED: usize = 20;

/// How it ended, for programs.
#[derive(serde::Serialize)]
struct Ended<'a> {
    kind: Kind,
    done: bool,
    aborted: bool,
    phase: Option<Phase>,
    issuing: &'a str,
    seconds: f64,
}

/// Begins, turns back or joins a rotation, and watches it.
pub fn run(kind: Kind, args: &Rotate) -> Result<Exit, Failure> {
    let started = Instant::now();
    let ca = step(kind, args.abort, args.ca.needed()?).map_err(|error| Failure::input(error.to_string()))?;
    let Some(rotation) = ca.authorities().rotation().cloned() else {
        return Err(Failure::input("the rotation ended at this moment; see weft certs status"));
    };
    let (ca, in_time) = if args.no_wait { (ca, true) } else { watch(ca, args, started)? };
    let authorities = ca.authorities();
    let done = authorities.rotation().is_none();
    let kept = authorities.issuing() == rotation.to;
    if args.json {
        output::json(&Ended {
            kind,
            done,
            aborted: rotation.aborted || (done && !kept),
            phase: authorities.rotation().map(|rotation| rotation.phase),
            issuing: authorities.issuing(),
            seconds: started.elapsed().as_secs_f64(),
        });
    } else {
        output::out(sentence(&ca, kept));
    }
    Ok(if in_time && (kept || !done) { Exit::Ok } else { Exit::Failed })
}

fn step(kind: Kind, abort: bool, home: Home) -> Result<Ca, CaError> {
    let ca = Ca::load(home)?;
    let now = SystemTime::now();
    match ca.authorities().rotation() {
        Some(rotation) if rotation.kind == kind && !abort => Ok(ca),
        // Turning back is asked for the other kind: what is under way is said.
        Some(rotation) if rotation.kind != kind => ca.begin(kind, now),
        _ if abort => ca.abort(now),
        _ => ca.begin(kind, now),
    }
}

fn sentence(ca: &Ca, kept: bool) -> String {
    let paint = Paint::stdout();
    let issuing = ca.authorities().issuing();
    match ca.authorities().rotation() {
        Some(rotation) => {
            format!("{} {}; control goes on with it: weft certs status", rotation.phase.label(), meaning(rotation))
        }
        None if kept => {
            format!("{} {issuing} issues, under {}", paint.good("done:"), ca.authorities().published().join(", "))
        }
        None => format!("{} {issuing} issues as before", paint.warn("turned back:")),
    }
}

fn meaning(rotation: &Rotation) -> String {
    let Rotation { from, to, .. } = rotation;
    match rotation.phase {
        Phase::Publishing => format!("(both roots are believed, {from} issues, every proxy has to acknowledge both)"),
        Phase::Turning => format!("({to} issues, no certificate of {from} may be left)"),
        Phase::Withdrawing => format!("(only what {to} leads to is believed, every proxy has to acknowledge that)"),
    }
}

/// Looks until the rotation is over, or the time is.
fn watch(mut ca: Ca, args: &Rotate, started: Instant) -> Result<(Ca, bool), Failure> {
    let (mut phase, mut asked, mut said) = (None, Instant::now(), Vec::new());
    while let Some(rotation) = ca.authorities().rotation() {
        if phase != Some((rotation.phase, rotation.aborted)) {
            phase = Some((rotation.phase, rotation.aborted));
            (asked, said) = (Instant::now(), Vec::new());
            let back = if rotation.aborted { "turning back: " } else { "" };
            output::say(format_args!("{back}{} {}", Paint::stderr().strong(rotation.phase.label()), meaning(rotation)));
        }
        if args.timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
            return Ok((ca, false));
        }
        if asked.elapsed() >= ASK {
            asked = Instant::now();
            let lines = lagging(args.control);
            if lines != said {
                for line in &lines {
                    output::say(format_args!("  {line}"));
                }
                said = lines;
            }
        }
        sleep(LOOK);
        if let Some(changed) = ca.reload().map_err(|error| Failure::input(error.to_string()))? {
            ca = changed;
        }
    }
    Ok((ca, true))
}

/// Who is waited for, or why nobody can say.
fn lagging(control: SocketAddr) -> Vec<String> {
    let report = match status::ask(control) {
        Ok(report) => report,
        Err(why) => return vec![format!("{why}; the rotation goes on whenever control runs")],
    };
    let Some(rotation) = report.rotation else { return Vec::new() };
    let more = rotation.waiting.len().saturating_sub(NAMED);
    let mut lines: Vec<_> =
        rotation.waiting.iter().take(NAMED).map(|Waiting { workload, why }| format!("{workload} {why}")).collect();
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}
