//! What is wrong, where, and what was probably meant.

use std::fmt;

use serde::de;

use super::tree::Position;

/// One fault of an object. Its file is known to whoever read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub at: Position,
    /// One sentence.
    pub message: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

impl Fault {
    /// A fault at a place.
    pub fn new(at: Position, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), suggestion: None }
    }

    /// Adds what was probably meant: the candidate nearest to `word`, if one is near.
    #[must_use]
    pub fn did_you_mean<'a>(mut self, word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Self {
        self.suggestion = nearest(word, candidates).map(str::to_owned);
        self
    }

    /// Adds what to write instead.
    #[must_use]
    pub fn suggest(mut self, suggestion: impl Into<String>) -> Self {
        self.suggestion = Some(suggestion.into());
        self
    }

    /// Sets the place if none is known yet: the innermost place that knows itself wins.
    #[must_use]
    pub(super) fn or_at(mut self, at: Position) -> Self {
        if self.at == Position::default() {
            self.at = at;
        }
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at != Position::default() {
            write!(f, "{}:{}: ", self.at.line, self.at.column)?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean `{suggestion}`?"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Position::default(), message.to_string())
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let fault = Self::custom(format_args!("unknown field `{field}`")).did_you_mean(field, expected.iter().copied());
        fault.with_choices(expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let fault =
            Self::custom(format_args!("unknown value `{variant}`")).did_you_mean(variant, expected.iter().copied());
        fault.with_choices(expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format_args!("field `{field}` is missing"))
    }
}

impl Fault {
    /// Without a near candidate the choices are listed, if they are few.
    fn with_choices(mut self, expected: &[&str]) -> Self {
        if self.suggestion.is_none() && (1..=12).contains(&expected.len()) {
            self.message = format!("{}, expected one of `{}`", self.message, expected.join("`, `"));
        }
        self
    }
}

/// The candidate that `word` was probably meant to be: equal but for case, else at most a third of its letters away.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let limit = (word.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
