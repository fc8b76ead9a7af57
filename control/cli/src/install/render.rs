//! Values and the chart's templates -> objects, as `helm template` makes them.
//!
//! The language of the templates is Go's, which gotmpl speaks; of Helm's functions there are those that the chart uses. Methods are the one thing that gotmpl has
//! not: `.Files.Get` is read as a function. A test of weft-tests compares the objects with those of Helm, for every choice of values.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use gotmpl::{Template, TemplateError, Value};
use serde_json::Value as Json;

use super::chart;

/// What a chart is told of its release, beside the values.
#[derive(Clone, Debug)]
pub struct Release {
    /// Its name.
    pub name: String,
    /// Where it goes.
    pub namespace: String,
    /// Who installs it: `weft`, or `Helm`.
    pub service: String,
}

impl Default for Release {
    fn default() -> Self {
        Self { name: "weft".to_owned(), namespace: "weft-system".to_owned(), service: "weft".to_owned() }
    }
}

/// What came of the templates.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// As text, with comments, one document after the other.
    pub text: String,
    /// As data.
    pub objects: Vec<Json>,
    /// What people are told.
    pub notes: String,
}

/// Renders the chart with these values, which are whole and were checked.
///
/// # Errors
/// One sentence: a value that is needed and missing, or what a template refuses.
pub fn render(values: &Json, release: &Release) -> Result<Rendered, String> {
    let data = value(&serde_json::json!({
        "Values": values,
        "Release": {"Name": release.name, "Namespace": release.namespace, "Service": release.service},
        "Chart": {"Name": "weft", "Version": chart::VERSION, "AppVersion": chart::VERSION},
    }));
    let set = set().map_err(|error| error.to_string())?;
    let template = set.get().ok_or("the chart cannot be read")?;
    let run = |name: &str| template.execute_template_to_string(name, &data).map_err(|error| plain(&error));
    let (mut text, mut objects) = (String::new(), Vec::new());
    for (name, _) in chart::TEMPLATES.iter().filter(|(name, _)| !is_helper(name)) {
        let made = run(name)?;
        for document in weft_api::kinds::documents(&made) {
            let node = weft_api::kinds::parse(document).map_err(|fault| format!("{name} makes no YAML: {fault}"))?;
            objects.push(node.to_json());
            let shown = document.text.trim_start_matches("---").trim();
            text.extend(["---\n# Source: weft/", name, "\n", shown, "\n"]);
        }
    }
    Ok(Rendered { text, objects, notes: run("templates/NOTES.txt")? })
}

/// Whether a template is there for others.
fn is_helper(name: &str) -> bool {
    name.contains("/_")
}

/// The templates under their names, with functions that can call them.
fn set() -> Result<Arc<OnceLock<Template>>, TemplateError> {
    let cell = Arc::new(OnceLock::new());
    let templates = Arc::downgrade(&cell);
    let mut template = Template::new("").func("include", move |args| {
        let (name, data) = (text(args, 0), args.get(1).unwrap_or(&Value::Nil));
        let cell: Option<Arc<OnceLock<Template>>> = templates.upgrade();
        let set = cell.as_deref().and_then(OnceLock::get).ok_or_else(|| fault("include: too early"))?;
        set.execute_template_to_string(&name, data).map(Value::from)
    });
    for (name, function) in FUNCTIONS {
        template = template.func(name, function);
    }
    let notes = [("templates/NOTES.txt", chart::NOTES)];
    for (name, source) in chart::TEMPLATES.iter().chain(&notes) {
        let source = source.replace(".Files.Get ", "filesGet ");
        let wrapped = format!("{{{{define {name:?}}}}}{source}{{{{end}}}}");
        template = template.parse(if is_helper(name) { &source } else { &wrapped })?;
    }
    let _ = cell.set(template);
    Ok(cell)
}

type Function = fn(&[Value]) -> Result<Value, TemplateError>;

