//! Who is not believed any more although his certificate is good: identities and single certificates, from the file of `--revoked`.
//!
//! ```yaml
//! - identity: spiffe://cluster.local/ns/shop/sa/web   # whatever certificate proves it
//!   reason: its node was broken into
//! - serial: 5c0f8a1d3e6b42978f10a2b3c4d5e6f7          # that one certificate
//!   until: 2026-11-21T22:00:00Z                       # forgotten then: no sooner than it expires
//! ```
//!
//! Invariants
//! - A file that cannot be read or used changes nothing ([`crate::listed`]).
//! - Control itself is not on the list: nobody could be told of the next one.
//! - A proxy that is on it is told so before its stream ends.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{MissedTickBehavior, interval};
use weft_api::convert::{MAX_REVOKED, MAX_REVOKED_BYTES};
use weft_api::kinds::decode::At;
use weft_api::kinds::{Fault, Position};
use weft_api::names;
use weft_api::wire::v1;
use weft_certs::ca::Called;
use weft_certs::revoked::{DenyList, Serial};
use weft_certs::tls::control_identity;
use weft_engine::identity::Identity;

use crate::distribute::Hub;
use crate::listed::{self, Listed};

/// How often the file is read.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    identity: Option<At<String>>,
    serial: Option<At<String>>,
    until: Option<At<String>>,
    // For people.
    #[serde(rename = "reason")]
    _reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    Identity(Identity),
    Certificate(Serial),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    who: Who,
    until: Option<SystemTime>,
}

/// The file, and what it said last while it was good.
#[derive(Debug)]
pub struct Revocations {
    list: Option<Listed>,
    control: Vec<Identity>,
    entries: Vec<Entry>,
}

/// What is in force at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct List {
    /// For control itself.
    pub denied: DenyList,
    /// As proxies are told.
    pub message: v1::Revoked,
}

impl Revocations {
    /// Reads the file; without one nobody is revoked.
    ///
    /// # Errors
    /// It is broken: whoever was on it would be believed again.
    pub fn open(file: Option<PathBuf>, called: &Called) -> Result<Self, String> {
        let control =
            called.every().map(control_identity).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let list = file.map(|file| Listed::new("--revoked", &file));
        let mut read = Self { list, control, entries: Vec::new() };
        read.read()?;
        Ok(read)
    }

    fn read(&mut self) -> Result<(), String> {
        let Some(list) = &mut self.list else { return Ok(()) };
        let read = list.read(|text, _| entries(text, &self.control))?;
        let text = read.map(|(text, entries)| {
            self.entries = entries;
            text
        });
        list.took(text);
        Ok(())
    }

    /// Reads the file again.
    pub fn look(&mut self) {
        if let Err(why) = self.read()
            && let Some(list) = &mut self.list
        {
            list.refuse(why);
        }
    }

    fn is_broken(&self) -> bool {
        self.list.as_ref().is_some_and(Listed::is_broken)
    }

    /// Who is revoked at that time, where our own trust domain is or was called `domains`: under each of these names, whichever was written.
    pub fn list(&self, now: SystemTime, domains: &[String]) -> List {
        let in_force = self.entries.iter().filter(|entry| entry.until.is_none_or(|until| now < until));
        let (mut identities, mut serials) = (Vec::new(), Vec::new());
        for entry in in_force {
            match &entry.who {
                Who::Identity(identity) => identities.push(identity.clone()),
                Who::Certificate(serial) => serials.push(serial.clone()),
            }
        }
        // The same list is the same bytes.
        serials.sort_unstable();
        serials.dedup();
        let short = |identity: &Identity| {
            let whole = identity.to_string();
            names::path_in(&whole, domains).map(str::to_owned).unwrap_or(whole)
        };
        let short: BTreeSet<String> = identities.iter().map(short).collect();
        let message = v1::Revoked {
            identities: short.into_iter().collect(),
            serials: serials.iter().map(|serial| Bytes::copy_from_slice(serial.bytes())).collect(),
            requires: Vec::new(),
        };
        let domains = domains.iter().map(|domain| domain.as_str().into()).collect();
        List { denied: DenyList::new(identities, serials).called(domains), message }
    }

