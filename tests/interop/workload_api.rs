//! SPIFFE's Workload API: a library of others gets an application its own identity from a live sidecar, and a live sidecar gets its own
//! from a Workload API (another sidecar's, in the place of SPIRE's agent).

use std::time::Duration;

use weft::lab::until;
use weft_certs::ca::Ca;
use weft_tests::{Mesh, Service};

use super::{openssl, python};

/// Leaves live for ten seconds, so that each test sees them renewed.
fn mesh() -> Mesh {
    Mesh::with_control(&["--leaf-ttl=10s"])
}

/// Fetches, watches until there is another, and writes what it has.
const WATCH: &str = r#"
import threading
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import TrustDomain, WorkloadApiClient
public = lambda svid: svid.leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
seen, errors, enough = [], [], threading.Event()
def took(context):
    seen.append(context)
    if len({public(one.default_svid) for one in seen}) == 2:
        enough.set()
client = WorkloadApiClient("unix://FOLDER/api.sock")
first = client.fetch_x509_svid()
assert str(first.spiffe_id) == "spiffe://cluster.local/ns/shop/sa/client", first.spiffe_id
watch = client.stream_x509_contexts(took, errors.append)
assert enough.wait(60) and not errors, (seen, errors)
watch.cancel()
last = seen[-1]
svid = last.default_svid
assert svid.leaf.serial_number != first.leaf.serial_number and public(svid) != public(first)
assert svid.leaf.public_key() == svid.private_key.public_key()
roots = last.x509_bundle_set.get_bundle_for_trust_domain(TrustDomain("cluster.local"))
assert roots == client.fetch_x509_bundles().get_bundle_for_trust_domain(TrustDomain("cluster.local"))
svid.save("FOLDER/svid.pem", "FOLDER/key.pem", Encoding.PEM)
roots.save("FOLDER/bundle.pem", Encoding.PEM)
partner = TrustDomain("partner.example")
theirs = last.x509_bundle_set.get_bundle_for_trust_domain(partner)
assert theirs == client.fetch_x509_bundles().get_bundle_for_trust_domain(partner)
theirs.save("FOLDER/theirs.pem", Encoding.PEM)
try:
    client.fetch_jwt_svid({"anybody"})
    raise SystemExit("a token was had")
except Exception as error:
    assert "UNIMPLEMENTED" in repr(error) + repr(error.__cause__), (error, error.__cause__)
client.close()
print("well")
"#;

pub fn python_spiffe() {
    // Federated with another mesh, whose roots applications are given too.
    let mut mesh = Mesh::without_control();
    let folder = mesh.lab.dir().to_owned();
    let partner = Ca::open(&folder.join("partner"), "partner.example").unwrap();
    std::fs::write(folder.join("partner.pem"), partner.root_pem()).unwrap();
    let federate = format!("--federate=partner.example={}/partner.pem", folder.display());
    mesh.control_flags = vec!["--leaf-ttl=10s".to_owned(), federate];
    mesh.start_control();
    let socket = format!("--workload-api={}/api.sock", folder.display());
    mesh.deploy(Service::own("client").sidecar_arg(&socket));
    let output = python(&mesh, "client-0", &WATCH.replace("FOLDER", &folder.display().to_string()));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "well");

    let verified = openssl(&folder, &["verify", "-CAfile", "bundle.pem", "-untrusted", "svid.pem", "svid.pem"]);
    assert_eq!(verified.trim(), "svid.pem: OK");
    let names = openssl(&folder, &["x509", "-in", "svid.pem", "-noout", "-ext", "subjectAltName"]);
    assert!(names.contains("URI:spiffe://cluster.local/ns/shop/sa/client"), "{names}");
    let public = openssl(&folder, &["x509", "-in", "svid.pem", "-noout", "-pubkey"]);
    assert_eq!(public, openssl(&folder, &["pkey", "-in", "key.pem", "-pubout"]));
    // The bundle is the mesh's root and nothing else.
    let root = mesh.control.as_ref().unwrap().ca_dir().join("root.pem").display().to_string();
    assert_eq!(openssl(&folder, &["x509", "-in", "bundle.pem"]), openssl(&folder, &["x509", "-in", &root]));
    assert_eq!(openssl(&folder, &["x509", "-in", "theirs.pem"]), openssl(&folder, &["x509", "-in", "partner.pem"]));
    let renewed = mesh.metric("client-0", "weft_application_certificate_renewals_total", &["result=\"issued\""]);
    assert!(renewed > 1.5, "{renewed}");
}

pub fn svid_from_another() {
    let mut mesh = mesh();
    mesh.deploy(Service::http("web").pods(2)).client("client");
    let folder = mesh.lab.dir().to_owned();
    for (pod, flag) in [("web-0", "--workload-api="), ("web-1", "--svid-from=unix:")] {
        let Mesh { members, lab, .. } = &mut mesh;
        let member = members.get_mut(pod).unwrap();
        member.flags.push(format!("{flag}{}/api.sock", folder.display()));
        member.sidecar = None;
        // What the first life has saved must not serve.
        let _ = std::fs::remove_dir_all(member.pod.dir().unwrap().join("state"));
        member.start_sidecar(lab);
        member.sidecar.as_mut().unwrap().wait_ready().unwrap_or_else(|error| panic!("{error}"));
    }
    let asked = mesh.sidecar("web-1").process.log();
    assert!(asked.contains("certificate of the Workload API taken into use"), "{asked}");
    assert!(!mesh.pod("web-1").dir().unwrap().join("state/svid.pem").exists(), "nothing of it is kept on disk");
    // Through each renewal, and the control stream goes on with it. A pod whose sidecar was away a moment ago is left alone for a while.
    let served = |pod| mesh.metric(pod, "weft_requests_total", &["direction=\"inbound\"", "tls=\"mtls\""]);
    let renewed = || {
        let _ = mesh.curl("client-0", &["http://web.shop/hello"]).expect(200);
        let issued = mesh.metric("web-1", "weft_certificate_renewals_total", &["result=\"issued\""]);
        match (issued, served("web-0"), served("web-1")) {
            (issued, first, second) if issued > 2.5 && first > 0.5 && second > 0.5 => Ok(()),
            counts => Err(format!("{counts:?} certificates, and requests of each")),
        }
    };
    until("two renewals, and requests to both", Duration::from_mins(1), renewed).unwrap();
    assert!(mesh.metric("web-1", "weft_control_connected", &[]) > 0.5);
}
