//! Values that a type cannot check: durations, names, paths, regular expressions. Each fault stands at the value.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use http::{HeaderName, HeaderValue, Method};
use weft_engine::authz::normalise_path;
use weft_engine::route::whole_regex;

use super::decode::At;
use super::fault::{Fault, nearest};
use super::tree::Position;
use crate::convert::NOT_EDITABLE;

/// Longest path of a match (Gateway API).
const MAX_PATH: usize = 1024;
/// Longest header value (Gateway API).
const MAX_VALUE: usize = 4096;

/// Collects what is wrong with one object, so that all of it is told at once.
#[derive(Debug, Default)]
pub(super) struct Checker {
    /// What refuses the object.
    pub faults: Vec<Fault>,
    /// What does not.
    pub warnings: Vec<Fault>,
}

impl Checker {
    pub fn fault(&mut self, at: Position, message: impl Into<String>) {
        self.faults.push(Fault::new(at, message));
    }

    pub fn warn(&mut self, at: Position, message: impl Into<String>) {
        self.warnings.push(Fault::new(at, message));
    }

    /// The value, or nothing and the fault kept.
    pub fn take<T>(&mut self, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.faults.push(fault)).ok()
    }

    /// A list's bound, as Gateway API sets it.
    pub fn at_most<T>(&mut self, at: Position, list: &[T], most: usize, what: &str) {
        if list.len() > most {
            self.fault(at, format!("{} {what}, at most {most} are allowed", list.len()));
        }
    }
}

/// Names of a route's rules: each stands for one of them (Gateway API).
pub(super) fn names_once<'a>(names: impl Iterator<Item = Option<&'a At<String>>>, checker: &mut Checker) {
    let mut seen = BTreeMap::new();
    for (index, name) in names.enumerate() {
        let Some(name) = name else { continue };
        match seen.entry(name.as_str()) {
            Entry::Vacant(free) => drop(free.insert(index)),
            Entry::Occupied(first) => {
                let both = format!("rules[{}] and rules[{index}] are both called `{}`", first.get(), name.value);
                checker.fault(name.at, format!("{both}: a name is that of one rule in its route"));
            }
        }
    }
}

/// Milliseconds of a Gateway API duration (GEP-2257): up to four parts of at most five digits and `h`, `m`, `s` or `ms`.
pub(super) fn duration(text: &At<String>) -> Result<u64, Fault> {
    parse_duration(text).ok_or_else(|| {
        Fault::new(text.at, format!("`{}` is no duration: write for example `10s`, `500ms` or `1m30s`", text.value))
    })
}

fn parse_duration(text: &str) -> Option<u64> {
    let (mut rest, mut total, mut parts) = (text, 0u64, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        let (after, unit) = units.iter().find_map(|(name, unit)| Some((after.strip_prefix(name)?, unit)))?;
        parts += 1;
        if !(1..=5).contains(&digits) || parts > 4 {
            return None;
        }
        total += number.parse::<u64>().ok()? * unit;
        rest = after;
    }
    (parts > 0).then_some(total)
}

/// A regular expression as the engine takes it: RE2 syntax, over the whole value.
pub(super) fn regex(text: &At<String>) -> Result<(), Fault> {
    whole_regex(text).map(drop).map_err(|error| Fault::new(text.at, error.to_string()))
}

/// A header field's name, in lower case.
pub(super) fn header_name(text: &At<String>) -> Result<String, Fault> {
    match HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) if text.len() <= 256 => Ok(name.as_str().to_owned()),
        _ => Err(Fault::new(text.at, format!("`{}` is no header name", text.value))),
    }
}

/// A header field's name that a filter may edit.
pub(super) fn editable_header(text: &At<String>) -> Result<String, Fault> {
    let name = header_name(text)?;
    if NOT_EDITABLE.contains(&name.as_str()) {
        let message = format!("header `{name}` frames messages or is the mesh's own: no filter may edit it");
        return Err(Fault::new(text.at, message));
    }
    Ok(name)
}

/// A header field's value.
pub(super) fn header_value(text: &At<String>) -> Result<String, Fault> {
    if text.len() <= MAX_VALUE && HeaderValue::from_str(text).is_ok_and(|value| value.to_str().is_ok()) {
        Ok(text.value.clone())
    } else {
        Err(Fault::new(text.at, "not a header value: visible ASCII characters, spaces and tabs only, at most 4096"))
    }
}

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// A method of a route's match: those of Gateway API.
pub(super) fn route_method(text: &At<String>) -> Result<String, Fault> {
    if METHODS.contains(&text.as_str()) {
        return Ok(text.value.clone());
    }
    Err(Fault::new(text.at, format!("unknown method `{}`", text.value)).did_you_mean(text, METHODS))
}

/// A method of a policy: any token, unless it is nearly one of the usual ones: those are compared as they are written.
pub(super) fn policy_method(text: &At<String>) -> Result<String, Fault> {
    if text.as_str() == "*" {
        return Err(Fault::new(text.at, "`*` is no method: leave `methods` out to cover all"));
    }
    let usual = METHODS.contains(&text.as_str());
    if Method::from_bytes(text.as_bytes()).is_ok() && (usual || nearest(text, METHODS).is_none()) {
        return Ok(text.value.clone());
    }
    Err(Fault::new(text.at, format!("`{}` is no method", text.value)).did_you_mean(text, METHODS))
}