    /// Tells the hub for as long as it is polled.
    pub async fn follow(mut self, hub: Arc<Hub>) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            // Who was told a moment ago knows it by now.
            hub.end_revoked();
            self.look();
            hub.metrics.revocations_broken.set(i64::from(self.is_broken()));
            let domains = hub.compiled(|compiled| compiled.domains().to_vec());
            let list = self.list(SystemTime::now(), &domains);
            let entries = list.denied.len();
            if hub.revoke(list) {
                tracing::info!(entries, "the list of who is revoked has changed");
            }
        }
    }
}

fn entries(text: &str, control: &[Identity]) -> Result<Vec<Entry>, Fault> {
    let written: Vec<At<Written>> = listed::entries(text, "revoked identities and certificates", usize::MAX)?;
    let entries = written.into_iter().map(|one| entry(one, control)).collect::<Result<Vec<_>, _>>()?;
    let bytes: usize = entries.iter().map(|entry| entry.who.bytes()).sum();
    if entries.len() > MAX_REVOKED || bytes > MAX_REVOKED_BYTES {
        let message = format!(
            "{} entries of {bytes} bytes where {MAX_REVOKED} of {MAX_REVOKED_BYTES} are the most; \
             give entries an `until`, or replace the issuer",
            entries.len()
        );
        return Err(Fault::new(Position { line: 1, column: 1 }, message));
    }
    Ok(entries)
}

impl Who {
    // On the wire, with a tag and a length.
    fn bytes(&self) -> usize {
        4 + match self {
            Self::Identity(identity) => identity.to_string().len(),
            Self::Certificate(serial) => serial.bytes().len(),
        }
    }
}

fn entry(written: At<Written>, control: &[Identity]) -> Result<Entry, Fault> {
    let At { value: written, at } = written;
    let who = match (&written.identity, &written.serial) {
        (Some(identity), None) => {
            let read: Identity = identity.parse().map_err(|error| fault(identity.at, &error))?;
            if control.contains(&read) {
                let message = "control itself cannot be revoked: no proxy could be told anything any more; replace its CA's \
                               issuer instead";
                return Err(Fault::new(identity.at, message));
            }
            Who::Identity(read)
        }
        (None, Some(serial)) => Who::Certificate(serial.parse().map_err(|error| fault(serial.at, &error))?),
        _ => return Err(Fault::new(at, "write `identity` or `serial`, one of them")),
    };
    let until = written.until.as_ref().map(|until| match OffsetDateTime::parse(until, &Rfc3339) {
        Ok(time) => Ok(SystemTime::from(time)),
        Err(_) => {
            Err(Fault::new(until.at, format!("`{}` is no time; write it like 2026-11-21T22:00:00Z", until.value)))
        }
    });
    Ok(Entry { who, until: until.transpose()? })
}

