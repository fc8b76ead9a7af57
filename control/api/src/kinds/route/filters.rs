//! Filters of a rule or a backend -> wire.

use weft_engine::route::Origin;

use super::Referrer;
use super::connection::hostname;
use crate::kinds::check::{self, Checker};
use crate::kinds::decode::At;
use crate::kinds::fault::Fault;
use crate::kinds::gateway::{
    Cors, FilterType, Header, HeaderModifier, HttpRouteMatch, PathMatchType, PathModifier, PathModifierType,
    RequestMirror, RequestRedirect, RouteFilter, UrlRewrite,
};
use crate::wire::v1;

/// Status codes of redirects (Gateway API).
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

/// What the filters stand in.
pub(super) enum Filtered {
    /// A rule of an HTTPRoute. With the prefix that its only match asks for, if that is all that it matches.
    Http(Option<String>),
    /// A rule of a GRPCRoute.
    Grpc,
    /// A route of connections, which has no filters.
    Nothing,
}

impl Filtered {
    /// A rule of an HTTPRoute with these matches; without any it takes the prefix `/`.
    pub fn http(matches: &[At<HttpRouteMatch>]) -> Self {
        let prefix = match matches {
            [] => Some("/".to_owned()),
            [only] => match &only.path {
                None => Some("/".to_owned()),
                Some(path) if path.how == PathMatchType::PathPrefix => {
                    Some(path.value.value.as_ref().map_or("/", |value| value.as_str()).to_owned())
                }
                Some(_) => None,
            },
            _ => None,
        };
        Self::Http(prefix)
    }

    fn has(&self, how: FilterType) -> bool {
        use FilterType::{ExtensionRef, RequestHeaderModifier, RequestMirror, ResponseHeaderModifier};
        match self {
            Self::Http(_) => true,
            Self::Grpc => matches!(how, RequestHeaderModifier | ResponseHeaderModifier | RequestMirror | ExtensionRef),
            Self::Nothing => false,
        }
    }
}

/// All filters of one list.
pub(super) fn filters(
    filters: &[At<RouteFilter>],
    on: &Filtered,
    referrer: &mut Referrer<'_>,
    checker: &mut Checker,
) -> Vec<v1::Filter> {
    if let Some(extra) = filters.get(16) {
        checker.fault(extra.at, "at most 16 filters are allowed");
    }
    let mut found: Vec<v1::Filter> = Vec::new();
    let mut seen: Vec<FilterType> = Vec::new();
    for filter in filters {
        let how = filter.how.value;
        if seen.contains(&how) && how != FilterType::RequestMirror {
            checker.fault(filter.how.at, format!("filter {how} is there twice"));
        }
        seen.push(how);
        if !on.has(how) {
            checker.fault(filter.how.at, format!("filter {how} is none of a GRPCRoute"));
            continue;
        }
        if let Some(made) = self::filter(filter, on, referrer, checker) {
            found.push(v1::Filter { filter: Some(made) });
        }
    }
    if let Some(second) = filters.iter().find(|filter| filter.how.value == FilterType::UrlRewrite)
        && seen.contains(&FilterType::RequestRedirect)
    {
        checker.fault(second.at, "a RequestRedirect and a URLRewrite do not go together: one of them would do nothing");
    }
    found
}

fn filter(
    filter: &At<RouteFilter>,
    on: &Filtered,
    referrer: &mut Referrer<'_>,
    checker: &mut Checker,
) -> Option<v1::filter::Filter> {
    use v1::filter::Filter;
    let how = filter.how.value;
    let there = [
        (
            FilterType::RequestHeaderModifier,
            "requestHeaderModifier",
            filter.request_header_modifier.as_ref().map(|it| it.at),
        ),
        (
            FilterType::ResponseHeaderModifier,
            "responseHeaderModifier",
            filter.response_header_modifier.as_ref().map(|it| it.at),
        ),
        (FilterType::RequestRedirect, "requestRedirect", filter.request_redirect.as_ref().map(|it| it.at)),
        (FilterType::UrlRewrite, "urlRewrite", filter.url_rewrite.as_ref().map(|it| it.at)),
        (FilterType::RequestMirror, "requestMirror", filter.request_mirror.as_ref().map(|it| it.at)),
        (FilterType::Cors, "cors", filter.cors.as_ref().map(|it| it.at)),
    ];
    for (owner, field, at) in there {
        match at {
            Some(at) if owner != how => {
                checker.fault(at, format!("`{field}` does not belong to a filter of type {how}"));
            }
            None if owner == how => {
                checker.fault(filter.at, format!("a filter of type {how} needs the field `{field}`"));
            }
            _ => {}
        }
    }
    match how {
        FilterType::RequestHeaderModifier => {
            filter.request_header_modifier.as_ref().map(|it| Filter::RequestHeaders(header_edit(it, checker)))
        }
        FilterType::ResponseHeaderModifier => {
            filter.response_header_modifier.as_ref().map(|it| Filter::ResponseHeaders(header_edit(it, checker)))
        }
        FilterType::RequestRedirect => {
            filter.request_redirect.as_ref().map(|it| Filter::Redirect(redirect(it, on, checker)))
        }
        FilterType::RequestMirror => {
            filter.request_mirror.as_ref().and_then(|it| mirror(it, referrer, checker)).map(Filter::Mirror)
        }
        FilterType::Cors => filter.cors.as_ref().map(|it| Filter::Cors(cors(it, checker))),
        FilterType::UrlRewrite => filter.url_rewrite.as_ref().map(|it| Filter::Rewrite(rewrite(it, on, checker))),
        FilterType::ExternalAuth | FilterType::ExtensionRef => {
            checker.fault(filter.how.at, format!("filter {how} is known, but not supported by this version of Weft"));
            None
        }
    }
}

