//! A node's CNI configuration as text: which file the runtime uses, and our entry in it.
//!
//! Invariants
//! - Everything else in a file is kept, to the byte: our entry is inserted into the text and cut out again. Only where that would not give
//!   exactly the list with and without us (somebody wrote the file anew with us in it) it is written from its values.
//! - What is no configuration is refused, never changed.

use serde_json::{Map, Value, json};

/// The plugin's type, which is the name of its binary.
pub const PLUGIN: &str = "weft-cni";
/// What the runtime is asked to give the plugin: the pod's annotations. containerd and CRI-O both know it.
pub const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// Our entry in a list of plugins.
const ENTRY: &str = r#"{"type":"weft-cni","capabilities":{"io.kubernetes.cri.pod-annotations":true}}"#;
/// Lists that are made of a single plugin's file are named so: they sort before all that others name.
pub const DERIVED: &str = "0-weft-";

/// Why a file is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No JSON object.
    #[error("it is no JSON object: {0}")]
    Json(String),
    /// No plugins to stand behind.
    #[error("it names no plugin")]
    NoPlugins,
}

/// The file that a container runtime uses, of all in its directory: the first in order of names that is a configuration.
pub fn picked(files: &[(String, String)]) -> Option<&(String, String)> {
    let mut usable: Vec<_> = files.iter().filter(|(name, text)| is_configuration(name, text)).collect();
    usable.sort_by(|a, b| a.0.cmp(&b.0));
    usable.into_iter().find(|(name, _)| !name.starts_with(DERIVED))
}

/// Whether a runtime looks at a file of this name.
pub fn is_read(name: &str) -> bool {
    is_list(name) || extension(name) == Some("conf") || extension(name) == Some("json")
}

/// Whether a file of this name holds a list of plugins, not a single one.
pub fn is_list(name: &str) -> bool {
    extension(name) == Some("conflist")
}

fn extension(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(_, extension)| extension)
}

fn is_configuration(name: &str, text: &str) -> bool {
    if is_list(name) {
        parse(text).is_ok()
    } else {
        is_read(name) && object(text).is_ok_and(|conf| conf.contains_key("type"))
    }
}

fn object(text: &str) -> Result<Map<String, Value>, Error> {
    match serde_json::from_str(text).map_err(|error| Error::Json(error.to_string()))? {
        Value::Object(object) => Ok(object),
        _ => Err(Error::Json("another value".to_owned())),
    }
}

fn parse(text: &str) -> Result<Map<String, Value>, Error> {
    let list = object(text)?;
    let plugins = list.get("plugins").and_then(Value::as_array);
    let named = |plugins: &Vec<Value>| !plugins.is_empty() && plugins.iter().all(|plugin| plugin["type"].is_string());
    if plugins.is_some_and(named) { Ok(list) } else { Err(Error::NoPlugins) }
}

fn plugins(list: &mut Map<String, Value>) -> Option<&mut Vec<Value>> {
    list.get_mut("plugins").and_then(Value::as_array_mut)
}

fn entry() -> Value {
    json!({ "type": PLUGIN, "capabilities": { ANNOTATIONS: true } })
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == PLUGIN
}

/// The list with our entry, at its end; `None` if it has it already.
///
/// # Errors
/// If the text is no list of plugins.
pub fn with_us(text: &str) -> Result<Option<String>, Error> {
    let mut list = parse(text)?;
    let there = plugins(&mut list).ok_or(Error::NoPlugins)?;
    if there.iter().filter(|plugin| is_ours(plugin)).eq([&entry()]) {
        return Ok(None);
    }
    let others_only = !there.iter().any(is_ours);
    there.retain(|plugin| !is_ours(plugin));
    if there.is_empty() {
        return Err(Error::NoPlugins);
    }
    there.push(entry());
    let wanted = Value::Object(list);
    let inserted = end_of_plugins(text).filter(|_| others_only).and_then(|end| {
        let (before, after) = (text.get(..end)?, text.get(end..)?);
        let last = before.trim_end();
        Some(format!("{last},{ENTRY}{}{after}", before.get(last.len()..)?))
    });
    Ok(Some(inserted.filter(|text| same(text, &wanted)).unwrap_or_else(|| written(&wanted))))
}

/// The list without our entry; `None` if it has none.
///
/// # Errors
/// If the text is no list of plugins.
pub fn without_us(text: &str) -> Result<Option<String>, Error> {
    let mut list = parse(text)?;
    let there = plugins(&mut list).ok_or(Error::NoPlugins)?;
    if !there.iter().any(is_ours) {
        return Ok(None);
    }
    there.retain(|plugin| !is_ours(plugin));
    let wanted = Value::Object(list);
    let cut = text.replacen(&format!(",{ENTRY}"), "", 1);
    Ok(Some(if same(&cut, &wanted) { cut } else { written(&wanted) }))
}

