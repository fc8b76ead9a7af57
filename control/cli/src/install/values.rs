//! The values of an installation: the chart's own, over them those of files, over them those of `--set`; checked by the chart's schema before
//! anything is made of them.

use regex::Regex;
use serde_json::{Map, Value};
use weft_api::kinds::fault::nearest;

use super::chart;

/// The most names that lead to one value.
const DEEPEST: usize = 16;

/// The chart's own values and what is given over them, checked.
///
/// # Errors
/// What is no value of this chart; a sentence each.
pub fn whole(given: Value) -> Result<Value, Vec<String>> {
    let own = read("values.yaml", chart::VALUES).map_err(|why| vec![why])?;
    let whole = over(own, given);
    let schema: Value = serde_json::from_str(chart::SCHEMA).map_err(|error| vec![error.to_string()])?;
    let mut wrong = Vec::new();
    check(&whole, &schema, &schema, "", &mut wrong);
    if wrong.is_empty() { Ok(whole) } else { Err(wrong) }
}

/// What is given, without the chart's own.
///
/// # Errors
/// What cannot be read.
pub fn given(files: &[(String, String)], sets: &[String]) -> Result<Value, String> {
    let mut given = Value::Object(Map::new());
    for (name, text) in files {
        given = over(given, read(name, text)?);
    }
    for one in sets {
        for part in cut(one) {
            let (path, text) =
                part.split_once('=').ok_or_else(|| format!("`{part}` sets nothing: write NAME.NAME=VALUE"))?;
            if path.contains('[') {
                return Err(format!("`{path}`: a list is set whole, as {{a,b}}, or by --values FILE"));
            }
            let path: Vec<&str> = path.split('.').collect();
            if path.iter().any(|name| name.is_empty()) || path.len() > DEEPEST {
                return Err(format!("`{part}` names no value: write NAME.NAME=VALUE"));
            }
            let set = path
                .iter()
                .rev()
                .fold(word(text), |value, name| Value::Object(Map::from_iter([((*name).to_owned(), value)])));
            given = over(given, set);
        }
    }
    Ok(given)
}

fn read(name: &str, text: &str) -> Result<Value, String> {
    let Some(document) = weft_api::kinds::documents(text).into_iter().next() else {
        return Ok(Value::Object(Map::new()));
    };
    let node = weft_api::kinds::parse(document).map_err(|fault| format!("{name}:{fault}"))?;
    match node.to_json() {
        Value::Null => Ok(Value::Object(Map::new())),
        found @ Value::Object(_) => Ok(found),
        _ => Err(format!("{name} holds no values: it has to be a mapping")),
    }
}

/// The second over the first: mappings by their keys, all else whole. `null` takes a value away, as with Helm.
pub fn over(below: Value, above: Value) -> Value {
    match (below, above) {
        (Value::Object(mut below), Value::Object(above)) => {
            for (key, value) in above {
                match below.remove(&key) {
                    _ if value.is_null() => {}
                    Some(old) => drop(below.insert(key, over(old, value))),
                    None => drop(below.insert(key, value)),
                }
            }
            Value::Object(below)
        }
        (_, above) => above,
    }
}

/// Cuts at commas that stand outside of braces and behind no backslash.
fn cut(text: &str) -> Vec<String> {
    let (mut parts, mut depth, mut escaped) = (vec![String::new()], 0_u32, false);
    for letter in text.chars() {
        match letter {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            ',' if !escaped && depth == 0 => {
                parts.push(String::new());
                continue;
            }
            '{' if !escaped => depth += 1,
            '}' if !escaped => depth = depth.saturating_sub(1),
            _ => {}
        }
        escaped = false;
        if let Some(last) = parts.last_mut() {
            last.push(letter);
        }
    }
    parts
}

/// A value as `--set` has it: `{a,b}` is a list; numbers, `true`, `false` and `null` are what they look like.
fn word(text: &str) -> Value {
    if let Some(inside) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        return inside.split(',').filter(|item| !item.is_empty()).map(word).collect();
    }
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        number => {
            let plain = !number.starts_with('0') || number == "0";
            number.parse::<i64>().ok().filter(|_| plain).map_or_else(|| number.into(), Value::from)
        }
    }
}

/// As much of JSON Schema as the chart's needs.
fn check(value: &Value, schema: &Value, root: &Value, at: &str, wrong: &mut Vec<String>) {
    if let Some(to) = schema["$ref"].as_str().and_then(|name| name.strip_prefix('#')) {
        return check(value, root.pointer(to).unwrap_or(&Value::Null), root, at, wrong);
    }
    let name = if at.is_empty() { "values" } else { at };
    if !is_of(value, &schema["type"]) {
        wrong.push(format!("{name}: {value} is no {}", listed(&schema["type"])));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.contains(value)) {
        wrong.push(format!("{name}: {value} is none of {}", listed(&Value::Array(allowed.clone()))));
    }
    bounds(value, schema, name, wrong);
    if let Some(items) = value.as_array() {
        for (index, item) in items.iter().enumerate() {
            check(item, &schema["items"], root, &format!("{name}[{index}]"), wrong);
        }
    }
    let Some(fields) = value.as_object() else { return };
    let known = schema["properties"].as_object();
    for (key, field) in fields {
        let below = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        match (known.and_then(|known| known.get(key)), &schema["additionalProperties"]) {
            (Some(schema), _) | (None, schema @ Value::Object(_)) => check(field, schema, root, &below, wrong),
            (None, Value::Bool(false)) => {
                let like = nearest(key, known.into_iter().flat_map(Map::keys).map(String::as_str));
                let meant = like.map(|like| format!("; did you mean `{like}`?")).unwrap_or_default();
                wrong.push(format!("{below}: there is no such value{meant}"));
            }
            (None, _) => {}
        }
    }
}

