//! The command as a person or a script meets it: what it prints, and where, and its exit codes.

use std::path::Path;
use std::process::Command;

use crate::common::{text, weft};

fn shop() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples/shop").to_owned()
}

fn misspelt(dir: &Path) -> String {
    let policy = std::fs::read_to_string(Path::new(&shop()).join("ledger-policy.yaml")).unwrap();
    let file = dir.join("policy.yaml");
    std::fs::write(&file, policy.replace("identities:", "identites:")).unwrap();
    file.display().to_string()
}

#[test]
fn a_misspelt_field_is_named_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = misspelt(dir.path());
    let out = weft(&["policy", "check", &file]);
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.starts_with(&format!("{file}:15:11: ")), "{said}");
    assert!(said.contains("`identites`") && said.contains("did you mean `identities`?"), "{said}");
}

#[test]
fn a_check_is_json_where_a_program_asks() {
    let dir = tempfile::tempdir().unwrap();
    let out = weft(&["policy", "check", "--json", &misspelt(dir.path())]);
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(said["ok"], false);
    assert_eq!(said["problems"][0]["line"], 15);
    assert_eq!(said["problems"][0]["suggestion"], "identities");
    let out = weft(&["policy", "check", "--json", &shop()]);
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()["ok"], true);
    assert_eq!(out.status.code(), Some(0));
}

#[test]
fn an_explanation_is_a_verdict_and_an_exit_code() {
    let ask = |from: &str, more: &[&str]| {
        let shop = shop();
        let mut args = vec!["explain", "--from", from, "GET", "http://ledger.shop/entries/today", "--files", &shop];
        args.extend(more);
        weft(&args)
    };
    let out = ask("shop/intern", &[]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stdout).ends_with("refused: not_allowed (HTTP 403)\n"), "{}", text(&out.stdout));
    let out = ask("shop/web", &["--json"]);
    assert_eq!(out.status.code(), Some(0));
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(said["explanation"]["verdict"], "allowed");
    let by = said["explanation"]["outcomes"][0]["steps"][1]["by"].as_str().unwrap();
    assert!(by.contains("ledger-policy.yaml:"), "{by}");
}

