//! Manifests of the services that a test deploys, written as an operator would have them: Service, EndpointSlice, Pod.

use std::fmt::Write as _;
use std::net::IpAddr;

/// What runs in a service's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum App {
    /// `weft app http`.
    Http,
    /// `weft app grpc`.
    Grpc,
    /// `weft app tcp`.
    Tcp,
    /// Nothing: the test itself plays the application.
    Own,
}

/// The families of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both, IPv6 first.
    Dual,
}

/// A service to be deployed, in words.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name, and the name of its pods' service account.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The port that clients call.
    pub port: u16,
    /// The port that its application listens on.
    pub target_port: u16,
    /// How many pods it has.
    pub pods: usize,
    /// What runs in them.
    pub app: App,
    /// The label `version`, and what the application's answers carry.
    pub version: String,
    /// `appProtocol` of the port.
    pub app_protocol: Option<String>,
    /// The families of its addresses and its pods'.
    pub family: Family,
    /// Whether its pods are in the mesh.
    pub meshed: bool,
    /// Whether the test starts its pods' sidecars itself, later.
    pub later: bool,
    /// Further arguments of the application.
    pub args: Vec<String>,
    /// Further flags of the pods' sidecars.
    pub sidecar: Vec<String>,
    /// Further annotations of its pods, as lines of YAML.
    pub annotations: String,
    /// The node of its pods; empty if that is not said.
    pub node: String,
}

