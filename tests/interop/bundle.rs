//! Our bundle endpoint, read by others: go-spiffe by profile `https_spiffe`, as another mesh would, and curl. What they have verifies our leaves.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use weft::lab::{NODE, Pod};
use weft_certs::ca::Ca;
use weft_certs::ca::rotation::Kind;
use weft_tests::{Mesh, Service, tools};

use super::openssl;

const CONTROL: &str = "spiffe://cluster.local/ns/weft-system/sa/weft-control";
const PORT: u16 = 15443;

/// Asks with these roots who must be `id`.
fn fetch(pod: &Pod, id: &str, roots: &Path) -> Output {
    let url = format!("https://{NODE}:{PORT}/");
    let args = ["cluster.local", &url, id, &roots.display().to_string()].map(str::to_owned);
    pod.output(tools::program("spiffe-bundle"), args).unwrap()
}

/// Sequence and refresh hint, and the roots, PEM.
fn read(output: &Output) -> ((u64, u64), String) {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let (numbers, roots) = said.split_once('\n').unwrap();
    let (sequence, hint) = numbers.split_once(' ').unwrap();
    ((sequence.parse().unwrap(), hint.parse().unwrap()), roots.to_owned())
}

pub fn go_spiffe() {
    let endpoint = format!("--bundle-endpoint={NODE}:{PORT}");
    let mut mesh = Mesh::with_control(&[&endpoint, "--bundle-refresh=30s"]);
    let folder = mesh.lab.dir().to_owned();
    mesh.deploy(Service::own("web"));
    let pod = mesh.lab.plain_pod("partner", "asker", None).unwrap();
    let ca_dir = mesh.control.as_ref().unwrap().ca_dir().to_owned();
    let root = ca_dir.join("root.pem");
    let ((sequence, hint), roots) = read(&fetch(&pod, CONTROL, &root));
    assert_eq!(hint, 30);
    std::fs::write(folder.join("fetched.pem"), &roots).unwrap();
    // A leaf that a sidecar has in use.
    let leaf = mesh.pod("web-0").dir().unwrap().join("state/svid.pem").display().to_string();
    let verified = openssl(&folder, &["verify", "-CAfile", "fetched.pem", "-untrusted", &leaf, &leaf]);
    assert!(verified.trim().ends_with(": OK"), "{verified}");
    // Whoever else is asked for, or whoever else's roots are given, it is refused.
    let stranger = Ca::open(&folder.join("stranger"), "cluster.local").unwrap();
    std::fs::write(folder.join("stranger.pem"), stranger.root_pem()).unwrap();
    for (id, roots) in [("spiffe://cluster.local/ns/shop/sa/web", &root), (CONTROL, &folder.join("stranger.pem"))] {
        assert!(!fetch(&pod, id, roots).status.success(), "{id} {}", roots.display());
    }
    // As docs/identity.md has it for people.
    let to = format!("weft-control:443:{NODE}:{PORT}");
    let root_file = root.display().to_string();
    let args = ["--silent", "--show-error", "--cacert", &root_file, "--connect-to", &to, "https://weft-control/"];
    let output = pod.output(tools::program("curl"), args.map(str::to_owned)).unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!((&document["spiffe_sequence"], &document["spiffe_refresh_hint"]), (&sequence.into(), &hint.into()));
    let keys = document["keys"].as_array().unwrap();
    assert!(
        keys.iter().all(|key| key["use"] == "x509-svid" && key["x5c"].as_array().unwrap().len() == 1),
        "{document}"
    );

    // A rotation: both roots, and a higher sequence, so that nobody takes the old document for the new.
    Ca::load(&ca_dir).unwrap().begin(Kind::Root, std::time::SystemTime::now()).unwrap();
    let (later, both) = mesh.until("both roots to be published", || match read(&fetch(&pod, CONTROL, &root)) {
        ((later, _), both) if both.matches("BEGIN").count() == 2 => Ok((later, both)),
        (_, roots) => Err(roots),
    });
    assert!(later > sequence && both.contains(roots.trim()), "{later} {sequence} {both}");
}
