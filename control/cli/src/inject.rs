//! `weft inject`: the sidecar in manifests, by the code of the webhook.

use std::io::Read as _;
use std::path::Path;

use serde_json::Value;
use weft_api::kinds::{documents, parse, to_yaml};
use weft_control::cluster::Access;
use weft_control::inject::{INJECT, Injection, Manifest, Outcome, Skipped, manifest};

use crate::args::Inject;
use crate::exit::{Exit, Failure};
use crate::output::{self, Paint};

/// Of one file: as much as control reads of one.
const MAX_FILE: u64 = 64 << 20;

/// Prints all objects, injected where that can be.
pub fn run(args: &Inject) -> Result<Exit, Failure> {
    let mut objects = Vec::new();
    for file in &args.files {
        objects.extend(read(file)?);
    }
    let settings = settings(args)?;
    let mut done = Vec::new();
    for (place, object) in &objects {
        done.push(one(&settings, place, object)?);
    }
    // Nothing is printed of what is refused in part: somebody pipes it on.
    output::raw(done.join("---\n").as_bytes());
    Ok(Exit::Ok)
}

fn one(settings: &Injection, place: &str, object: &Value) -> Result<String, Failure> {
    let paint = Paint::stderr();
    let note = |text: &str| output::say(format_args!("{} {place}: {text}", paint.warn("weft:")));
    let refused = |refusal| Failure { exit: Exit::Failed, message: format!("{place}: {refusal}") };
    let made = match manifest(settings, object).map_err(refused)? {
        Manifest::Workload(Outcome::Injected { pod, warnings }) => {
            for warning in &warnings {
                note(warning);
            }
            pod
        }
        Manifest::Workload(Outcome::Skipped(Skipped::Impossible(why))) => {
            note(&why);
            object.clone()
        }
        Manifest::Workload(Outcome::Skipped(Skipped::Disabled)) => {
            note(&format!("left as it is, because its label {INJECT} says disabled"));
            object.clone()
        }
        Manifest::Workload(Outcome::Unchanged) | Manifest::Other => object.clone(),
    };
    to_yaml(&made).map_err(|error| Failure::input(format!("{place}: {error}")))
}

/// The objects of a file, each with its place.
fn read(file: &Path) -> Result<Vec<(String, Value)>, Failure> {
    let shown = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    let text = text(file).map_err(|error| Failure::input(format!("{shown} cannot be read: {error}")))?;
    let parsed = documents(&text).into_iter().map(|document| {
        let place = format!("{shown}:{}", document.lines_before + 1);
        let node = parse(document).map_err(|fault| Failure::input(format!("{shown}:{fault}")))?;
        Ok((place, node.to_json()))
    });
    parsed.collect()
}

fn text(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(MAX_FILE + 1).read_to_string(&mut text)?
    } else {
        std::fs::File::open(file)?.take(MAX_FILE + 1).read_to_string(&mut text)?
    };
    if read as u64 > MAX_FILE {
        return Err(std::io::Error::other(format!("more than {MAX_FILE} bytes")));
    }
    Ok(text)
}

fn settings(args: &Inject) -> Result<Injection, Failure> {
    if let Some(file) = &args.injection {
        let shown = file.display();
        let text = text(file).map_err(|error| Failure::input(format!("{shown} cannot be read: {error}")))?;
        return Injection::read(&text).map_err(|fault| Failure::input(format!("{shown}:{fault}")));
    }
    let access = Access { kubeconfig: args.kubeconfig.clone(), context: args.context.clone(), ..Access::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let asked = runtime.block_on(Injection::of_cluster(&access, &args.namespace));
    asked.map_err(|why| Failure::here(format!("{why}; give --injection FILE to do without the cluster")))
}
