//! The API server, as these commands ask it: plain paths and JSON, a bounded wait for each answer.

use std::time::Duration;

use http::{Method, Request};
use serde_json::Value;
use weft_control::cluster::{Access, ClusterError, ask};

use super::kinds::Kind;
use crate::exit::Failure;

/// Who owns the fields that we apply.
const MANAGER: &str = "weft";
/// Objects in one answer of a list.
const PAGE: usize = 500;

/// Longer than the longest timeout of a webhook.
const WEBHOOKS: Duration = Duration::from_secs(35);

/// The API server.
#[derive(Clone)]
pub struct Server {
    client: kube::Client,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl Server {
    /// Connects when it is first asked.
    ///
    /// # Errors
    /// What was told of it is of no use.
    pub async fn new(access: &Access) -> Result<Self, Failure> {
        let client = access.client().await.map_err(|error| Failure::here(error.to_string()))?;
        Ok(Self { client })
    }

    /// Asks.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClusterError> {
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header("content-type", kind).body(body);
        let request = request.map_err(|error| ClusterError::Setup(error.to_string()))?;
        ask(self.client.request::<Value>(request)).await
    }

    /// The same where the API server has to ask a webhook, which it does for 30 s at most; in words if it fails.
    pub async fn ask_through_webhooks(&self, path: &str, body: &Value) -> Result<Value, String> {
        let request =
            Request::post(path).header("content-type", "application/json").body(body.to_string().into_bytes());
        let request = request.map_err(|error| error.to_string())?;
        match tokio::time::timeout(WEBHOOKS, self.client.request::<Value>(request)).await {
            Ok(answer) => answer.map_err(|error| ClusterError::Refused(Box::new(error)).to_string()),
            Err(_) => Err(format!("the Kubernetes API server did not answer within {} s", WEBHOOKS.as_secs())),
        }
    }

    /// What is at a path; nothing where there is nothing.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, ClusterError> {
        absent(self.ask(Method::GET, path, "application/json", None).await)
    }

    /// What is at a path, as text.
    pub async fn text(&self, path: &str) -> Result<String, ClusterError> {
        let request = Request::get(path).body(Vec::new()).map_err(|error| ClusterError::Setup(error.to_string()))?;
        ask(self.client.request_text(request)).await
    }

    /// All that a path lists, page by page; nothing where the kind is not installed.
    pub async fn list(&self, path: &str, query: &str) -> Result<Vec<Value>, ClusterError> {
        let (mut found, mut next) = (Vec::new(), String::new());
        loop {
            let page = format!("{path}?limit={PAGE}&{query}&continue={next}");
            let Some(mut list) = self.get(&page).await? else { return Ok(found) };
            let (kind, version) = (list["kind"].clone(), list["apiVersion"].clone());
            let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
            found.extend(items.into_iter().map(|mut item| {
                // A list does not say it of each.
                item["kind"] = kind.as_str().unwrap_or_default().trim_end_matches("List").into();
                item["apiVersion"] = version.clone();
                item
            }));
            match list["metadata"]["continue"].as_str() {
                Some(more) if !more.is_empty() => more.clone_into(&mut next),
                _ => return Ok(found),
            }
        }
    }

    /// Applies an object, by server-side apply; what others have written into it stays.
    pub async fn apply(&self, kind: &Kind, object: &Value) -> Result<Value, ClusterError> {
        let path = format!("{}?fieldManager={MANAGER}&force=true", kind.path_of(object));
        self.ask(Method::PATCH, &path, "application/apply-patch+yaml", Some(object)).await
    }

    /// Removes what is at a path, and what belongs to it; says whether there was something.
    pub async fn delete(&self, path: &str) -> Result<bool, ClusterError> {
        let options = serde_json::json!({"propagationPolicy": "Background"});
        let gone = self.ask(Method::DELETE, path, "application/json", Some(&options)).await;
        absent(gone).map(|found| found.is_some())
    }
}

fn absent(answer: Result<Value, ClusterError>) -> Result<Option<Value>, ClusterError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// One sentence for people: whom what was asked, and what came.
pub fn failed(what: &str) -> impl FnOnce(ClusterError) -> Failure {
    move |error| {
        let advice = match error.status() {
            Some(401 | 403) => "; `weft check --pre` lists the rights that are needed",
            _ => "",
        };
        Failure::here(format!("{what}: {error}{advice}"))
    }
}
