//! The only place that writes to the terminal.
//!
//! Invariants: answers go to standard output, all else to standard error; colour only where a person looks (a terminal, without
//! `NO_COLOR`); a closed pipe (`weft ... | head`) is no error.

use std::io::{IsTerminal, Write};

/// Writes an answer's line to standard output.
pub fn out(text: impl std::fmt::Display) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{text}");
    let _ = stdout.flush();
}

/// Writes text to standard output as it is, without a line's end.
pub fn raw(text: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text);
    let _ = stdout.flush();
}

/// Tells a person something on standard error.
pub fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Writes text to standard error as it is: the live view redraws itself with it.
pub fn draw(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes());
    let _ = stderr.flush();
}

/// Writes a value as one line of JSON to standard output.
pub fn json(value: &impl serde::Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => out(text),
        Err(error) => say(format_args!("weft: cannot write JSON: {error}")),
    }
}

/// A table as lines, its head first, in columns as wide as they need to be.
pub fn columns(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let cell = |row: &[String], at: usize| row.get(at).map_or(0, |cell| cell.chars().count());
    let width = |at: usize| rows.iter().map(|row| cell(row, at)).chain([head[at].len()]).max().unwrap_or_default();
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let laid = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let rows = rows.iter().map(|row| laid(row.iter().map(String::as_str).collect()));
    std::iter::once(laid(head.to_vec())).chain(rows).collect()
}

/// Whether standard error is a terminal that a person looks at.
pub fn interactive() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Colours by meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// For standard output.
    pub fn stdout() -> Self {
        Self { on: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// For standard error.
    pub fn stderr() -> Self {
        Self { on: std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    fn wrap(self, code: &str, text: impl std::fmt::Display) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// What is as it should be.
    pub fn good(self, text: impl std::fmt::Display) -> String {
        self.wrap("32", text)
    }

    /// What is not.
    pub fn bad(self, text: impl std::fmt::Display) -> String {
        self.wrap("31", text)
    }

    /// What deserves a look.
    pub fn warn(self, text: impl std::fmt::Display) -> String {
        self.wrap("33", text)
    }

    /// Headings.
    pub fn strong(self, text: impl std::fmt::Display) -> String {
        self.wrap("1", text)
    }

    /// What matters less.
    pub fn faint(self, text: impl std::fmt::Display) -> String {
        self.wrap("2", text)
    }
}
