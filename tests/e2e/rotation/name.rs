//! One change of the trust domain's name, phase by phase: control is killed in each, and in each join pods that were made before it, made for
//! the new name, and come back with the state of before.

use std::time::Duration;

use weft_tests::Service;

use super::Stage;
use super::machine::{Figures, Rotating, report, roots, waited_for};

/// It goes from one of these to the other.
const NAMES: [&str; 2] = ["cluster.local", "mesh.example"];

/// What every caller needs, in the words of the name of before: the same policy holds under each.
fn policy(name: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: callers, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}, {{group: '', kind: Service, name: echo}}]
  action: Allow
  rules:
  - from: [{{identities: ['spiffe://{name}/ns/shop/*']}}]
"
    )
}

/// The change under way.
struct Renaming<'a> {
    rotating: Rotating<'a>,
    round: usize,
    from: &'static str,
    to: &'static str,
}

/// Changes the name; how long each phase took.
pub fn rename(stage: &mut Stage, round: usize) -> Figures {
    let [from, to] = if round.is_multiple_of(2) { NAMES } else { [NAMES[1], NAMES[0]] };
    stage.mesh.write("callers.yaml", &policy(from));
    let mut renaming = Renaming { rotating: Rotating::new(stage, round), round, from, to };
    renaming.publishing();
    renaming.turning();
    renaming.withdrawing();
    renaming.rotating.until_phase("");
    renaming.done();
    renaming.rotating.figures
}

impl Renaming<'_> {
    /// A pod that lives and has no sidecar yet holds the phase up; one that is started for the new name can be.
    fn publishing(&mut self) {
        let name = format!("name-publishing-{}", self.round);
        let roots = roots(&self.rotating.stage.mesh);
        Stage::expect(&mut self.rotating.stage.mesh, &name, &roots);
        self.rotating.begin("rotate-trust-domain", &["--to", self.to]);
        self.rotating.until_phase("publishing");
        self.waits("publishing", &name);
        self.rotating.stage.kill_control(|_| ());
        self.started_for(self.to, "publishing-new");
        self.rotating.stage.wait(Duration::from_millis(1500));
        self.waits("publishing", &name);
        self.rotating.begin_with_old_state();
        self.rotating.stage.join(&format!("{name}-0"));
    }

    fn waits(&self, phase: &str, name: &str) {
        let mesh = &self.rotating.stage.mesh;
        mesh.until("the new pod to be waited for", || waited_for(mesh, phase, name));
    }

    /// Control comes back under the new name, as whoever has changed its manifest would have it.
    fn turning(&mut self) {
        self.rotating.until_phase("turning");
        let flag = format!("--trust-domain={}", self.to);
        let flags = &mut self.rotating.stage.mesh.control_flags;
        flags.retain(|flag| !flag.starts_with("--trust-domain="));
        flags.push(flag);
        self.rotating.stage.kill_control(|_| ());
        self.started_for(self.from, "turning-old");
        self.started_for(self.to, "turning-new");
        self.rotating.begin_with_old_state();
    }

    /// A pod that comes meanwhile holds it up.
    fn withdrawing(&mut self) {
        self.rotating.until_phase("withdrawing");
        let name = format!("name-withdrawing-{}", self.round);
        let roots = roots(&self.rotating.stage.mesh);
        self.rotating.stage.kill_control(|mesh| Stage::expect(mesh, &name, &roots));
        self.waits("withdrawing", &name);
        self.started_for(self.to, "withdrawing-new");
        self.rotating.begin_with_old_state();
        self.rotating.stage.join(&format!("{name}-0"));
    }

    /// Every leaf is in the new name, nobody is believed under the old one, and pods that are made for that one join all the same.
    fn done(&mut self) {
        self.started_for(self.from, "after-old");
        self.started_for(self.to, "after-new");
        let now = self.rotating.everybody_turned();
        assert_eq!((&now["trust_domain"], &now["aliases"]), (&self.to.into(), &serde_json::json!([])), "{now:#}");
        let ours = format!("spiffe://{}/", self.to);
        for proxy in now["proxies"].as_array().unwrap() {
            assert!(proxy["identity"].as_str().unwrap().starts_with(&ours), "{proxy}");
        }
        // Control goes on under the old name too.
        self.rotating.stage.mesh.control_flags.retain(|flag| !flag.starts_with("--trust-domain="));
        self.rotating.stage.kill_control(|_| ());
        assert_eq!(report(&self.rotating.stage.mesh)["trust_domain"], self.to);
        self.rotating.stage.good("under the new name");
    }

    /// A pod whose sidecar was told that this is its trust domain.
    fn started_for(&mut self, domain: &str, phase: &str) {
        let name = format!("name-{phase}-{}", self.round);
        let service =
            Service::own(&name).sidecar_arg(&format!("--identity=spiffe://{domain}/ns/shop/sa/{name}")).later();
        self.rotating.stage.mesh.deploy(service);
        self.rotating.stage.join(&format!("{name}-0"));
    }
}
