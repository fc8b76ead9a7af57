//! What is installed, and by whom.
//!
//! Each of our objects has the label `app.kubernetes.io/part-of=weft`; who installed it is in `app.kubernetes.io/managed-by`, as Helm has it too. The ConfigMap `weft-install`
//! keeps the values that were given, so that an upgrade need not be told them again.

use serde_json::{Value, json};

use super::chart;
use super::kinds::{KINDS, Kind, called};
use super::server::{Server, failed};
use crate::exit::Failure;

/// Where Weft is.
pub const NAMESPACE: &str = "weft-system";
/// Our objects, and nobody else's.
pub const OURS: &str = "labelSelector=app.kubernetes.io%2Fpart-of%3Dweft%2Capp.kubernetes.io%2Fmanaged-by%3Dweft";
/// All of Weft's, whoever installed them.
const WEFTS: &str = "labelSelector=app.kubernetes.io%2Fpart-of%3Dweft";
const RECORD: &str = "weft-install";

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Nothing of Weft.
    Nothing,
    /// An installation of ours that has not come to its end.
    Begun,
    /// An installation of ours.
    Ours {
        /// Its version.
        version: String,
        /// The values that were given.
        values: Value,
    },
    /// One of Helm's.
    Helm {
        /// Its release.
        release: String,
    },
    /// Something of this name that neither has made.
    Foreign {
        /// What.
        what: String,
    },
}

impl State {
    /// Asks the API server.
    ///
    /// # Errors
    /// It cannot be asked.
    pub async fn read(server: &Server) -> Result<Self, Failure> {
        let (maps, deployments) = (Kind::named("ConfigMap"), Kind::named("Deployment"));
        let record = server
            .get(&format!("{}/{RECORD}", maps.path(Some(NAMESPACE))))
            .await
            .map_err(failed("what is installed"))?;
        let control = format!("{}/weft-control", deployments.path(Some(NAMESPACE)));
        let control = server.get(&control).await.map_err(failed("what is installed"))?;
        let hooks = Kind::named("MutatingWebhookConfiguration");
        let hook =
            server.get(&format!("{}/weft-injector", hooks.path(None))).await.map_err(failed("what is installed"))?;
        Ok(Self::of(record.as_ref(), [control.as_ref(), hook.as_ref()].into_iter().flatten()))
    }

    /// Of the record, and of what stands for the rest.
    pub fn of<'a>(record: Option<&Value>, objects: impl Iterator<Item = &'a Value>) -> Self {
        for object in objects {
            let meta = &object["metadata"];
            match meta["labels"]["app.kubernetes.io/managed-by"].as_str() {
                Some("Helm") => {
                    let release = meta["annotations"]["meta.helm.sh/release-name"].as_str().unwrap_or("weft");
                    return Self::Helm { release: release.to_owned() };
                }
                Some("weft") => {}
                _ => return Self::Foreign { what: called(object) },
            }
            if record.is_none() {
                return Self::Begun;
            }
        }
        let Some(record) = record else { return Self::Nothing };
        let version = record["data"]["version"].as_str().unwrap_or_default().to_owned();
        let values = record["data"]["values"].as_str().and_then(|text| serde_json::from_str(text).ok());
        if record["data"]["complete"] == "true" {
            Self::Ours { version, values: values.unwrap_or_else(|| json!({})) }
        } else {
            Self::Begun
        }
    }
}

/// Writes down what was given.
pub async fn record(server: &Server, given: &Value, complete: bool) -> Result<(), Failure> {
    let labels = json!({"app.kubernetes.io/part-of": "weft", "app.kubernetes.io/managed-by": "weft"});
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": RECORD, "namespace": NAMESPACE, "labels": labels},
        "data": {"version": chart::VERSION, "values": given.to_string(), "complete": complete.to_string()},
    });
    server.apply(&Kind::named("ConfigMap"), &object).await.map_err(failed("what was installed"))?;
    Ok(())
}

/// What an upgrade leaves alone although the chart may not have it.
pub fn is_kept(object: &Value) -> bool {
    matches!(
        called(object).as_str(),
        "Secret weft-system/weft-ca" | "ConfigMap weft-system/weft-ca" | "ConfigMap weft-system/weft-install"
    )
}

/// All objects of ours, of every kind that the chart can have.
pub async fn ours(server: &Server) -> Result<Vec<Value>, Failure> {
    listed(server, OURS).await
}

/// All objects of Weft's, whoever installed them.
pub async fn wefts(server: &Server) -> Result<Vec<Value>, Failure> {
    listed(server, WEFTS).await
}

async fn listed(server: &Server, query: &str) -> Result<Vec<Value>, Failure> {
    let mut found = Vec::new();
    for kind in KINDS {
        let path = kind.path(Some(NAMESPACE));
        found.extend(server.list(&path, query).await.map_err(failed(kind.plural))?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_an_installation_is_stands_on_its_objects() {
        let by = |who: &str| {
            json!({"kind": "Deployment", "metadata": {"name": "weft-control", "labels": {"app.kubernetes.io/managed-by": who},
            "annotations": {"meta.helm.sh/release-name": "mesh"}}})
        };
        let record = |complete: &str| json!({"data": {"version": "0.1.0", "complete": complete, "values": "{\"image\":{\"registry\":\"a/b\"}}"}});
        let of = |record: Option<&Value>, objects: &[Value]| State::of(record, objects.iter());
        assert_eq!(of(None, &[]), State::Nothing);
        assert_eq!(of(None, &[by("weft")]), State::Begun);
        assert_eq!(of(Some(&record("false")), &[by("weft")]), State::Begun);
        assert_eq!(of(None, &[by("Helm")]), State::Helm { release: "mesh".to_owned() });
        assert_eq!(of(Some(&record("true")), &[by("Helm")]), State::Helm { release: "mesh".to_owned() });
        assert_eq!(of(None, &[by("someone")]), State::Foreign { what: "Deployment weft-control".to_owned() });
        let values = json!({"image": {"registry": "a/b"}});
        assert_eq!(of(Some(&record("true")), &[by("weft")]), State::Ours { version: "0.1.0".to_owned(), values });
    }
}
