//! The chart that is in this binary: `deploy/chart`, as `helm` would read it.
//!
//! Invariant: the files listed here are all that the chart has; a test compares with the folder.

/// The version of the chart and of what it installs.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../deploy/chart/", $name)))),*]
    };
}

/// Templates, by their path in the chart. A file that begins with `_` makes no objects.
pub const TEMPLATES: &[(&str, &str)] = files![
    "templates/_helpers.tpl",
    "templates/ca.yaml",
    "templates/checks.yaml",
    "templates/cni.yaml",
    "templates/control.yaml",
    "templates/crds.yaml",
    "templates/injection.yaml",
    "templates/monitoring.yaml",
    "templates/rbac.yaml",
    "templates/serviceaccount.yaml",
];
/// What people are told when it is done.
pub const NOTES: &str = include_str!("../../../../deploy/chart/templates/NOTES.txt");
/// What templates read.
pub const FILES: &[(&str, &str)] = files!["files/alerts.yaml", "files/crds.yaml"];
/// The values and what they mean.
pub const VALUES: &str = include_str!("../../../../deploy/chart/values.yaml");
/// Those for production.
pub const HA: &str = include_str!("../../../../deploy/chart/values-ha.yaml");
/// What values may be.
pub const SCHEMA: &str = include_str!("../../../../deploy/chart/values.schema.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn all_of_the_chart_is_in_this_binary() {
        let chart = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/chart"));
        let mut found = BTreeSet::new();
        for folder in ["templates", "files"] {
            for file in std::fs::read_dir(chart.join(folder)).unwrap() {
                found.insert(format!("{folder}/{}", file.unwrap().file_name().to_str().unwrap()));
            }
        }
        let listed = TEMPLATES.iter().chain(FILES).map(|(name, _)| (*name).to_owned());
        assert_eq!(found, listed.chain(["templates/NOTES.txt".to_owned()]).collect());
        let about = std::fs::read_to_string(chart.join("Chart.yaml")).unwrap();
        for field in ["version", "appVersion"] {
            assert!(about.contains(&format!("\n{field}: {VERSION}\n")), "{field} of Chart.yaml is not {VERSION}");
        }
        let alerts = include_str!("../../../../deploy/monitoring/alerts.yaml");
        assert!(FILES.contains(&("files/alerts.yaml", alerts)), "cp deploy/monitoring/alerts.yaml deploy/chart/files/");
    }
}
