//! One rotation, phase by phase: control is killed in each, and a pod that was made before and one that begins anew join in each.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft::lab::{NODE, Process, until};
use weft_tests::Mesh;

use super::{KEPT, LEAF, Stage};

/// The longest that a phase may take: that of leaves, some seconds for clocks, and a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long each phase took.
pub type Figures = Vec<(&'static str, Duration)>;

/// A rotation under way.
pub struct Rotating<'a> {
    pub stage: &'a mut Stage,
    round: usize,
    /// The roots before it began.
    roots: String,
    /// Where [`KEPT`]'s state of before it began is.
    state: std::path::PathBuf,
    /// The phase, and when it was seen first.
    phase: &'static str,
    begun: Instant,
    pub figures: Figures,
}

impl<'a> Rotating<'a> {
    pub fn new(stage: &'a mut Stage, round: usize) -> Self {
        let roots = roots(&stage.mesh);
        let state = stage.mesh.lab.dir().join(format!("state-{round}"));
        copy(&stage.mesh.pod(KEPT).dir().unwrap().join("state"), &state);
        Self { stage, round, roots, state, phase: "", begun: Instant::now(), figures: Vec::new() }
    }

    /// Rotates the issuer; how long each phase took.
    pub fn issuer(stage: &'a mut Stage, round: usize) -> Figures {
        let mut rotating = Self::new(stage, round);
        let before = report(&rotating.stage.mesh)["issuing"].clone();
        rotating.begin("rotate-issuer", &[]);
        rotating.until_phase("turning");
        rotating.stage.kill_control(|_| ());
        rotating.somebody_joins("issuer");
        rotating.until_phase("");
        let now = rotating.everybody_turned();
        assert_ne!(now["issuing"], before, "{now:#}");
        rotating.figures
    }

    /// Rotates the root, and the issuer with it; how long each phase took.
    pub fn root(stage: &'a mut Stage, round: usize) -> Figures {
        let mut rotating = Self::new(stage, round);
        rotating.publishing();
        let mut watching = rotating.turning();
        rotating.withdrawing();
        rotating.until_phase("");
        let ended = watching.wait(PATIENCE).unwrap();
        assert!(ended.success(), "whoever watched was told the end: {ended}{}", watching.log_tail());
        rotating.everybody_turned();
        let now = roots(&rotating.stage.mesh);
        assert!(!now.contains(rotating.roots.trim()), "the old root is withdrawn");
        Stage::expect(&mut rotating.stage.mesh, &format!("after-{round}"), &now);
        rotating.stage.join(&format!("after-{round}-0"));
        rotating.figures
    }

    /// Begins to rotate the root and turns back once leaves of the new one are in use; control is killed in between.
    pub fn turned_back(stage: &'a mut Stage, round: usize) -> Figures {
        let mut rotating = Self::new(stage, round);
        let before = report(&rotating.stage.mesh)["issuing"].clone();
        rotating.begin("rotate-root", &[]);
        rotating.until_phase("turning");
        rotating.stage.wait(LEAF);
        rotating.begin("rotate-root", &["--abort"]);
        rotating.stage.kill_control(|_| ());
        rotating.somebody_joins("back");
        rotating.begin_with_old_state();
        rotating.until_phase("");
        let now = rotating.everybody_turned();
        assert_eq!(now["issuing"], before, "{now:#}");
        assert_eq!(roots(&rotating.stage.mesh), rotating.roots, "nothing of the new root is left");
        rotating.figures
    }

    /// A pod that lives and has no sidecar yet holds the phase up, by name, also after control was killed.
    fn publishing(&mut self) {
        let name = format!("publishing-{}", self.round);
        let roots = self.roots.clone();
        Stage::expect(&mut self.stage.mesh, &name, &roots);
        let waits = |rotating: &Self| {
            rotating
                .stage
                .mesh
                .until("the new pod to be waited for", || waited_for(&rotating.stage.mesh, "publishing", &name));
        };
        self.begin("rotate-root", &[]);
        self.until_phase("publishing");
        waits(self);
        self.stage.kill_control(|_| ());
        self.stage.wait(Duration::from_millis(1500));
        waits(self);
        self.begin_with_old_state();
        self.stage.join(&format!("{name}-0"));
    }

    /// Lasts for a leaf's life, so there is time. Somebody watches from here on.
    fn turning(&mut self) -> Process {
        self.until_phase("turning");
        let part = format!("rotate-root-{}", self.round);
        let watching =
            self.stage.mesh.weft(&part, &command("rotate-root", self.stage.mesh.control.as_ref().unwrap().ca_dir()));
        self.stage.kill_control(|_| ());
        self.somebody_joins("turning");
        self.begin_with_old_state();
        watching
    }

