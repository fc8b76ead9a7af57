//! YAML (and JSON) text -> a tree in which every key and value knows its line and column; or what an API server sends, where it knows its field.
//!
//! This is the only place that knows serde-saphyr. Invariants: arbitrary text never panics and never costs more than the budget
//! below (nesting, nodes, alias expansion); one broken document of a file does not take the others with it, because a file
//! is cut at its document markers first (a line `---` is a marker wherever it stands, YAML 1.2.2 section 9.1.2).

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::fault::Fault;

/// Where something stands in its file; both count from 1, the column in characters. 0 is "unknown".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it begins.
    pub at: Position,
    /// What it is.
    pub value: Value,
}

/// What a YAML node can be. Numbers and booleans are those of the YAML 1.2 core schema (`yes` and `on` are text).
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Another number.
    Float(f64),
    /// Text.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order in which it is written.
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub at: Position,
    /// Its value.
    pub node: Node,
}

impl Entry {
    fn number(&mut self, next: &mut u32) {
        self.node.number(next);
        self.at = self.node.at;
    }
}

impl Node {
    /// The value of a key, if this is a mapping that has it and it is not null.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let node = &self.entries().iter().find(|entry| entry.key == key)?.node;
        (node.value != Value::Null).then_some(node)
    }

    /// The entries of a mapping; empty for everything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The elements of a sequence; empty for everything else.
    pub fn elements(&self) -> &[Node] {
        match &self.value {
            Value::List(elements) => elements,
            _ => &[],
        }
    }

    /// The text, if it is text.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The same without places.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            // What no i64 or u64 can hold is no number of Kubernetes either.
            Value::Int(value) => i64::try_from(*value).map_or_else(|_| (*value as f64).into(), serde_json::Value::from),
            Value::Float(value) => (*value).into(),
            Value::Text(text) => text.clone().into(),
            Value::List(elements) => elements.iter().map(Self::to_json).collect(),
            Value::Map(entries) => entries.iter().map(|entry| (entry.key.clone(), entry.node.to_json())).collect(),
        }
    }

    /// The field that stands at a place of an object that an API server has sent, such as `spec.rules[1].from`.
    pub fn path(&self, at: Position) -> Option<String> {
        if self.at == at {
            return Some(String::new());
        }
        let below = |step: String, node: &Node| Some(format!("{step}{}", node.path(at)?));
        let mut entries = self.entries().iter().filter_map(|entry| below(format!(".{}", entry.key), &entry.node));
        let mut elements = self.elements().iter().enumerate();
        entries.next().or_else(|| elements.find_map(|(index, node)| below(format!("[{index}]"), node)))
    }

    fn number(&mut self, next: &mut u32) {
        self.at = Position { line: *next, column: 0 };
        *next = next.saturating_add(1);
        match &mut self.value {
            Value::List(elements) => elements.iter_mut().for_each(|node| node.number(next)),
            Value::Map(entries) => entries.iter_mut().for_each(|entry| entry.number(next)),
            _ => {}
        }
    }

    fn shift(&mut self, lines: u32) {
        self.at.line += lines;
        match &mut self.value {
            Value::List(elements) => elements.iter_mut().for_each(|node| node.shift(lines)),
            Value::Map(entries) => entries.iter_mut().for_each(|entry| {
                entry.at.line += lines;
                entry.node.shift(lines);
            }),
            _ => {}
        }
    }
}

/// Nesting of a document; ordinary manifests stay under 30.
const MAX_DEPTH: usize = 64;
/// Values in one document, aliases expanded; an EndpointSlice of 1,000 endpoints has some 20,000, and a List may hold many.
const MAX_NODES: usize = 1_000_000;
/// The parser's steps for one document: a sequence or mapping takes two.
const MAX_EVENTS: usize = 2_500_000;
/// Of these, repetitions by aliases: people repeat a few lines so, bombs repeat millions.
const MAX_REPLAYED: usize = 100_000;

/// A value as one YAML document, which YAML 1.1 reads as the same too (`yes`, `0755` and their like are in quotes).
///
/// # Errors
/// The library's; none for what was read from YAML or JSON.
pub fn to_yaml(value: &serde_json::Value) -> Result<String, String> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(value, options).map_err(|error| error.to_string())
}

/// A part of a file between document markers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// Its text, beginning at a line's start.
    pub text: &'a str,
    /// Lines of the file before it.
    pub lines_before: u32,
}

