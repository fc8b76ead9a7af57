//! The bench of control itself, in a mesh so small that it takes seconds: it runs whole, and what does not depend on size or speed holds.

#![allow(clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;

#[test]
fn it_runs_whole_in_a_small_mesh() {
    let json = std::env::temp_dir().join(format!("weft-scale-test-{}.json", std::process::id()));
    let size = ["--services", "40", "--endpoints", "120", "--proxies", "30", "--per-proxy", "5"];
    let pace = ["--changes", "2", "--rate", "60", "--seconds", "2", "--patience", "120"];
    let output = Command::new(env!("CARGO_BIN_EXE_weft-bench"))
        .args(["scale", "--weft-control", env!("CARGO_BIN_EXE_weft-under-test"), "--json"])
        .arg(&json)
        .args(size)
        .args(pace)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(&json).expect(&said)).unwrap();
    let _ = std::fs::remove_file(&json);
    let figure = |phase: &str, metric: &str| {
        let row = rows.iter().find(|row| row["case"] == phase && row["metric"] == metric);
        row.and_then(|row| row["median"].as_f64()).unwrap_or_else(|| panic!("{phase}: {metric} is missing\n{said}"))
    };
    assert!((figure("start", "proxies that control counts") - 30.0).abs() < f64::EPSILON);
    assert!(figure("start", "sockets open in the clients") >= 30.0);
    // Its own workload, roots and denials, the extent, five services: address, service, set, three endpoints each; two routes for some.
    assert!((34.0..=36.0).contains(&figure("start", "resources a proxy")), "{}", figure("start", "resources a proxy"));
    for phase in ["change", "route"] {
        assert!((figure(phase, "resources a subscriber") - 1.0).abs() < f64::EPSILON, "{phase}");
        assert!((figure(phase, "messages a subscriber") - 2.0).abs() < f64::EPSILON, "{phase}");
    }
    assert!(figure("churn", "delivered and acknowledged") > 0.0);
    assert!(figure("reconnect", "resources resent").abs() < f64::EPSILON);
    let same = |metric| (figure("growth-tenth", metric) - figure("growth-whole", metric)).abs() < f64::EPSILON;
    assert!(same("resources sent") && same("bytes"));
}