#[test]
fn exit_codes_tell_whose_fault_it_is() {
    for (args, code) in [
        (&["version"][..], 0),
        (&["--help"], 0),
        (&["nonsense"], 2),
        (&["policy", "check"], 2),
        (&["demo", "--for", "1s"], 2),
        (&["demo", "--without-sidecar", "nobody"], 2),
        (&["policy", "check", "/nonexistent/policy"], 4),
        (&["token", "--identity", "shop/web", "--ca-dir", "/nonexistent/ca"], 4),
        (&["explain", "--from", "nobody", "GET", "http://a.b/"], 4),
        (&["explain", "--from", "shop/web", "GET", "/relative"], 4),
        (&["certs"], 2),
        (&["certs", "inspect"], 2),
        (&["certs", "inspect", "/nonexistent/chain.pem"], 4),
        (&["certs", "inspect", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")], 4),
        (&["app", "client", "http", "no-such-name:80"], 4),
        (&["app", "tcp", "--listen", "192.0.2.1:1"], 3),
    ] {
        let out = weft(args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", text(&out.stderr));
        assert!(code == 0 || !out.stderr.is_empty(), "{args:?} does not say why");
        assert!(code == 0 || out.stdout.is_empty(), "{args:?} answers on standard output");
    }
}

#[test]
fn every_shell_gets_a_script() {
    for shell in ["bash", "zsh", "fish"] {
        let out = weft(&["completion", shell]);
        let script = text(&out.stdout);
        assert!(script.contains("demo") && script.contains("explain"), "{shell}");
    }
}

#[test]
fn the_version_lists_what_is_enforced() {
    let out = weft(&["version", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(said["version"], env!("CARGO_PKG_VERSION"));
    assert!(said["features"].is_array());
}

#[test]
fn a_token_is_for_one_identity() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    weft_certs::ca::Ca::open(&ca, "cluster.local").unwrap();
    let ca_dir = ca.display().to_string();
    let out = weft(&["token", "--identity", "shop/web", "--ttl", "1m", "--ca-dir", &ca_dir, "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(said["identity"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(said["expires_in_s"], 60);
    let verifier = weft_certs::token::Verifier::from_ca(&weft_certs::ca::Ca::open(&ca, "cluster.local").unwrap());
    let proved = verifier.verify(said["token"].as_str().unwrap(), std::time::SystemTime::now()).unwrap();
    assert_eq!(proved.short(), "shop/web");
    assert_eq!(said["reusable"], false);
    let out = weft(&["token", "--identity", "shop/web", "--ca-dir", &ca_dir, "--json", "--reusable"]);
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(said["reusable"], true);
}

#[test]
fn a_ca_is_in_one_place_and_can_be_looked_at_without_control() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    weft_certs::ca::Ca::open(&ca, "cluster.local").unwrap();
    let ca_dir = ca.display().to_string();
    let out = weft(&["certs", "status", "--ca-dir", &ca_dir]);
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{said}{}", text(&out.stderr));
    assert!(said.contains("issuer  issuer       issues") && !said.contains("WORKLOAD"), "{said}");
    for command in [&["certs", "rotate-root"][..], &["certs", "rotate-issuer"], &["token", "--identity", "shop/web"]] {
        let out = weft(command);
        assert_eq!(out.status.code(), Some(2), "{command:?}");
        assert!(text(&out.stderr).contains("--ca-dir DIR or --ca-secret NAMESPACE/NAME"), "{}", text(&out.stderr));
        let both = [command, &["--ca-dir", &ca_dir, "--ca-secret", "weft-system/weft-ca"]].concat();
        assert_eq!(weft(&both).status.code(), Some(2), "{both:?}");
        let nowhere = [command, &["--ca-secret", "weft-system/weft-ca", "--kubeconfig", "/nowhere/config"]].concat();
        let out = weft(&nowhere);
        assert_eq!(out.status.code(), Some(3), "{nowhere:?}");
        assert!(text(&out.stderr).contains("/nowhere/config"), "{}", text(&out.stderr));
    }
    assert_eq!(weft(&["certs", "status", "--ca-secret", "weft-ca"]).status.code(), Some(2), "it is named whole");
}

/// A chain of a CA of its own: the CA's directory, and the chain's file.
fn chain(dir: &Path, life: std::time::Duration) -> (String, String) {
    let ca = weft_certs::ca::Ca::open(&dir.join("ca"), "cluster.local").unwrap();
    let identity = weft_engine::identity::Identity::new("cluster.local", "shop", "web").unwrap();
    let key = weft_certs::svid::KeyPair::generate().unwrap();
    let chain = ca.issue(&key.csr(&identity).unwrap(), &identity, life, std::time::SystemTime::now()).unwrap();
    weft_certs::svid::Svid::new(key, &chain).unwrap().save(&dir.join("state")).unwrap();
    (dir.join("ca").display().to_string(), dir.join("state/svid.pem").display().to_string())
}

#[test]
fn certificates_are_shown_as_people_want_them() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, svid) = chain(dir.path(), std::time::Duration::from_mins(43));
    let out = weft(&["certs", "inspect", &svid, "--roots", &format!("{ca}/root.pem")]);
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{said}{}", text(&out.stderr));
    for wanted in [
        "1  leaf    spiffe://cluster.local/ns/shop/sa/web\n",
        ": ends in 42 min\n",
        "   key        ECDSA P-256\n",
        "   signed by  issuer 2 (O=cluster.local, CN=weft issuer ",
        "   chain      verifies: leaf -> issuer -> one of the given roots\n",
        "3  root    O=cluster.local, CN=weft root ",
        "   signed by  itself\n",
        "note: the file also holds a private key, not shown",
    ] {
        assert!(said.contains(wanted), "no {wanted:?} in\n{said}");
    }
    let saved = std::fs::read_to_string(&svid).unwrap();
    let key = saved.lines().skip_while(|line| !line.contains("PRIVATE KEY")).nth(1).unwrap();
    assert!(key.len() == 64 && !said.contains(key), "{said}");
}

#[test]
fn a_chain_that_no_peer_would_take_is_a_problem() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, svid) = chain(ours.path(), std::time::Duration::from_mins(43));
    let (other_ca, _) = chain(theirs.path(), std::time::Duration::from_mins(43));
    let roots = format!("{other_ca}/root.pem");
    let out = weft(&["certs", "inspect", &svid, "--roots", &roots]);
    assert_eq!(out.status.code(), Some(1));
    let problem =
        "problem: certificate 1: its chain does not verify: it does not lead to a certificate that is trusted\n";
    assert!(text(&out.stdout).contains(problem), "{}", text(&out.stdout));
    let out = weft(&["certs", "inspect", &svid, "--roots", &roots, "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&said["ok"], &said["private_keys"]), (&false.into(), &1.into()));
    assert_eq!(said["certificates"][0]["chain"]["verified"], false);
    assert_eq!(said["certificates"][0]["signed_by"]["certificate"], 2);
    assert_eq!(said["certificates"][2]["role"], "root");
    assert_eq!(said["problems"][0]["certificate"], 1);
}

#[test]
fn certificates_come_from_standard_input_too() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, _) = chain(dir.path(), std::time::Duration::from_mins(43));
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    let command = command.args(["certs", "inspect", "-", "--json"]);
    let root = std::fs::File::open(format!("{ca}/root.pem")).unwrap();
    let out = command.stdin(root).output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&said["ok"], &said["certificates"][0]["signed_by"]), (&true.into(), &"itself".into()));
}