fn fault(at: Position, error: &dyn std::fmt::Display) -> Fault {
    Fault::new(at, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn read(text: &str) -> Result<Vec<Entry>, String> {
        entries(text, &[control_identity("cluster.local").unwrap()]).map_err(|fault| fault.to_string())
    }

    fn opened(file: &std::path::Path, text: &str) -> Revocations {
        std::fs::write(file, text).unwrap();
        Revocations::open(Some(file.to_owned()), &Called::only("cluster.local")).unwrap()
    }

    #[test]
    fn identities_and_numbers_are_read() {
        let text = format!(
            "- identity: {WEB}\n  reason: broken into\n- serial: \"00F0:A1\"\n  until: 1970-01-01T00:01:40+00:00\n"
        );
        let who: Vec<_> = read(&text).unwrap();
        assert_eq!(who[0], Entry { who: Who::Identity(WEB.parse().unwrap()), until: None });
        let until = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(100));
        assert_eq!(who[1], Entry { who: Who::Certificate("f0a1".parse().unwrap()), until });
        assert_eq!(read(&format!("[{{\"identity\": \"{WEB}\"}}]")).unwrap(), who[..1]);
        assert_eq!(read("[]").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, want) in [
            (format!("- identitty: {WEB}"), "1:3: unknown field `identitty`; did you mean `identity`?"),
            (format!("- identity: {WEB}\n- {{reason: x}}"), "2:3: write `identity` or `serial`"),
            (format!("- identity: {WEB}\n  serial: aa"), "1:3: write `identity` or `serial`"),
            ("- identity: shop/web".to_owned(), "1:13: `shop/web` is not of the form"),
            ("- serial: xyz".to_owned(), "1:11: `xyz` is no serial number"),
            (format!("- identity: {WEB}\n  until: tomorrow"), "2:10: `tomorrow` is no time"),
            (
                "- identity: spiffe://cluster.local/ns/weft-system/sa/weft-control".to_owned(),
                "1:13: control itself cannot be revoked",
            ),
            (String::new(), "1:1: the list of revoked identities and certificates is empty"),
            ("[]\n---\n[]\n".to_owned(), "2:1: a second document"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.starts_with(want), "{error}\n{want}");
        }
    }

    #[test]
    fn ten_thousand_are_taken_and_no_more() {
        let line = |number: usize| format!("- serial: \"f{:031x}\"\n  reason: stolen\n", number + 1);
        let mut text: String = (0..MAX_REVOKED).map(line).collect();
        assert_eq!(read(&text).unwrap().len(), MAX_REVOKED);
        let dir = tempfile::tempdir().unwrap();
        let revoked = opened(&dir.path().join("revoked.yaml"), &text);
        let domains = ["cluster.local".to_owned()];
        let bytes = prost::Message::encoded_len(&revoked.list(SystemTime::now(), &domains).message);
        // What each sidecar is sent at each change: docs/identity.md says so.
        assert!((170_000..=180_000).contains(&bytes), "{bytes}");
        text += &line(MAX_REVOKED);
        assert!(read(&text).unwrap_err().contains("10001 entries"));
    }

    #[test]
    fn a_file_that_breaks_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("revoked.yaml");
        let good = format!("- identity: {WEB}\n");
        let mut revoked = opened(&file, &good);
        let now = SystemTime::now();
        let first = revoked.list(now, &[]);
        assert!(first.denied.has_identity(&WEB.parse().unwrap()));
        for broken in ["", "- {", "- identity: nobody\n", "- serial: f0a1\n- seriall: f0a1\n"] {
            std::fs::write(&file, broken).unwrap();
            revoked.look();
            assert!(revoked.is_broken(), "{broken}");
            assert_eq!(revoked.list(now, &[]), first, "{broken}");
            let again = Revocations::open(Some(file.clone()), &Called::only("cluster.local"));
            assert!(again.is_err(), "{broken}");
        }
        std::fs::remove_file(&file).unwrap();
        revoked.look();
        assert_eq!(revoked.list(now, &[]), first);
        std::fs::write(&file, "[]").unwrap();
        revoked.look();
        assert!(revoked.list(now, &[]).denied.is_empty() && !revoked.is_broken());
    }

    #[test]
    fn who_is_of_the_mesh_is_revoked_under_each_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let under = |domain: &str| WEB.replace("cluster.local", domain);
        let text =
            format!("- identity: {WEB}\n- identity: {}\n- identity: {}\n", under("new.example"), under("partner"));
        let revoked = opened(&dir.path().join("revoked.yaml"), &text);
        let list =
            revoked.list(SystemTime::now(), &["cluster.local".to_owned(), "new.example".to_owned(), "kept".to_owned()]);
        assert_eq!(list.message.identities, ["/ns/shop/sa/web", &under("partner")]);
        for domain in ["cluster.local", "new.example", "kept", "partner"] {
            assert!(list.denied.has_identity(&under(domain).parse().unwrap()), "{domain}");
        }
        assert!(!list.denied.has_identity(&under("other").parse().unwrap()));
    }

    #[test]
    fn an_entry_ends_with_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("- identity: {WEB}\n- serial: f0a1\n  until: 2030-01-01T00:00:00Z\n- serial: f0:a1\n");
        let revoked = opened(&dir.path().join("revoked.yaml"), &text);
        let new_year = SystemTime::UNIX_EPOCH + Duration::from_hours(525_960);
        assert_eq!(revoked.list(new_year, &[]).denied.len(), 2, "the other entry of the same number goes on");
        let text = text.trim_end_matches("- serial: f0:a1\n").to_owned();
        let revoked = opened(&dir.path().join("revoked.yaml"), &text);
        assert_eq!(revoked.list(new_year - Duration::from_secs(1), &[]).message.serials.len(), 1);
        assert_eq!(revoked.list(new_year, &[]).message.serials.len(), 0);
    }
}
