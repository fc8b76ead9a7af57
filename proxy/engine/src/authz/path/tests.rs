use proptest::prelude::*;

use super::*;

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::parse(text)).collect()
}

#[test]
fn canonical_forms() {
    for (path, expected) in [
        ("/", "/"),
        ("*", "*"),
        ("/a/b", "/a/b"),
        ("/a//b", "/a/b"),
        ("///", "/"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/../../b", "/b"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/a/...", "/a/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/%61dmin", "/admin"),
        ("/a%2Db%2e%5F%7e", "/a-b._~"),
        ("/%2e%2e/a", "/a"),
        ("/a%2Fb", "/a%2Fb"),
        ("/A/B", "/A/B"),
        ("", "/"),
        ("/caf\u{e9}", "/caf\u{e9}"),
    ] {
        assert_eq!(normalise_path(path), expected, "{path}");
        assert_eq!(normalise_path(expected), expected, "the canonical form of {path} is stable");
    }
}

#[test]
fn ordinary_paths_have_one_reading_and_cost_nothing() {
    for path in ["/", "/a/b/", "/a.b/c-d_e~f", "/a/b.json", "/$metadata(x)=1,2'@:!*+&", "*"] {
        assert_eq!(Readings::of(path), Readings::Plain(path));
        assert!(matches!(normalise_path(path), Cow::Borrowed(_)));
    }
}

#[test]
fn what_nobody_can_read_is_unreadable() {
    let long = format!("//{}", "a".repeat(MAX_ODD_PATH));
    for path in
        ["/a%00", "/a%0d%0a", "/a%", "/a%zz", "/a%c0%ae", "/a%ff", "/a b", "/a\u{1}", "/%25252525252e", "/%2500", &long]
    {
        assert_eq!(Readings::of(path), Readings::Unreadable, "{path}");
        assert!(Readings::of(path).match_paths(Action::Deny, &patterns(&["/other"])), "{path}");
        assert!(!Readings::of(path).match_paths(Action::Allow, &patterns(&["/a*"])), "{path}");
        assert!(Readings::of(path).match_paths(Action::Allow, &patterns(&["/*"])), "{path}");
        assert!(Readings::of(path).match_paths(Action::Allow, &patterns(&["*"])), "{path}");
    }
}

/// Spellings that some application reads as `/admin/x`.
const SPELLINGS_OF_ADMIN: [&str; 24] = [
    "/admin/x",
    "//admin/x",
    "/admin//x",
    "/./admin/x",
    "/public/../admin/x",
    "/public/..//admin/x",
    "/public//../../admin/x",
    "/%61dmin/x",
    "/%61%64%6d%69%6e/x",
    "/admin%2fx",
    "/admin%2Fx",
    "/admin\\x",
    "/admin%5cx",
    "\\admin\\x",
    "/public/..%2fadmin/x",
    "/public%2f..%2fadmin/x",
    "/public/%2e%2e/admin/x",
    "/public/.%2e/admin/x",
    "/public/..\\admin\\x",
    "/%2561dmin/x",
    "/public/%252e%252e/admin/x",
    "/public/..%252fadmin/x",
    "/admin;v=1/x",
    "/public/..;/admin/x",
];

#[test]
fn no_spelling_escapes_a_deny_or_gains_an_allow() {
    for path in SPELLINGS_OF_ADMIN {
        let readings = Readings::of(path);
        assert!(readings.match_paths(Action::Deny, &patterns(&["/admin/*"])), "{path}: {readings:?}");
        assert!(!readings.match_paths(Action::Allow, &patterns(&["/public/*"])), "{path}: {readings:?}");
        assert!(readings.match_paths(Action::Allow, &patterns(&["/*"])) || !path.starts_with('/'), "{path}");
    }
}

