//! Filters: what they become on the wire, and what is wrong with them.

use super::*;
use crate::wire::v1::filter::Filter;
use crate::wire::v1::path_edit::Edit;

fn filters_of(rule: &str) -> Vec<Filter> {
    let found = route(&format!("{PARENT}rules: [{{{rule}}}]"));
    found.rules[0].filters.iter().filter_map(|it| it.filter.clone()).collect()
}

#[test]
fn redirects_and_rewrites_in_wire_form() {
    let made = filters_of(
        "matches: [{path: {value: /old/}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, \
         hostname: example.org, port: 8443, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 308}}]",
    );
    let prefix = v1::PrefixEdit { prefix: "/old/".into(), replacement: "/new".into() };
    let redirect = v1::Redirect {
        scheme: "https".into(),
        hostname: "example.org".into(),
        port: 8443,
        path: Some(v1::PathEdit { edit: Some(Edit::Prefix(prefix)) }),
        status: 308,
    };
    assert_eq!(made, [Filter::Redirect(redirect)]);
    let made = filters_of("filters: [{type: RequestRedirect, requestRedirect: {}}]");
    assert_eq!(made, [Filter::Redirect(v1::Redirect { status: 302, ..v1::Redirect::default() })]);
    let made = filters_of(
        "filters: [{type: URLRewrite, urlRewrite: {hostname: a.b, path: {type: ReplaceFullPath, replaceFullPath: /x}}}], \
         backendRefs: [{name: web, port: 80}]",
    );
    let path = Some(v1::PathEdit { edit: Some(Edit::Full("/x".into())) });
    assert_eq!(made, [Filter::Rewrite(v1::Rewrite { hostname: "a.b".into(), path })]);
    // Without a match, or with one that says nothing of the path, the prefix is `/`; what replaces it may be empty.
    for matches in ["[]", "[{method: GET}]", "[{path: {type: PathPrefix}}]"] {
        let made = filters_of(&format!(
            "matches: {matches}, filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, \
             replacePrefixMatch: ''}}}}}}], backendRefs: [{{name: web, port: 80}}]"
        ));
        let prefix = v1::PrefixEdit { prefix: "/".into(), replacement: String::new() };
        let path = Some(v1::PathEdit { edit: Some(Edit::Prefix(prefix)) });
        assert_eq!(made, [Filter::Rewrite(v1::Rewrite { hostname: String::new(), path })], "{matches}");
    }
}

#[test]
fn cors_in_wire_form() {
    let made = filters_of(
        "filters: [{type: CORS, cors: {allowOrigins: ['https://*.bar.com', 'http://a:81'], allowCredentials: true, allowMethods: ['*'], \
         allowHeaders: [X-A], exposeHeaders: [x-b, x-c], maxAge: 60}}], backendRefs: [{name: web, port: 80}]",
    );
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    let wanted = v1::Cors {
        allow_origins: texts(&["https://*.bar.com", "http://a:81"]),
        allow_credentials: true,
        allow_methods: texts(&["*"]),
        allow_headers: texts(&["x-a"]),
        expose_headers: texts(&["x-b", "x-c"]),
        max_age_s: 60,
    };
    assert_eq!(made, [Filter::Cors(wanted)]);
    let made = filters_of("filters: [{type: CORS, cors: {allowOrigins: ['*']}}], backendRefs: [{name: web, port: 80}]");
    let wanted = v1::Cors { allow_origins: texts(&["*"]), max_age_s: 5, ..v1::Cors::default() };
    assert_eq!(made, [Filter::Cors(wanted)]);
}

#[test]
fn mirrors_in_wire_form() {
    let text = "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}}}, \
         {type: RequestMirror, requestMirror: {backendRef: {name: b, namespace: far, port: 81}, percent: 20}}, \
         {type: RequestMirror, requestMirror: {backendRef: {name: c, port: 82}, fraction: {numerator: 1, denominator: 3}}}], \
         backendRefs: [{name: web, port: 80}]";
    let mirror = |service: &str, numerator, denominator| {
        let service = service.to_owned();
        Filter::Mirror(v1::Mirror { service, numerator, denominator, invalid: String::new() })
    };
    let all =
        [mirror("service/shop/a:80", 100, 100), mirror("service/far/b:81", 20, 100), mirror("service/shop/c:82", 1, 3)];
    assert_eq!(filters_of(text), all);
    let found = route(&format!("{PARENT}rules: [{{{text}}}]"));
    let far: Vec<_> = found.foreign.iter().map(|it| (it.rule, it.namespace.as_str(), it.name.as_str())).collect();
    assert_eq!(far, [(0, "far", "b")]);
    let grpc = format!("{PARENT}rules: [{{{text}}}]");
    assert_eq!(faults(Kind::GrpcRoute, &grpc), Vec::<String>::new());
}

