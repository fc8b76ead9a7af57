//! What is written as YAML is read as it was, by us and by YAML 1.1.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use crate::kinds::{documents, parse, to_yaml};

fn read(text: &str) -> Json {
    let all = documents(text);
    assert_eq!(all.len(), 1, "{text}");
    parse(all[0]).unwrap().to_json()
}

fn anything() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        ".{0,12}".prop_map(Json::from),
        "[ -~\n\t]{0,60}".prop_map(Json::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map("[a-z/. :#-]{1,8}", inner, 0..4)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_value_comes_back_as_it_was(value in anything()) {
        let whole = json!({ "value": value });
        prop_assert_eq!(read(&to_yaml(&whole).unwrap()), whole);
    }
}

#[test]
fn what_yaml_1_1_would_take_for_something_else_is_in_quotes() {
    let words = [
        "yes",
        "No",
        "on",
        "OFF",
        "y",
        "n",
        "true",
        "null",
        "~",
        "0755",
        "0o17",
        "1e3",
        "1_000",
        "12:30:45",
        "0x1F",
        ".5",
        ".inf",
        "2026-11-22",
        "",
        "- a",
        "a: b",
        "# c",
        "*x",
        "&x",
        "!x",
        "%x",
        "@x",
        "`x",
        "|",
        ">",
        "{",
        "[",
        "=",
        "<<",
    ];
    for word in words {
        let text = to_yaml(&json!({ "k": word })).unwrap();
        assert!(text.starts_with("k: \"") || text.starts_with("k: '"), "{word}: {text}");
        assert_eq!(read(&text), json!({ "k": word }));
    }
}