#[test]
fn an_allow_takes_paths_that_mean_the_same_to_all() {
    for (path, pattern) in [
        ("/public/my%20file", "/public/*"),
        ("/public/%7Euser", "/public/~user"),
        ("/public/a;v=1", "/public/*"),
        ("/public/100%25", "/public/*"),
    ] {
        assert!(Readings::of(path).match_paths(Action::Allow, &patterns(&[pattern])), "{path}");
    }
}

/// Spells a plain path in odd ways that keep what it means to some application.
fn disguised() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => Just(("", "")),
        1 => Just(("/.", "")),
        1 => Just(("/", "")),
        1 => Just(("/zz/..", "")),
        1 => Just(("/zz/%2e%2e", "")),
        1 => Just(("", ";p=1")),
    ];
    let segments = prop::collection::vec((prop::sample::select(vec!["admin", "x", "y"]), piece, 0u8..4), 0..4);
    segments.prop_map(|segments| {
        let mut path = String::new();
        for (index, (name, (before, after), spelling)) in
            std::iter::once(("admin", ("", ""), 1)).chain(segments).enumerate()
        {
            path.push_str(before);
            path.push_str(if index > 0 && spelling == 3 { "%2f" } else { "/" });
            for (at, byte) in name.bytes().enumerate() {
                match (spelling, at % 2) {
                    (1, 0) => path.extend(format!("%{byte:02x}").chars()),
                    (2, 0) => path.extend(format!("%25{byte:02X}").chars()),
                    _ => path.push(char::from(byte)),
                }
            }
            path.push_str(after);
        }
        path
    })
}

/// One application's reading, by other code than the module's: decodes `times`, then resolves segments one by one.
fn application(path: &str, times: usize, parameters: bool) -> Vec<String> {
    let mut text = path.to_owned();
    for _ in 0..times {
        let mut parts = text.split('%');
        let mut out = parts.next().unwrap().to_owned();
        for part in parts {
            match part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => {
                    out.push(char::from(byte));
                    out.push_str(&part[2..]);
                }
                None => {
                    out.push('%');
                    out.push_str(part);
                }
            }
        }
        text = out;
    }
    let mut segments = Vec::new();
    for segment in text.replace('\\', "/").split('/') {
        let segment = if parameters { segment.split(';').next().unwrap() } else { segment };
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other.to_owned()),
        }
    }
    segments
}

#[test]
fn a_percent_sign_alone_starts_no_escape() {
    assert_eq!(normalise_path("/%%330"), "/%2530");
    assert_eq!(normalise_path("/%2530"), "/%2530");
    assert_eq!(Readings::of("/%%330"), Readings::Unreadable);
}

proptest! {
    #[test]
    fn a_deny_holds_for_every_application(path in disguised()) {
        let readings = Readings::of(&path);
        let denied = readings.match_paths(Action::Deny, &patterns(&["/admin/*", "/admin"]));
        let allowed = readings.match_paths(Action::Allow, &patterns(&["/x/*", "/x", "/y/*", "/y"]));
        for times in 0..3 {
            for parameters in [false, true] {
                if application(&path, times, parameters).first().is_some_and(|first| first == "admin") {
                    prop_assert!(denied, "{} decoded {} times, {:?}", path, times, readings);
                    prop_assert!(!allowed, "{} decoded {} times, {:?}", path, times, readings);
                }
            }
        }
    }

    #[test]
    fn never_panics_and_is_stable(path in "[/%.;\\\\a-f0-9 \u{e9}]{0,24}") {
        let readings = Readings::of(&path);
        let canonical = normalise_path(&path).into_owned();
        if let Readings::Several(list) = &readings {
            prop_assert!(!list.is_empty() && list.len() <= 48);
            prop_assert!(list.contains(&canonical), "{} not in {:?}", canonical, list);
        }
        prop_assert_eq!(&*normalise_path(&canonical), canonical.as_str());
        prop_assert!(canonical == "*" || canonical.starts_with('/'));
    }

    #[test]
    fn any_text_is_read_without_panic(path in any::<String>()) {
        let _ = (Readings::of(&path), normalise_path(&path));
    }
}