#[test]
fn what_is_wrong_in_a_filter_is_told() {
    let rule = |rest: &str| format!("{PARENT}rules: [{{{rest}}}]");
    let redirect = |rest: &str| rule(&format!("filters: [{{type: RequestRedirect, requestRedirect: {{{rest}}}}}]"));
    let rewrite = |rest: &str| rule(&format!("filters: [{{type: URLRewrite, urlRewrite: {{{rest}}}}}]"));
    let mirror = |rest: &str| {
        rule(&format!("filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: a{rest}}}}}}}]"))
    };
    let cors = |rest: &str| rule(&format!("filters: [{{type: CORS, cors: {{{rest}}}}}]"));
    let to = "[{name: web, port: 80}]";
    for (text, wanted) in [
        (redirect("statusCode: 304"), "status 304 is no redirect"),
        (redirect("scheme: htps"), "unknown scheme `htps`, expected http or https; did you mean `https`?"),
        (redirect("hostname: '*.example.org'"), "has a wildcard"),
        (redirect("hostname: Example.org"), "did you mean `example.org`?"),
        (redirect("port: 0"), "port 0 is no port"),
        (redirect("status: 301"), "unknown field `status`, expected one of"),
        (redirect("path: {type: ReplaceFullPath}"), "needs the field `replaceFullPath`"),
        (redirect("path: {type: ReplaceFullPath, replaceFullPath: x}"), "path `x` must start with `/`"),
        (redirect("path: {type: ReplaceFullPath, replaceFullPath: '/x?y'}"), "must not contain `?`"),
        (
            redirect("path: {type: ReplaceFullPath, replaceFullPath: /x, replacePrefixMatch: /y}"),
            "does not belong to a path of type ReplaceFullPath",
        ),
        (
            rule(
                "matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /y}}}]",
            ),
            "needs exactly one match in the rule, of type PathPrefix",
        ),
        (
            rule(
                "matches: [{path: {value: /a}}, {path: {value: /b}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /y}}}]",
            ),
            "needs exactly one match",
        ),
        (mirror(""), "backend `a` needs a `port`"),
        (mirror(", port: 80}, percent: 101, x: {y: 0"), "unknown field `x`"),
        (mirror(", port: 80}, percent: 101, fraction: {numerator: 0"), "one of them"),
        (mirror(", port: 80}, fraction: {numerator: 2, denominator: 1"), "2 of 1 is no share"),
        (mirror(", port: 80, kind: Bucket"), "only Services"),
        (cors("allowOrigins: [example.org]"), "`example.org` is no origin"),
        (cors("allowOrigins: ['*', 'http://a']"), "`*` stands alone"),
        (cors("allowOrigins: ['http://a', 'http://a']"), "`http://a` is there twice"),
        (cors("allowMethods: [get]"), "unknown method `get`; did you mean `GET`?"),
        (cors("allowHeaders: ['a b']"), "no header name"),
        (cors("maxAge: 0"), "at least 1 second"),
        (rule("filters: [{type: CORS}]"), "a filter of type CORS needs the field `cors`"),
        (rewrite(""), "names neither `hostname` nor `path`"),
        (rule("filters: [{type: URLRewrite}]"), "a filter of type URLRewrite needs the field `urlRewrite`"),
        (
            rule("filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}, requestRedirect: {}}]"),
            "`requestRedirect` does not belong to a filter of type URLRewrite",
        ),
        (
            rule(
                "filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}, {type: RequestRedirect, requestRedirect: {}}]",
            ),
            "do not go together",
        ),
        (
            rule(&format!("filters: [{{type: RequestRedirect, requestRedirect: {{}}}}], backendRefs: {to}")),
            "a rule with a RequestRedirect has no `backendRefs`",
        ),
    ] {
        let found = faults(Kind::HttpRoute, &text);
        assert!(found.iter().any(|fault| fault.contains(wanted)), "{text}\nwanted {wanted}\nfound {found:?}");
    }
    let grpc = rule(&format!("filters: [{{type: RequestRedirect, requestRedirect: {{}}}}], backendRefs: {to}"));
    let found = faults(Kind::GrpcRoute, &grpc);
    assert!(found.iter().any(|fault| fault.contains("filter RequestRedirect is none of a GRPCRoute")), "{found:?}");
}
