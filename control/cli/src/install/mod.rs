//! `weft install`, `weft upgrade`, `weft uninstall`: the chart of this binary, without Helm.
//!
//! - [`chart`]: its files. [`values`]: what is chosen, checked. [`render`]: both -> objects, the same that Helm makes.
//! - [`kinds`], [`server`]: in which order, and how they are applied.
//! - [`state`]: what is installed, and by whom. [`wait`]: until it is ready. [`remove`]: what goes, and what stays.
//!
//! Invariants
//! - What Helm has installed is never touched, and says so; nor does Helm take over what is ours (it looks at its own labels).
//! - Applied is by server-side apply as `weft`: what control writes into the same objects (the CA, the webhook's caBundle) stays.
//! - Each command may be given again after it was broken off anywhere.

pub mod chart;
pub mod kinds;
pub mod remove;
pub mod render;
pub mod server;
pub mod state;
pub mod values;
pub mod wait;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::args::{Install, Upgrade};
use crate::exit::{Exit, Failure};
use crate::output::{self, Paint};
use kinds::{KINDS, Kind, called};
use render::{Release, Rendered};
use server::{Server, failed};
use state::{NAMESPACE, State};

/// The oldest Kubernetes that the chart is for (`kubeVersion` of Chart.yaml).
pub const OLDEST: u64 = 30;

/// A runtime for one command.
///
/// # Errors
/// The system has no resources for one.
pub fn runtime() -> Result<Runtime, Failure> {
    let made = tokio::runtime::Builder::new_current_thread().enable_all().build();
    made.map_err(|error| Failure::here(format!("no runtime: {error}")))
}

/// `weft install`.
pub fn install(args: &Install) -> Result<Exit, Failure> {
    let given = given(args)?;
    let rendered = rendered(&given)?;
    if args.dry_run {
        output::raw(rendered.text.as_bytes());
        return Ok(Exit::Ok);
    }
    runtime()?.block_on(async {
        let server = Server::new(&args.cluster.access()).await?;
        match State::read(&server).await? {
            State::Nothing | State::Begun => {}
            State::Ours { version, .. } => {
                return Err(Failure::here(format!("Weft {version} is installed here: `weft upgrade` changes it")));
            }
            State::Helm { release } => return Err(by_helm(&release, "upgrade")),
            State::Foreign { what } => return Err(foreign(&what)),
        }
        Box::pin(bring(&server, args, &rendered, &given, "installed")).await
    })
}

/// `weft upgrade`.
pub fn upgrade(args: &Upgrade) -> Result<Exit, Failure> {
    let install = &args.install;
    let new = given(install)?;
    runtime()?.block_on(async {
        let server = Server::new(&install.cluster.access()).await?;
        let before = match State::read(&server).await? {
            State::Ours { values, .. } => values,
            State::Begun => json!({}),
            State::Nothing => return Err(Failure::here("Weft is not installed here: `weft install` does that")),
            State::Helm { release } => return Err(by_helm(&release, "upgrade")),
            State::Foreign { what } => return Err(foreign(&what)),
        };
        let given = if args.reset_values { new } else { values::over(before, new) };
        let rendered = rendered(&given)?;
        if install.dry_run {
            output::raw(rendered.text.as_bytes());
            return Ok(Exit::Ok);
        }
        Box::pin(bring(&server, install, &rendered, &given, "upgraded")).await
    })
}

fn by_helm(release: &str, command: &str) -> Failure {
    Failure::here(format!("Weft was installed here by Helm (release {release}): `helm {command} {release}` changes it"))
}

fn foreign(what: &str) -> Failure {
    Failure::here(format!("{what} is there and is not ours: remove it, or see who made it"))
}

/// The values that were asked for, over the chart's own.
fn given(args: &Install) -> Result<Value, Failure> {
    let mut files = Vec::new();
    if args.ha {
        files.push(("values-ha.yaml".to_owned(), chart::HA.to_owned()));
    }
    for file in &args.values {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| Failure::input(format!("{name}: {error}")))?;
        files.push((name, text));
    }
    values::given(&files, &args.set).map_err(Failure::input)
}

fn rendered(given: &Value) -> Result<Rendered, Failure> {
    let whole = values::whole(given.clone()).map_err(|wrong| Failure::input(wrong.join("\n      ")))?;
    render::render(&whole, &Release::default()).map_err(Failure::input)
}