fn mirror(wanted: &At<RequestMirror>, referrer: &mut Referrer<'_>, checker: &mut Checker) -> Option<v1::Mirror> {
    let service = referrer.service(&wanted.backend_ref, checker);
    let mut share = |at, numerator: u32, denominator: u32| {
        if denominator == 0 || numerator > denominator {
            checker.fault(at, format!("{numerator} of {denominator} is no share"));
        }
        (numerator, denominator)
    };
    let (numerator, denominator) = match (&wanted.percent, &wanted.fraction) {
        (None, None) => (100, 100),
        (Some(percent), None) => share(percent.at, percent.value, 100),
        (None, Some(part)) => {
            share(part.at, part.numerator.value, part.denominator.as_ref().map_or(100, |number| number.value))
        }
        (Some(_), Some(part)) => {
            checker.fault(part.at, "`percent` and `fraction` say the same: one of them");
            (0, 1)
        }
    };
    Some(v1::Mirror { service: service?, denominator, numerator, invalid: String::new() })
}

fn cors(wanted: &At<Cors>, checker: &mut Checker) -> v1::Cors {
    let origin = |text: &At<String>| match Origin::parse(text) {
        Ok(_) => Ok(text.value.clone()),
        Err(error) => Err(Fault::new(text.at, error.to_string())),
    };
    if wanted.allow_origins.is_empty() {
        checker.warn(wanted.at, "`allowOrigins` is empty: no origin is allowed");
    }
    checker.at_most(wanted.at, &wanted.allow_methods, 9, "allowMethods");
    if let Some(age) = wanted.max_age.as_ref().filter(|age| age.value == 0) {
        checker.fault(age.at, "`maxAge` is at least 1 second");
    }
    if wanted.allow_credentials
        && let Some(any) = wanted.expose_headers.iter().find(|name| name.as_str() == "*")
    {
        checker.warn(any.at, "with `allowCredentials` browsers take `*` for a name: nothing is exposed");
    }
    v1::Cors {
        allow_origins: listed(&wanted.allow_origins, origin, checker),
        allow_credentials: wanted.allow_credentials,
        allow_methods: listed(&wanted.allow_methods, check::route_method, checker),
        allow_headers: listed(&wanted.allow_headers, check::header_name, checker),
        expose_headers: listed(&wanted.expose_headers, check::header_name, checker),
        max_age_s: wanted.max_age.as_ref().map_or(5, |age| age.value),
    }
}

/// A set of at most 64; `*` stands alone.
fn listed(
    list: &[At<String>],
    read: impl Fn(&At<String>) -> Result<String, Fault>,
    checker: &mut Checker,
) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for text in list {
        let any = text.as_str() == "*";
        if any && list.len() > 1 {
            checker.fault(text.at, "`*` stands alone: it is all");
        }
        let Some(made) = (if any { Some("*".to_owned()) } else { checker.take(read(text)) }) else { continue };
        if found.contains(&made) {
            checker.fault(text.at, format!("`{made}` is there twice"));
        }
        found.push(made);
    }
    if let Some(extra) = list.get(64) {
        checker.fault(extra.at, "at most 64 are allowed");
    }
    found
}

