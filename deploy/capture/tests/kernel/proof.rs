//! What a pod proves of its own capture, and what it finds.

use crate::pod::{Pod, WAIT, inside};
use libtest_mimic::Failed;
use std::net::TcpStream;
use std::time::Duration;
use weft_capture::rules::{Capture, install, remove};
use weft_capture::settings::Settings;
use weft_capture::validate::{Error, Proved, validate};

/// What this pod proves of itself, without any right.
fn prove(pod: &Pod, settings: &Settings, wait: Duration) -> Result<Proved, Error> {
    inside(&pod.net, || {
        let none = rustix::thread::CapabilitySet::empty();
        let none = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, none).unwrap();
        validate(settings, wait)
    })
}

/// Every way on which these settings differ from the rules is found.
pub fn proves(v6: bool) -> Result<(), Failed> {
    let pod = Pod::new(v6);
    let wanted = Settings { dns_port: Some(15053), exclude_inbound_ports: vec![9100], ..Settings::default() };
    let fails = |rules: Option<Settings>, part: &str| {
        inside(&pod.net, || rules.map_or_else(remove, |rules| install(&Capture::from(&rules))).unwrap());
        let error = prove(&pod, &wanted, Duration::ZERO).unwrap_err();
        assert!(matches!(error, Error::NotCaptured(_)) && error.to_string().contains(part), "{part}: {error}");
    };
    fails(None, "a connection to");
    fails(Some(Settings { outbound_port: 15002, ..wanted.clone() }), "did not come to port 15001");
    fails(Some(Settings { inbound_port: 15007, ..wanted.clone() }), "from elsewhere");
    fails(Some(Settings { dns_port: None, ..wanted.clone() }), "by UDP");
    inside(&pod.net, || install(&Capture::from(&wanted)).unwrap());
    let proved = prove(&pod, &wanted, Duration::ZERO).map_err(|error| error.to_string())?.to_string();
    assert_eq!(proved.split(';').count(), 4, "{proved}");

    let taken = pod.listen(15006);
    let error = prove(&pod, &wanted, Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("port 15006"), "{error}");
    drop(taken);
    // As the sidecar nothing could be seen.
    let sidecar = Settings { uid: rustix::process::geteuid().as_raw(), ..wanted };
    assert!(matches!(prove(&pod, &sidecar, Duration::ZERO), Err(Error::Cannot(_))));
    Ok(())
}

pub fn what_is_repaired_meanwhile_passes() -> Result<(), Failed> {
    let pod = Pod::new(false);
    std::thread::scope(|scope| {
        let proof = scope.spawn(|| prove(&pod, &Settings::default(), WAIT * 2));
        // It has begun once it listens.
        let begun = || inside(&pod.net, || TcpStream::connect((pod.address, 15001)).is_ok());
        while !begun() && !proof.is_finished() {
            std::thread::yield_now();
        }
        inside(&pod.net, || install(&Capture::from(&Settings::default())).unwrap());
        proof.join().unwrap().map_err(|error| error.to_string())
    })?;
    Ok(())
}