/// Brings the cluster to what was rendered.
async fn bring(
    server: &Server,
    args: &Install,
    rendered: &Rendered,
    given: &Value,
    done: &str,
) -> Result<Exit, Failure> {
    let begun = Instant::now();
    let version = server.get("/version").await.map_err(failed("the API server"))?.unwrap_or_default();
    if minor(&version).is_some_and(|minor| minor < OLDEST) {
        let found = version["gitVersion"].as_str().unwrap_or_default();
        return Err(Failure::here(format!("this is Kubernetes {found}; Weft needs 1.{OLDEST} or later")));
    }
    let say = Say { json: args.json, paint: Paint::stderr() };
    namespace(server, &say).await?;
    let mut ordered: Vec<(usize, Kind, &Value)> = Vec::new();
    for object in &rendered.objects {
        let Some((at, kind)) = Kind::of(object) else {
            return Err(Failure::input(format!("the chart makes a {}, which is not known here", called(object))));
        };
        ordered.push((at, kind, object));
    }
    ordered.sort_by_key(|(at, ..)| *at);
    for step in ordered.chunk_by(|(_, one, _), (_, other, _)| one.step == other.step) {
        for (_, kind, object) in step {
            server.apply(kind, object).await.map_err(failed(&called(object)))?;
        }
        if step[0].1.step == "kinds" {
            wait::established(server, step.iter().map(|(.., object)| *object), args.timeout).await?;
        }
        say.step(step[0].1.step, &counted(step.len()));
    }
    let gone = prune(server, rendered).await?;
    if gone > 0 {
        say.step("removed", &format!("{} that this version or these values do not have", counted(gone)));
    }
    let ready = if args.no_wait { Ok(()) } else { wait::ready(server, rendered, begun + args.timeout, &say).await };
    state::record(server, given, ready.is_ok()).await?;
    report(args, rendered, done, begun.elapsed(), ready)
}

fn report(
    args: &Install,
    rendered: &Rendered,
    done: &str,
    took: Duration,
    ready: Result<(), String>,
) -> Result<Exit, Failure> {
    let exit = if ready.is_ok() { Exit::Ok } else { Exit::Failed };
    if args.json {
        let objects: Vec<_> = rendered.objects.iter().map(called).collect();
        output::json(&json!({
            "ok": ready.is_ok(), "version": chart::VERSION, "objects": objects, "waited": !args.no_wait,
            "seconds": (took.as_secs_f64() * 10.0).round() / 10.0, "why": ready.err(),
        }));
        return Ok(exit);
    }
    match ready {
        Ok(()) => {
            let seconds = took.as_secs_f64();
            output::say(format_args!(
                "{}",
                Paint::stderr().good(format!("Weft {} is {done} ({seconds:.1} s)", chart::VERSION))
            ));
            output::out(format_args!("\n{}", rendered.notes.trim()));
            Ok(exit)
        }
        Err(why) => Err(Failure {
            exit,
            message: format!(
                "applied, but not ready within {} s: {why}; `weft check` looks closer",
                args.timeout.as_secs()
            ),
        }),
    }
}

fn counted(number: usize) -> String {
    if number == 1 { "1 object".to_owned() } else { format!("{number} objects") }
}

/// The minor version of the API server: `29+` of some distributions is 29.
pub fn minor(version: &Value) -> Option<u64> {
    let digits: String = version["minor"].as_str()?.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Makes the namespace, if it is not there; then it is ours, and goes when Weft does.
async fn namespace(server: &Server, say: &Say) -> Result<(), Failure> {
    let kind = KINDS[0];
    let path = format!("{}/{NAMESPACE}", kind.path(None));
    if server.get(&path).await.map_err(failed("the namespace"))?.is_some() {
        return Ok(());
    }
    let labels = json!({"app.kubernetes.io/part-of": "weft", "app.kubernetes.io/managed-by": "weft"});
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}});
    server.apply(&kind, &object).await.map_err(failed("the namespace"))?;
    say.step("namespace", NAMESPACE);
    Ok(())
}

/// Removes what an earlier version, or other values, had; neither the CA nor the kinds, which hold what is not ours.
async fn prune(server: &Server, rendered: &Rendered) -> Result<usize, Failure> {
    let wanted: Vec<String> = rendered.objects.iter().map(called).collect();
    let mut gone = 0;
    for object in state::ours(server).await? {
        let Some((_, kind)) = Kind::of(&object) else { continue };
        let kept = matches!(kind.name, "Namespace" | "CustomResourceDefinition") || state::is_kept(&object);
        if kept || wanted.contains(&called(&object)) {
            continue;
        }
        gone += usize::from(server.delete(&kind.path_of(&object)).await.map_err(failed(&called(&object)))?);
    }
    Ok(gone)
}

/// Progress, a line a step.
#[derive(Clone, Copy, Debug)]
pub struct Say {
    /// Only errors, then.
    pub json: bool,
    /// Colours.
    pub paint: Paint,
}

impl Say {
    /// A step that is done.
    pub fn step(&self, step: &str, what: &str) {
        if !self.json {
            output::say(format_args!("{} {step}: {what}", self.paint.good("ok")));
        }
    }

    /// What is waited for; written over itself, so for a terminal only.
    pub fn moving(&self, what: &str) {
        if !self.json && output::interactive() {
            output::draw(&format!("\r\x1b[K   {what}"));
        }
    }

    /// Takes that away again.
    pub fn still(&self) {
        if !self.json && output::interactive() {
            output::draw("\r\x1b[K");
        }
    }
}
