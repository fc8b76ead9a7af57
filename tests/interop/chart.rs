//! The chart as Helm reads it, against what `weft install` makes of it: one set of templates, two who render them.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use serde_json::Value;
use weft::install::render::{Release, render};
use weft::install::values::{given, whole};
use weft::install::{chart, kinds::called};
use weft_tests::tools;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart");
const REGISTRY: &str = "image.registry=registry.example/weft";
/// Each with and without the values for production.
const CHOICES: [&str; 12] = [
    "trustDomain=cluster.local",
    "control.replicas=3,control.spread=hard,control.podDisruptionBudget=false",
    "control.extraArgs={--no-status,--zone=a},control.nodeSelector.disk=ssd,control.podAnnotations.team=mesh",
    "control.priorityClassName=,control.log=weft_control=debug,control.maxProxies=1000000",
    "image.tag=1.2.3,image.pullPolicy=Never,image.pullSecrets={one,two}",
    "ca.create=false,crds.install=false",
    "ca.keep=true,crds.keep=true",
    "injection.sidecar=classic,injection.failurePolicy=Ignore,injection.dns=true,injection.excludeInboundPorts={22,9100}",
    "injection.excludeOutboundCidrs={10.0.0.0/8,fd00::/8},injection.resources.limits.cpu=2",
    "capture.mode=cni,capture.cni.binDir=/var/lib/cni/bin,capture.cni.nodeSelector.pool=mesh,capture.cni.priorityClassName=",
    "networkPolicy.enabled=true,monitoring.serviceMonitor.enabled=true,monitoring.serviceMonitor.labels.release=p",
    "monitoring.podMonitor.enabled=true,monitoring.podMonitor.interval=10s,monitoring.prometheusRule.enabled=true",
];

fn run(arguments: &[&str]) -> Output {
    // Helm of a Go module does not know which Kubernetes it goes with.
    let more = ["--kube-version", "1.34.0", "--namespace", "weft-system"];
    Command::new(tools::program("helm")).args(arguments).args(more).output().unwrap()
}

fn by_name(objects: impl IntoIterator<Item = Value>) -> BTreeMap<String, Value> {
    objects.into_iter().map(|object| (called(&object), object)).collect()
}

fn of_helm(sets: &[&str], ha: bool) -> Result<BTreeMap<String, Value>, String> {
    let file = format!("{CHART}/values-ha.yaml");
    let mut arguments = vec!["template", "weft", CHART];
    arguments.extend(ha.then_some(["--values", file.as_str()]).into_iter().flatten());
    arguments.extend(sets.iter().flat_map(|set| ["--set", *set]));
    let output = run(&arguments);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    Ok(by_name(
        weft_api::kinds::documents(&text)
            .into_iter()
            .map(|document| weft_api::kinds::parse(document).unwrap().to_json()),
    ))
}

fn of_ours(sets: &[&str], ha: bool) -> Result<BTreeMap<String, Value>, String> {
    let files: Vec<_> = ha.then(|| ("values-ha.yaml".to_owned(), chart::HA.to_owned())).into_iter().collect();
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let values = whole(given(&files, &sets)?).map_err(|wrong| wrong.join("; "))?;
    let release = Release { service: "Helm".to_owned(), ..Release::default() };
    Ok(by_name(render(&values, &release)?.objects))
}

pub fn helm() {
    for choice in CHOICES {
        for ha in [false, true] {
            let sets = [REGISTRY, choice];
            let (helm, ours) = (of_helm(&sets, ha).unwrap(), of_ours(&sets, ha).unwrap());
            let names = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(&ours), names(&helm), "{choice}");
            for (name, object) in &helm {
                assert_eq!(&ours[name], object, "{name} with {choice}, ha {ha}");
            }
        }
    }
}

pub fn lint() {
    for choice in CHOICES {
        let output = run(&["lint", CHART, "--strict", "--set", REGISTRY, "--set", choice]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !said.contains("[WARNING]"), "{choice}: {said}");
    }
}

pub fn refused() {
    for wrong in [
        "control.replica=3",
        "controll.replicas=3",
        "control.replicas=0",
        "control.replicas=many",
        "control.leafTtl=soon",
        "control.extraArgs={no-flag}",
        "capture.mode=ebpf",
        "capture.cni.binDir=relative",
        "image.tag=a b",
        "image.pullPolicy=Sometimes",
        "injection.excludeInboundPorts={70000}",
        "injection.excludeOutboundCidrs={nowhere}",
        "injection.resources.request.cpu=1",
        "injection.resources.limits.cpu=much",
        "monitoring.podMonitor.enabled=yes",
        "image.registry=",
    ] {
        let sets = [REGISTRY, wrong];
        assert!(of_helm(&sets, false).is_err(), "Helm takes {wrong}");
        assert!(of_ours(&sets, false).is_err(), "we take {wrong}");
    }
}
