//! The roots of a CA elsewhere: a file that somebody else keeps, and control follows.
//!
//! Invariants
//! - A file that is missing or broken changes nothing: what it said before goes on, and the log says what is wrong.
//! - A root that was taken out of the file is believed for as long as a proxy that lives by the source shows a certificate under it or is away,
//!   and for as long as one that control has handed on may be valid. Who holds it up is named.
//! - With a state directory all that outlives control.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use weft_certs::files::Form;
use weft_certs::outside::{Root, pem_of};

use super::CertificateAuthority;
use super::line::Line;
use super::outside::{Issued, Outside};
use crate::config::Config;
use crate::distribute::Hub;
use crate::rotation::{Authority, Waiting, keep_looking, seconds, under};
use crate::trust::Trust;

/// Longer files are no roots.
const MAX_BYTES: u64 = 1 << 20;
/// More than certificates live: for clocks that are not quite right.
const MARGIN: Duration = Duration::from_secs(5);
/// In the state directory.
const SAVED: &str = "outside-roots.json";
const FORM: Form = Form { name: "weft-outside-roots-1", max_bytes: 4 << 20 };
/// Of those that are waited for so many are named in the log.
const NAMED: usize = 20;
/// How often they are, in looks.
const REMIND: u32 = 30;

/// A root that is believed although it was taken out.
#[derive(Clone, Debug)]
struct Leaving {
    root: Root,
    until: SystemTime,
}

/// What outlives control.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    roots: String,
    // PEM, and seconds since 1970.
    leaving: Vec<(String, u64)>,
    revision: u64,
}

/// Follows the file.
#[derive(Debug)]
pub struct Follower {
    file: PathBuf,
    saved: Option<PathBuf>,
    trust_domain: String,
    life: Duration,
    trust: Trust,
    hub: Arc<Hub>,
    line: Arc<Line>,
    issued: Arc<Mutex<Issued>>,
    wanted: Vec<Root>,
    leaving: Vec<Leaving>,
    revision: u64,
    told: watch::Sender<Arc<dyn CertificateAuthority>>,
    said: Option<String>,
    looks: u32,
}

