//! An API server in memory: as much of one as the CA's Secret and Leases need, with its rules about versions and owners. It can
//! be away, and lose the answer to a write that it has done.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// What it holds.
#[derive(Debug, Default)]
pub struct Cluster {
    /// By path.
    objects: BTreeMap<String, Value>,
    /// Keys of `data` that were applied, by path; others belong to others.
    applied: BTreeMap<String, BTreeSet<String>>,
    revision: u64,
    /// It does not answer at all.
    pub away: bool,
    /// It lets nobody write a status.
    pub refuses_status: bool,
    /// After so many more writes, one is done and answered with an error.
    pub lost: Option<usize>,
    /// Questions that it was asked: method, path, and whether its cache was enough.
    pub asked: Vec<(Method, String, bool)>,
}

pub type Shared = Arc<Mutex<Cluster>>;

/// A client of it; to be called on a runtime.
pub fn client(cluster: &Shared) -> Client {
    let cluster = Arc::clone(cluster);
    let service = tower::service_fn(move |request: Request<Body>| {
        let cluster = Arc::clone(&cluster);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let kind = head.headers.get("content-type").map_or("", |kind| kind.to_str().unwrap()).to_owned();
            let query = head.uri.query().unwrap_or_default().to_owned();
            let (status, answer) = cluster.lock().answer(&head.method, head.uri.path(), &query, &kind, &body);
            Ok::<_, Infallible>(
                Response::builder().status(status).body(Body::from(answer.to_string().into_bytes())).unwrap(),
            )
        }
    });
    Client::new(service, "default")
}

fn failure(code: u16, reason: &str) -> (u16, Value) {
    let message = format!("it is so: {reason}");
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code}),
    )
}

impl Cluster {
    /// Removes an object, as somebody would by mistake.
    pub fn remove(&mut self, path: &str) {
        assert!(self.objects.remove(path).is_some(), "{path}");
        self.applied.remove(path);
    }

