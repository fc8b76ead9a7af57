//! Control and the simulated proxies as processes of their own.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::Error;
use super::super::account::{Memory, Usage};
use super::world::{self, World};

/// How often control is asked whether it is ready.
const LOOK: Duration = Duration::from_millis(10);

/// Control, ended when dropped.
#[derive(Debug)]
pub struct Control {
    child: Child,
    how: How,
    /// When it was started, by the clock of marks.
    pub started: u64,
}

/// How to start it, and again.
#[derive(Debug, Clone)]
pub struct How {
    program: PathBuf,
    flags: Vec<String>,
    log: PathBuf,
    /// Where proxies call.
    listen: SocketAddr,
    metrics: SocketAddr,
}

impl How {
    /// `program` is weft-control, or a `weft` that plays every part.
    pub fn new(program: &Path, source: Vec<String>, dir: &Path) -> Result<Self, Error> {
        let (listen, metrics) = (free()?, free()?);
        let alone = program.file_name().is_some_and(|name| name == "weft-control");
        let mut flags: Vec<String> = (!alone).then(|| "control".to_owned()).into_iter().collect();
        flags.extend(source);
        let text = |text: &str| text.to_owned();
        flags.extend([text("--ca-dir"), ca_dir(dir).display().to_string()]);
        flags.extend([text("--listen"), listen.to_string(), text("--metrics"), metrics.to_string()]);
        Ok(Self { program: program.to_owned(), flags, log: dir.join("control.log"), listen, metrics })
    }
}

/// Where the CA of a run is.
pub fn ca_dir(dir: &Path) -> PathBuf {
    dir.join("ca")
}

/// A port that nobody listens on. It has to be known before, since control keeps it over a restart.
pub fn free() -> Result<SocketAddr, Error> {
    let found = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    found.map_err(|source| Error::File { path: "127.0.0.1:0".into(), source })
}

impl Control {
    /// Starts it.
    pub fn start(how: How) -> Result<Self, Error> {
        let failed = |source| Error::File { path: how.program.clone(), source };
        let log = File::options().create(true).append(true).open(&how.log).map_err(failed)?;
        let started = world::now();
        let child = Command::new(&how.program)
            .args(&how.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        Ok(Self { child, how, started })
    }

    /// Kills it with no warning, and starts it on the same ports.
    pub fn restart(mut self) -> Result<Self, Error> {
        let how = self.how.clone();
        self.end();
        drop(self);
        Self::start(how)
    }

    /// Waits until it has read its sources.
    pub fn ready(&mut self, patience: Duration) -> Result<(), Error> {
        let until = Instant::now() + patience;
        while !self.get("/healthz/ready").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            let dead = matches!(self.child.try_wait(), Ok(Some(_)));
            if dead || Instant::now() > until {
                let log = std::fs::read_to_string(&self.how.log).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                let state = if dead { "ended" } else { "is not ready" };
                return Err(Error::Program {
                    name: "control".to_owned(),
                    reason: format!("{state}: {}", last.join(" | ")),
                });
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// What it holds.
    pub fn memory(&self) -> Result<Memory, Error> {
        Memory::of(self.child.id())
    }

    /// The most that it ever had resident, in KiB.
    pub fn peak(&self) -> Result<f64, Error> {
        Memory::peak(self.child.id())
    }

    /// CPU time that it has used, in seconds.
    pub fn cpu(&self) -> Result<f64, Error> {
        Ok(Usage::of(self.child.id())?.cpu_us / 1e6)
    }

    /// The sum of a metric of its over all labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").unwrap_or_default();
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let labelled = rest.starts_with([' ', '{']);
            labelled.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok()).flatten()
        });
        values.sum()
    }

    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut tcp = TcpStream::connect(self.how.metrics)?;
        tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(tcp, "GET {path} HTTP/1.1\r\nhost: control\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        tcp.read_to_string(&mut text)?;
        Ok(text)
    }

    fn end(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.end();
    }
}

/// One process of simulated proxies; it ends with its standard input.
#[derive(Debug)]
struct Client {
    child: Child,
    told: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// How many of its proxies call the hot service.
    subscribers: usize,
}

/// All of them.
#[derive(Debug)]
pub struct Clients(Vec<Client>);

/// What they have counted, together.
#[derive(Debug, Default, Clone)]
pub struct Counted {
    /// gRPC messages that came.
    pub messages_in: f64,
    /// And went.
    pub messages_out: f64,
    /// Bytes of both, with the prefix of each.
    pub bytes: f64,
    /// Resources that came.
    pub resources: f64,
    /// That the proxy held already.
    pub unchanged: f64,
    /// That the proxy refused.
    pub refused: f64,
    /// Streams that ended.
    pub losses: f64,
    /// Sockets open.
    pub sockets: f64,
    /// An edited route, encoded.
    pub route_bytes: f64,
    /// Age at acknowledgement in milliseconds, and how many had it; by age.
    pub ages: Vec<(f64, u64)>,
}

impl Counted {
    /// The age that this share of all did not exceed.
    pub fn age(&self, share: f64) -> f64 {
        let all: u64 = self.ages.iter().map(|(_, many)| many).sum();
        let mut left = ((all as f64 * share).ceil() as u64).max(1);
        for (age, many) in &self.ages {
            if left <= *many {
                return *age;
            }
            left -= many;
        }
        f64::NAN
    }