    /// Control is killed as soon as the phase is seen; a new pod that comes meanwhile holds it up afterwards.
    fn withdrawing(&mut self) {
        self.until_phase("withdrawing");
        let name = format!("withdrawing-{}", self.round);
        // Who starts from now on is given the roots of now: the old one is not published any more.
        let now = roots(&self.stage.mesh);
        self.stage.kill_control(|mesh| Stage::expect(mesh, &name, &now));
        let mesh = &self.stage.mesh;
        mesh.until("the new pod to be waited for", || waited_for(mesh, "withdrawing", &name));
        std::fs::write(mesh.pod(KEPT).dir().unwrap().join("root.pem"), &now).unwrap();
        self.begin_with_old_state();
        self.stage.join(&format!("{name}-0"));
    }

    pub fn begin(&mut self, what: &str, flags: &[&str]) {
        let ca_dir = self.stage.mesh.control.as_ref().unwrap().ca_dir().to_owned();
        let mut command = command(what, &ca_dir);
        command.extend(flags.iter().chain(&["--no-wait"]).map(ToString::to_string));
        let mut process = self.stage.mesh.weft(&format!("{what}-{}-begin", self.round), &command);
        let ended = process.wait(PATIENCE).unwrap();
        assert!(ended.success(), "{ended}{}", process.log_tail());
    }

    /// Waits for a phase, or for the end if it has no name, while the load goes on. The one before took until now.
    pub fn until_phase(&mut self, phase: &'static str) {
        let seen = until(&format!("the phase `{phase}`"), PATIENCE, || {
            self.stage.good("while waiting for a phase");
            match report(&self.stage.mesh) {
                now if now["rotation"]["phase"].as_str().unwrap_or_default() == phase => Ok(()),
                now => Err(now["rotation"].to_string()),
            }
        });
        seen.unwrap_or_else(|error| panic!("{error}"));
        if !self.phase.is_empty() {
            self.figures.push((self.phase, self.begun.elapsed()));
        }
        (self.phase, self.begun) = (phase, Instant::now());
    }

    /// A pod that was given the roots of before the rotation.
    fn somebody_joins(&mut self, phase: &str) {
        let name = format!("{phase}-{}", self.round);
        Stage::expect(&mut self.stage.mesh, &name, &self.roots);
        self.stage.join(&format!("{name}-0"));
    }

    /// A sidecar that ended begins with the state that it had before the rotation.
    pub fn begin_with_old_state(&mut self) {
        let mesh = &mut self.stage.mesh;
        mesh.member_mut(KEPT).sidecar = None;
        let state = mesh.pod(KEPT).dir().unwrap().join("state");
        std::fs::remove_dir_all(&state).unwrap();
        copy(&self.state, &state);
        self.stage.join(KEPT);
    }

    /// Every proxy is there, shows a leaf of the issuer of now, and believes the roots of now. Gives the report that says so.
    pub fn everybody_turned(&self) -> Value {
        // A proxy that opens its stream anew, with its next leaf, is away for a moment.
        self.stage.mesh.until("every proxy to have turned", || {
            let report = report(&self.stage.mesh);
            let turned = |proxy: &Value| proxy["issuer"] == report["issuing"] && proxy["roots_acknowledged"] == true;
            let proxies = report["proxies"].as_array().unwrap();
            let issuers =
                report["authorities"].as_array().unwrap().iter().filter(|one| one["role"] == "issuer").count();
            let all = proxies.iter().all(turned) && proxies.len() > 7 && issuers == 1;
            if all { Ok(report) } else { Err(format!("{report:#}")) }
        })
    }
}

fn command(what: &str, ca_dir: &Path) -> Vec<String> {
    let ca_dir = format!("--ca-dir={}", ca_dir.display());
    vec!["certs".to_owned(), what.to_owned(), ca_dir, format!("--control={NODE}:15014"), "--json".to_owned()]
}

/// The roots that new pods are given.
pub fn roots(mesh: &Mesh) -> String {
    std::fs::read_to_string(mesh.control.as_ref().unwrap().ca_dir().join("root.pem")).unwrap()
}

pub fn report(mesh: &Mesh) -> Value {
    let answer = mesh.control.as_ref().unwrap().get(&mesh.lab, "/debug/certificates").unwrap();
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error} in {answer:?}"))
}

pub fn waited_for(mesh: &Mesh, phase: &str, name: &str) -> Result<(), String> {
    let rotation = &report(mesh)["rotation"];
    let named = |waiting: &Vec<Value>| waiting.iter().any(|one| one["workload"] == format!("shop/{name}-0"));
    let good = rotation["phase"] == phase && rotation["waiting"].as_array().is_some_and(named);
    if good { Ok(()) } else { Err(rotation.to_string()) }
}

/// Copies a directory of files.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}