    /// Puts an object there as somebody else would.
    pub fn put(&mut self, path: &str, mut object: Value) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.objects.insert(path.to_owned(), object);
    }

    pub fn get(&self, path: &str) -> Option<&Value> {
        self.objects.get(path)
    }

    pub fn count(&self, under: &str) -> usize {
        self.objects.keys().filter(|path| path.starts_with(under)).count()
    }

    fn answer(&mut self, method: &Method, path: &str, query: &str, kind: &str, body: &[u8]) -> (u16, Value) {
        self.asked.push((method.clone(), path.to_owned(), query.contains("resourceVersion=0")));
        if self.away {
            return failure(503, "Away");
        }
        // /api/v1/namespaces/NS/KIND[/NAME]
        let is_collection = path.split_once("/namespaces/").unwrap().1.split('/').count() == 2;
        let parsed = || serde_json::from_slice::<Value>(body).unwrap();
        if let Some(path) = path.strip_suffix("/status") {
            if self.refuses_status {
                return failure(403, "Forbidden");
            }
            return self.apply_status(path, &serde_json::from_slice(body).unwrap());
        }
        let (status, answer) = match (method.as_str(), is_collection) {
            ("GET", false) => {
                return self.objects.get(path).map_or_else(|| failure(404, "NotFound"), |found| (200, found.clone()));
            }
            ("GET", true) => return (200, json!({"metadata": {}, "items": self.selected(path, query)})),
            ("POST", true) => self.create(path, parsed()),
            ("PATCH", false) if kind.contains("apply-patch") => self.apply(path, parsed()),
            ("PATCH", false) => self.merge(path, &parsed()),
            ("PUT", false) => self.replace(path, parsed()),
            ("DELETE", true) => self.remove_selected(path, query),
            ("DELETE", false) => self.remove_seen(path, &parsed()),
            other => panic!("{other:?} {path}"),
        };
        self.lost = match self.lost {
            Some(0) => {
                self.lost = None;
                return failure(500, "Lost");
            }
            more => more.map(|more| more - 1),
        };
        (status, answer)
    }

    fn selected(&self, path: &str, query: &str) -> Vec<Value> {
        let selector = query.split('&').find_map(|part| part.strip_prefix("labelSelector=")).unwrap_or_default();
        let selector = selector.replace("%2F", "/").replace("%3D", "=");
        let (label, wanted) =
            selector.split_once('=').map_or((&*selector, None), |(label, value)| (label, Some(value)));
        let is_wanted = |object: &&Value| {
            let found = object["metadata"]["labels"][label].as_str();
            found.is_some() && wanted.is_none_or(|wanted| found == Some(wanted))
        };
        let under = format!("{path}/");
        self.objects
            .iter()
            .filter(|(at, _)| at.starts_with(&under))
            .map(|(_, object)| object)
            .filter(is_wanted)
            .cloned()
            .collect()
    }

    fn remove_selected(&mut self, path: &str, query: &str) -> (u16, Value) {
        for object in self.selected(path, query) {
            self.objects.remove(&format!("{path}/{}", object["metadata"]["name"].as_str().unwrap()));
        }
        (200, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
    }

    fn remove_seen(&mut self, path: &str, options: &Value) -> (u16, Value) {
        match self.version(path) {
            None => failure(404, "NotFound"),
            Some(version) if *version != options["preconditions"]["resourceVersion"] => failure(409, "Conflict"),
            Some(_) => self.objects.remove(path).map_or_else(|| failure(404, "NotFound"), |object| (200, object)),
        }
    }

    fn create(&mut self, path: &str, object: Value) -> (u16, Value) {
        let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
        if self.objects.contains_key(&path) {
            return failure(409, "AlreadyExists");
        }
        self.put(&path, object);
        (201, self.objects[&path].clone())
    }

    fn replace(&mut self, path: &str, object: Value) -> (u16, Value) {
        match self.version(path) {
            None => failure(404, "NotFound"),
            Some(version) if *version != object["metadata"]["resourceVersion"] => failure(409, "Conflict"),
            Some(_) => {
                self.put(path, object);
                (200, self.objects[path].clone())
            }
        }
    }

    fn version(&self, path: &str) -> Option<&Value> {
        self.objects.get(path).map(|object| &object["metadata"]["resourceVersion"])
    }

    fn apply(&mut self, path: &str, object: Value) -> (u16, Value) {
        let seen = &object["metadata"]["resourceVersion"];
        if !seen.is_null() && self.version(path) != Some(seen) {
            return failure(409, "Conflict");
        }
        let keys =
            |object: &Value| object["data"].as_object().map(|data| data.keys().cloned().collect()).unwrap_or_default();
        let now: BTreeSet<String> = keys(&object);
        let before = self.applied.insert(path.to_owned(), now.clone()).unwrap_or_default();
        let mut merged = object;
        if let Some(found) = self.objects.get(path) {
            for other in keys(found).difference(&before).filter(|other| !now.contains(*other)) {
                merged["data"][other] = found["data"][other].clone();
            }
        }
        self.put(path, merged);
        (200, self.objects[path].clone())
    }

    /// Lists in a status are atomic: what is applied is what is there.
    fn apply_status(&mut self, path: &str, change: &Value) -> (u16, Value) {
        let Some(mut object) = self.objects.get(path).cloned() else { return failure(404, "NotFound") };
        if self.version(path) != Some(&change["metadata"]["resourceVersion"]) {
            return failure(409, "Conflict");
        }
        object["status"] = change["status"].clone();
        self.put(path, object);
        (200, self.objects[path].clone())
    }

    fn merge(&mut self, path: &str, change: &Value) -> (u16, Value) {
        let Some(mut object) = self.objects.get(path).cloned() else { return failure(404, "NotFound") };
        let seen = &change["metadata"]["resourceVersion"];
        if !seen.is_null() && self.version(path) != Some(seen) {
            return failure(409, "Conflict");
        }
        for (key, value) in change["data"].as_object().unwrap() {
            match value {
                Value::Null => drop(object["data"].as_object_mut().unwrap().remove(key)),
                value => object["data"][key] = value.clone(),
            }
        }
        self.put(path, object);
        (200, self.objects[path].clone())
    }
}