#[test]
fn every_command_in_the_docs_runs() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let mut ran = 0;
    // docs/running.md is one script: tests/e2e/docs.rs types it.
    for page in ["README.md", "docs/policies.md", "docs/architecture.md", "docs/metrics.md", "CONTRIBUTING.md"] {
        let page = std::fs::read_to_string(root.join(page)).unwrap();
        for line in page.lines().filter_map(|line| line.strip_prefix("    weft ")) {
            let out = Command::new(env!("CARGO_BIN_EXE_weft"))
                .args(line.split_whitespace())
                .current_dir(root)
                .output()
                .unwrap();
            // 1 is an answer too: denied.
            assert!(
                matches!(out.status.code(), Some(0 | 1)),
                "weft {line}: {}{}",
                text(&out.stdout),
                text(&out.stderr)
            );
            ran += 1;
        }
    }
    assert!(ran >= 4, "{ran}");
}

#[test]
fn manifests_are_injected_without_a_cluster_and_not_twice() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let settings = file("injection.yaml", "images: {proxy: example/weft-proxy:1, capture: example/weft-capture:1}\n");
    let app = file(
        "app.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  template:\n    spec:\n      containers:\n      - {name: web, image: web, livenessProbe: {tcpSocket: {port: 80}}}\n",
    );
    let out = weft(&["inject", "-f", &app, "--injection", &settings]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let once = text(&out.stdout);
    assert!(once.contains("path: /app/web/livenessProbe") && once.contains("weft.dev/injected: \"true\""), "{once}");
    assert!(once.starts_with("apiVersion: v1\nkind: Service\n"), "{once}");
    let again = weft(&["inject", "-f", &file("once.yaml", once), "--injection", &settings]);
    assert_eq!(text(&again.stdout), once);

    let host = file("host.yaml", "kind: Pod\nmetadata: {name: node}\nspec: {hostNetwork: true, containers: []}\n");
    let out = weft(&["inject", "-f", &host, "--injection", &settings]);
    assert_eq!(out.status.code(), Some(0));
    assert!(
        text(&out.stderr).contains("Pod node: a pod on the host's network gets no sidecar"),
        "{}",
        text(&out.stderr)
    );
    let wrong = file(
        "wrong.yaml",
        "kind: Pod\nmetadata: {name: w, annotations: {weft.dev/dsn: \"true\"}}\nspec: {containers: []}\n",
    );
    let out = weft(&["inject", "-f", &wrong, "--injection", &settings]);
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), ""));
    assert!(text(&out.stderr).contains("did you mean weft.dev/dns?"), "{}", text(&out.stderr));
}
