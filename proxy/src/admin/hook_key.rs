//! Who may call hooks over the network. `/drain-wait` makes others pass the workload over, or turns them away; a hook of the application does what it
//! does. The kubelet, which calls them, has no identity of the mesh. So the injector gives a key to both, which is in the pod's own spec and
//! nowhere else.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use weft_api::probe::HOOK_KEY_HEADER;

/// The key. It is not printed.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct HookKey(String);

impl FromStr for HookKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for HookKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() { Err("an empty key keeps nobody out; leave it away") } else { Ok(Self(text)) }
    }
}

impl fmt::Debug for HookKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookKey(..)")
    }
}

impl HookKey {
    // In a time that does not tell how much of it is right.
    fn is(&self, shown: &HeaderValue) -> bool {
        let (own, shown) = (self.0.as_bytes(), shown.as_bytes());
        own.len() == shown.len() && own.iter().zip(shown).fold(0, |other, (a, b)| other | (a ^ b)) == 0
    }
}

/// Whether who calls the address `here` of ours may call hooks: over loopback it is the pod itself.
pub(super) fn may(key: Option<&HookKey>, here: IpAddr, fields: &HeaderMap) -> bool {
    let Some(key) = key else { return true };
    here.is_loopback() || fields.get(HOOK_KEY_HEADER).is_some_and(|shown| key.is(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelet_with_the_key_and_the_pod_itself_may() {
        let (pod, loopback) = ([10, 0, 0, 1].into(), [127, 0, 0, 1].into());
        let key: HookKey = "k1".parse().unwrap();
        assert_eq!(format!("{key:?}"), "HookKey(..)");
        assert!("".parse::<HookKey>().is_err());
        for (key, here, shown, expected) in [
            (None, pod, None, true),
            (Some(&key), loopback, None, true),
            (Some(&key), "::1".parse().unwrap(), None, true),
            (Some(&key), pod, Some("k1"), true),
            (Some(&key), pod, None, false),
            (Some(&key), pod, Some(""), false),
            (Some(&key), pod, Some("k2"), false),
            (Some(&key), pod, Some("k"), false),
            (Some(&key), pod, Some("k11"), false),
        ] {
            let shown =
                shown.map(|shown| (http::HeaderName::from_static(HOOK_KEY_HEADER), HeaderValue::from_static(shown)));
            assert_eq!(may(key, here, &shown.clone().into_iter().collect()), expected, "{key:?} {here} {shown:?}");
        }
    }
}
