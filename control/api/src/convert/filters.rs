//! Filters of routes.

use http::{HeaderName, HeaderValue, StatusCode};
use weft_engine::route::{
    Cors, Filter, HeaderEdit, Hostname, Listed, Mirror, Origin, Origins, PathEdit, Redirect, Rewrite, Scheme,
};

use super::error::{ErrorCode, ResourceError};
use super::field;
use super::routes::absolute;
use crate::wire::v1;

/// Fields that frame messages or name the proxy's own facts: an edit would let a route make what the head's check refuses.
pub(crate) const NOT_EDITABLE: [&str; 12] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "x-forwarded-client-cert",
    "x-weft-reason",
];

pub(super) fn filters(wire: &[v1::Filter]) -> Result<Vec<Filter>, ResourceError> {
    use v1::filter::Filter as Wire;
    let filter = |wire: &v1::Filter| match &wire.filter {
        Some(Wire::RequestHeaders(edit)) => Ok(Filter::RequestHeaders(header_edit(edit)?)),
        Some(Wire::ResponseHeaders(edit)) => Ok(Filter::ResponseHeaders(header_edit(edit)?)),
        Some(Wire::Redirect(wire)) => Ok(Filter::Redirect(redirect(wire)?)),
        Some(Wire::Rewrite(wire)) => Ok(Filter::Rewrite(rewrite(wire)?)),
        Some(Wire::Mirror(wire)) => Ok(Filter::Mirror(mirror(wire)?)),
        Some(Wire::Cors(wire)) => Ok(Filter::Cors(cors(wire)?)),
        None => Err(field::missing("a filter")),
    };
    wire.iter().map(filter).collect()
}

fn header_edit(wire: &v1::HeaderEdit) -> Result<HeaderEdit, ResourceError> {
    let pairs = |wire: &[v1::Header]| wire.iter().map(header).collect::<Result<Vec<_>, _>>();
    Ok(HeaderEdit {
        set: pairs(&wire.set)?,
        add: pairs(&wire.add)?,
        remove: wire.remove.iter().map(|name| editable(name)).collect::<Result<_, _>>()?,
    })
}

fn header(wire: &v1::Header) -> Result<(HeaderName, HeaderValue), ResourceError> {
    let name = editable(&wire.name)?;
    let value = HeaderValue::from_str(&wire.value).map_err(|_| {
        let message = format!("the value of header `{name}` has a character that no header may hold");
        ResourceError::new(ErrorCode::InvalidHeader, message)
    })?;
    Ok((name, value))
}

fn editable(text: &str) -> Result<HeaderName, ResourceError> {
    let name = header_name(text)?;
    if NOT_EDITABLE.contains(&name.as_str()) {
        let message = format!("header `{name}` frames messages or is the mesh's own: no filter may edit it");
        return Err(ResourceError::new(ErrorCode::InvalidHeader, message));
    }
    Ok(name)
}

fn redirect(wire: &v1::Redirect) -> Result<Redirect, ResourceError> {
    let unknown = |what: String| ResourceError::new(ErrorCode::UnknownValue, what);
    let scheme = match wire.scheme.as_str() {
        "" => None,
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        other => return Err(unknown(format!("scheme `{}`: upgrade the proxy", field::cut(other)))),
    };
    let status = match wire.status {
        301 => StatusCode::MOVED_PERMANENTLY,
        302 => StatusCode::FOUND,
        303 => StatusCode::SEE_OTHER,
        307 => StatusCode::TEMPORARY_REDIRECT,
        308 => StatusCode::PERMANENT_REDIRECT,
        other => return Err(unknown(format!("status {other} is no redirect: upgrade the proxy"))),
    };
    let port = u16::try_from(wire.port)
        .map_err(|_| ResourceError::new(ErrorCode::OutOfRange, format!("port {} is above 65535", wire.port)))?;
    let path = wire.path.as_ref().map(path_edit).transpose()?;
    Ok(Redirect { scheme, host: hostname(&wire.hostname)?, port: (port != 0).then_some(port), path, status })
}

fn rewrite(wire: &v1::Rewrite) -> Result<Rewrite, ResourceError> {
    let host = hostname(&wire.hostname)?.and_then(|name| HeaderValue::try_from(name).ok());
    Ok(Rewrite { host, path: wire.path.as_ref().map(path_edit).transpose()? })
}

fn mirror(wire: &v1::Mirror) -> Result<Mirror, ResourceError> {
    let (numerator, denominator) = (wire.numerator, wire.denominator);
    if denominator == 0 || numerator > denominator {
        let message = format!("{numerator} of {denominator} is no share of requests");
        return Err(ResourceError::new(ErrorCode::OutOfRange, message));
    }
    let invalid = (!wire.invalid.is_empty()).then(|| wire.invalid.as_str().into());
    let service = if invalid.is_some() { wire.service.as_str().into() } else { field::service_name(&wire.service)? };
    Ok(Mirror { service, numerator, denominator, invalid })
}

fn cors(wire: &v1::Cors) -> Result<Cors, ResourceError> {
    let origin = |text: &String| {
        Origin::parse(text).map_err(|error| ResourceError::new(ErrorCode::InvalidAddress, error.to_string()))
    };
    let origins = match &*wire.allow_origins {
        [any] if any == "*" => Origins::Any,
        listed => Origins::These(listed.iter().map(origin).collect::<Result<_, _>>()?),
    };
    let listed = |names: &[String], what: &str| {
        let message = || format!("{what} of a CORS filter have a character that no header may hold");
        Listed::of(names).ok_or_else(|| ResourceError::new(ErrorCode::InvalidHeader, message()))
    };
    Ok(Cors {
        origins,
        credentials: wire.allow_credentials,
        methods: listed(&wire.allow_methods, "methods")?,
        headers: listed(&wire.allow_headers, "request headers")?,
        expose: listed(&wire.expose_headers, "exposed headers")?,
        max_age: wire.max_age_s,
    })
}

/// A name without a wildcard; `None` if it is empty.
fn hostname(text: &str) -> Result<Option<String>, ResourceError> {
    if text.is_empty() {
        return Ok(None);
    }
    match Hostname::parse(text) {
        Ok(name) if !text.starts_with('*') => Ok(Some(name.text().to_string())),
        _ => {
            let message = format!("`{}` is no hostname, or one with a wildcard", field::cut(text));
            Err(ResourceError::new(ErrorCode::InvalidAddress, message))
        }
    }
}

fn path_edit(wire: &v1::PathEdit) -> Result<PathEdit, ResourceError> {
    use v1::path_edit::Edit;
    match &wire.edit {
        Some(Edit::Full(path)) => Ok(PathEdit::Full(absolute(path)?)),
        Some(Edit::Prefix(v1::PrefixEdit { prefix, replacement })) => {
            let with = if replacement.is_empty() { String::new() } else { absolute(replacement)? };
            Ok(PathEdit::Prefix { prefix: absolute(prefix)?, with })
        }
        None => Err(field::missing("what becomes of the path")),
    }
}

pub(super) fn header_name(text: &str) -> Result<HeaderName, ResourceError> {
    HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| ResourceError::new(ErrorCode::InvalidHeader, format!("`{}` is no header name", field::cut(text))))
}
