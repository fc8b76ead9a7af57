//! Files that list something, which people edit while control runs: `--identity-providers`, `--federation`, `--revoked`. YAML or JSON, read
//! strictly.
//!
//! Invariants
//! - A file that cannot be read or used changes nothing: what it said before goes on, and the log says why, once.
//! - It is never read in part, and none that is longer than its bound.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use weft_api::kinds::decode::decode;
use weft_api::kinds::{Fault, Position, documents, parse};

/// Bytes of a file: entries may have long reasons.
const MAX_FILE: u64 = 8 << 20;

/// A file, and what is known of it.
#[derive(Clone, Debug)]
pub struct Listed {
    flag: &'static str,
    path: PathBuf,
    // What it said when it was taken into force.
    text: Option<String>,
    // What is wrong with it since then, as the log has it.
    wrong: Option<String>,
}

impl Listed {
    /// The file of this flag.
    pub fn new(flag: &'static str, path: &Path) -> Self {
        Self { flag, path: path.to_owned(), text: None, wrong: None }
    }

    /// What it says, and what that is taken for; nothing if it is the text that is in force. Blocks.
    ///
    /// # Errors
    /// One sentence that names the file and, where it was read, the place in it.
    pub fn read<T>(&self, take: impl FnOnce(&str, &Path) -> Result<T, Fault>) -> Result<Option<(String, T)>, String> {
        let text = read_bounded(&self.path)
            .map_err(|error| format!("{} {} cannot be read: {error}", self.flag, self.path.display()))?;
        if self.text.as_ref() == Some(&text) {
            return Ok(None);
        }
        // File names in it are relative to its own directory.
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let taken = take(&text, dir).map_err(|fault| format!("{} {}:{fault}", self.flag, self.path.display()))?;
        Ok(Some((text, taken)))
    }

    /// It is as it is in force; a text that [`Listed::read`] gave is from now on.
    pub fn took(&mut self, text: Option<String>) {
        self.text = text.or(self.text.take());
        self.wrong = None;
    }

    /// It cannot be used, and what it said before goes on. The log hears it once.
    pub fn refuse(&mut self, why: String) {
        if self.wrong.as_ref() != Some(&why) {
            tracing::warn!("{why}; what it said before goes on");
            self.wrong = Some(why);
        }
    }

    /// Whether it cannot be used now.
    pub fn is_broken(&self) -> bool {
        self.wrong.is_some()
    }
}

fn read_bounded(file: &Path) -> std::io::Result<String> {
    let length = std::fs::metadata(file)?.len();
    if length > MAX_FILE {
        return Err(std::io::Error::other(format!("{length} bytes where {MAX_FILE} are the most")));
    }
    std::fs::read_to_string(file)
}

/// The entries of the one list that a text is; `what` names them.
pub fn entries<T: DeserializeOwned>(text: &str, what: &str, max: usize) -> Result<Vec<T>, Fault> {
    let start = Position { line: 1, column: 1 };
    let mut documents = documents(text).into_iter();
    let Some(document) = documents.next() else {
        return Err(Fault::new(start, format!("the list of {what} is empty; write [] if there are none")));
    };
    if let Some(second) = documents.next() {
        let at = Position { line: second.lines_before + 1, column: 1 };
        return Err(Fault::new(at, format!("a second document; write one list of all {what}")));
    }
    let entries: Vec<T> = decode(&parse(document)?)?;
    if entries.len() > max {
        return Err(Fault::new(start, format!("{} {what} where {max} are the most", entries.len())));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(listed: &Listed) -> Result<Option<(String, Vec<String>)>, String> {
        listed.read(|text, _| entries(text, "names", 2))
    }

    #[test]
    fn what_breaks_changes_nothing_and_what_is_right_again_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names.yaml");
        let mut listed = Listed::new("--names", &path);
        assert!(read(&listed).unwrap_err().starts_with(&format!("--names {} cannot be read: ", path.display())));
        std::fs::write(&path, "[a]").unwrap();
        let (text, names) = read(&listed).unwrap().unwrap();
        assert_eq!(names, ["a"]);
        // Not in force before it was taken.
        assert!(read(&listed).unwrap().is_some());
        listed.took(Some(text));
        assert!(read(&listed).unwrap().is_none());
        for (broken, want) in [
            ("", "1:1: the list of names is empty; write []"),
            ("# nothing\n", "1:1: the list of names is empty; write []"),
            ("[a]\n---\n[b]\n", "2:1: a second document; write one list of all names"),
            ("[a, b, c]", "1:1: 3 names where 2 are the most"),
            ("- {", ""),
        ] {
            std::fs::write(&path, broken).unwrap();
            let why = read(&listed).unwrap_err();
            assert!(why.starts_with(&format!("--names {}:{want}", path.display())), "{why}");
            listed.refuse(why);
            assert!(listed.is_broken());
        }
        std::fs::write(&path, "[a]").unwrap();
        assert!(read(&listed).unwrap().is_none(), "it was in force all the time");
        listed.took(None);
        assert!(!listed.is_broken() && read(&listed).unwrap().is_none());
    }

    #[test]
    fn a_file_has_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names.yaml");
        std::fs::File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(read(&Listed::new("--names", &path)).unwrap_err().contains("8388609 bytes where 8388608 are the most"));
    }
}
