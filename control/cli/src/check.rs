//! `weft policy check`: what control would say about these files.

use weft_control::sources::files;

use crate::args::Check;
use crate::exit::{Exit, Failure};
use crate::output::{self, Paint};

/// Checks, and prints each problem on a line of its own.
pub fn run(args: &Check) -> Result<Exit, Failure> {
    if let Some(missing) = args.paths.iter().find(|path| !path.exists()) {
        return Err(Failure::input(format!("{}: there is no such file or directory", missing.display())));
    }
    let report = files::check(&args.paths, &args.trust_domain);
    let exit = if report.ok { Exit::Ok } else { Exit::Failed };
    if args.json {
        output::json(&report);
        return Ok(exit);
    }
    let paint = Paint::stdout();
    for problem in &report.problems {
        output::out(problem);
    }
    for warning in &report.warnings {
        output::out(format_args!("{} {warning}", paint.warn("warning:")));
    }
    let objects: u64 = report.objects.values().sum();
    let skipped: u64 = report.skipped.values().sum();
    let found = match report.problems.len() {
        0 => paint.good("no problem"),
        1 => paint.bad("1 problem"),
        several => paint.bad(format!("{several} problems")),
    };
    output::say(format_args!(
        "{found} in {} files: {objects} objects, {skipped} of other kinds left alone",
        report.files
    ));
    Ok(exit)
}
