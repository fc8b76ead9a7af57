//! What the command's exit codes mean.

use std::process::ExitCode;

/// How a command ended. The numbers are a contract with scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Ok = 0,
    /// A check failed, or the answer is "denied".
    Failed = 1,
    /// The command line is wrong (clap's own code too).
    Usage = 2,
    /// It cannot run here: a permission, a kernel feature, a program; the reason was printed.
    CannotRun = 3,
    /// A file or value that was given is not valid.
    BadInput = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command's failure: the exit code, and one sentence that says what, where and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// The sentence.
    pub message: String,
}

impl Failure {
    /// The input is not valid.
    pub fn input(message: impl Into<String>) -> Self {
        Self { exit: Exit::BadInput, message: message.into() }
    }

    /// It cannot run here.
    pub fn here(message: impl Into<String>) -> Self {
        Self { exit: Exit::CannotRun, message: message.into() }
    }

    /// The command line is wrong in a way that clap cannot see.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, message: message.into() }
    }
}

impl From<anyhow::Error> for Failure {
    /// What goes wrong without a better name could not run here.
    fn from(error: anyhow::Error) -> Self {
        Self::here(format!("{error:#}"))
    }
}