fn bounds(value: &Value, schema: &Value, name: &str, wrong: &mut Vec<String>) {
    if let Some(text) = value.as_str() {
        let fits = schema["pattern"]
            .as_str()
            .is_none_or(|pattern| Regex::new(pattern).is_ok_and(|regex| regex.is_match(text)));
        let length = text.chars().count() as u64;
        if !fits || schema["minLength"].as_u64().is_some_and(|least| length < least) {
            wrong.push(format!("{name}: `{text}` has not the form of such a value"));
        }
        if schema["maxLength"].as_u64().is_some_and(|most| length > most) {
            wrong.push(format!("{name}: it is too long"));
        }
    }
    let below = value.as_f64().zip(schema["minimum"].as_f64()).is_some_and(|(value, least)| value < least);
    let above = value.as_f64().zip(schema["maximum"].as_f64()).is_some_and(|(value, most)| value > most);
    if below || above {
        wrong.push(format!("{name}: {value} is not within {} and {}", schema["minimum"], schema["maximum"]));
    }
    let many = value.as_array().map(Vec::len).zip(schema["maxItems"].as_u64());
    if many.is_some_and(|(len, most)| len as u64 > most) {
        wrong.push(format!("{name}: at most {} are allowed", schema["maxItems"]));
    }
    let few = value.as_object().map(Map::len).zip(schema["minProperties"].as_u64());
    if few.is_some_and(|(len, least)| (len as u64) < least) {
        wrong.push(format!("{name}: it says nothing"));
    }
}

fn is_of(value: &Value, kind: &Value) -> bool {
    match kind {
        Value::String(kind) => match kind.as_str() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            _ => false,
        },
        Value::Array(kinds) => kinds.iter().any(|kind| is_of(value, kind)),
        _ => true,
    }
}

fn listed(words: &Value) -> String {
    match words {
        Value::Array(words) => words.iter().map(listed).collect::<Vec<_>>().join(", "),
        Value::String(word) => word.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values(files: &[(String, String)], sets: &[String]) -> Result<Value, Vec<String>> {
        given(files, sets).map_err(|why| vec![why]).and_then(whole)
    }

    fn set(sets: &[&str]) -> Result<Value, Vec<String>> {
        values(&[], &sets.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_set_stands_over_files_and_these_over_the_charts_own() {
        let file = ("mine.yaml".to_owned(), "control: {replicas: 3, spread: hard}\n".to_owned());
        let found = values(&[file], &["control.replicas=5,image.registry=a.b/c".to_owned()]).unwrap();
        assert_eq!(found["control"]["replicas"], 5);
        assert_eq!(found["control"]["spread"], "hard");
        assert_eq!(found["control"]["leafTtl"], "1h");
        assert_eq!(found["image"]["registry"], "a.b/c");
        let found = set(&["injection.excludeInboundPorts={22,9100}", r"control.log=weft=debug\,info"]).unwrap();
        assert_eq!(found["injection"]["excludeInboundPorts"], json!([22, 9100]));
        assert_eq!(found["control"]["log"], "weft=debug,info");
    }

    #[test]
    fn a_value_that_is_none_is_refused_with_what_may_have_been_meant() {
        for (given, wanted) in [
            ("control.replica=3", "control.replica: there is no such value; did you mean `replicas`?"),
            ("controll.replicas=3", "controll: there is no such value; did you mean `control`?"),
            ("control.replicas=0", "control.replicas: 0 is not within 1 and 64"),
            ("control.replicas=three", "control.replicas: \"three\" is no integer"),
            ("capture.mode=ebpf", "capture.mode: \"ebpf\" is none of init, cni"),
            ("control.leafTtl=soon", "control.leafTtl: `soon` has not the form of such a value"),
            (
                "injection.excludeInboundPorts={70000}",
                "injection.excludeInboundPorts[0]: 70000 is not within 1 and 65535",
            ),
            (
                "injection.resources.request.cpu=1",
                "injection.resources.request: there is no such value; did you mean `requests`?",
            ),
            ("image.registry", "`image.registry` sets nothing: write NAME.NAME=VALUE"),
            (
                "control.tolerations[0].key=a",
                "`control.tolerations[0].key`: a list is set whole, as {a,b}, or by --values FILE",
            ),
            (".a=1", "`.a=1` names no value: write NAME.NAME=VALUE"),
        ] {
            assert_eq!(set(&[given]).unwrap_err(), [wanted], "{given}");
        }
        let file = |text: &str| values(&[("mine.yaml".to_owned(), text.to_owned())], &[]).unwrap_err();
        assert_eq!(file("- a\n"), ["mine.yaml holds no values: it has to be a mapping"]);
        assert!(file("a: [\n")[0].starts_with("mine.yaml:"), "{:?}", file("a: [\n"));
    }
}