/// An absolute path as Gateway API wants it in `Exact` and `PathPrefix` matches.
pub(super) fn path(text: &At<String>) -> Result<String, Fault> {
    let bad = |why: &str| Err(Fault::new(text.at, format!("path `{}` {why}", text.value)));
    if !text.starts_with('/') {
        return bad("must start with `/`");
    }
    if text.len() > MAX_PATH {
        return bad("is longer than 1024 bytes");
    }
    for part in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        if text.contains(part) {
            return bad(&format!("must not contain `{part}`"));
        }
    }
    if text.ends_with("/..") || text.ends_with("/.") {
        return bad("must not end in `/.` or `/..`");
    }
    if let Some(bad_char) = text.chars().find(|c| !is_path_char(*c)) {
        return bad(&format!("must not contain `{}`: percent-encode it", bad_char.escape_debug()));
    }
    Ok(text.value.clone())
}

/// A path that requests are sent to instead of theirs.
pub(super) fn new_path(text: &At<String>) -> Result<String, Fault> {
    let bad = |why: &str| Err(Fault::new(text.at, format!("path `{}` {why}", text.value)));
    if !text.starts_with('/') {
        return bad("must start with `/`");
    }
    if text.len() > MAX_PATH {
        return bad("is longer than 1024 bytes");
    }
    match text.chars().find(|c| !is_path_char(*c)) {
        Some(found) => bad(&format!("must not contain `{}`: percent-encode it", found.escape_debug())),
        None => Ok(text.value.clone()),
    }
}

// Gateway API: RFC 3986 pchar and `/`.
fn is_path_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-/._~!$&'()*+,;=:@%".contains(c)
}

/// A policy's path: exact, or a beginning and `*`. It is compared with normalised paths, so one that is not normal itself could
/// never match, and a Deny would be silently without effect.
pub(super) fn path_pattern(text: &At<String>) -> Result<String, Fault> {
    let stem = stem_of(text)?;
    if stem.is_empty() {
        return Ok(text.value.clone());
    }
    path(&At { value: stem.to_owned(), at: text.at })?;
    let normal = normalise_path(stem);
    if *normal != *stem {
        let star = if stem.len() < text.len() { "*" } else { "" };
        let message = format!("path `{}` is never met: requests are compared in their canonical form", text.value);
        return Err(Fault::new(text.at, message).suggest(format!("{normal}{star}")));
    }
    if stem.to_ascii_lowercase().contains("%5c") {
        return Err(Fault::new(text.at, format!("path `{}` must not contain an encoded backslash", text.value)));
    }
    Ok(text.value.clone())
}

/// What stands before a `*` at the end; a `*` elsewhere is a fault.
fn stem_of(text: &At<String>) -> Result<&str, Fault> {
    let stem = text.strip_suffix('*').unwrap_or(text);
    if text.is_empty() || stem.contains('*') {
        let message = format!("`{}` is no pattern: exact text, or text that ends in one `*`", text.value);
        return Err(Fault::new(text.at, message));
    }
    Ok(stem)
}

/// Who: `NAMESPACE/SERVICE-ACCOUNT`, `NAMESPACE/*`, `spiffe://...`, or `*` (whoever has an identity).
pub(super) fn identity_pattern(text: &At<String>) -> Result<String, Fault> {
    let stem = stem_of(text)?;
    let whole = stem.len() == text.len();
    let fault = || {
        let message = format!(
            "`{}` names no identity: write NAMESPACE/SERVICE-ACCOUNT, NAMESPACE/* or spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT",
            text.value
        );
        Fault::new(text.at, message)
    };
    let ok = if let Some(id) = stem.strip_prefix("spiffe://") {
        if whole {
            stem.parse::<weft_engine::identity::Identity>().is_ok()
        } else {
            !id.is_empty() && id.bytes().all(|byte| byte == b'/' || is_name_byte(byte))
        }
    } else if stem.is_empty() {
        true
    } else {
        match stem.split_once('/') {
            Some((namespace, account)) => {
                is_dns_name(namespace) && account.bytes().all(is_name_byte) && (is_dns_name(account) || !whole)
            }
            None => false,
        }
    };
    if ok { Ok(text.value.clone()) } else { Err(fault()) }
}

/// A namespace, or the beginning of its name and `*`.
pub(super) fn namespace_pattern(text: &At<String>) -> Result<String, Fault> {
    let stem = stem_of(text)?;
    if stem.bytes().all(is_name_byte) {
        return Ok(text.value.clone());
    }
    Err(Fault::new(text.at, format!("`{}` is no namespace", text.value)))
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
}

/// A name as Kubernetes has them: lower-case letters, digits, `-` and `.`.
pub fn is_dns_name(text: &str) -> bool {
    let inner = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.len() <= 253 && inner(text.bytes().next()) && inner(text.bytes().last()) && text.bytes().all(is_name_byte)
}

/// The name of an object.
pub(super) fn object_name(text: &At<String>) -> Result<String, Fault> {
    if is_dns_name(text) {
        return Ok(text.value.clone());
    }
    let message = format!("`{}` is no name: lower-case letters, digits, `-` and `.`", text.value);
    Err(Fault::new(text.at, message).suggest_if_valid(&text.to_lowercase().replace('_', "-")))
}

impl Fault {
    fn suggest_if_valid(self, name: &str) -> Self {
        if is_dns_name(name) { self.suggest(name) } else { self }
    }
}

/// The port of a service: 1 to 65535.
pub(super) fn port(port: &At<u16>) -> Result<u16, Fault> {
    if port.value == 0 { Err(Fault::new(port.at, "port 0 is no port")) } else { Ok(port.value) }
}
