//! Each of three controls is in a zone: proxies go to the one of theirs by themselves, to others at once when it dies, and back when it is there again.

use std::net::SocketAddr;

use serde_json::Value;
use weft::lab::http_get;
use weft_tests::Service;
use weft_tests::load::{Load, Plan};

use super::{RATE, REPLICAS, Replicas, control_flag, lab_node, shows};

/// Of each zone two.
const PODS: [(&str, u16); 6] = [("web", 2), ("fay", 2), ("eve", 1), ("dan", 1), ("bob", 0), ("ann", 0)];
const CALLED: &str = "web";

pub fn have_their_own() {
    let mut replicas = Replicas::with(&[]);
    let control = control_flag();
    let node = |zone: &u16| {
        let labels = format!("{{topology.kubernetes.io/zone: zone-{zone}}}");
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: node-{zone}, labels: {labels}}}\n---\n")
    };
    let nodes: String = (0..REPLICAS).map(|zone| node(&zone)).collect();
    replicas.mesh.write("nodes.yaml", &nodes);
    // Those that are called come first: by the time that others call them, every control has read of them.
    replicas.mesh.deploy(Service::tcp("echo").sidecar_arg(&control));
    for (name, zone) in PODS {
        let service = if name == CALLED { Service::http(name) } else { Service::own(name) };
        replicas.mesh.deploy(service.node(&format!("node-{zone}")).sidecar_arg(&control));
    }
    let clients = vec![replicas.mesh.pod("ann-0").clone(), replicas.mesh.pod("bob-0").clone()];
    let plan = Plan { clients, http: replicas.mesh.address(CALLED), tcp: replicas.mesh.address("echo"), rate: RATE };
    let mut load = Load::start(plan);
    all_near(&replicas);

    replicas.kill(0);
    replicas.all_connected();
    replicas.start(0);
    all_near(&replicas);
    let to_and_fro: f64 = (0..REPLICAS).map(|one| replicas.metric(one, "weft_control_moved_proxies_total", &[])).sum();
    load.end();
    assert!(load.tally.failures().is_empty(), "{:#?}", load.tally.failures());
    eprintln!("replicas: {} proxies are near after {to_and_fro} moves; {}", PODS.len(), load.tally);
}

/// Every proxy is connected to the control of its zone.
fn all_near(replicas: &Replicas) {
    replicas.mesh.until("every proxy to be with the control of its zone", || {
        let mut far = Vec::new();
        for (name, zone) in PODS {
            let with = connected_to(replicas, &format!("shop/{name}-0"));
            if with.as_deref() != Some(&format!("control-{zone}")) {
                far.push(format!("{name} of zone-{zone} is with {with:?}"));
            }
        }
        if far.is_empty() { Ok(()) } else { Err(far.join(", ")) }
    });
}

/// What the control of a proxy is called.
fn connected_to(replicas: &Replicas, workload: &str) -> Option<String> {
    let any: SocketAddr = shows(1);
    let answer = http_get(lab_node(&replicas.mesh), any, "/debug/proxies").ok()?;
    let proxies: Value = serde_json::from_str(&answer.body).ok()?;
    let proxy = proxies.as_array()?.iter().find(|proxy| proxy["workload"] == workload)?;
    proxy["replica"].as_str().map(str::to_owned)
}
