//! How a copy is read and written. Each is written by server-side apply, over exactly what was seen.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use super::view::{Held, Owner, Place, Told};
use super::{KEY, Roots};
use crate::cluster::{ClusterError, FIELD_MANAGER, MANAGED_BY, ask};

/// Which revision of the CA a copy is of.
const REVISION: &str = "weft.dev/ca-revision";

/// Asks the API server.
pub(super) struct Writer {
    client: Client,
    configmap: String,
}

impl Writer {
    /// For ConfigMaps of this name.
    pub(super) fn new(client: Client, configmap: String) -> Self {
        Self { client, configmap }
    }

    /// Writes a copy over what was seen of it.
    pub(super) async fn write(
        &self,
        place: &Place,
        seen: Option<&Held>,
        owner: Option<&Owner>,
        roots: &Roots,
    ) -> Result<Held, ClusterError> {
        match (place, seen) {
            (Place::Namespace(namespace), None) => self.make_map(namespace, owner, roots).await,
            (Place::Namespace(namespace), Some(seen)) => self.apply_map(namespace, seen, owner, roots).await,
            (Place::Webhook(name), seen) => self.apply_webhook(name, seen, roots).await,
        }
    }

    async fn make_map(&self, namespace: &str, owner: Option<&Owner>, roots: &Roots) -> Result<Held, ClusterError> {
        let metadata = ObjectMeta {
            name: Some(self.configmap.clone()),
            labels: Some([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())].into()),
            annotations: Some([(REVISION.to_owned(), roots.revision.to_string())].into()),
            owner_references: owner.map(|owner| vec![reference(owner)]),
            ..ObjectMeta::default()
        };
        let data = Some([(KEY.to_owned(), roots.pem.clone())].into());
        let map = ConfigMap { metadata, data, ..ConfigMap::default() };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        ask(maps.create(&params, &map)).await.map(|made| map_says(&made))
    }

    async fn apply_map(
        &self,
        namespace: &str,
        seen: &Held,
        owner: Option<&Owner>,
        roots: &Roots,
    ) -> Result<Held, ClusterError> {
        let mut metadata = metadata(&self.configmap, &seen.version, roots);
        if let Some(owner) = owner {
            metadata["ownerReferences"] = json!([reference(owner)]);
        }
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": { KEY: roots.pem } });
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        ask(maps.patch(&self.configmap, &applied(), &Patch::Apply(map))).await.map(|written| map_says(&written))
    }

    async fn apply_webhook(&self, name: &str, seen: Option<&Held>, roots: &Roots) -> Result<Held, ClusterError> {
        let configurations = self.webhooks();
        let found = ask(configurations.get(name)).await?;
        let version = seen.map(|seen| seen.version.clone()).or_else(|| found.resource_version()).unwrap_or_default();
        // Bytes are base64 in JSON, as the library writes them.
        let bundle = k8s_openapi::ByteString(roots.pem.clone().into_bytes());
        let hooks = found.webhooks.unwrap_or_default();
        let hooks = hooks.iter().map(|hook| json!({ "name": hook.name, "clientConfig": { "caBundle": bundle } }));
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": metadata(name, &version, roots),
            "webhooks": hooks.collect::<Vec<_>>(),
        });
        let written = ask(configurations.patch(name, &applied(), &Patch::Apply(configuration))).await?;
        Ok(webhook_says(&written))
    }

    /// What a webhook configuration has, and what ConfigMaps that go with it name; `None` if there is none, or no webhook in it.
    pub(super) async fn webhook(&self, name: &str) -> Result<Option<(Held, Owner)>, ClusterError> {
        let found = ask(self.webhooks().get_opt(name)).await?;
        let found = found.filter(|found| found.webhooks.as_ref().is_some_and(|hooks| !hooks.is_empty()));
        Ok(found.map(|found| {
            let owner = Owner { name: found.name_any(), uid: found.uid().unwrap_or_default() };
            (webhook_says(&found), owner)
        }))
    }

    fn webhooks(&self) -> Api<MutatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }
}

/// Over whatever owns these fields: they are ours.
fn applied() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

fn metadata(name: &str, version: &str, roots: &Roots) -> Value {
    json!({
        "name": name,
        "resourceVersion": version,
        "labels": { MANAGED_BY.0: MANAGED_BY.1 },
        "annotations": { REVISION: roots.revision.to_string() },
    })
}

/// Its deletion does not wait for what it owns.
fn reference(owner: &Owner) -> OwnerReference {
    OwnerReference {
        api_version: "admissionregistration.k8s.io/v1".to_owned(),
        kind: "MutatingWebhookConfiguration".to_owned(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        ..OwnerReference::default()
    }
}

/// Its version, what it holds, and whose it is.
pub(super) fn map_says(map: &ConfigMap) -> Held {
    let pem = map.data.as_ref().and_then(|data| data.get(KEY)).map_or("", String::as_str);
    says(map, xxh3_128(pem.as_bytes()))
}

/// The same of a webhook configuration. If its webhooks differ, what they hold is nothing that is wanted.
fn webhook_says(configuration: &MutatingWebhookConfiguration) -> Held {
    let hooks = configuration.webhooks.as_deref().unwrap_or_default();
    let bundles = hooks.iter().map(|hook| hook.client_config.ca_bundle.as_ref().map_or(&[][..], |bundle| &bundle.0));
    let mut digests = bundles.map(xxh3_128);
    let first = digests.next().unwrap_or_default();
    says(configuration, if digests.all(|digest| digest == first) { first } else { 0 })
}

fn says(object: &impl kube::ResourceExt, digest: u128) -> Held {
    let revision = object.annotations().get(REVISION).and_then(|revision| revision.parse().ok()).unwrap_or_default();
    let owner = object.owner_references().iter().find(|owner| owner.kind == "MutatingWebhookConfiguration");
    Held {
        version: object.resource_version().unwrap_or_default(),
        told: Told { digest, revision },
        owner: owner.map(|owner| owner.uid.clone()),
    }
}
