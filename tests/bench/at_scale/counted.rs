//! What one change costs control in instructions: its own code from a change of a source to the last acknowledgement, in a process that callgrind
//! counts. Time on a machine that others use says little; instructions are the same each time.
//!
//! A process of its own holds a mesh and subscribers in memory (no sockets, no files, no threads): [`run`]. It says when it is ready, makes its
//! changes when it is told to, and says when it is done; [`instructions`] starts it under callgrind, which counts only between the two.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost::Message as _;
use weft_control::auth::Proved;
use weft_control::distribute::hub::{Client, Hub, Stream};
use weft_control::distribute::session::Limits;
use weft_control::metrics::Metrics;
use weft_control::model::{Change, Model, Name, Slice};
use weft_control::sources::files;
use weft_engine::identity::Identity;
use weft_proxy::discovery::machine::Machine;

use super::super::Error;
use super::Scratch;
use super::files::Files;
use super::sim;
use super::world::{self, HOT, Size, TRUST_DOMAIN, World};

/// Said by the process when it may begin, and when it has ended.
const READY: &str = "ready";
const DONE: &str = "done";

/// A mesh in memory, and changes of it
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    size: Size,
    /// Changes
    #[arg(long)]
    changes: usize,
}

/// A subscriber: control's end and the sidecar's.
struct Subscriber {
    stream: Arc<Stream>,
    machine: Machine,
}

impl Subscriber {
    fn open(hub: &Hub, world: &World, index: usize) -> Result<Self, Error> {
        let (service, member) = world.place(index);
        let (namespace, pod) = (World::namespace(service), World::pod(service, member));
        let proved = Proved {
            identity: Identity::new(TRUST_DOMAIN, &namespace, &World::service(service)).map_err(refused)?,
            not_after: SystemTime::now() + Duration::from_hours(1),
            serial: format!("{index:032x}").into(),
            issuer: None,
            further: false,
            pod: Some(World::uid(service, member).into()),
            chain: [].into(),
        };
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let workload = Name::new(namespace, pod);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let client = Client { workload, proved, features: None, instance: None, addr, version };
        let (machine, _) = sim::machine(world, index);
        let mut one = Self { stream: hub.open(client), machine };
        for request in one.machine.open(Duration::ZERO) {
            hub.hear(&one.stream, request).map_err(refused)?;
        }
        Ok(one)
    }

    /// All that control has to say, encoded as it would travel, and acknowledged.
    fn settle(&mut self, hub: &Hub) -> Result<usize, Error> {
        let mut bytes = 0;
        while self.stream.has_work() {
            let Some(response) = hub.next(&self.stream) else { break };
            bytes += response.encode_to_vec().len();
            for reply in self.machine.hear(response, Duration::ZERO).replies {
                hub.hear(&self.stream, reply).map_err(refused)?;
            }
        }
        Ok(bytes)
    }
}

fn refused(violation: impl std::fmt::Display) -> Error {
    Error::Program { name: "control".to_owned(), reason: violation.to_string() }
}

/// The process that is counted.
pub fn run(args: &Args) -> Result<(), Error> {
    let world = args.size.world()?;
    let model = model(&world)?;
    let metrics = Metrics::new().map_err(refused)?;
    let hub = Hub::new(Limits::default(), Arc::new(metrics));
    hub.publish(Model::default().changes_to(&model));
    let hot = Name::new(World::namespace(HOT), World::service(HOT));
    let of_hot = |(name, slice): (&Name, &Slice)| name.namespace == hot.namespace && slice.service == hot.name;
    let found = model.slices.iter().find(|(name, slice)| of_hot((*name, *slice)));
    let Some((name, slice)) = found else { return Err(Error::Usage("the hot service has no endpoints".to_owned())) };
    let (name, mut slice) = (name.clone(), slice.clone());
    drop(model);
    let mut subscribers = Vec::new();
    for index in 0..world.proxies {
        let mut one = Subscriber::open(&hub, &world, index)?;
        one.settle(&hub)?;
        subscribers.push(one);
    }
    say(READY)?;
    heard()?;
    let mut told = 0;
    for turn in 0..args.changes {
        let at = turn % slice.endpoints.len();
        if let Some(endpoint) = slice.endpoints.get_mut(at) {
            endpoint.zone = world::mark(1 + turn as u64);
        }
        hub.publish([Change::Slice(name.clone(), Some(slice.clone()))]);
        for one in &mut subscribers {
            told += usize::from(one.settle(&hub)? > 0);
        }
    }
    say(DONE)?;
    heard()?;
    if told != args.changes * world.proxies {
        return Err(Error::Usage(format!("{told} responses were sent, not {}", args.changes * world.proxies)));
    }
    Ok(())
}

fn model(world: &World) -> Result<Model, Error> {
    let scratch = Scratch::new()?;
    let source = Files::begin(&scratch.0, world, &vec![0; world.endpoints()])?;
    Ok(files::load(&[source.watched().to_owned()], TRUST_DOMAIN).model)
}

fn say(word: &str) -> Result<(), Error> {
    let mut out = std::io::stdout();
    let said = writeln!(out, "{word}").and_then(|()| out.flush());
    said.map_err(|source| Error::File { path: "stdout".into(), source })
}

fn heard() -> Result<(), Error> {
    let read = std::io::stdin().lock().read_line(&mut String::new());
    read.map(|_| ()).map_err(|source| Error::File { path: "stdin".into(), source })
}

/// Instructions of one change in a mesh of this size; `None` where valgrind is not on this machine.
pub fn instructions(world: &World, changes: usize, dir: &Path) -> Result<Option<f64>, Error> {
    let failed = |reason: String| Error::Program { name: "callgrind".to_owned(), reason };
    let out = dir.join("callgrind.out");
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--tool=callgrind", "--instr-atstart=no"]);
    command.arg(format!("--callgrind-out-file={}", out.display())).arg(program).arg("scale-counted");
    command.args(world.flags()).arg(format!("--changes={changes}"));
    let mut child = match command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let (mut tell, hear) = (child.stdin.take(), child.stdout.take());
    let mut lines = hear.into_iter().flat_map(|hear| BufReader::new(hear).lines());
    for (word, switch) in [(READY, "on"), (DONE, "off")] {
        if !lines.any(|line| line.is_ok_and(|line| line == word)) {
            return Err(failed(format!("the process that is counted ended before it was {word}")));
        }
        let pid = child.id().to_string();
        let switched = Command::new("callgrind_control").arg(format!("--instr={switch}")).arg(pid).output();
        if !switched.is_ok_and(|switched| switched.status.success()) {
            return Err(failed(format!("counting cannot be switched {switch}")));
        }
        let told = tell.as_mut().map(|tell| tell.write_all(b"\n").and_then(|()| tell.flush()));
        told.transpose().map_err(|error| failed(error.to_string()))?;
    }
    drop(tell);
    let ended = child.wait().map_err(|error| failed(error.to_string()))?;
    let text = std::fs::read_to_string(&out).map_err(|source| Error::File { path: out.clone(), source })?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<f64>().ok());
    match total.filter(|_| ended.success()) {
        Some(total) => Ok(Some(total / changes as f64)),
        None => Err(failed(format!("nothing was counted ({ended})"))),
    }
}
