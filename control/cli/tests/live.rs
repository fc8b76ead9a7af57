//! `weft status`, `weft proxies` and `weft diff`, as a process, with a control beside.

use serde_json::Value;

use crate::common::{Mesh, POD, text, weft};

#[test]
fn the_exit_code_says_whether_something_has_to_be_mended_and_the_words_say_what() {
    let mesh = Mesh::start();
    let said = mesh.until(&["status"], 0);
    assert!(said.ends_with("nothing has to be mended\n"), "{said}");
    assert!(said.contains("proxies 0 of 0 connected"), "{said}");

    mesh.pod(POD);
    let said = mesh.until(&["status"], 1);
    assert!(said.contains("! shop/web-1 ought to be connected and is not"), "{said}");
    let said: Value = serde_json::from_str(&mesh.until(&["status", "--json"], 1)).unwrap();
    assert_eq!((&said["ok"], &said["proxies"]["absent"][0]), (&false.into(), &"shop/web-1".into()));
    let said = mesh.until(&["proxies"], 1);
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["WORKLOAD", "IDENTITY", "SINCE", "SUBSCRIBED", "STATE", "VERSION", "CONTROL"]);
    assert_eq!(lines[1], ["shop/web-1", "-", "-", "-", "not", "connected", "-", "-"]);
    let said = mesh.until(&["status", "--object", "Pod/shop/web-1"], 0);
    assert!(said.starts_with("Pod/shop/web-1 no proxy uses it"), "{said}");
    let said = mesh.until(&["events", "--object", "Pod/shop/web-1", "--since", "5m"], 0);
    assert!(said.contains("Z  Pod/shop/web-1: ") && said.contains("nobody uses them"), "{said}");
    assert_eq!(mesh.until(&["events", "--object", "Pod/shop/web-2", "--json"], 0), "[]\n");
}

#[test]
fn what_is_not_there_and_who_cannot_be_asked_is_told_apart() {
    let mesh = Mesh::start();
    for (arguments, code, words) in [
        (&["diff", "shop/web-1"][..], 4, "shop/web-1 has no stream to control"),
        (&["proxies", "shop/web-1"], 4, "has no stream to control"),
        (&["proxies", "shop/web-1", "--tables"], 4, "has no stream to control"),
        (&["proxies", "--tables"], 2, "required"),
        (
            &["status", "--object", "ConfigMap/shop/web"],
            4,
            "nothing is compiled from a ConfigMap; there are AuthorizationPolicy",
        ),
        (&["status", "--object", "nonsense"], 4, "write KIND/NAMESPACE/NAME"),
    ] {
        let out = mesh.weft(arguments);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(words), "{arguments:?}: {}", text(&out.stderr));
        assert!(out.stdout.is_empty(), "{arguments:?}");
    }
    for command in [&["status"][..], &["proxies"], &["diff", "shop/web-1"]] {
        let out = weft(&[command, &["--control", "127.0.0.1:1"]].concat());
        assert_eq!(out.status.code(), Some(3), "{command:?}");
        assert!(text(&out.stderr).contains("control cannot be asked at 127.0.0.1:1"), "{}", text(&out.stderr));
    }
}