/// Of Helm's functions those that the chart uses.
const FUNCTIONS: [(&str, Function); 14] = [
    ("default", |args| {
        Ok(args.get(1).filter(|given| given.is_truthy()).or(args.first()).cloned().unwrap_or(Value::Nil))
    }),
    ("required", |args| match args.get(1) {
        None | Some(Value::Nil) => Err(fault(&text(args, 0))),
        Some(Value::String(given)) if given.is_empty() => Err(fault(&text(args, 0))),
        Some(given) => Ok(given.clone()),
    }),
    ("fail", |args| Err(fault(&text(args, 0)))),
    ("quote", |args| Ok(Value::from(Json::from(text(args, 0)).to_string()))),
    ("toJson", |args| Ok(Value::from(json(args.first().unwrap_or(&Value::Nil))?.to_string()))),
    ("toYaml", |args| Ok(Value::from(yaml(&json(args.first().unwrap_or(&Value::Nil))?)))),
    ("fromYaml", |args| {
        let source = text(args, 0);
        let Some(document) = weft_api::kinds::documents(&source).into_iter().next() else {
            return Ok(Value::from(BTreeMap::<String, Value>::new()));
        };
        weft_api::kinds::parse(document).map(|node| value(&node.to_json())).map_err(|wrong| fault(&wrong.to_string()))
    }),
    ("indent", |args| Ok(Value::from(indent(args)))),
    ("nindent", |args| Ok(Value::from(format!("\n{}", indent(args))))),
    ("int", |args| {
        let number =
            args.first().and_then(|given| given.as_int().or_else(|| given.as_float().map(|float| float as i64)));
        Ok(Value::Int(number.unwrap_or_default()))
    }),
    ("splitList", |args| {
        let (by, whole) = (text(args, 0), text(args, 1));
        Ok(Value::from(whole.split(by.as_str()).map(Value::from).collect::<Vec<_>>()))
    }),
    ("sha256sum", |args| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text(args, 0).as_bytes());
        let digits = digest.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]);
        Ok(Value::from(digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect::<String>()))
    }),
    ("trim", |args| Ok(Value::from(text(args, 0).trim().to_owned()))),
    ("filesGet", |args| {
        let name = text(args, 0);
        let found = chart::FILES.iter().find(|(file, _)| **file == *name);
        found.map(|(_, text)| Value::from(*text)).ok_or_else(|| fault(&format!("the chart has no {name}")))
    }),
];

fn text(args: &[Value], at: usize) -> String {
    match args.get(at) {
        Some(Value::String(text)) => text.to_string(),
        Some(Value::Nil) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

fn indent(args: &[Value]) -> String {
    let by = args.first().and_then(Value::as_int).and_then(|by| usize::try_from(by).ok()).unwrap_or_default();
    let pad = " ".repeat(by.min(64));
    format!("{pad}{}", text(args, 1).replace('\n', &format!("\n{pad}")))
}

/// One level of block style, so that it can stand among other keys; JSON below, which is YAML too.
fn yaml(data: &Json) -> String {
    let rows = match data {
        Json::Object(fields) if !fields.is_empty() => {
            fields.iter().map(|(key, value)| format!("{}: {value}", Json::from(key.as_str()))).collect::<Vec<_>>()
        }
        Json::Array(items) if !items.is_empty() => items.iter().map(|item| format!("- {item}")).collect(),
        other => vec![other.to_string()],
    };
    rows.join("\n")
}

fn value(data: &Json) -> Value {
    match data {
        Json::Null => Value::Nil,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => {
            number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or_default()), Value::Int)
        }
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value).collect::<Vec<_>>()),
        Json::Object(fields) => Value::from(
            fields.iter().map(|(key, field)| (key.clone(), value(field))).collect::<BTreeMap<String, Value>>(),
        ),
    }
}

fn json(data: &Value) -> Result<Json, TemplateError> {
    Ok(match data {
        Value::Nil => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Uint(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::String(text) => text.to_string().into(),
        Value::List(items) => Json::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        Value::Map(fields) => {
            let fields = fields.iter().map(|(key, field)| Ok((key.to_string(), json(field)?)));
            Json::Object(fields.collect::<Result<_, TemplateError>>()?)
        }
        Value::Function(_) => return Err(fault("a function is no data")),
    })
}

fn fault(what: &str) -> TemplateError {
    TemplateError::Exec(what.to_owned())
}

/// What a template itself says, without where it says so.
fn plain(error: &TemplateError) -> String {
    let said = error.to_string();
    said.rsplit("execution error: ").next().unwrap_or(&said).to_owned()
}
