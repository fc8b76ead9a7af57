//! Who is not believed any more although his certificate is good: identities, and single certificates by their serial number.
//!
//! Invariants
//! - A [`DenyList`] stays what it was made; what is in force is replaced whole, for every handshake that ends afterwards ([`Denied`]).
//! - A serial number is one number however it is written: leading zeros, colons and capitals do not matter.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use weft_engine::identity::Identity;

/// Bytes of a serial number (RFC 5280 section 4.1.2.2).
pub const MAX_SERIAL: usize = 20;

/// The serial number of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(Box<[u8]>);

/// The text is no serial number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no serial number; write it in hex as `weft certs inspect` and the audit log do")]
pub struct NotASerial(String);

impl Serial {
    /// Of the number's bytes, the highest first.
    pub fn of(bytes: &[u8]) -> Self {
        Self(significant(bytes).into())
    }

    /// The bytes, the highest first, without leading zeros.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

// X.509 has signed numbers: one whose first bit is set has a zero before it.
fn significant(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

impl FromStr for Serial {
    type Err = NotASerial;

    fn from_str(text: &str) -> Result<Self, NotASerial> {
        let wrong = || NotASerial(text.chars().take(64).collect());
        let digits: Option<Vec<u8>> = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16).and_then(|digit| digit.try_into().ok()))
            .collect();
        let mut digits = digits.ok_or_else(wrong)?;
        if digits.len() % 2 == 1 {
            digits.insert(0, 0);
        }
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        let serial = Self::of(&bytes);
        if serial.0.is_empty() || serial.0.len() > MAX_SERIAL { Err(wrong()) } else { Ok(serial) }
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::files::hex(&self.0))
    }
}

/// Who is not believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyList {
    /// What is one trust domain: of identities in it the first of these names is held.
    names: Vec<Arc<str>>,
    identities: HashSet<Identity>,
    serials: HashSet<Box<[u8]>>,
}

impl DenyList {
    /// These identities, and the certificates with these serial numbers, whoever has issued them.
    pub fn new(identities: impl IntoIterator<Item = Identity>, serials: impl IntoIterator<Item = Serial>) -> Self {
        let serials = serials.into_iter().map(|serial| serial.0).collect();
        Self { names: Vec::new(), identities: identities.into_iter().collect(), serials }
    }

    /// The same where these are all names of one trust domain: who is on it is meant under each.
    #[must_use]
    pub fn called(self, names: Vec<Arc<str>>) -> Self {
        let all = Self { names, ..Self::default() };
        let identities = self.identities.iter().map(|identity| all.held(identity).into_owned()).collect();
        Self { identities, serials: self.serials, ..all }
    }

    fn held<'i>(&self, identity: &'i Identity) -> Cow<'i, Identity> {
        match self.names.first() {
            Some(first) if *first != identity.trust_domain && self.names.contains(&identity.trust_domain) => {
                Cow::Owned(identity.within(first))
            }
            _ => Cow::Borrowed(identity),
        }
    }

    /// Whether this certificate of this identity is on it. `serial`: the number's bytes, with leading zeros or without.
    pub fn has(&self, identity: &Identity, serial: &[u8]) -> bool {
        self.has_identity(identity) || self.serials.contains(significant(serial))
    }

    /// [`DenyList::has`] with the serial number as it is written.
    pub fn has_written(&self, identity: &Identity, serial: &str) -> bool {
        self.has_identity(identity)
            || !self.serials.is_empty() && serial.parse().is_ok_and(|serial: Serial| self.serials.contains(&serial.0))
    }

    /// Whether every certificate of this identity is on it.
    pub fn has_identity(&self, identity: &Identity) -> bool {
        self.identities.contains(&*self.held(identity))
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.identities.len() + self.serials.len()
    }

    /// Whether nobody is on it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The list that is in force; clones share it.
#[derive(Clone, Default)]
pub struct Denied(Arc<ArcSwap<DenyList>>);

impl fmt::Debug for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Denied({})", self.0.load().len())
    }
}

impl Denied {
    /// Puts another list in force.
    pub fn set(&self, list: Arc<DenyList>) {
        self.0.store(list);
    }

    /// The list in force.
    pub fn now(&self) -> Arc<DenyList> {
        self.0.load_full()
    }

    /// Whether this certificate of this identity is on the list in force.
    pub fn has(&self, identity: &Identity, serial: &[u8]) -> bool {
        self.0.load().has(identity, serial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_however_it_is_written() {
        let serial: Serial = "00f0a1".parse().unwrap();
        assert_eq!(serial.to_string(), "f0a1");
        for same in ["F0:A1", "f0a1", "0f0a1"] {
            assert_eq!(same.parse::<Serial>().unwrap(), serial, "{same}");
        }
        for bad in ["", ":", "0", "f0 a1", "0xf0", "serial", &"ab".repeat(21)] {
            assert!(bad.parse::<Serial>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_has_identities_and_numbers() {
        let id = |account| Identity::new("cluster.local", "shop", account).unwrap();
        let list = DenyList::new([id("web")], ["f0a1".parse().unwrap()]);
        assert!(list.has(&id("web"), &[1]));
        assert!(list.has(&id("cart"), &[0, 0xf0, 0xa1]));
        assert!(!list.has(&id("cart"), &[0xf0]));
        assert!(list.has_written(&id("cart"), "F0:A1") && !list.has_written(&id("cart"), "f0"));
        assert_eq!(list.len(), 2);
        let elsewhere = |account| id(account).within(&"new.example".into());
        assert!(!list.has_identity(&elsewhere("web")));
        let both = list.called(vec!["new.example".into(), "cluster.local".into()]);
        assert!(both.has_identity(&elsewhere("web")) && both.has_identity(&id("web")) && both.len() == 2);
        assert!(
            !both.has_identity(&elsewhere("cart")) && !both.has_identity(&id("web").within(&"other.example".into()))
        );
    }
}