    fn add(&mut self, answer: &Value) {
        let number = |name: &str| answer[name].as_f64().unwrap_or(f64::NAN);
        self.messages_in += number("messages_in");
        self.messages_out += number("messages_out");
        self.bytes += number("bytes_in") + number("bytes_out");
        self.resources += number("resources");
        self.unchanged += number("unchanged");
        self.refused += number("refused");
        self.losses += number("losses");
        self.sockets += number("sockets");
        self.route_bytes = self.route_bytes.max(number("route_bytes"));
        let ages = answer["ages"].as_array().into_iter().flatten();
        self.ages.extend(ages.filter_map(|pair| Some((pair[0].as_f64()? / 10.0, pair[1].as_u64()?))));
        self.ages.sort_by(|one, two| one.0.total_cmp(&two.0));
    }
}

impl Clients {
    /// Starts so many processes, and waits until their certificates are made.
    pub fn start(world: &World, how: &How, dir: &Path, uids: Option<&Path>, many: usize) -> Result<Self, Error> {
        let own = std::env::current_exe().map_err(|source| Error::File { path: "/proc/self/exe".into(), source })?;
        let mut clients = Vec::new();
        for part in 0..many {
            let (from, to) = (world.proxies * part / many, world.proxies * (part + 1) / many);
            if from == to {
                continue;
            }
            let mut command = Command::new(&own);
            command.arg("scale-client").arg("--control").arg(how.listen.to_string()).arg("--ca-dir").arg(ca_dir(dir));
            command.args(uids.into_iter().flat_map(|uids| ["--uids".as_ref(), uids.as_os_str()]));
            command.args(world.flags()).arg(format!("--from={from}")).arg(format!("--to={to}"));
            let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let mut child = child.map_err(|source| Error::File { path: own.clone(), source })?;
            let (told, answers) = (child.stdin.take(), child.stdout.take());
            let answers = answers.ok_or_else(|| trouble("it has no standard output"))?;
            let subscribers = world.subscribers(from..to);
            clients.push(Client { child, told, answers: BufReader::new(answers), subscribers });
        }
        let mut clients = Self(clients);
        for client in &mut clients.0 {
            client.hear()?;
        }
        Ok(clients)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Lets the proxies of one process connect, and waits until all that have are in sync. Returns when the last of them was.
    pub fn connect(&mut self, client: usize, since: u64, patience: Duration) -> Result<u64, Error> {
        self.0[client].ask(&json!({"do": "connect"}))?;
        Self::synced(&mut self.0[..=client], since, patience)
    }

    /// Waits until all proxies have been in sync at some moment after `since`. Returns when the last of them was.
    pub fn sync(&mut self, since: u64, patience: Duration) -> Result<u64, Error> {
        Self::synced(&mut self.0, since, patience)
    }

    fn synced(clients: &mut [Client], since: u64, patience: Duration) -> Result<u64, Error> {
        let asked = json!({"do": "sync", "since": since, "seconds": patience.as_secs()});
        let answers = ask(clients, |_| asked.clone())?;
        Ok(answers.iter().filter_map(|answer| answer["last"].as_u64()).max().unwrap_or_default())
    }

    /// Begins to count anew.
    pub fn reset(&mut self) -> Result<(), Error> {
        ask(&mut self.0, |_| json!({"do": "reset"})).map(drop)
    }

    /// What was counted so far.
    pub fn read(&mut self) -> Result<Counted, Error> {
        self.counted(|_| json!({"do": "read"}))
    }

    /// What was counted once every subscriber of the hot service has acknowledged one mark.
    pub fn acknowledged(&mut self, patience: Duration) -> Result<Counted, Error> {
        let seconds = patience.as_secs();
        self.counted(|client| json!({"do": "read", "acks": client.subscribers, "seconds": seconds}))
    }

    fn counted(&mut self, asked: impl Fn(&Client) -> Value) -> Result<Counted, Error> {
        let mut counted = Counted::default();
        ask(&mut self.0, asked)?.iter().for_each(|answer| counted.add(answer));
        Ok(counted)
    }

    /// Waits until everybody holds the marks in a file.
    pub fn hold(&mut self, marks: &Path, patience: Duration) -> Result<(), Error> {
        let asked = json!({"do": "hold", "marks": marks.display().to_string(), "seconds": patience.as_secs()});
        ask(&mut self.0, |_| asked.clone()).map(drop)
    }
}

/// All at once, so that the answers count from the same moment.
fn ask(clients: &mut [Client], asked: impl Fn(&Client) -> Value) -> Result<Vec<Value>, Error> {
    for client in &mut *clients {
        let asked = asked(client);
        client.tell(&asked)?;
    }
    clients.iter_mut().map(Client::hear).collect()
}

fn trouble(reason: impl Into<String>) -> Error {
    Error::Program { name: "simulated proxies".to_owned(), reason: reason.into() }
}

impl Client {
    fn ask(&mut self, asked: &Value) -> Result<Value, Error> {
        self.tell(asked)?;
        self.hear()
    }

    fn tell(&mut self, asked: &Value) -> Result<(), Error> {
        let told = self.told.as_mut().ok_or_else(|| trouble("its standard input is closed"))?;
        writeln!(told, "{asked}").and_then(|()| told.flush()).map_err(|error| trouble(error.to_string()))
    }

    fn hear(&mut self) -> Result<Value, Error> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|error| trouble(error.to_string()))?;
        let answer: Value = serde_json::from_str(&line).map_err(|_| trouble("the process ended"))?;
        match answer["error"].as_str() {
            Some(error) => Err(trouble(error)),
            None => Ok(answer),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.told = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_of_several_processes_are_one_distribution() {
        let mut counted = Counted::default();
        counted.add(&json!({"ages": [[10, 98], [500, 1]]}));
        counted.add(&json!({"ages": [[2000, 1]]}));
        assert_eq!((counted.age(0.5), counted.age(0.99), counted.age(1.0)), (1.0, 50.0, 200.0));
        assert!(Counted::default().age(0.5).is_nan());
    }
}
