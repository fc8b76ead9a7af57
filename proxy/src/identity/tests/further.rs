//! Roots of our own trust domain that are not its CA's.

use bytes::Bytes;
use weft_certs::tls::{certificates, leads_to};

use super::*;

/// Control may say that peers come with certificates of another CA, and the Workload API that ours comes from has roots of its own; neither
/// speaks for control.
#[test]
fn further_roots_are_for_peers_and_never_for_control() {
    let [given, further, agent] = [(); 3].map(|()| fake(SystemTime::now, &[]).ca);
    let trust = trusting(&given);
    let root = |ca: &Ca| Bytes::copy_from_slice(&certificates(ca.root_pem()).unwrap()[0]);
    let told = weft_api::convert::Trust {
        bundles: [(Arc::from("cluster.local"), vec![root(&given)])].into(),
        own: "cluster.local".into(),
        aliases: Vec::new(),
        svid_roots: vec![root(&further)],
    };
    trust.tell(&told).unwrap();
    trust.agent(agent.roots().clone());
    let (now, believed) = (SystemTime::now(), trust.now());
    let leads = |ca: &Ca, roots: &Roots| {
        let chain = ca.issue(&KeyPair::generate().unwrap().csr(&web()).unwrap(), &web(), HOUR, now).unwrap().concat();
        leads_to(&certificates(&chain).unwrap(), roots, "cluster.local", now)
    };
    for (ca, to_control) in [(&given, true), (&further, false), (&agent, false)] {
        assert!(leads(ca, &believed.peers));
        assert_eq!(leads(ca, &believed.control), to_control);
    }
    // Until control says otherwise.
    trust.tell(&weft_api::convert::Trust { svid_roots: Vec::new(), ..told }).unwrap();
    assert!(!leads(&further, &trust.now().peers) && leads(&agent, &trust.now().peers));
}
