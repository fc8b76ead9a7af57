//! What is measured. Bounds are those of issue 6; what has none is shown.

use std::path::Path;
use std::time::{Duration, Instant};

use super::super::table::Metric;
use super::super::{Error, say};
use super::processes::{Clients, Control, Counted, How};
use super::report::{Bound, Report};
use super::source::Source;
use super::world::{self, HOT, World};
use super::{Args, growth};

/// Of all memory, in MiB.
const MEMORY: f64 = 1_536.0;
/// Of memory for each subscriber, in KiB.
const A_SUBSCRIBER: f64 = 30.0;
/// Bytes for each subscriber of one endpoint change, both ways.
const BYTES: f64 = 300.0;
/// From a change to the last acknowledgement of it, in milliseconds.
const LAST: f64 = 250.0;
/// Between single changes: each meets a control that is at rest.
const REST: Duration = Duration::from_millis(500);
/// Churn whose ages grow by more than this between its halves is not kept up with.
const GROWS: f64 = 2.0;
/// Ages below this, in milliseconds, are no lag.
const NO_LAG: f64 = 1_000.0;
/// Churn at less than this share of the rate that was asked for is said to be slower.
const REACHED: f64 = 0.95;

/// A part of a run
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// From nothing to all proxies in sync
    Start,
    /// One endpoint of a service with many subscribers
    Change,
    /// One edit of a route
    Route,
    /// Many endpoint changes a second
    Churn,
    /// Control killed and started again
    Reconnect,
    /// The same change in a small mesh and in a large one
    Growth,
}

impl Phase {
    /// Each.
    pub const ALL: [Self; 6] = [Self::Start, Self::Change, Self::Route, Self::Churn, Self::Reconnect, Self::Growth];

    /// Its name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Change => "change",
            Self::Route => "route",
            Self::Churn => "churn",
            Self::Reconnect => "reconnect",
            Self::Growth => "growth",
        }
    }
}

/// A mesh with its control and its proxies.
pub struct Run<'a> {
    args: &'a Args,
    world: World,
    dir: &'a Path,
    marks: Vec<u64>,
    source: Source,
    clients: Clients,
    // `None` only while it is restarted, or if that failed.
    control: Option<Control>,
    how: How,
}

const fn seconds(name: &'static str) -> Metric {
    Metric::less(name, "s")
}

pub(super) const fn millis(name: &'static str) -> Metric {
    Metric::less(name, "ms")
}

impl<'a> Run<'a> {
    /// Writes the mesh down and starts the clients; nothing is connected yet.
    pub fn begin(args: &'a Args, world: World, dir: &'a Path) -> Result<Self, Error> {
        say(&format!("{} services, {} endpoints, {} proxies", world.services, world.endpoints(), world.proxies));
        let marks = vec![0; world.endpoints()];
        let source = Source::begin(args.source, dir, &world, &marks)?;
        let how = How::new(&args.weft_control, source.flags(), dir)?;
        let clients = Clients::start(&world, &how, dir, source.uids(), usize::from(args.clients))?;
        Ok(Self { args, world, dir, marks, source, clients, control: None, how })
    }

    /// Control, which runs but while it is restarted.
    pub(super) fn control(&mut self) -> Result<&mut Control, Error> {
        self.control.as_mut().ok_or_else(|| Error::Usage("control does not run".to_owned()))
    }

    /// One of the phases that follow each other in the same mesh.
    pub fn measure(&mut self, phase: Phase, report: &mut Report) -> Result<(), Error> {
        match phase {
            Phase::Start => self.start(report),
            Phase::Change => self.change(report),
            Phase::Route => self.route(report),
            Phase::Churn => self.churn(report),
            Phase::Reconnect => self.reconnect(report),
            Phase::Growth => growth::measure(self.args, self.world, report),
        }
    }

