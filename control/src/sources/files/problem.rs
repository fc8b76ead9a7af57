//! What is told to people: problems with their place, and what was read.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use weft_api::kinds::Fault;

/// Something wrong, or doubtful, in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, or the directory that could not be read.
    pub file: String,
    /// From 1; 0 if it is about the whole file.
    pub line: u32,
    /// In characters, from 1; 0 if it is about the whole file.
    pub column: u32,
    /// `KIND/NAMESPACE/NAME`, if it could be read.
    pub object: Option<String>,
    /// One sentence.
    pub message: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

impl Problem {
    /// About a whole file or directory.
    pub(super) fn of_file(file: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { file: file.to_owned(), line: 0, column: 0, object: None, message, suggestion: None }
    }

    pub(super) fn of_fault(file: &str, object: Option<String>, fault: &Fault) -> Self {
        Self {
            file: file.to_owned(),
            line: fault.at.line,
            column: fault.at.column,
            object,
            message: fault.message.clone(),
            suggestion: fault.suggestion.clone(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        f.write_str(": ")?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean `{suggestion}`?"),
            None => Ok(()),
        }
    }
}

/// What `weft policy check` tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether there is no problem.
    pub ok: bool,
    /// Manifest files read.
    pub files: usize,
    /// Objects read, by kind.
    pub objects: BTreeMap<String, u64>,
    /// Objects left alone, by kind.
    pub skipped: BTreeMap<String, u64>,
    /// What must be mended.
    pub problems: Vec<Problem>,
    /// What is doubtful.
    pub warnings: Vec<Problem>,
}
