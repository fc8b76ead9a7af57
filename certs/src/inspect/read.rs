//! One certificate by itself.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_SIG_ED25519,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{AUTHORITY_NOTICE, Certificate, Findings, InspectError, Role, SignedBy, words};
use crate::x509;

/// RSA keys with fewer bits are taken by nobody.
const MIN_RSA_BITS: usize = 2048;

/// Parses all, or says which one cannot be.
pub(super) fn all<'a>(ders: &'a [CertificateDer<'_>]) -> Result<Vec<X509Certificate<'a>>, InspectError> {
    let parse = |(index, der): (usize, &'a CertificateDer<'_>)| match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(InspectError::NotX509(index + 1)),
    };
    ders.iter().enumerate().map(parse).collect()
}

/// What it is for. A self-signed certificate that may not sign others is a leaf.
pub(super) fn role(certificate: &X509Certificate<'_>) -> Role {
    match (certificate.is_ca(), certificate.issuer().as_raw() == certificate.subject().as_raw()) {
        (false, _) => Role::Leaf,
        (true, false) => Role::Issuer,
        (true, true) => Role::Root,
    }
}

/// What it says of itself. Who signed it is for others to find.
pub(super) fn describe(certificate: &X509Certificate<'_>, der: &CertificateDer<'_>, now: SystemTime) -> Certificate {
    let x509::Life { not_before, not_after } = x509::life_of(certificate);
    let seconds = |span: std::time::Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    let names = certificate.subject_alternative_name().ok().flatten();
    Certificate {
        role: role(certificate),
        identity: x509::identity(der).ok().map(|identity| identity.to_string()),
        names: names.iter().flat_map(|names| &names.value.general_names).map(name).collect(),
        subject: plain(&certificate.subject().to_string()),
        issuer: plain(&certificate.issuer().to_string()),
        serial: crate::files::hex(certificate.raw_serial()),
        key: key(certificate.public_key()),
        not_before,
        not_after,
        ends_in_s: match not_after.duration_since(now) {
            Ok(left) => seconds(left),
            Err(past) => -seconds(past.duration()),
        },
        signed_by: SignedBy::Absent,
        chain: None,
    }
}

/// What is wrong with it by itself.
pub(super) fn judge(
    index: usize,
    certificate: &X509Certificate<'_>,
    der: &CertificateDer<'_>,
    seen: &Certificate,
    now: SystemTime,
    findings: &mut Findings,
) {
    if seen.not_after <= now {
        findings.problem(index, format!("it {}", words::end(seen.not_after, now)));
    } else if seen.role != Role::Leaf && seen.not_after < now + AUTHORITY_NOTICE {
        let end = words::end(seen.not_after, now);
        findings.warning(index, format!("it {end}, and all that it signed ends with it: rotate it before"));
    }
    if let Ok(wait) = seen.not_before.duration_since(now)
        && !wait.is_zero()
    {
        let wait = words::span(wait);
        findings
            .problem(index, format!("it is not valid for another {wait}; compare the clocks of its CA and of here"));
    }
    if let Ok(PublicKey::RSA(rsa)) = certificate.public_key().parsed()
        && rsa.key_size() < MIN_RSA_BITS
    {
        findings.problem(index, format!("its key has {} bits; RSA needs {MIN_RSA_BITS} at least", rsa.key_size()));
    }
    if seen.role == Role::Leaf {
        if let Err(error) = x509::identity(der) {
            findings.problem(index, format!("no workload can be known by it: {}", plain(&error.to_string())));
        }
        if index > 0 {
            findings.problem(
                index,
                "it is a leaf and not the first: a peer takes the first certificate for the leaf".into(),
            );
        }
    }
}

fn name(name: &GeneralName<'_>) -> String {
    plain(&match name {
        GeneralName::URI(uri) => format!("URI:{uri}"),
        GeneralName::DNSName(dns) => format!("DNS:{dns}"),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => format!("IP:{}", Ipv4Addr::from(v4)),
            (_, Ok(v6)) => format!("IP:{}", Ipv6Addr::from(v6)),
            _ => "IP:broken".to_owned(),
        },
        other => other.to_string(),
    })
}

/// Kind and size of a key.
fn key(info: &SubjectPublicKeyInfo<'_>) -> String {
    let algorithm = &info.algorithm.algorithm;
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let known = [(OID_EC_P256, "P-256"), (OID_NIST_EC_P384, "P-384"), (OID_NIST_EC_P521, "P-521")];
        let name =
            known.iter().find(|(oid, _)| curve.as_ref() == Some(oid)).map_or("of another curve", |(_, name)| name);
        return format!("ECDSA {name}");
    }
    if *algorithm == OID_SIG_ED25519 {
        return "Ed25519".to_owned();
    }
    match info.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("RSA {}", rsa.key_size()),
        _ => format!("of kind {}", algorithm.to_id_string()),
    }
}

/// Without control characters, which could tell a terminal to do things.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control()
            || matches!(character, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            let _ = write!(out, "{}", character.escape_unicode());
        } else {
            out.push(character);
        }
    }
    out
}
