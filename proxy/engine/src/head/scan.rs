//! Runs of bytes, and the lines that fields come in.
//!
//! Each byte is looked at once: where a run of allowed bytes ends and whether all of them are allowed is one question.

use super::{Field, Kind, Span};
use crate::reason::Reason;

/// RFC 9110 section 5.6.2: what names and methods are made of.
pub(super) const TOKEN: u8 = 1;
/// Visible, space, tab, or obs-text (RFC 9110 section 5.5).
pub(super) const FIELD: u8 = 2;
/// Not what ends a line or a target, nor `#`, which some servers cut at and others do not, nor what [`http::Uri`] does not take.
pub(super) const TARGET: u8 = 4;
/// What may be in the name of a host, unless it is an address in brackets.
pub(super) const HOST: u8 = 8;
/// What may be in the brackets of a host.
pub(super) const LITERAL: u8 = 16;

static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < classes.len() {
        let b = byte as u8;
        let visible = b > b' ' && b != 0x7f;
        if visible || b == b' ' || b == b'\t' {
            classes[byte] |= FIELD;
        }
        if visible && !matches!(b, b'#' | b'<' | b'>' | b'`') {
            classes[byte] |= TARGET;
        }
        if b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            )
        {
            classes[byte] |= TOKEN;
        }
        if b.is_ascii_graphic()
            && !matches!(b, b'/' | b'\\' | b'?' | b'#' | b'@' | b',' | b'"' | b'<' | b'>' | b'^' | b'`')
            && !matches!(b, b'{' | b'|' | b'}' | b'[' | b']' | b':')
        {
            classes[byte] |= HOST;
        }
        if b.is_ascii_alphanumeric() || matches!(b, b':' | b'.' | b'%' | b'-' | b'_' | b'~') {
            classes[byte] |= LITERAL;
        }
        byte += 1;
    }
    classes
};

/// Whether a byte is of a class.
#[inline]
pub(super) fn is(byte: u8, class: u8) -> bool {
    CLASSES[usize::from(byte)] & class != 0
}

/// Where the run of bytes of a class ends that begins at `at`.
#[inline]
pub(super) fn run(bytes: &[u8], at: usize, class: u8) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().position(|b| !is(*b, class)).unwrap_or(rest.len())
}

/// [`run`] of [`FIELD`], eight bytes at a time: values are most of a head.
#[inline]
pub(super) fn field_run(bytes: &[u8], mut at: usize) -> usize {
    loop {
        while let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
            let controls = controls(u64::from_le_bytes(*word));
            if controls != 0 {
                at += (controls.trailing_zeros() / 8) as usize;
                break;
            }
            at += 8;
        }
        // A control, perhaps a tab; or one of the last few bytes.
        match bytes.get(at) {
            Some(b) if is(*b, FIELD) => at += 1,
            _ => return at,
        }
    }
}

/// The highest bit of the lowest byte that is a control (below 0x20, or 0x7f), and perhaps of bytes above it; 0 if none is.
#[inline]
fn controls(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    // Taking off borrows from the byte above only if this byte is a control itself: the lowest bit is always right.
    let low = word.wrapping_sub(ONES * 0x20) & !word;
    let deleted = word ^ (ONES * 0x7f);
    let delete = deleted.wrapping_sub(ONES) & !deleted;
    (low | delete) & (ONES * 0x80)
}

/// Without the spaces and tabs around it: nothing else is optional (RFC 9110 section 5.6.3).
pub(super) fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// What comes next in a section of fields.
pub(super) enum Line {
    Field(Field),
    /// The empty line behind them.
    Empty,
    /// The line has not ended.
    More,
}

/// A place in a section of fields.
pub(super) struct Lines<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
    /// Whether LF alone ends a line too.
    pub bare_lf: bool,
}

impl Lines<'_> {
    /// The next line. Of a line that has not ended, what has come is checked all the same.
    ///
    /// # Errors
    /// [`Reason::MalformedRequest`]: it is no field. A folded line starts with a space, which no name does: refused here too.
    #[inline]
    pub fn field(&mut self) -> Result<Line, Reason> {
        let (bytes, start) = (self.bytes, self.at);
        match bytes.get(start) {
            Some(b'\r' | b'\n') => return Ok(if self.end()? { Line::Empty } else { Line::More }),
            Some(_) => {}
            None => return Ok(Line::More),
        }
        let colon = run(bytes, start, TOKEN);
        match bytes.get(colon) {
            Some(b':') if colon > start => {}
            None => return Ok(Line::More),
            _ => return Err(Reason::MalformedRequest),
        }
        let mut from = colon + 1;
        while let Some(b' ' | b'\t') = bytes.get(from) {
            from += 1;
        }
        self.at = field_run(bytes, from);
        let mut to = self.at;
        while to > from && matches!(bytes[to - 1], b' ' | b'\t') {
            to -= 1;
        }
        if !self.end()? {
            return Ok(Line::More);
        }
        let kind = Kind::of(&bytes[start..colon]);
        Ok(Line::Field(Field { name: Span::new(start, colon), value: Span::new(from, to), kind }))
    }

    /// Moves behind the end of a line, which must be here; false if it has not come whole.
    ///
    /// # Errors
    /// [`Reason::MalformedRequest`]: the line goes on with what may not be in it.
    #[inline]
    pub fn end(&mut self) -> Result<bool, Reason> {
        match self.bytes.get(self.at..) {
            Some([b'\r', b'\n', ..]) => self.at += 2,
            Some([b'\n', ..]) if self.bare_lf => self.at += 1,
            Some([] | [b'\r']) | None => return Ok(false),
            _ => return Err(Reason::MalformedRequest),
        }
        Ok(true)
    }
}

/// What of `bytes` may belong to a head of at most `limit` bytes, and what to say if no head ends in it.
pub(super) fn window<T>(bytes: &[u8], limit: usize) -> (&[u8], Result<Option<T>, Reason>) {
    // A span's places are 32 bits.
    let limit = limit.min(u32::MAX as usize);
    if bytes.len() < limit { (bytes, Ok(None)) } else { (&bytes[..limit], Err(Reason::HeaderTooLarge)) }
}