fn redirect(wanted: &At<RequestRedirect>, on: &Filtered, checker: &mut Checker) -> v1::Redirect {
    let status = wanted.status_code.as_ref().map_or(302, |status| status.value);
    if let Some(code) = wanted.status_code.as_ref().filter(|code| !REDIRECTS.contains(&code.value)) {
        checker.fault(code.at, format!("status {} is no redirect: 301, 302, 303, 307 or 308", code.value));
    }
    if let Some(scheme) = wanted.scheme.as_ref().filter(|scheme| !matches!(scheme.as_str(), "http" | "https")) {
        let fault = Fault::new(scheme.at, format!("unknown scheme `{}`, expected http or https", scheme.value));
        checker.faults.push(fault.did_you_mean(scheme, ["http", "https"]));
    }
    v1::Redirect {
        scheme: wanted.scheme.as_ref().map(|scheme| scheme.value.clone()).unwrap_or_default(),
        hostname: precise(wanted.hostname.as_ref(), checker),
        port: wanted.port.as_ref().and_then(|port| checker.take(check::port(port))).unwrap_or_default().into(),
        path: wanted.path.as_ref().and_then(|path| path_edit(path, on, checker)),
        status: status.into(),
    }
}

fn rewrite(wanted: &At<UrlRewrite>, on: &Filtered, checker: &mut Checker) -> v1::Rewrite {
    if wanted.hostname.is_none() && wanted.path.is_none() {
        checker.fault(wanted.at, "a URLRewrite that names neither `hostname` nor `path` does nothing");
    }
    v1::Rewrite {
        hostname: precise(wanted.hostname.as_ref(), checker),
        path: wanted.path.as_ref().and_then(|path| path_edit(path, on, checker)),
    }
}

/// A hostname without a wildcard, or nothing.
fn precise(name: Option<&At<String>>, checker: &mut Checker) -> String {
    let Some(name) = name else { return String::new() };
    if name.starts_with('*') {
        checker.fault(name.at, format!("hostname `{}` has a wildcard, where one name is wanted", name.value));
    }
    checker.take(hostname(name)).unwrap_or_default()
}

fn path_edit(path: &At<PathModifier>, on: &Filtered, checker: &mut Checker) -> Option<v1::PathEdit> {
    use v1::path_edit::Edit;
    let (how, full, prefix) = (path.how.value, &path.replace_full_path, &path.replace_prefix_match);
    let (wanted, other, field) = match how {
        PathModifierType::ReplaceFullPath => (full, prefix, "replaceFullPath"),
        PathModifierType::ReplacePrefixMatch => (prefix, full, "replacePrefixMatch"),
    };
    if let Some(other) = other {
        checker.fault(other.at, format!("does not belong to a path of type {how:?}"));
    }
    let Some(wanted) = wanted else {
        checker.fault(path.at, format!("a path of type {how:?} needs the field `{field}`"));
        return None;
    };
    let edit = match how {
        PathModifierType::ReplaceFullPath => Edit::Full(checker.take(check::new_path(wanted))?),
        PathModifierType::ReplacePrefixMatch => {
            let Filtered::Http(Some(prefix)) = on else {
                checker.fault(path.at, "`ReplacePrefixMatch` needs exactly one match in the rule, of type PathPrefix");
                return None;
            };
            let replacement = if wanted.is_empty() { String::new() } else { checker.take(check::new_path(wanted))? };
            Edit::Prefix(v1::PrefixEdit { prefix: prefix.clone(), replacement })
        }
    };
    Some(v1::PathEdit { edit: Some(edit) })
}

fn header_edit(edit: &At<HeaderModifier>, checker: &mut Checker) -> v1::HeaderEdit {
    let mut headers = |list: &[At<Header>]| -> Vec<v1::Header> {
        let mut found: Vec<v1::Header> = Vec::new();
        for header in list {
            let (name, value) = (check::editable_header(&header.name), check::header_value(&header.value.value));
            let (Some(name), Some(value)) = (checker.take(name), checker.take(value)) else { continue };
            if found.iter().any(|other| other.name == name) {
                checker.fault(header.name.at, format!("header `{name}` is there twice"));
            }
            found.push(v1::Header { name, value });
        }
        found
    };
    let (set, add) = (headers(&edit.set), headers(&edit.add));
    let remove = edit.remove.iter().filter_map(|name| checker.take(check::editable_header(name))).collect();
    for (list, what) in [(edit.set.len(), "set"), (edit.add.len(), "add"), (edit.remove.len(), "remove")] {
        if list > 16 {
            checker.fault(edit.at, format!("at most 16 headers to {what} are allowed"));
        }
    }
    v1::HeaderEdit { set, add, remove }
}
