//! What others read of us: metrics and the access log.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use weft::lab::{NODE, http_get};
use weft_tests::client::get;
use weft_tests::{Mesh, Service, Trial, test, test_with, tools};

pub fn tests() -> Vec<Trial> {
    vec![
        test_with("telemetry_promtool_has_nothing_to_say", &["promtool"], promtool_has_nothing_to_say),
        test_with("telemetry_alerts_fire_when_they_should", &["promtool"], alerts_fire_when_they_should),
        test_with("telemetry_a_real_prometheus_scrapes", &["prometheus"], a_real_prometheus_scrapes),
        test("telemetry_the_access_log_names_peer_and_reason", the_access_log_names_peer_and_reason),
    ]
}

fn mesh() -> Mesh {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    for path in ["/", "/status/404", "/status/503"] {
        get(mesh.pod("client-0"), mesh.address("web"), path);
    }
    mesh
}

fn promtool_has_nothing_to_say() {
    let mesh = mesh();
    let sidecar = |pod: &str| mesh.sidecar(pod).metrics().unwrap();
    let texts = [sidecar("client-0"), sidecar("web-0"), mesh.control_metrics()];
    for text in texts {
        assert!(text.contains("weft_"), "{text}");
        let mut command = Command::new(tools::program("promtool"));
        let command =
            command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut promtool = command.spawn().unwrap();
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let said = promtool.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
        assert!(said.status.success() && words.trim().is_empty(), "{words}");
    }
}

fn alerts_fire_when_they_should() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring");
    for what in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]] {
        let said = Command::new(tools::program("promtool")).args(what).current_dir(&folder).output().unwrap();
        let words = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
        assert!(said.status.success(), "promtool {what:?}: {words}");
    }
}

fn a_real_prometheus_scrapes() {
    let mesh = mesh();
    let config = mesh.lab.dir().join("prometheus.yml");
    let targets = [format!("{}:15020", mesh.pod("web-0").ip()), format!("{}:15020", mesh.pod("client-0").ip())];
    let text = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- {{job_name: proxies, static_configs: [{{targets: ['{}', '{}']}}]}}
- {{job_name: control, static_configs: [{{targets: ['{NODE}:15014']}}]}}
",
        targets[0], targets[1]
    );
    std::fs::write(&config, text).unwrap();
    let mut command = mesh.lab.node_command(tools::program("prometheus"));
    command.arg(format!("--config.file={}", config.display())).arg(format!("--web.listen-address={NODE}:9090"));
    command.arg(format!("--storage.tsdb.path={}", mesh.lab.dir().join("tsdb").display()));
    let _prometheus = mesh.lab.start_on_node("prometheus", command).unwrap();
    let query = |query: &str| {
        let path = format!("/api/v1/query?query={query}");
        let answer = http_get(mesh.lab.node(), (NODE, 9090).into(), &path).map_err(|error| error.to_string())?;
        let answer: serde_json::Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
        let value = answer["data"]["result"][0]["value"][1].as_str().map(str::to_owned);
        value.ok_or_else(|| answer.to_string())
    };
    mesh.until("all three to be scraped", || match query("sum(up)")?.as_str() {
        "3" => Ok(()),
        other => Err(format!("sum(up) is {other}")),
    });
    mesh.until("the requests to be there", || {
        match query("sum(weft_requests_total%7Bdirection%3D%22inbound%22%7D)")?.parse::<f64>() {
            Ok(count) if count >= 3.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn the_access_log_names_peer_and_reason() {
    let mesh = mesh();
    mesh.until("the failure to be logged", || {
        let log = mesh.sidecar("web-0").process.log();
        let line = log.lines().find(|line| line.contains("/status/503")).map(str::to_owned);
        let line = line.ok_or_else(|| format!("not in\n{log}"))?;
        let entry: serde_json::Value = serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))?;
        assert!(entry.to_string().contains("spiffe://cluster.local/ns/shop/sa/client"), "{entry}");
        Ok(())
    });
}
