//! The CA in a Kubernetes Secret, shared by all replicas of control.
//!
//! ```text
//! Secret NAMESPACE/NAME      type `weft.dev/ca`: the CA's files (see `weft_certs::ca::store`)
//! ConfigMap NAMESPACE/NAME   `root.pem`: the roots that are published, for people and new proxies
//! ```
//!
//! Invariants
//! - Every change is a server-side apply at the `resourceVersion` that was seen: of two that change it, one is refused. It is made empty by
//!   POST, unless somebody has made it empty beforehand, and filled in the same way.
//! - What is gone is not made anew: the ConfigMap says that there was one.
//! - While the API server is away, what was read serves on: nothing here is asked when a certificate is issued.
//! - The looks of each second are answered from the API server's cache, and carry no secret.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{GetParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::runtime::{Handle, Runtime};
use weft_certs::ca::store::{Content, Held, MAX_BYTES, Store, Version, is_ours};
use weft_certs::ca::{CaError, Home};

use crate::cluster::{Access, ClusterError, FIELD_MANAGER, MANAGED_BY, QUESTION, ask};

/// Type of the Secret: no other is touched.
const TYPE: &str = "weft.dev/ca";
/// Key of the ConfigMap.
const ROOT: &str = "root.pem";
/// How often one goes on when somebody else was faster.
const ATTEMPTS: usize = 5;

/// `NAMESPACE/NAME` of the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for SecretName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let label = |part: &str, dots: bool| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let sound = part.bytes().all(|byte| inner(byte) || byte == b'-' || (dots && byte == b'.'));
            let ends = part.bytes().next().is_some_and(inner) && part.bytes().last().is_some_and(inner);
            sound && ends && part.len() <= if dots { 253 } else { 63 }
        };
        match text.split_once('/') {
            Some((namespace, name)) if label(namespace, false) && label(name, true) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("`{text}` is no NAMESPACE/NAME of a Secret, such as weft-system/weft-ca")),
        }
    }
}

/// Asks the API server from threads that may block.
#[derive(Clone)]
pub struct Blocking {
    /// Who is asked.
    pub client: Client,
    runtime: Handle,
    // Of who has none of his own.
    _own: Option<Arc<Runtime>>,
}

impl fmt::Debug for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blocking")
    }
}

impl Blocking {
    /// On a runtime that has workers beside the thread that asks.
    pub fn new(client: Client, runtime: Handle) -> Self {
        Self { client, runtime, _own: None }
    }

    /// With a runtime of its own.
    ///
    /// # Errors
    /// [`ClusterError::Setup`].
    pub fn alone(access: &Access) -> Result<Self, ClusterError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| ClusterError::Setup(error.to_string()))?;
        let client = runtime.block_on(access.client())?;
        Ok(Self { client, runtime: runtime.handle().clone(), _own: Some(Arc::new(runtime)) })
    }

    /// Asks, and waits for the answer.
    pub fn ask<T: Send + 'static>(
        &self,
        question: impl Future<Output = kube::Result<T>> + Send + 'static,
    ) -> Result<T, ClusterError> {
        let (tell, told) = sync_channel(1);
        self.runtime.spawn(async move {
            let _ = tell.send(ask(question).await);
        });
        // Longer than `ask` takes: it ends this way only if the runtime does nothing any more.
        told.recv_timeout(QUESTION + Duration::from_secs(1)).unwrap_or(Err(ClusterError::Slow))
    }
}

/// What to do about an error of the API server.
fn advice(error: &ClusterError) -> &'static str {
    match error.status() {
        Some(401) => "it does not take our token: see --kubernetes-token",
        Some(403) => "give who asks the Role of docs/identity.md, \"The CA in a Secret\"",
        Some(404) => "make the namespace first",
        _ => "see that it runs and can be reached from here (--kubernetes-api, --kubernetes-ca)",
    }
}

fn failed(action: &'static str, place: String) -> impl FnOnce(ClusterError) -> CaError {
    move |error| {
        if error.is_conflict() {
            CaError::Conflict
        } else {
            CaError::Home { action, place, why: format!("{error}; {}", advice(&error)) }
        }
    }
}

/// A Secret, and the ConfigMap of the same name.
#[derive(Clone, Debug)]
pub struct SecretHome {
    name: SecretName,
    asking: Blocking,
}

impl SecretHome {
    /// Nothing is asked yet.
    pub fn new(name: SecretName, asking: Blocking) -> Self {
        Self { name, asking }
    }

