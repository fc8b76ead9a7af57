//! What a path may mean to the application behind: the readings that a policy is matched against.
//!
//! The proxy passes a path on as it came, and applications disagree about what it says: some decode `%2f` into a separator, some
//! take `\` for one, some drop `;parameters`, some decode twice, some never resolve `..`. So a policy sees every reading that is
//! plausible, and fails closed: a Deny matches if any reading does, an Allow only if all do. More readings make both stricter, so a
//! doubt is settled by adding one. Case is as it is. Paths without any odd sign have one reading and cost one pass and no
//! allocation.

use std::borrow::Cow;

use super::{Action, Pattern};

/// An odd path longer than this (bytes) is not read at all: reading it in every way would cost too much.
const MAX_ODD_PATH: usize = 4096;
/// Decodings of the decoded text that are tried before a path counts as unreadable.
const MAX_DECODINGS: usize = 3;

/// All plausible readings of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readings<'a> {
    /// Means the same to everybody.
    Plain(&'a str),
    /// Means one of these; never empty.
    Several(Vec<String>),
    /// Nobody can say what it means: a control character, bad percent-encoding, text that is not UTF-8, or odd and too long.
    /// A Deny that names paths matches it, an Allow does only if it takes every path.
    Unreadable,
}

impl<'a> Readings<'a> {
    /// Reads a path (without query).
    pub fn of(path: &'a str) -> Self {
        if is_plain(path) {
            return Self::Plain(path);
        }
        if path.len() > MAX_ODD_PATH {
            return Self::Unreadable;
        }
        read(path).map_or(Self::Unreadable, Self::Several)
    }

    /// Whether any of the patterns takes the path, in the sense of the action.
    pub fn match_paths(&self, action: Action, patterns: &[Pattern]) -> bool {
        let one = |path: &str| patterns.iter().any(|pattern| pattern.matches(path));
        match (self, action) {
            (Self::Plain(path), _) => one(path),
            (Self::Several(readings), Action::Deny) => readings.iter().any(|path| one(path)),
            (Self::Several(readings), Action::Allow) => readings.iter().all(|path| one(path)),
            (Self::Unreadable, Action::Deny) => true,
            (Self::Unreadable, Action::Allow) => patterns.iter().any(takes_every_path),
        }
    }
}

fn takes_every_path(pattern: &Pattern) -> bool {
    matches!(pattern, Pattern::Prefix(prefix) if prefix.is_empty() || **prefix == *"/")
}

/// The canonical form: unreserved characters decoded, duplicate slashes merged, dot segments resolved (RFC 3986 section 6.2.2).
///
/// It is one of the [`Readings`], the one to show to people. Other escapes stay as they are; a `%` that starts none becomes `%25`.
pub fn normalise_path(path: &str) -> Cow<'_, str> {
    if is_plain(path) {
        return Cow::Borrowed(path);
    }
    Cow::Owned(resolve_dots(&merge_slashes(&decode_unreserved(path))))
}

/// Starts with a slash (or is `*`), and holds nothing that anybody reads in two ways.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    if path == "*" {
        return true;
    }
    if bytes.first() != Some(&b'/') {
        return false;
    }
    let mut last = b' ';
    for &byte in bytes {
        let odd = match byte {
            b'%' | b'\\' | b';' | 0..=0x20 | 0x7f => true,
            b'/' | b'.' => last == b'/',
            _ => false,
        };
        if odd {
            return false;
        }
        last = byte;
    }
    true
}

fn read(path: &str) -> Option<Vec<String>> {
    let bytes = path.as_bytes();
    let is_bad =
        |at: usize| bytes[at] <= 0x20 || bytes[at] == 0x7f || bytes[at] == b'%' && escape_at(bytes, at).is_none();
    if (0..bytes.len()).any(is_bad) {
        return None;
    }
    let mut texts = vec![decode_unreserved(path)];
    let mut text = path.to_owned();
    for _ in 0..MAX_DECODINGS {
        let decoded = decode_all(&text)?;
        if decoded == text {
            break;
        }
        push_new(&mut texts, decoded.clone());
        text = decoded;
    }
    if has_escape(&text) {
        return None;
    }
    let mut readings = Vec::new();
    for text in texts {
        for text in [text.replace('\\', "/"), text] {
            for text in [without_parameters(&text), text] {
                push_new(&mut readings, resolve_dots(&merge_slashes(&text)));
                push_new(&mut readings, merge_slashes(&resolve_dots(&text)));
                push_new(&mut readings, text);
            }
        }
    }
    Some(readings)
}

fn push_new(list: &mut Vec<String>, text: String) {
    if !list.contains(&text) {
        list.push(text);
    }
}

/// The byte that `%XX` at this place stands for.
pub(crate) fn escape_at(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
    (bytes.get(at) == Some(&b'%')).then_some(())?;
    u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).ok()
}

fn has_escape(text: &str) -> bool {
    (0..text.len()).any(|at| escape_at(text.as_bytes(), at).is_some())
}

fn decode_unreserved(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    let mut at = 0;
    for (index, c) in path.char_indices() {
        if index < at {
            continue;
        }
        match escape_at(bytes, index) {
            Some(byte) if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') => {
                out.push(char::from(byte));
                at = index + 3;
            }
            // A sign that starts no escape must not start one with what is decoded behind it (`%%330`).
            None if c == '%' => {
                out.push_str("%25");
                at = index + 1;
            }
            _ => {
                out.push(c);
                at = index + c.len_utf8();
            }
        }
    }
    out
}

/// All escapes decoded once. `None`: a control character or text that is not UTF-8. A `%` that starts no escape stays: it came out of
/// an earlier decoding (`100%25`).
pub(super) fn decode_all(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let (byte, taken) = escape_at(bytes, at).map_or((bytes[at], 1), |byte| (byte, 3));
        if byte < 0x20 || byte == 0x7f {
            return None;
        }
        out.push(byte);
        at += taken;
    }
    String::from_utf8(out).ok()
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

/// Drops `;...` of every segment, as servlet containers do.
fn without_parameters(path: &str) -> String {
    let segments: Vec<&str> =
        path.split('/').map(|segment| segment.split_once(';').map_or(segment, |(name, _)| name)).collect();
    segments.join("/")
}

/// RFC 3986 section 5.2.4; a path never rises above its root.
fn resolve_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let rest = path.strip_prefix('/').unwrap_or(path);
    let mut open_end = false;
    for segment in rest.split('/') {
        open_end = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if open_end || out.is_empty() {
        out.push('/');
    }
    out
}

#[cfg(test)]
mod tests;