impl Follower {
    /// Reads the file, and tells the hub of the roots.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(config: &Config, line: Line, trust: Trust, hub: Arc<Hub>) -> anyhow::Result<(Self, Authority)> {
        let file = config.signing.roots.clone().context("give the roots of the CA elsewhere by --roots")?;
        let (wanted, changed) = read(&file).map_err(anyhow::Error::msg)?;
        let (line, issued) = (Arc::new(line), Arc::default());
        let saved = config.state_dir.as_ref().map(|dir| dir.join(SAVED));
        let before = saved.as_deref().and_then(|path| load(path, &hub)).unwrap_or_default();
        let life = line.life(config.leaf_ttl);
        let first = Outside::new(&config.trust_domain, &line, &issued, (&wanted, &[]), changed)?;
        let (told, seen) = watch::channel(Arc::new(first) as Arc<dyn CertificateAuthority>);
        let mut follower = Self {
            trust_domain: config.trust_domain.clone(),
            revision: before.revision,
            wanted: Root::read(&before.roots).unwrap_or_default(),
            leaving: before.leaving.iter().flat_map(|(pem, until)| leaving(pem, *until)).collect(),
            file,
            saved,
            life,
            trust,
            hub,
            line,
            issued,
            told,
            said: None,
            looks: 0,
        };
        follower.take(wanted, changed, SystemTime::now())?;
        follower.tell()?;
        Ok((follower, seen))
    }

    /// One look: files are read, everybody is told. Blocks.
    pub fn look(&mut self, now: SystemTime) {
        self.trust.look(&self.told.borrow().called());
        let looked = self.step(now);
        self.hub.metrics.ca.broken.set(i64::from(looked.is_err()));
        match looked {
            Ok(()) => self.said = None,
            Err(error) => {
                let error = format!("{error:#}");
                if self.said.as_ref() != Some(&error) {
                    tracing::error!(error, "the roots of --roots cannot be followed; what was in force goes on");
                    self.said = Some(error);
                }
            }
        }
    }

    fn step(&mut self, now: SystemTime) -> anyhow::Result<()> {
        let read = read(&self.file).map_err(anyhow::Error::msg);
        let changed = match &read {
            Ok((wanted, changed)) if *wanted != self.wanted => {
                self.take(wanted.clone(), *changed, now)?;
                true
            }
            _ => false,
        };
        let gone = self.let_go(now);
        if changed || gone {
            self.tell()?;
        } else if self.hub.trust(&self.trust.message(&**self.told.borrow())) {
            tracing::info!("the roots that are believed have changed");
        }
        self.hub.metrics.ca.leaving_roots.set(i64::try_from(self.leaving.len()).unwrap_or(i64::MAX));
        read.map(|_| ())
    }

    /// Another set is wanted.
    fn take(&mut self, wanted: Vec<Root>, changed: u64, now: SystemTime) -> anyhow::Result<()> {
        let out: Vec<_> = self.wanted.drain(..).filter(|root| !wanted.contains(root)).collect();
        for root in out {
            tracing::warn!(
                root = root.name,
                "a root was taken out of --roots; it is believed until nobody shows a certificate under it"
            );
            self.leaving.push(Leaving { until: now + self.life + MARGIN, root });
        }
        self.leaving.retain(|leaving| !wanted.contains(&leaving.root));
        let names: Vec<_> = wanted.iter().map(|root| root.name.as_str()).collect();
        tracing::info!(roots = names.join(", "), "the roots of the CA elsewhere");
        self.wanted = wanted;
        self.revision = changed.max(self.revision + 1);
        self.save()
    }

    /// Forgets those that nobody needs any more.
    fn let_go(&mut self, now: SystemTime) -> bool {
        let before = self.leaving.len();
        let issued = Arc::clone(&self.issued);
        let hub = Arc::clone(&self.hub);
        let remind = self.looks.is_multiple_of(REMIND);
        self.looks += u32::from(before > 0);
        self.leaving.retain(|leaving| {
            let name = &leaving.root.name;
            let until = issued.lock().until.get(name).map_or(leaving.until, |until| leaving.until.max(*until + MARGIN));
            let own = issued.lock().own.as_ref() == Some(name);
            let mut waiting = under(name, &hub);
            waiting.extend(own.then(|| Waiting::showing("control", name)));
            let held = !waiting.is_empty() || now < until;
            if !held {
                tracing::warn!(
                    root = name,
                    "nobody shows a certificate under this root any more; it is not believed from now on"
                );
            } else if remind && !waiting.is_empty() {
                let named: Vec<_> =
                    waiting.iter().take(NAMED).map(|one| format!("{} {}", one.workload, one.why)).collect();
                tracing::warn!(
                    root = name,
                    proxies = waiting.len(),
                    "a root that was taken out is held up: {}",
                    named.join("; ")
                );
            }
            held
        });
        let gone = self.leaving.len() != before;
        if gone {
            self.looks = 0;
            self.revision += 1;
            if let Err(error) = self.save() {
                tracing::error!("{error:#}");
            }
        }
        gone
    }

    fn tell(&mut self) -> anyhow::Result<()> {
        let leaving: Vec<_> = self.leaving.iter().map(|leaving| leaving.root.clone()).collect();
        let roots = (&*self.wanted, &*leaving);
        let outside = Outside::new(&self.trust_domain, &self.line, &self.issued, roots, self.revision)?;
        let known = |name: &String| self.wanted.iter().chain(&leaving).any(|root| root.name == *name);
        self.issued.lock().until.retain(|name, _| known(name));
        self.told.send_replace(Arc::new(outside));
        if self.hub.trust(&self.trust.message(&**self.told.borrow())) {
            tracing::info!("the roots that are believed have changed");
        }
        Ok(())
    }

    fn save(&self) -> anyhow::Result<()> {
        let Some(path) = &self.saved else { return Ok(()) };
        let leaving = self.leaving.iter().map(|one| (one.root.pem.clone(), seconds(one.until))).collect();
        let saved = Saved { roots: pem_of(&self.wanted), leaving, revision: self.revision };
        let written =
            serde_json::to_vec(&saved).map_err(std::io::Error::other).and_then(|text| FORM.write(path, &text));
        written.with_context(|| format!("the roots cannot be kept in {}", path.display()))
    }

    /// Never ends.
    pub async fn run(self) {
        let line = Arc::clone(&self.line);
        tokio::join!(keep_looking(self, Self::look), line.keep_clean());
    }
}

fn leaving(pem: &str, until: u64) -> Vec<Leaving> {
    let until = UNIX_EPOCH + Duration::from_secs(until);
    Root::read(pem).unwrap_or_default().into_iter().map(|root| Leaving { root, until }).collect()
}

/// The roots, and when the file was last changed, seconds since 1970.
fn read(file: &Path) -> Result<(Vec<Root>, u64), String> {
    use std::io::Read as _;
    let failed = |what: String| format!("--roots {}: {what}", file.display());
    let mut text = String::new();
    let opened = std::fs::File::open(file).and_then(|opened| {
        let changed = opened.metadata()?.modified()?;
        opened.take(MAX_BYTES).read_to_string(&mut text)?;
        Ok(changed)
    });
    let changed = opened.map_err(|error| failed(error.to_string()))?;
    Ok((Root::read(&text).map_err(|error| failed(error.to_string()))?, seconds(changed)))
}

/// What was kept. What is damaged is as if it were not there.
fn load(path: &Path, hub: &Hub) -> Option<Saved> {
    let read = FORM.read(path).map_err(|error| error.to_string());
    let saved = read.and_then(|found| {
        let parsed = found.map(|found| serde_json::from_slice(&found.body)).transpose();
        parsed.map_err(|error| format!("{}: {error}", path.display()))
    });
    saved.unwrap_or_else(|error| {
        hub.metrics.saved_errors.inc();
        tracing::error!(error, "which roots were believed before is not known; those of --roots are");
        None
    })
}
