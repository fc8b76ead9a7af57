//! What is captured in a pod, as the injector writes it: the annotation [`ANNOTATION`] and the argument `--settings` are one JSON.
//!
//! Invariants
//! - [`Settings::parse`] takes what [`Settings::to_json`] gives, and refuses what it does not know: a misspelt list would capture too much.
//! - An empty include list means all; what is excluded is not captured, whatever is included.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::rules::{Capture, Error, Exclude};

/// The pod's annotation that holds these settings.
pub const ANNOTATION: &str = "weft.dev/capture";
/// Largest JSON that is taken, in bytes: six full lists fit.
pub const MAX_JSON: usize = 32 * 1024;

/// What is captured in a pod.
///
/// A connection to the application is captured if its port is included and not excluded. A connection of the application is captured if its
/// port is included and not excluded, and its address is too. Ports of the sidecar that others call are always reached directly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Where connections that the application opens go.
    pub outbound_port: u16,
    /// Where connections to the application go.
    pub inbound_port: u16,
    /// The sidecar's own traffic is what this uid sends.
    pub uid: u32,
    /// Ports of the pod that are captured; empty: all.
    pub include_inbound_ports: Vec<u16>,
    /// Ports of the pod that are reached directly.
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports elsewhere that are captured; empty: all.
    pub include_outbound_ports: Vec<u16>,
    /// Ports elsewhere that are called directly.
    pub exclude_outbound_ports: Vec<u16>,
    /// Ranges of addresses that are captured; empty: all.
    pub include_outbound_cidrs: Vec<IpNet>,
    /// Ranges of addresses that are called directly.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Where the application's DNS goes, UDP and TCP; without it DNS passes as other traffic does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_port: Option<u16>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            uid: 1337,
            include_inbound_ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            include_outbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            include_outbound_cidrs: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            dns_port: None,
        }
    }
}

impl Settings {
    /// Reads the JSON of the annotation or argument.
    ///
    /// # Errors
    /// With one sentence: what is not JSON, not known, out of range, or makes no sense together.
    pub fn parse(json: &str) -> Result<Self, Error> {
        if json.len() > MAX_JSON {
            return Err(Error::Invalid(format!("settings of {} bytes, at most {MAX_JSON} are taken", json.len())));
        }
        // A list would be taken for the fields in their order.
        if !json.trim_start().starts_with('{') {
            return Err(Error::Invalid("settings: a JSON object is wanted, such as {\"uid\":1337}".to_owned()));
        }
        let settings: Self =
            serde_json::from_str(json).map_err(|error| Error::Invalid(format!("settings: {error}")))?;
        settings.check()?;
        Ok(settings)
    }

    /// The JSON of the annotation and the argument, on one line.
    pub fn to_json(&self) -> String {
        // Numbers, addresses and lists of them always have a JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether these settings can be installed.
    ///
    /// # Errors
    /// With one sentence that says why not.
    pub fn check(&self) -> Result<(), Error> {
        Capture::from(self).check()
    }
}

impl From<&Settings> for Capture {
    fn from(settings: &Settings) -> Self {
        Self {
            outbound_port: settings.outbound_port,
            inbound_port: settings.inbound_port,
            exclude: Exclude::Uid(settings.uid),
            include_inbound_ports: settings.include_inbound_ports.clone(),
            exclude_inbound_ports: settings.exclude_inbound_ports.clone(),
            include_outbound_ports: settings.include_outbound_ports.clone(),
            exclude_outbound_ports: settings.exclude_outbound_ports.clone(),
            include_cidrs: settings.include_outbound_cidrs.clone(),
            exclude_cidrs: settings.exclude_outbound_cidrs.clone(),
            dns_port: settings.dns_port,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_looks_as_agreed() {
        let json = r#"{"outboundPort":15001,"inboundPort":15006,"uid":1337,"includeInboundPorts":[],"excludeInboundPorts":[],"includeOutboundPorts":[],"excludeOutboundPorts":[],"includeOutboundCidrs":[],"excludeOutboundCidrs":[]}"#;
        assert_eq!(Settings::default().to_json(), json);
        assert_eq!(Settings::parse(json).unwrap(), Settings::default());
        assert_eq!(Settings::parse("{}").unwrap(), Settings::default());
        let some = Settings {
            include_outbound_cidrs: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            exclude_inbound_ports: vec![9100],
            dns_port: Some(15053),
            ..Settings::default()
        };
        assert_eq!(Settings::parse(&some.to_json()).unwrap(), some);
        assert!(some.to_json().contains(r#""dnsPort":15053"#));
    }

    #[test]
    fn what_is_not_known_or_makes_no_sense_is_refused_with_a_sentence() {
        for (json, part) in [
            (r#"{"excludeInboundPort":[1]}"#, "unknown field `excludeInboundPort`"),
            (r#"{"outboundPort":70000}"#, "70000"),
            (r#"{"includeOutboundCidrs":["10.0.0.0/33"]}"#, "settings: "),
            (r#"{"uid":0}"#, "uid 0"),
            (r#"{"dnsPort":15001}"#, "must differ"),
            (r#"{"excludeInboundPorts":[0]}"#, "port 0"),
            ("[]", "settings: "),
            ("", "settings: "),
        ] {
            let error = Settings::parse(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
        let many = format!(r#"{{"excludeInboundPorts":[{}]}}"#, vec!["1"; 65].join(","));
        assert!(Settings::parse(&many).unwrap_err().to_string().contains("at most 64"));
        assert!(Settings::parse(&" ".repeat(MAX_JSON + 1)).unwrap_err().to_string().contains("bytes"));
    }
}
