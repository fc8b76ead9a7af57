//! Checks of single fields.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use weft_engine::identity::Identity;

use super::error::{ErrorCode, ResourceError};

/// A name as Kubernetes has them, of an object or a namespace.
pub(super) fn name<'a>(what: &str, text: &'a str) -> Result<&'a str, ResourceError> {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_');
    if !text.is_empty() && text.len() <= 253 && text.bytes().all(ok) {
        return Ok(text);
    }
    let message = format!("{what} `{}` is no name: lower-case letters, digits, `-` and `.`", cut(text));
    Err(ResourceError::new(ErrorCode::InvalidName, message))
}

/// The resource name of a service, `service/NAMESPACE/NAME:PORT`.
pub(super) fn service_name(text: &str) -> Result<Arc<str>, ResourceError> {
    let parts = || {
        let (namespace, rest) = text.strip_prefix("service/")?.split_once('/')?;
        let (service, port) = rest.rsplit_once(':')?;
        name("namespace", namespace).ok()?;
        name("service", service).ok()?;
        port.parse::<u16>().ok().filter(|port| *port > 0)
    };
    match parts() {
        Some(_) => Ok(text.into()),
        None => {
            let message = format!("`{}` is not of the form service/NAMESPACE/NAME:PORT", cut(text));
            Err(ResourceError::new(ErrorCode::InvalidName, message))
        }
    }
}

/// The resource name of an object of one of these kinds, `KIND/NAMESPACE/NAME`.
pub(super) fn object_name(kinds: &[&str], text: &str) -> Result<Arc<str>, ResourceError> {
    let mut parts = text.split('/');
    let found = (parts.next(), parts.next(), parts.next(), parts.next());
    if let (Some(kind), Some(namespace), Some(object), None) = found
        && kinds.contains(&kind)
        && name("namespace", namespace).is_ok()
        && name("name", object).is_ok()
    {
        return Ok(text.into());
    }
    let message = format!("`{}` is not of the form {}/NAMESPACE/NAME", cut(text), kinds.join("|"));
    Err(ResourceError::new(ErrorCode::InvalidName, message))
}

pub(super) fn port(number: u32) -> Result<u16, ResourceError> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(ResourceError::new(ErrorCode::InvalidPort, format!("{number} is no port from 1 to 65535"))),
    }
}

/// An address that something can be behind, from 4 or 16 bytes.
pub(super) fn ip(octets: &[u8]) -> Result<IpAddr, ResourceError> {
    let ip = if let Ok(four) = <[u8; 4]>::try_from(octets) {
        IpAddr::V4(Ipv4Addr::from(four))
    } else if let Ok(sixteen) = <[u8; 16]>::try_from(octets) {
        IpAddr::V6(Ipv6Addr::from(sixteen)).to_canonical()
    } else {
        let message = format!("an IP address has 4 or 16 bytes, not {}", octets.len());
        return Err(ResourceError::new(ErrorCode::InvalidAddress, message));
    };
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(ResourceError::new(ErrorCode::InvalidAddress, format!("{ip} can be no endpoint")));
    }
    Ok(ip)
}

/// A host name for DNS, in lower case, without the root's dot.
pub(super) fn host(text: &str) -> Result<Arc<str>, ResourceError> {
    let host = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.len() <= 253 && host.split('.').all(label) {
        return Ok(host.into());
    }
    Err(ResourceError::new(ErrorCode::InvalidAddress, format!("`{}` is no host name", cut(text))))
}

/// A whole SPIFFE ID, or the path of one: then it is of the mesh itself, which has the name `own` here.
pub(super) fn identity(text: &str, own: &str) -> Result<Identity, ResourceError> {
    let read = if text.starts_with('/') { format!("spiffe://{own}{text}").parse() } else { text.parse() };
    read.map_err(|error: weft_engine::identity::NotAnIdentity| {
        ResourceError::new(ErrorCode::InvalidIdentity, error.to_string())
    })
}

pub(super) fn unknown(what: &str, value: i32) -> ResourceError {
    let message = format!("{what} {value} is not known to this build: upgrade the proxy");
    ResourceError::new(ErrorCode::UnknownValue, message)
}

pub(super) fn missing(what: &str) -> ResourceError {
    let message = format!("{what} is not set, or of a kind that this build does not know: upgrade the proxy");
    ResourceError::new(ErrorCode::MissingField, message)
}

/// What a message may quote of hostile text.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_debug).collect()
}
