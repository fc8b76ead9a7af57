//! Objects as an API server sends them are read by the same code as files.

use super::*;

fn sent(text: &str) -> Node {
    serde_json::from_str(text).unwrap()
}

/// Without the places.
fn bare(node: &Node) -> String {
    match &node.value {
        Value::List(elements) => format!("[{}]", elements.iter().map(bare).collect::<Vec<_>>().join(",")),
        Value::Map(entries) => {
            let entries = entries.iter().map(|entry| format!("{:?}:{}", entry.key, bare(&entry.node)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
        }
        value => format!("{value:?}"),
    }
}

const POLICY: &str = r#"{"apiVersion":"weft.dev/v1alpha1","kind":"AuthorizationPolicy","metadata":{"name":"pay","namespace":"shop",
    "resourceVersion":"7","managedFields":[{"fieldsV1":{"f:spec":{}}}]},"spec":{"action":"Allow","rules":[
    {"from":[{"identities":["shop/web"]}]},{"from":[{"namespaces":["staff"]}]}],"targetRefs":[{"kind":"Service","name":"pay"}]}}"#;

#[test]
fn json_makes_the_tree_that_the_same_text_makes_as_a_file() {
    let text = r#"{"a": null, "b": [true, 1, -1, 1.5, "x", {"c": {}}], "d": 18446744073709551615}"#;
    assert_eq!(bare(&sent(text)), bare(&node(text)));
    // But for who set which field.
    let left = sent(POLICY);
    assert!(left.get("metadata").unwrap().get("managedFields").is_none());
    assert!(node(POLICY).get("metadata").unwrap().get("managedFields").is_some());
}

#[test]
fn rules_and_faults_say_their_field() {
    let policy = sent(POLICY);
    let place = Place::Object("AuthorizationPolicy/shop/pay", &policy);
    let Ok(Object { body: Body::Authorization(_, found), .. }) = read(Kind::AuthorizationPolicy, &policy, place) else {
        panic!("refused");
    };
    assert_eq!(found.source, "AuthorizationPolicy/shop/pay");
    assert_eq!(found.rules[1].source, "AuthorizationPolicy/shop/pay:spec.rules[1]");
    let broken = sent(&POLICY.replace("namespaces", "namespace"));
    let place = Place::Object("AuthorizationPolicy/shop/pay", &broken);
    let refused = read(Kind::AuthorizationPolicy, &broken, place).unwrap_err();
    let said = place.fault(&refused.faults[0]);
    assert_eq!(
        said,
        "AuthorizationPolicy/shop/pay:spec.rules[1].from[0].namespace: unknown field `namespace`; did you mean `namespaces`?"
    );
    assert_eq!(refused.targets, Some(vec![Target::Service("pay".to_owned())]));
}

#[test]
fn what_is_written_beside_the_spec_moves_none_of_its_places() {
    let longer = POLICY.replace(r#""resourceVersion":"7""#, r#""resourceVersion":"8","labels":{"a":"b"}"#);
    let (one, other) = (sent(POLICY), sent(&longer));
    assert_eq!(one.get("spec"), other.get("spec"));
}