impl Service {
    fn new(name: &str, app: App) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            port: 80,
            target_port: 8080,
            pods: 1,
            app,
            version: "v1".to_owned(),
            app_protocol: None,
            family: Family::V4,
            meshed: true,
            later: false,
            args: Vec::new(),
            sidecar: Vec::new(),
            annotations: String::new(),
            node: String::new(),
        }
    }

    /// An HTTP service: port 80, application on 8080.
    pub fn http(name: &str) -> Self {
        Self::new(name, App::Http)
    }

    /// A gRPC service.
    pub fn grpc(name: &str) -> Self {
        Self { port: 50051, target_port: 50051, ..Self::new(name, App::Grpc) }
    }

    /// A TCP service that greets and echoes.
    pub fn tcp(name: &str) -> Self {
        Self { port: 7000, target_port: 7000, ..Self::new(name, App::Tcp) }
    }

    /// A service whose application the test plays.
    pub fn own(name: &str) -> Self {
        Self::new(name, App::Own)
    }

    /// With so many pods.
    #[must_use]
    pub fn pods(self, pods: usize) -> Self {
        Self { pods, ..self }
    }

    /// With its pods on a node.
    #[must_use]
    pub fn node(self, node: &str) -> Self {
        Self { node: node.to_owned(), ..self }
    }

    /// Called on `port`, its application on `target_port`.
    #[must_use]
    pub fn ports(self, port: u16, target_port: u16) -> Self {
        Self { port, target_port, ..self }
    }

    /// With this version in label and answers.
    #[must_use]
    pub fn version(self, version: &str) -> Self {
        Self { version: version.to_owned(), ..self }
    }

    /// With addresses of these families.
    #[must_use]
    pub fn family(self, family: Family) -> Self {
        Self { family, ..self }
    }

    /// Outside the mesh.
    #[must_use]
    pub fn unmeshed(self) -> Self {
        Self { meshed: false, ..self }
    }

    /// In the mesh, with pods whose sidecars the test starts itself.
    #[must_use]
    pub fn later(self) -> Self {
        Self { later: true, ..self }
    }

    /// With further arguments of its application.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// With another annotation of its pods.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        let _ = writeln!(self.annotations, "    {name}: \"{value}\"");
        self
    }

    /// With further flags of its sidecars.
    #[must_use]
    pub fn sidecar_arg(mut self, arg: &str) -> Self {
        self.sidecar.push(arg.to_owned());
        self
    }

    /// The name of its pod number `index`, from 0.
    pub fn pod_name(&self, index: usize) -> String {
        format!("{}-{index}", self.name)
    }

    /// Its Service, Pods and EndpointSlices, for these addresses: the service's, and each pod's, all of the same families.
    pub fn manifest(&self, cluster_ips: &[IpAddr], pods: &[Vec<IpAddr>]) -> String {
        let Self { name, namespace, port, target_port, .. } = self;
        let protocol =
            self.app_protocol.as_ref().map(|name| format!("\n      appProtocol: {name}")).unwrap_or_default();
        let mut out = format!(
            "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
spec:
  clusterIP: {}
  clusterIPs: {}
  selector:
    app: {name}
  ports:
    - name: main
      port: {port}
      targetPort: {target_port}
      protocol: TCP{protocol}
",
            quoted(&cluster_ips[..1]),
            list(cluster_ips),
        );
        for (index, ips) in pods.iter().enumerate() {
            out = out + "---\n" + &self.pod(&self.pod_name(index), ips);
        }
        for family in 0..cluster_ips.len() {
            let ips: Vec<_> = pods.iter().map(|ips| ips[family]).collect();
            out = out + "---\n" + &self.slice(&ips);
        }
        out
    }

    /// One of its Pods.
    pub fn pod(&self, pod: &str, ips: &[IpAddr]) -> String {
        let Self { name, namespace, version, meshed, annotations, node, .. } = self;
        format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: {pod}
  namespace: {namespace}
  uid: uid-{namespace}-{pod}
  labels:
    app: {name}
    version: {version}
  annotations:
    weft.dev/injected: \"{meshed}\"
{annotations}spec:
  serviceAccountName: {name}
  nodeName: \"{node}\"
status:
  phase: Running
  podIP: {}
  podIPs: [{}]
",
            quoted(&ips[..1]),
            ips.iter().map(|ip| format!("{{ip: \"{ip}\"}}")).collect::<Vec<_>>().join(", "),
        )
    }

    /// Its EndpointSlice with these addresses of one family, the first of which is its first pod's.
    pub fn slice(&self, pods: &[IpAddr]) -> String {
        let named: Vec<_> = pods.iter().enumerate().map(|(index, ip)| (self.pod_name(index), *ip)).collect();
        let suffix = if pods.first().is_some_and(IpAddr::is_ipv6) { "6" } else { "1" };
        self.slice_of(suffix, &named)
    }

    /// An EndpointSlice of its with any pods of its namespace, all ready; `suffix` tells its slices apart.
    pub fn slice_of(&self, suffix: &str, pods: &[(String, IpAddr)]) -> String {
        let ready: Vec<_> = pods.iter().map(|(pod, ip)| (pod.as_str(), *ip, true)).collect();
        self.slice_while(suffix, &ready)
    }

    /// The same; pods that are not ready are those that are being deleted and still serve.
    pub fn slice_while(&self, suffix: &str, pods: &[(&str, IpAddr, bool)]) -> String {
        let Self { name, namespace, target_port, .. } = self;
        let protocol = self.app_protocol.as_ref().map(|name| format!("\n    appProtocol: {name}")).unwrap_or_default();
        let mut out = format!(
            "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-{suffix}
  namespace: {namespace}
  labels:
    kubernetes.io/service-name: {name}
addressType: {}
ports:
  - name: main
    port: {target_port}
    protocol: TCP{protocol}
endpoints:{}
",
            if pods.first().is_some_and(|(_, ip, _)| ip.is_ipv6()) { "IPv6" } else { "IPv4" },
            if pods.is_empty() { " []" } else { "" }
        );
        for (pod, ip, ready) in pods {
            let terminating = !ready;
            let _ = write!(
                out,
                "  - addresses: [\"{ip}\"]
    conditions:
      ready: {ready}
      serving: true
      terminating: {terminating}
    targetRef:
      kind: Pod
      name: {pod}
      namespace: {namespace}
"
            );
        }
        out
    }
}

// IPv6 addresses are no plain scalars of YAML.
fn quoted(ips: &[IpAddr]) -> String {
    ips.iter().map(|ip| format!("\"{ip}\"")).collect::<Vec<_>>().join(", ")
}

fn list(ips: &[IpAddr]) -> String {
    format!("[{}]", quoted(ips))
}
