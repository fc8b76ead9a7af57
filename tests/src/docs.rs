//! Documents name files, and alerts name metrics; none that is gone.

use std::collections::BTreeSet;
use std::path::Path;

/// Where a name may begin, as docs/architecture.md says.
const FROM: [&str; 3] = ["", "proxy/src", "control/src"];

#[test]
fn files_that_documents_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let from = FROM.map(|folder| root.join(folder));
    let mut documents = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    documents.extend(docs.filter(|file| file.is_file()));
    let is_path = |word: &str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b));
    let is_ours = |name: &str| match name.split_once('/') {
        // What is built there is not always there.
        Some(("" | "target", _)) => false,
        Some((folder, _)) => from.iter().any(|from| from.join(folder).is_dir()),
        None => Path::new(name).extension().is_some_and(|end| end == "rs"),
    };
    let (mut named, mut gone) = (0, Vec::new());
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap();
        // What stands between backticks; of a command, its program.
        let code = text.split('`').skip(1).step_by(2).filter_map(|code| code.split_whitespace().next());
        for name in code.filter(|name| is_path(name) && is_ours(name)) {
            named += 1;
            if !from.iter().any(|from| from.join(name).exists()) {
                gone.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(gone.is_empty(), "{gone:#?}");
    assert!(named > 30, "the documents name more than {named} files: they are no longer found");
}

#[test]
fn metrics_that_alerts_name_are_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let (alerts, metrics) = (read("deploy/monitoring/alerts.yaml"), read("docs/metrics.md"));
    let words = alerts.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("weft_"));
    let names: BTreeSet<&str> = words.map(|word| word.trim_end_matches("_bucket")).collect();
    let unknown: Vec<&&str> = names.iter().filter(|name| !metrics.contains(&format!("`{name}`"))).collect();
    assert!(unknown.is_empty(), "docs/metrics.md does not know {unknown:?}");
    assert!(names.len() > 20, "{names:?}");
}
