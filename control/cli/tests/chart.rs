//! The chart against the documentation.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use weft::install::render::{Release, render};
use weft::install::values::whole;

const KUBERNETES: &str = include_str!("../../../docs/kubernetes.md");
const IDENTITY: &str = include_str!("../../../docs/identity.md");

fn objects(values: Value) -> Vec<Value> {
    let mut given = values;
    given["image"] = json!({"registry": "registry.example/weft"});
    render(&whole(given).unwrap(), &Release::default()).unwrap().objects
}

/// The role of this name in a document, from its blocks of YAML.
fn documented(text: &str, name: &str) -> Value {
    let blocks = text.split("```yaml\n").skip(1).map(|block| block.split("```").next().unwrap());
    let mut roles = blocks.filter(|block| block.contains("\nrules:") && block.contains(&format!("name: {name}")));
    let block = roles.next().unwrap_or_else(|| panic!("no role {name} is documented"));
    weft_api::kinds::parse(weft_api::kinds::documents(block)[0]).unwrap().to_json()
}

/// What a role permits, one by one: `GROUP/RESOURCE[/NAME] VERB`.
fn permits(role: &Value) -> BTreeSet<String> {
    let list = |value: &Value| -> Vec<String> {
        value
            .as_array()
            .map_or_else(Vec::new, |items| items.iter().map(|item| item.as_str().unwrap().to_owned()).collect())
    };
    let mut found = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        let names = list(&rule["resourceNames"]);
        let names = if names.is_empty() { vec!["*".to_owned()] } else { names };
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                for verb in list(&rule["verbs"]) {
                    found.extend(names.iter().map(|name| format!("{group}/{resource}/{name} {verb}")));
                }
            }
        }
    }
    found
}

fn role(objects: &[Value], kind: &str, name: &str) -> BTreeSet<String> {
    permits(objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name).unwrap())
}

#[test]
fn control_may_do_what_is_documented_and_no_more() {
    let objects = objects(json!({}));
    let mut wanted = permits(&documented(KUBERNETES, "weft-source"));
    wanted.extend(permits(&documented(KUBERNETES, "weft-status")));
    // The documentation's webhook has another name.
    let roots = permits(&documented(IDENTITY, "weft-roots"));
    wanted
        .extend(roots.into_iter().map(|right| right.replace("configurations/weft ", "configurations/weft-injector ")));
    // Of system:auth-delegator the half that is used.
    wanted.insert("authentication.k8s.io/tokenreviews/* create".to_owned());
    assert_eq!(role(&objects, "ClusterRole", "weft-control"), wanted);

    let mut wanted = permits(&documented(KUBERNETES, "weft-leases"));
    let ca = permits(&documented(IDENTITY, "weft-ca"));
    // The chart makes both objects, so that the right to make some is not needed.
    let made = ["/secrets/* create", "/configmaps/* create"];
    assert!(made.iter().all(|right| ca.contains(*right)));
    wanted.extend(ca.into_iter().filter(|right| !made.contains(&right.as_str())));
    assert_eq!(role(&objects, "Role", "weft-control"), wanted);
}

#[test]
fn no_right_reaches_a_secret_that_is_not_named() {
    let objects = objects(json!({"capture": {"mode": "cni"}}));
    for object in objects.iter().filter(|object| object["rules"].is_array()) {
        for right in permits(object) {
            let secret = right.starts_with("/secrets/") && !right.starts_with("/secrets/weft-ca ");
            let wild = right.split(' ').next_back() == Some("*") || right.contains("//") || right.starts_with("*/");
            let powers = ["impersonate", "escalate", "bind"].iter().any(|verb| right.ends_with(verb));
            assert!(!secret && !wild && !powers, "{}: {right}", object["metadata"]["name"]);
        }
    }
}

#[test]
fn every_object_is_known_as_ours_and_stays_out_of_the_way_of_control() {
    for object in objects(json!({"capture": {"mode": "cni"}, "control": {"replicas": 3}})) {
        let meta = &object["metadata"];
        assert_eq!(meta["labels"]["app.kubernetes.io/part-of"], "weft", "{meta}");
        assert_eq!(meta["labels"]["app.kubernetes.io/managed-by"], "weft", "{meta}");
        // What control writes is not in the chart.
        assert!(!object.to_string().contains("caBundle"), "{meta}");
        if meta["name"] == "weft-ca" {
            assert!(object.get("data").is_none() && object.get("stringData").is_none(), "{object}");
        }
    }
}

#[test]
fn a_webhook_cannot_lock_the_cluster_up() {
    let objects = objects(json!({}));
    let hook = objects.iter().find(|object| object["kind"] == "MutatingWebhookConfiguration").unwrap();
    for hook in hook["webhooks"].as_array().unwrap() {
        let rules = hook["namespaceSelector"]["matchExpressions"].as_array().unwrap();
        let never = rules.iter().find(|rule| rule["key"] == "kubernetes.io/metadata.name").unwrap();
        assert_eq!(never["operator"], "NotIn");
        assert_eq!(never["values"], json!(["kube-system", "kube-node-lease", "kube-public", "weft-system"]));
        assert_eq!(
            hook["rules"],
            json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "Namespaced"}])
        );
        assert!(hook["timeoutSeconds"].as_u64().unwrap() <= 5);
    }
}

#[test]
fn what_is_installed_says_what_holds_by_default() {
    let values = whole(json!({"image": {"registry": "registry.example/weft"}})).unwrap();
    let notes = render(&values, &Release::default()).unwrap().notes;
    for wanted in
        ["PERMISSIVE", "ALLOW", "EGRESS OPEN", "weft.dev/mtls=strict weft.dev/default=deny", "weft.dev/inject=enabled"]
    {
        assert!(notes.contains(wanted), "{notes}");
    }
    let refused = render(&whole(json!({})).unwrap(), &Release::default()).unwrap_err();
    assert_eq!(refused, "image.registry is needed: where the images are, such as registry.example/weft");
    let elsewhere = Release { namespace: "mesh".to_owned(), ..Release::default() };
    let refused = render(&values, &elsewhere).unwrap_err();
    assert!(refused.starts_with("Weft lives in the namespace weft-system"), "{refused}");
}

/// Each line that docs/install.md marks is a line that the test of it types, but for where things are.
#[test]
fn commands_of_the_documentation_are_typed_by_a_test() {
    let docs = include_str!("../../../docs/install.md");
    let script = include_str!("../../../tests/e2e/api-chart");
    let marked: Vec<&str> =
        docs.lines().filter_map(|row| row.strip_prefix("    ")?.strip_suffix('#')).map(str::trim).collect();
    assert!(marked.len() >= 6, "{marked:?}");
    for row in marked {
        let words: Vec<&str> = row.split_whitespace().take(2).collect();
        let typed = match words[..] {
            ["helm", command] => {
                script.contains(&format!("by_helm {command}")) || script.contains(&format!("helm {command} weft"))
            }
            ["weft", command] => script.contains(&format!(" {command} ")),
            _ => false,
        };
        assert!(typed, "{row}");
    }
}