/// Cuts a file at its document markers. Documents of comments and blank lines only are left out.
pub fn documents(text: &str) -> Vec<Document<'_>> {
    let text_start = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let (mut at, mut line) = (0, 0);
    for row in text_start.split_inclusive('\n') {
        let end = at + row.len();
        if is_marker(row, "---") {
            // Directives (%YAML) belong to the document that follows them.
            if has_content(&text_start[start..at]) {
                found.push(Document { text: &text_start[start..at], lines_before: start_line });
                (start, start_line) = (at, line);
            } else if !text_start[start..at].lines().any(|row| row.starts_with('%')) {
                (start, start_line) = (at, line);
            }
        } else if is_marker(row, "...") {
            found.push(Document { text: &text_start[start..at], lines_before: start_line });
            (start, start_line) = (end, line + 1);
        }
        at = end;
        line += 1;
    }
    found.push(Document { text: &text_start[start..], lines_before: start_line });
    found.retain(|document| has_content(document.text));
    found
}

fn is_marker(row: &str, marker: &str) -> bool {
    row.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn has_content(text: &str) -> bool {
    text.lines().any(|row| {
        let row = row.strip_prefix("---").unwrap_or(row).trim();
        !row.is_empty() && !row.starts_with(['#', '%'])
    })
}

/// Reads one document. Fails with the place of the first syntax error, or of what is over the budget.
pub fn parse(document: Document<'_>) -> Result<Node, Fault> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH, max_nodes: MAX_NODES, max_events: MAX_EVENTS, max_documents: 2,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPLAYED },
        strict_booleans: true,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(document.text, options).map_err(|error| {
        let at = error.location().map(position).unwrap_or_default();
        let message = serde_saphyr::MessageFormatter::format_message(&serde_saphyr::DefaultMessageFormatter, &error);
        let at = Position { line: at.line.max(1) + document.lines_before, column: at.column.max(1) };
        Fault::new(at, message.lines().collect::<Vec<_>>().join(" "))
    })?;
    let mut node = raw.into_node();
    node.shift(document.lines_before);
    Ok(node)
}

fn position(location: serde_saphyr::Location) -> Position {
    Position {
        line: u32::try_from(location.line()).unwrap_or(u32::MAX / 2),
        column: u32::try_from(location.column()).unwrap_or(u32::MAX / 2),
    }
}

/// As an API server sends it. Instead of a line its parts have their number in the object, from which [`Node::path`] tells the field. Who
/// set which field (`managedFields`, often the half of an object) is left out.
impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut node = Bare::deserialize(deserializer)?.into_node();
        let mut next = 1;
        // What is wanted first, so that its numbers do not change with the rest (`metadata.resourceVersion`, `status`).
        for spec in [true, false] {
            if let Value::Map(entries) = &mut node.value {
                entries
                    .iter_mut()
                    .filter(|entry| (entry.key == "spec") == spec)
                    .for_each(|entry| entry.number(&mut next));
            }
        }
        node.at = Position { line: next, column: 0 };
        Ok(node)
    }
}

struct Raw(Value);

struct Bare(Value);

trait IntoNode {
    /// A key that is passed over.
    const LEFT_OUT: Option<&'static str>;
    fn into_node(self) -> Node;
}

impl IntoNode for Bare {
    const LEFT_OUT: Option<&'static str> = Some("managedFields");

    fn into_node(self) -> Node {
        Node { at: Position::default(), value: self.0 }
    }
}

impl<'de> Deserialize<'de> for Bare {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor(PhantomData::<Self>)).map(Bare)
    }
}

impl IntoNode for Spanned<Raw> {
    const LEFT_OUT: Option<&'static str> = None;

    fn into_node(self) -> Node {
        Node { at: position(self.referenced), value: self.value.0 }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor(PhantomData::<Spanned<Self>>)).map(Raw)
    }
}

/// Reads a value whose parts are read as `P`.
struct RawVisitor<P>(PhantomData<P>);

impl<'de, P: Deserialize<'de> + IntoNode> Visitor<'de> for RawVisitor<P> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(i128::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(Value::Text(String::from_utf8_lossy(value).into_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = sequence.next_element::<P>()? {
            elements.push(element.into_node());
        }
        Ok(Value::List(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<P>()? {
            let Node { at, value: key } = key.into_node();
            if let (Some(left_out), Value::Text(key)) = (P::LEFT_OUT, &key)
                && key == left_out
            {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let node = map.next_value::<P>()?.into_node();
            let key = match key {
                Value::Text(text) => text,
                Value::Bool(value) => value.to_string(),
                Value::Int(value) => value.to_string(),
                Value::Float(value) => value.to_string(),
                Value::Null => "null".to_owned(),
                Value::List(_) | Value::Map(_) => {
                    return Err(serde::de::Error::custom("a key must be text, not a sequence or mapping"));
                }
            };
            entries.push(Entry { key, at, node });
        }
        Ok(Value::Map(entries))
    }
}