    /// From nothing to all proxies in sync.
    pub(super) fn start(&mut self, report: &mut Report) -> Result<(), Error> {
        let (phase, patience, proxies) = ("start", self.args.patience(), self.world.proxies as f64);
        let mut control = Control::start(self.how.clone())?;
        control.ready(patience)?;
        let started = control.started;
        report.add(phase, seconds("from start to ready"), since(started, world::now()), Bound::Shown);
        let (none, cpu) = (control.memory()?, control.cpu()?);
        report.add(phase, seconds("CPU until ready"), cpu, Bound::Shown);
        report.add(phase, Metric::less("RSS without subscribers", "MiB"), none.rss / 1024.0, Bound::Shown);
        report.add(
            phase,
            Metric::less("RSS until ready, at its highest", "MiB"),
            control.peak()? / 1024.0,
            Bound::Shown,
        );
        if let Some(servers) = self.source.servers()? {
            report.add(phase, Metric::more("writes of the mesh a second", "1/s"), servers.writes, Bound::Shown);
            let rss = |name| Metric::less(name, "MiB");
            report.add(phase, rss("RSS of the API server"), servers.apiserver.rss / 1024.0, Bound::Shown);
            report.add(phase, rss("RSS of etcd"), servers.etcd.rss / 1024.0, Bound::Shown);
        }
        self.clients.connect(0, started, patience)?;
        let some = control.memory()?;
        let mut last = 0;
        for client in 1..self.clients.len() {
            last = self.clients.connect(client, started, patience)?;
        }
        last = last.max(self.clients.sync(started, patience)?);
        let all = control.memory()?;
        let counted = self.clients.read()?;
        report.add(phase, seconds("from start to all in sync"), since(started, last), Bound::Shown);
        report.add(phase, seconds("CPU for the subscribers"), control.cpu()? - cpu, Bound::Shown);
        report.add(phase, Metric::less("RSS in all", "MiB"), all.rss / 1024.0, Bound::Most(MEMORY));
        let (each, later) =
            (Metric::less("RSS a subscriber", "KiB"), Metric::less("RSS a subscriber, the last ones", "KiB"));
        report.add(phase, each, (all.rss - none.rss) / proxies, Bound::Most(A_SUBSCRIBER));
        if self.clients.len() > 1 {
            // The first ones may live in what the start has left free.
            let last = self.world.proxies - self.world.proxies / self.clients.len();
            report.add(phase, later, (all.rss - some.rss) / last as f64, Bound::Most(A_SUBSCRIBER));
        }
        report.add(phase, Metric::more("sockets open in the clients", "sockets"), counted.sockets, Bound::Shown);
        let connected = control.metric("weft_control_connected_proxies");
        report.add(phase, Metric::more("proxies that control counts", "proxies"), connected, Bound::Just(proxies));
        report.add(phase, Metric::less("resources refused", "resources"), counted.refused, Bound::Just(0.0));
        report.add(phase, Metric::less("resources a proxy", "resources"), counted.resources / proxies, Bound::Shown);
        report.add(phase, Metric::less("bytes a proxy", "B"), counted.bytes / proxies, Bound::Shown);
        self.control = Some(control);
        Ok(())
    }

    /// One change that all subscribers of the hot service hear of.
    pub(super) fn once(&mut self, change: impl FnOnce(&mut Self, u64) -> Result<(), Error>) -> Result<Once, Error> {
        // Not for luck: a change alone is what is measured.
        std::thread::sleep(REST);
        self.clients.reset()?;
        let cpu = self.control()?.cpu()?;
        let begun = world::now();
        change(self, begun)?;
        let written = since(begun, world::now()) * 1e3;
        let counted = self.clients.acknowledged(self.args.patience())?;
        Ok(Once { counted, written, cpu: self.control()?.cpu()? - cpu })
    }

    /// Changes an endpoint of the hot service.
    pub(super) fn change_one(&mut self, turn: usize, mark: u64) -> Result<(), Error> {
        let one = self.world.of(HOT).start + turn % self.world.members;
        self.marks[one] = mark;
        self.source.hot(&self.world, &self.marks)
    }

    /// One endpoint of a service with many subscribers.
    fn change(&mut self, report: &mut Report) -> Result<(), Error> {
        let mut all = Vec::new();
        for turn in 0..self.args.changes {
            all.push(self.once(|run, mark| run.change_one(turn, mark))?);
        }
        self.single("change", &all, Bound::Most(BYTES), Bound::Most(LAST), report);
        Ok(())
    }