/// A list of this single plugin and us.
///
/// # Errors
/// If the text is no configuration of a plugin.
pub fn list_of(text: &str) -> Result<String, Error> {
    let mut conf = object(text)?;
    if !conf.contains_key("type") {
        return Err(Error::NoPlugins);
    }
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        if let Some(value) = conf.remove(key) {
            list.insert(key.to_owned(), value);
        }
    }
    list.insert("plugins".to_owned(), json!([conf, entry()]));
    Ok(written(&Value::Object(list)))
}

fn same(text: &str, wanted: &Value) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|value| value == *wanted)
}

fn written(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Where the bracket stands that closes the outermost list `plugins`. The text is known to be JSON.
fn end_of_plugins(text: &str) -> Option<usize> {
    let (mut depth, mut string, mut named, mut within) = (0_usize, None, false, None);
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        if let Some(start) = string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    named = depth == 1 && text.get(start..at) == Some("plugins");
                    string = None;
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => string = Some(at + 1),
            b'[' | b'{' => {
                depth += 1;
                if byte == b'[' && named && within.is_none() {
                    within = Some(depth);
                }
                named = false;
            }
            b']' | b'}' => {
                if within == Some(depth) {
                    return Some(at);
                }
                depth = depth.checked_sub(1)?;
            }
            b',' => named = false,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = "{\n  \"cniVersion\": \"0.4.0\", \"name\": \"x\",\n  \"plugins\": [\n    {\"type\": \"bridge\", \"ipam\": \
                          {\"plugins\": [1], \"s\": \"a]\\\"}\"}},\n    {\"type\": \"portmap\"}\n  ],\n \"after\": [2]}\n";

    #[test]
    fn our_entry_comes_and_goes_and_the_rest_stays_to_the_byte() {
        for text in [BRIDGE, r#"{"plugins":[{"type":"a"}]}"#, r#"{"x":{"plugins":[]},"plugins":[{"type":"a"} ] }"#] {
            let with = with_us(text).unwrap().unwrap();
            let value: Value = serde_json::from_str(&with).unwrap();
            assert_eq!(value["plugins"].as_array().unwrap().last().unwrap(), &entry());
            assert!(with_us(&with).unwrap().is_none());
            assert_eq!(without_us(&with).unwrap().unwrap(), text);
            assert!(without_us(text).unwrap().is_none());
        }
    }

    #[test]
    fn a_file_that_others_wrote_anew_with_us_in_it_is_kept_by_value() {
        let with = with_us(BRIDGE).unwrap().unwrap();
        let mut value: Value = serde_json::from_str(&with).unwrap();
        value["plugins"].as_array_mut().unwrap().push(json!({"type": "istio-cni"}));
        let anew = value.to_string();
        assert!(with_us(&anew).unwrap().is_none(), "another may stand behind us");
        let without: Value = serde_json::from_str(&without_us(&anew).unwrap().unwrap()).unwrap();
        value["plugins"].as_array_mut().unwrap().retain(|plugin| plugin["type"] != PLUGIN);
        assert_eq!(without, value);
    }

    #[test]
    fn an_entry_of_another_version_or_two_of_them_become_one() {
        for entries in [r#"{"type":"weft-cni","old":1}"#.to_owned(), format!("{ENTRY},{ENTRY}")] {
            let text = format!(r#"{{"plugins":[{{"type":"a"}},{entries}]}}"#);
            let value: Value = serde_json::from_str(&with_us(&text).unwrap().unwrap()).unwrap();
            assert_eq!(value, json!({"plugins": [{"type": "a"}, entry()]}));
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"plugins":[]}"#,
            r#"{"plugins":[1]}"#,
            r#"{"plugins":{"type":"a"}}"#,
            r#"{"plugins":[{"type":"weft-cni"}]}"#,
        ] {
            assert!(with_us(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_name_that_is_a_configuration_is_the_runtimes() {
        let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let list = r#"{"plugins":[{"type":"a"}]}"#;
        let single = r#"{"type":"a","name":"n","cniVersion":"1.0.0"}"#;
        let files = [
            file("20-b.conflist", list),
            file("10-a.conf", single),
            file("05-broken.conflist", "{"),
            file("00-other.txt", list),
            file("0-weft-10-a.conflist", list),
        ];
        assert_eq!(picked(&files).unwrap().0, "10-a.conf");
        assert_eq!(picked(&files[..1]).unwrap().0, "20-b.conflist");
        assert_eq!(picked(&files[2..]), None);
        let value: Value = serde_json::from_str(&list_of(single).unwrap()).unwrap();
        assert_eq!(value, json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a"}, entry()]}));
        assert!(DERIVED < "00" && list_of("{}").is_err());
    }
}
