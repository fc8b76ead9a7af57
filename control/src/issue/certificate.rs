//! A certificate of the mesh that is still valid: how proxies renew. The handshake has verified its chain; here only the clock is looked
//! at, because a connection may outlive it.
//!
//! One that was issued to a pod proves that pod and no other, and only while it is there: who has copied the key of a pod that is gone
//! cannot keep it alive. One of another CA ([`crate::svid_roots`]) proves nothing.

use std::ops::Deref;
use std::time::SystemTime;

use weft_engine::identity::Identity;

use super::{Cause, Method, Pod, Proof, Refusal};
use crate::auth::Proved;
use crate::model::{Model, Name};

/// Whom the connection's certificate proves; nobody once it has run out.
pub fn prove<M: Deref<Target = Model>>(
    proved: Option<&Proved>,
    now: SystemTime,
    model: impl FnOnce() -> Option<M>,
) -> Option<Result<Proof, Refusal>> {
    let Proved { identity, pod, further, .. } = proved.filter(|proved| now < proved.not_after)?;
    let proof = |pod| Proof { identity: identity.clone(), method: Method::Certificate, pod, once: None, token: None };
    if *further {
        let message = "the certificate comes from another CA (--svid-roots), which proves nothing here; show a token";
        return Some(Err(Refusal::new(Cause::OtherCa, message).after(&proof(None))));
    }
    let Some(uid) = pod else { return Some(Ok(proof(None))) };
    let found = live(identity, uid, model);
    Some(found.map(|pod| proof(Some(pod))).map_err(|refusal| refusal.after(&proof(None))))
}

/// The pod of this uid, as long as it is there and runs as that service account.
fn live<M: Deref<Target = Model>>(
    identity: &Identity,
    uid: &str,
    model: impl FnOnce() -> Option<M>,
) -> Result<Pod, Refusal> {
    let message = "control has not read its sources yet, so no pod is known; try again";
    let model = model().ok_or_else(|| Refusal::new(Cause::Unavailable, message))?;
    let from = Name::new(&*identity.namespace, "");
    let mut pods = model.workloads.range(from..).take_while(|(name, _)| *name.namespace == *identity.namespace);
    match pods.find(|(_, pod)| pod.uid == uid) {
        Some((name, pod)) if *pod.service_account == *identity.service_account => {
            Ok(Pod { name: name.clone(), uid: uid.to_owned() })
        }
        Some((name, _)) => Err(Refusal::new(
            Cause::ServiceAccount,
            format!("pod {name} runs as another service account than its certificate says"),
        )),
        None => {
            Err(Refusal::new(Cause::PodUnknown, format!("the pod {uid} that the certificate was issued to is gone")))
        }
    }
}