    /// For who opens a CA.
    pub fn home(self) -> Home {
        Home::from(Arc::new(self) as Arc<dyn Store>)
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.asking.client.clone(), &self.name.namespace)
    }

    fn copies(&self) -> Api<ConfigMap> {
        Api::namespaced(self.asking.client.clone(), &self.name.namespace)
    }

    fn get(&self) -> Result<Option<Secret>, CaError> {
        let (secrets, name) = (self.secrets(), self.name.name.clone());
        let found = self.asking.ask(async move { secrets.get_opt(&name).await }).map_err(self.failed("read"))?;
        match found {
            Some(Secret { type_: Some(other), .. }) if other != TYPE => Err(CaError::Home {
                action: "use",
                place: self.place(),
                why: format!("its type is `{other}`, not `{TYPE}`; name another one"),
            }),
            found => Ok(found),
        }
    }

    fn get_copy(&self) -> Result<Option<ConfigMap>, CaError> {
        let (copies, name) = (self.copies(), self.name.name.clone());
        self.asking.ask(async move { copies.get_opt(&name).await }).map_err(self.failed_copy("read"))
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(ClusterError) -> CaError {
        failed(action, self.place())
    }

    fn failed_copy(&self, action: &'static str) -> impl FnOnce(ClusterError) -> CaError {
        failed(action, format!("the ConfigMap {}", self.name))
    }

    /// `cached`: as the API server remembers it, which costs it nothing.
    fn look(&self, cached: bool) -> Result<Option<Version>, CaError> {
        let (secrets, name) = (self.secrets(), self.name.name.clone());
        let at = if cached { GetParams::any() } else { GetParams::default() };
        let found = self.asking.ask(async move { secrets.get_metadata_opt_with(&name, &at).await });
        Ok(found.map_err(self.failed("look at"))?.map(|found| version(&found.metadata)))
    }

    fn metadata(&self, at: Option<&Version>) -> ObjectMeta {
        let (label, value) = MANAGED_BY;
        ObjectMeta {
            name: Some(self.name.name.clone()),
            namespace: Some(self.name.namespace.clone()),
            labels: Some(BTreeMap::from([(label.to_owned(), value.to_owned())])),
            resource_version: at.map(|at| at.0.clone()),
            ..ObjectMeta::default()
        }
    }

    fn apply(&self, seen: &Version, files: &Content) -> Result<Secret, CaError> {
        let data = files.iter().map(|(name, bytes)| (name.clone(), ByteString(bytes.clone()))).collect();
        let secret = Secret {
            metadata: self.metadata(Some(seen)),
            type_: Some(TYPE.to_owned()),
            data: Some(data),
            ..Secret::default()
        };
        let (secrets, name) = (self.secrets(), self.name.name.clone());
        let applied = self.asking.ask(async move { secrets.patch(&name, &applying(), &Patch::Apply(&secret)).await });
        applied.map_err(self.failed("change"))
    }

    /// What is there and ours, and is not named any more. An apply leaves what somebody else has put there too, such as a root's key
    /// that was put back by hand.
    fn remove(&self, from: &Secret, named: &Content) -> Result<Option<Version>, CaError> {
        let gone: BTreeMap<_, _> =
            names(from).filter(|name| !named.contains_key(*name)).map(|name| (name, None::<()>)).collect();
        if gone.is_empty() {
            return Ok(None);
        }
        let change = serde_json::json!({
            "metadata": {"resourceVersion": from.metadata.resource_version},
            "data": gone,
        });
        let (secrets, name) = (self.secrets(), self.name.name.clone());
        let changed = self.asking.ask(async move { secrets.patch(&name, &writing(), &Patch::Merge(&change)).await });
        match changed.map_err(self.failed("remove old keys from")) {
            Ok(changed) => Ok(Some(version(&changed.metadata))),
            // Somebody has gone on already, and removes them too.
            Err(CaError::Conflict) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The Secret without a CA in it.
    fn make_empty(&self) -> Result<Version, CaError> {
        let secret = Secret { metadata: self.metadata(None), type_: Some(TYPE.to_owned()), ..Secret::default() };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let secrets = self.secrets();
        let made = self.asking.ask(async move { secrets.create(&params, &secret).await });
        made.map(|made| version(&made.metadata)).map_err(self.failed("make"))
    }

    fn put_copy(&self, over: Option<&ConfigMap>, roots: &str) -> Result<(), CaError> {
        let at = over.map(|copy| version(&copy.metadata));
        let copy = ConfigMap {
            metadata: self.metadata(at.as_ref()),
            data: Some(BTreeMap::from([(ROOT.to_owned(), roots.to_owned())])),
            ..ConfigMap::default()
        };
        let (copies, name, is_new) = (self.copies(), self.name.name.clone(), over.is_none());
        let put = self.asking.ask(async move {
            if is_new {
                let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                copies.create(&params, &copy).await
            } else {
                copies.patch(&name, &applying(), &Patch::Apply(&copy)).await
            }
        });
        put.map(drop).map_err(self.failed_copy("write"))
    }
}

impl Store for SecretHome {
    fn place(&self) -> String {
        format!("the Secret {}", self.name)
    }

    fn part(&self, file: &str) -> String {
        format!("{file} of the Secret {}", self.name)
    }

    fn version(&self) -> Result<Option<Version>, CaError> {
        match self.look(true)? {
            Some(seen) => Ok(Some(seen)),
            // Its memory may be older than the Secret.
            None => self.look(false),
        }
    }

    fn read(&self) -> Result<Option<Held>, CaError> {
        let Some(secret) = self.get()?.filter(|secret| names(secret).next().is_some()) else { return Ok(None) };
        let version = version(&secret.metadata);
        let data = secret.data.unwrap_or_default();
        if data.values().map(|bytes| bytes.0.len()).sum::<usize>() > MAX_BYTES {
            return Err(CaError::Damaged { place: self.place(), what: format!("it is over {MAX_BYTES} bytes") });
        }
        let files = data.into_iter().filter(|(name, _)| is_ours(name)).map(|(name, bytes)| (name, bytes.0)).collect();
        Ok(Some(Held { version, files }))
    }

    fn create(&self, files: &Content) -> Result<(), CaError> {
        if self.get_copy()?.is_some_and(|copy| roots_of(&copy).is_some()) {
            return Err(match self.read()? {
                Some(_) => CaError::Conflict,
                None => CaError::Gone(format!(
                    "{}, whose roots are in the ConfigMap of that name (remove that too for a new CA),",
                    self.place()
                )),
            });
        }
        for _ in 0..ATTEMPTS {
            let empty = match self.get()? {
                Some(secret) if names(&secret).next().is_some() => return Err(CaError::Conflict),
                Some(secret) => version(&secret.metadata),
                None => match self.make_empty() {
                    // Somebody has just made it, and may have filled it.
                    Err(CaError::Conflict) => continue,
                    made => made?,
                },
            };
            return self.apply(&empty, files).map(drop);
        }
        Err(CaError::Conflict)
    }

    fn replace(&self, seen: &Version, files: &Content) -> Result<Version, CaError> {
        let applied = self.apply(seen, files)?;
        Ok(self.remove(&applied, files)?.unwrap_or_else(|| version(&applied.metadata)))
    }

    fn publish(&self, seen: &Version, roots: &str) -> Result<(), CaError> {
        for _ in 0..ATTEMPTS {
            let copy = self.get_copy()?;
            if copy.as_ref().and_then(roots_of) == Some(roots) {
                return Ok(());
            }
            // Looked at after the copy was read: whoever has gone on since then has put his own, or meets this one and tries again.
            if self.look(false)?.as_ref() != Some(seen) {
                return Ok(());
            }
            match self.put_copy(copy.as_ref(), roots) {
                Err(CaError::Conflict) => {}
                put => return put,
            }
        }
        Err(CaError::Conflict)
    }
}

fn applying() -> PatchParams {
    // By force: what the fields say is ours alone to say.
    PatchParams::apply(FIELD_MANAGER).force()
}

fn writing() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

fn version(metadata: &ObjectMeta) -> Version {
    Version(metadata.resource_version.clone().unwrap_or_default())
}

/// Names of the CA's files in it.
fn names(secret: &Secret) -> impl Iterator<Item = &str> {
    secret.data.iter().flatten().map(|(name, _)| name.as_str()).filter(|name| is_ours(name))
}

fn roots_of(copy: &ConfigMap) -> Option<&str> {
    copy.data.as_ref()?.get(ROOT).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::SecretName;

    #[test]
    fn secrets_are_named_whole() {
        let name: SecretName = "weft-system/weft-ca.v2".parse().unwrap();
        assert_eq!(name.to_string(), "weft-system/weft-ca.v2");
        for bad in ["weft-ca", "/weft-ca", "weft-system/", "a/b/c", "A/b", "a.b/c", "a/-b", "a/..", ""] {
            assert!(bad.parse::<SecretName>().unwrap_err().contains("weft-system/weft-ca"), "{bad}");
        }
    }
}
