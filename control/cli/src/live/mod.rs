//! How the mesh is now, asked of control's metrics port: `weft status`, `weft proxies`, `weft diff`, `weft events`. Control knows and decodes; here it is laid
//! out for people.

mod diff;
mod events;
mod proxies;
mod status;

use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::exit::Failure;
use crate::plain_http;

pub use diff::run as diff;
pub use events::run as events;
pub use proxies::run as proxies;
pub use status::run as status;

/// Asks for a page.
///
/// # Errors
/// Control cannot be asked; or what is asked for is not there, by control's own words.
pub fn ask<T: DeserializeOwned>(control: SocketAddr, page: &str) -> Result<T, Failure> {
    let failed = |what: String| {
        Failure::here(format!("control cannot be asked at {control}: {what}; give its metrics address by --control"))
    };
    let answer = plain_http::get(control, page).map_err(|error| failed(error.to_string()))?;
    match answer.status {
        200 => {
            serde_json::from_str(&answer.body).map_err(|error| failed(format!("its answer cannot be read ({error})")))
        }
        // An older control does not know the page, and lists those that it knows.
        404 if !answer.body.starts_with('/') => Err(Failure::input(answer.body.trim())),
        404 => Err(failed(format!("it knows no {page}: it is of another version"))),
        status => Err(failed(format!("it answers {status} {}", answer.body.trim()))),
    }
}

/// Data as lines `path: value`, in the order of the paths. What is empty or zero is left out: it is as if it were not there.
fn lines(data: &Value) -> Vec<String> {
    fn walk(path: &str, data: &Value, lines: &mut Vec<String>) {
        let under = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match data {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| walk(&under(key), value, lines)),
            Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
                items.iter().enumerate().for_each(|(at, value)| walk(&format!("{path}[{at}]"), value, lines));
            }
            Value::Array(items) if items.is_empty() => {}
            Value::Array(items) => {
                lines.push(format!("{path}: {}", items.iter().map(word).collect::<Vec<_>>().join(" ")));
            }
            Value::Null | Value::Bool(false) => {}
            Value::String(text) if text.is_empty() => {}
            Value::Number(number) if number.as_f64() == Some(0.0) => {}
            other => lines.push(format!("{path}: {}", word(other))),
        }
    }
    let mut said = Vec::new();
    walk("", data, &mut said);
    said
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn data_is_a_line_for_each_field_that_says_something() {
        let data = json!({
            "name": "web", "port": 80, "weight": 0, "draining": false, "zone": "", "requires": [],
            "alpn": ["weft1-h1", "weft1-h2"], "rules": [{"name": "a", "matches": [{"path": {"path_prefix": "/"}}]}],
        });
        let said = lines(&data);
        let want = [
            "alpn: weft1-h1 weft1-h2",
            "name: web",
            "port: 80",
            "rules[0].matches[0].path.path_prefix: /",
            "rules[0].name: a",
        ];
        assert_eq!(said, want);
    }
}
