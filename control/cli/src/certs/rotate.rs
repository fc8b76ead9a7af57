//! `weft certs rotate-root`, `rotate-issuer` and `rotate-trust-domain`: the first step is written where the CA lives, the others are
//! control's; this watches. What is true is there; control is only asked who is waited for.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use weft_certs::ca::rotation::{Kind, Phase, Rotation, RotationError};
use weft_certs::ca::{Ca, CaError, Called, Home};
use weft_control::rotation::Waiting;

use super::status;
use crate::args::{Rename, Rotate};
use crate::exit::{Exit, Failure};
use crate::output::{self, Paint};

/// Between two looks at the CA.
const LOOK: Duration = Duration::from_millis(300);
/// Control is asked who lags after so long in a phase, and then as often.
const ASK: Duration = Duration::from_secs(2);
/// So many of those who lag are named.
const NAMED: usize = 20;

/// What is exchanged.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// The root or the issuer.
    Exchange(Kind),
    /// The trust domain's name.
    Rename(&'a Rename),
}

impl What<'_> {
    fn kind(self) -> Kind {
        match self {
            Self::Exchange(kind) => kind,
            Self::Rename(_) => Kind::TrustDomain,
        }
    }

    fn begin(self, ca: &Ca, now: SystemTime) -> Result<Ca, CaError> {
        match self {
            Self::Exchange(kind) => ca.begin(kind, now),
            Self::Rename(Rename { to: Some(to), keep_alias, .. }) => ca.rename(to, *keep_alias, now),
            Self::Rename(Rename { drop_alias: Some(alias), .. }) => ca.drop_alias(alias, now),
            Self::Rename(_) => Err(RotationError::Unnamed.into()),
        }
    }

    /// Whether what is under way is what is wished.
    fn is(self, rotation: &Rotation) -> bool {
        let same = match self {
            Self::Exchange(_) => true,
            Self::Rename(wish) => {
                wish.to.as_ref().is_none_or(|to| *to == rotation.to)
                    && wish.drop_alias.as_ref().is_none_or(|alias| *alias == rotation.from)
            }
        };
        rotation.kind == self.kind() && same
    }

    /// Control, if it can be asked, knows whether the CA is elsewhere, and whether the name is another mesh's.
    fn may_be(self, control: SocketAddr) -> Result<(), Failure> {
        let Ok(report) = status::ask(control) else { return Ok(()) };
        if report.elsewhere {
            return Err(Failure::input(elsewhere(self.kind(), &report.issuing)));
        }
        match self {
            Self::Rename(Rename { to: Some(to), .. }) if report.federated.contains(to) => {
                Err(Failure::input(format!("the mesh is federated with `{to}`: it cannot be called so itself")))
            }
            _ => Ok(()),
        }
    }
}

fn elsewhere(kind: Kind, by: &str) -> String {
    match kind {
        Kind::TrustDomain => {
            format!("certificates are issued by {by}: the trust domain cannot be renamed while they are")
        }
        Kind::Root => format!(
            "certificates are issued by {by}: exchange the root there; control follows its file of --roots, where the new one has to be \
             before anything is issued under it"
        ),
        Kind::Issuer => {
            format!("certificates are issued by {by}: exchange the issuer there; nothing is to be done here")
        }
    }
}

/// How it ended, for programs.
#[derive(serde::Serialize)]
struct Ended<'a> {
    kind: Kind,
    done: bool,
    aborted: bool,
    phase: Option<Phase>,
    issuing: &'a str,
    trust_domain: &'a str,
    seconds: f64,
}

/// Begins, turns back or joins a rotation, and watches it.
pub fn run(what: What<'_>, args: &Rotate) -> Result<Exit, Failure> {
    let started = Instant::now();
    what.may_be(args.control)?;
    let ca = step(what, args.abort, args.ca.needed()?).map_err(|error| Failure::input(error.to_string()))?;
    let Some(rotation) = ca.authorities().rotation().cloned() else {
        return Err(Failure::input("the rotation ended at this moment; see weft certs status"));
    };
    let (ca, in_time) = if args.no_wait { (ca, true) } else { watch(ca, args, started)? };
    let authorities = ca.authorities();
    let done = authorities.rotation().is_none();
    let kept =
        rotation.to == if rotation.kind == Kind::TrustDomain { ca.trust_domain() } else { authorities.issuing() };
    if args.json {
        output::json(&Ended {
            kind: rotation.kind,
            done,
            aborted: rotation.aborted || (done && !kept),
            phase: authorities.rotation().map(|rotation| rotation.phase),
            issuing: authorities.issuing(),
            trust_domain: ca.trust_domain(),
            seconds: started.elapsed().as_secs_f64(),
        });
    } else {
        output::out(sentence(&ca, rotation.kind, kept));
    }
    Ok(if in_time && (kept || !done) { Exit::Ok } else { Exit::Failed })
}

fn step(what: What<'_>, abort: bool, home: Home) -> Result<Ca, CaError> {
    let ca = Ca::load(home)?;
    let now = SystemTime::now();
    match ca.authorities().rotation() {
        Some(rotation) if what.is(rotation) && !abort => Ok(ca),
        // Something else is asked for: what is under way is said.
        Some(rotation) if !what.is(rotation) => what.begin(&ca, now),
        _ if abort => ca.abort(now),
        _ => what.begin(&ca, now),
    }
}

fn sentence(ca: &Ca, kind: Kind, kept: bool) -> String {
    let paint = Paint::stdout();
    let Called { now, aliases, .. } = ca.called();
    let issuing = ca.authorities().issuing();
    match ca.authorities().rotation() {
        Some(rotation) => {
            format!("{} {}; control goes on with it: weft certs status", rotation.phase.label(), meaning(rotation))
        }
        None if kind == Kind::TrustDomain => {
            let too = if aliases.is_empty() { String::new() } else { format!(", and {} too", aliases.join(", ")) };
            let ended = if kept { paint.good("done:") } else { paint.warn("turned back:") };
            format!("{ended} the trust domain is called {now}{too}")
        }
        None if kept => {
            format!("{} {issuing} issues, under {}", paint.good("done:"), ca.authorities().published().join(", "))
        }
        None => format!("{} {issuing} issues as before", paint.warn("turned back:")),
    }
}

fn meaning(rotation: &Rotation) -> String {
    let Rotation { from, to, .. } = rotation;
    if rotation.kind == Kind::TrustDomain {
        return match rotation.phase {
            Phase::Publishing => {
                format!("(both names are the mesh's, {from} is issued, every proxy has to acknowledge both)")
            }
            Phase::Turning => format!("({to} is issued, no certificate in {from} may be left)"),
            Phase::Withdrawing => format!("(nobody is believed under {from}, every proxy has to acknowledge that)"),
        };
    }
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