    /// One edit of one of the two routes of that service.
    fn route(&mut self, report: &mut Report) -> Result<(), Error> {
        let mut all = Vec::new();
        for _ in 0..self.args.changes {
            all.push(self.once(|run, mark| run.source.route("edited", mark))?);
        }
        let encoded = all.iter().map(|once| once.counted.route_bytes).fold(0.0, f64::max);
        report.add("route", Metric::less("the route, encoded", "B"), encoded, Bound::Shown);
        self.single("route", &all, Bound::Most(encoded + BYTES), Bound::Shown, report);
        Ok(())
    }

    fn single(&self, phase: &'static str, all: &[Once], bytes: Bound, last: Bound, report: &mut Report) {
        let subscribers = self.world.subscribers(0..self.world.proxies) as f64;
        let worst = |of: fn(&Counted) -> f64| all.iter().map(|once| of(&once.counted)).fold(0.0, f64::max);
        report.add(phase, Metric::more("subscribers", "proxies"), subscribers, Bound::Shown);
        report.add(phase, Metric::less("bytes a subscriber", "B"), worst(|counted| counted.bytes) / subscribers, bytes);
        let resources = worst(|counted| counted.resources) / subscribers;
        report.add(phase, Metric::less("resources a subscriber", "resources"), resources, Bound::Just(1.0));
        let messages = worst(|counted| counted.messages_in + counted.messages_out) / subscribers;
        report.add(phase, Metric::less("messages a subscriber", "messages"), messages, Bound::Shown);
        let (first, to_last) = (|once: &Once| once.counted.age(0.0), |once: &Once| once.counted.age(1.0));
        report.add(phase, millis("to the first acknowledgement, median"), at(all, 0.5, first), Bound::Shown);
        report.add(phase, millis("to the last acknowledgement, median"), at(all, 0.5, to_last), Bound::Shown);
        report.add(phase, millis("to the last acknowledgement, p99"), at(all, 0.99, to_last), last);
        if matches!(self.source, Source::Kubernetes(_)) {
            // Times begin when the write is sent; these, when it was answered.
            let after = |once: &Once| once.counted.age(1.0) - once.written;
            report.add(
                phase,
                millis("to the API server's answer, median"),
                at(all, 0.5, |once| once.written),
                Bound::Shown,
            );
            report.add(
                phase,
                millis("from that to the last acknowledgement, median"),
                at(all, 0.5, after),
                Bound::Shown,
            );
            report.add(phase, millis("from that to the last acknowledgement, p99"), at(all, 0.99, after), Bound::Shown);
        }
        let cpu = all.iter().map(|once| once.cpu).sum::<f64>() / all.len() as f64;
        report.add(phase, millis("CPU of control"), cpu * 1e3, Bound::Shown);
    }

    /// Many endpoint changes a second, all over the mesh.
    fn churn(&mut self, report: &mut Report) -> Result<(), Error> {
        let phase = "churn";
        self.clients.reset()?;
        let half = Duration::from_secs(self.args.seconds) / 2;
        let (begun, cpu, servers) = (Instant::now(), self.control()?.cpu()?, self.source.servers()?);
        let mut turn = Churn::default();
        turn.go_on(self, half)?;
        let first = self.clients.read()?;
        self.clients.reset()?;
        turn.go_on(self, half)?;
        let (written, took) = (world::now(), begun.elapsed().as_secs_f64());
        let second = self.clients.read()?;
        let cpu = self.control()?.cpu()? - cpu;
        let behind = self.source.servers()?.zip(servers).map(|(now, then)| now.cpu - then.cpu);
        let file = self.dir.join("marks");
        let marks: Vec<String> = self.marks.iter().map(u64::to_string).collect();
        std::fs::write(&file, marks.join("\n")).map_err(|source| Error::File { path: file.clone(), source })?;
        self.clients.hold(&file, self.args.patience())?;
        let settled = since(written, world::now());
        let rate = turn.changed as f64 / took;
        report.add(phase, Metric::more("endpoint changes a second", "1/s"), rate, Bound::Shown);
        if rate < self.args.rate as f64 * REACHED {
            say(&format!("  {rate:.0} changes a second were reached, not {}", self.args.rate));
        }
        let delivered = (first.resources + second.resources) / took;
        report.add(phase, Metric::more("delivered and acknowledged", "1/s"), delivered, Bound::Shown);
        let limit = (first.age(0.99) * GROWS).max(NO_LAG);
        report.add(phase, millis("age at acknowledgement, p50"), second.age(0.5), Bound::Shown);
        report.add(phase, millis("age at acknowledgement, p99, first half"), first.age(0.99), Bound::Shown);
        report.add(phase, millis("age at acknowledgement, p99, second half"), second.age(0.99), Bound::Most(limit));
        report.add(phase, millis("age at acknowledgement, max"), first.age(1.0).max(second.age(1.0)), Bound::Shown);
        report.add(phase, seconds("until everybody holds the last of it"), settled, Bound::Most(limit / 1e3));
        report.add(phase, Metric::less("CPU of control", "cores"), cpu / took, Bound::Shown);
        if let Some(behind) = behind {
            let metric = Metric::less("CPU of etcd and the API server", "cores");
            report.add(phase, metric, behind / took, Bound::Shown);
        }
        let memory = self.control()?.memory()?;
        report.add(phase, Metric::less("RSS after", "MiB"), memory.rss / 1024.0, Bound::Most(MEMORY));
        Ok(())
    }

    /// Control killed, and started again with nothing changed.
    fn reconnect(&mut self, report: &mut Report) -> Result<(), Error> {
        let (phase, patience, proxies) = ("reconnect", self.args.patience(), self.world.proxies as f64);
        self.clients.reset()?;
        let control = self.control.take().ok_or_else(|| Error::Usage("control does not run".to_owned()))?;
        let mut control = control.restart()?;
        control.ready(patience)?;
        let (ready, cpu) = (world::now(), control.cpu()?);
        let last = self.clients.sync(control.started, patience)?;
        let counted = self.clients.read()?;
        report.add(phase, seconds("from start to ready"), since(control.started, ready), Bound::Shown);
        report.add(phase, seconds("from start to all in sync"), since(control.started, last), Bound::Shown);
        report.add(phase, Metric::less("resources resent", "resources"), counted.resources, Bound::Just(0.0));
        report.add(phase, Metric::less("of them held by the proxy", "resources"), counted.unchanged, Bound::Shown);
        report.add(phase, Metric::less("bytes a proxy", "B"), counted.bytes / proxies, Bound::Shown);
        report.add(phase, Metric::less("attempts that failed", "streams"), counted.losses - proxies, Bound::Shown);
        report.add(phase, seconds("CPU until ready"), cpu, Bound::Shown);
        report.add(phase, seconds("CPU for the subscribers"), control.cpu()? - cpu, Bound::Shown);
        let memory = control.memory()?;
        report.add(phase, Metric::less("RSS in all", "MiB"), memory.rss / 1024.0, Bound::Most(MEMORY));
        self.control = Some(control);
        Ok(())
    }
}

/// Changes file after file, over and over.
#[derive(Default)]
struct Churn {
    next: usize,
    changed: usize,
}

impl Churn {
    fn go_on(&mut self, run: &mut Run<'_>, span: Duration) -> Result<(), Error> {
        let (begun, before) = (Instant::now(), self.changed);
        while begun.elapsed() < span {
            let due = Duration::from_secs_f64((self.changed - before) as f64 / run.args.rate as f64);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            let file = self.next % run.world.files();
            self.next += 1;
            let mark = world::now();
            for service in run.world.in_file(file) {
                self.changed += run.world.members;
                run.marks[run.world.of(service)].fill(mark);
            }
            run.source.slices(&run.world, file, &run.marks)?;
        }
        Ok(())
    }
}

/// One change, and what came of it.
pub(super) struct Once {
    pub counted: Counted,
    /// Until it was written, or answered, in milliseconds.
    pub written: f64,
    /// Of control, in seconds.
    pub cpu: f64,
}

fn since(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

/// The value that this share of all did not exceed.
pub(super) fn at(all: &[Once], share: f64, of: impl Fn(&Once) -> f64) -> f64 {
    let mut values: Vec<f64> = all.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let place = ((values.len() as f64 * share).ceil() as usize).saturating_sub(1);
    values.get(place).copied().unwrap_or(f64::NAN)
}
