//! A mesh to test: a lab with control, services with their applications and sidecars, and the files that control reads.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use weft::lab::{Control, Lab, Pod, Process, Sidecar, sum, until};

use crate::manifests::{App, Family, Service};
use crate::tools;

/// How long a condition may take that holds within a second on an idle machine.
pub const SOON: Duration = Duration::from_secs(15);

/// A pod with what runs in it.
#[derive(Debug)]
pub struct Member {
    /// The pod.
    pub pod: Pod,
    /// Its sidecar, if it is in the mesh.
    pub sidecar: Option<Sidecar>,
    /// Its application, unless the test plays it.
    pub app: Option<Process>,
    /// Its service account.
    pub account: String,
    /// Flags of its sidecar.
    pub flags: Vec<String>,
}

/// A mesh under test. Fields are public: a test may kill whatever it likes.
#[derive(Debug)]
pub struct Mesh {
    /// Pods by name.
    pub members: BTreeMap<String, Member>,
    /// Control, unless the test has stopped it.
    pub control: Option<Control>,
    /// Flags of control.
    pub control_flags: Vec<String>,
    /// Services by name, with their cluster addresses.
    pub services: BTreeMap<String, (Service, Vec<IpAddr>)>,
    /// The directory that control reads.
    pub files: PathBuf,
    /// The lab; last, because it goes last.
    pub lab: Lab,
    next_service: u16,
}

impl Mesh {
    /// A node with control on an empty directory.
    ///
    /// # Panics
    /// If it cannot be had.
    pub fn new() -> Self {
        Self::with_control(&[])
    }

    /// A node with control that has further flags.
    ///
    /// # Panics
    /// If it cannot be had.
    pub fn with_control(flags: &[&str]) -> Self {
        let mut mesh = Self::without_control();
        mesh.control_flags = flags.iter().map(ToString::to_string).collect();
        mesh.start_control();
        mesh
    }

    /// A node and nothing else.
    ///
    /// # Panics
    /// If it cannot be had.
    pub fn without_control() -> Self {
        let lab = Lab::new(crate::program(), None).unwrap_or_else(|error| panic!("{error}"));
        let files = lab.dir().join("files");
        std::fs::create_dir_all(&files).unwrap();
        Self {
            members: BTreeMap::new(),
            control: None,
            control_flags: Vec::new(),
            services: BTreeMap::new(),
            files,
            lab,
            next_service: 1,
        }
    }

    /// Starts control, or starts it again, and waits until it serves.
    pub fn start_control(&mut self) {
        let flags: Vec<&str> = self.control_flags.iter().map(String::as_str).collect();
        self.control = Some(self.lab.control(&self.files, &flags).unwrap_or_else(|error| panic!("{error}")));
    }

    /// Writes a file into the directory that control reads, by rename, as editors do.
    pub fn write(&self, file: &str, text: &str) {
        write_by_rename(&self.files.join(file), text);
    }

    /// A cluster address that no service has.
    pub fn free_cluster_ip(&mut self) -> Ipv4Addr {
        let [high, low] = self.next_service.to_be_bytes();
        self.next_service += 1;
        Ipv4Addr::new(10, 96, high, low)
    }

    /// Deploys a service: its pods, manifests, applications and sidecars; all are ready when this returns.
    pub fn deploy(&mut self, service: Service) -> &mut Self {
        let names = self.deploy_unready(service);
        for name in names {
            if let Some(sidecar) = &mut self.member_mut(&name).sidecar {
                sidecar.wait_ready().unwrap_or_else(|error| panic!("{error}"));
            }
        }
        self
    }

    /// [`Mesh::deploy`] without waiting for the sidecars; gives the pods' names.
    pub fn deploy_unready(&mut self, service: Service) -> Vec<String> {
        let cluster_ip = self.free_cluster_ip();
        let [.., high, low] = cluster_ip.octets();
        let beside = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from_be_bytes([high, low]));
        let cluster_ips = of_family(service.family, cluster_ip, Some(beside));
        let mut pods = Vec::new();
        for index in 0..service.pods {
            let name = service.pod_name(index);
            let pod = if service.meshed {
                self.lab.pod(&service.namespace, &name)
            } else {
                self.lab.plain_pod(&service.namespace, &name, None)
            };
            pods.push(pod.unwrap_or_else(|error| panic!("{error}")));
        }
        let addresses: Vec<_> = pods.iter().map(|pod| of_family(service.family, pod.ip(), pod.ip6())).collect();
        for name in [service.name.clone(), format!("{}.{}", service.name, service.namespace)] {
            self.lab.name(&name, cluster_ips[0]).unwrap();
        }
        self.write(&format!("{}.yaml", service.name), &service.manifest(&cluster_ips, &addresses));
        let names = pods.iter().map(|pod| pod.name().to_owned()).collect();
        for pod in pods {
            let app = start_app(&service, &pod);
            let mut member =
                Member { pod, sidecar: None, app, account: service.name.clone(), flags: service.sidecar.clone() };
            if service.meshed && !service.later {
                member.start_sidecar(&self.lab);
            }
            self.members.insert(member.pod.name().to_owned(), member);
        }
        self.services.insert(service.name.clone(), (service, cluster_ips));
        names
    }

    /// A further pod with a service's application, whose manifests are the test's to write; its sidecar is the test's to start.
    pub fn another_pod(&mut self, service: &str, name: &str) -> &Pod {
        let service = &self.services[service].0;
        let pod = self.lab.pod(&service.namespace, name).unwrap_or_else(|error| panic!("{error}"));
        let app = start_app(service, &pod);
        let member = Member { pod, sidecar: None, app, account: service.name.clone(), flags: service.sidecar.clone() };
        self.members.insert(name.to_owned(), member);
        self.pod(name)
    }

    /// Starts a pod's sidecar, or starts it again without having told it to stop, and waits until it is ready.
    pub fn start_sidecar(&mut self, pod: &str) {
        let Self { members, lab, .. } = self;
        let member = members.get_mut(pod).unwrap_or_else(|| panic!("no pod {pod}"));
        // The one before goes first.
        member.sidecar = None;
        member.start_sidecar(lab);
        member.sidecar.as_mut().unwrap().wait_ready().unwrap_or_else(|error| panic!("{error}"));
    }

    /// Starts a command of `weft` on the node; `part` names its log.
    pub fn weft(&self, part: &str, args: &[String]) -> Process {
        let mut command = self.lab.node_command(crate::program());
        command.args(args);
        self.lab.start_on_node(part, command).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A pod from which the test calls others: a service without application, named as given, whose one pod is `NAME-0`.
    pub fn client(&mut self, name: &str) -> &mut Self {
        self.deploy(Service::own(name))
    }

    /// A pod and what runs in it.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn member(&self, pod: &str) -> &Member {
        self.members.get(pod).unwrap_or_else(|| panic!("no pod {pod}; there are {:?}", self.members.keys()))
    }

    /// A pod and what runs in it, to be changed.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn member_mut(&mut self, pod: &str) -> &mut Member {
        self.members.get_mut(pod).unwrap_or_else(|| panic!("no pod {pod}"))
    }

    /// The pod itself.
    pub fn pod(&self, pod: &str) -> &Pod {
        &self.member(pod).pod
    }

    /// A pod's sidecar.
    ///
    /// # Panics
    /// If it has none.
    pub fn sidecar(&self, pod: &str) -> &Sidecar {
        self.member(pod).sidecar.as_ref().unwrap_or_else(|| panic!("{pod} has no sidecar"))
    }

    /// The sum of a metric of a pod's sidecar.
    pub fn metric(&self, pod: &str, name: &str, labels: &[&str]) -> f64 {
        self.sidecar(pod).metric(name, labels).unwrap_or_else(|error| panic!("metrics of {pod}: {error}"))
    }

    /// The metrics of control, as text.
    ///
    /// # Panics
    /// If it is not there.
    pub fn control_metrics(&self) -> String {
        let control = self.control.as_ref().unwrap_or_else(|| panic!("there is no control"));
        control.get(&self.lab, "/metrics").unwrap_or_else(|error| panic!("metrics of control: {error}")).body
    }

    /// The sum of a metric of control.
    pub fn control_metric(&self, name: &str, labels: &[&str]) -> f64 {
        sum(&self.control_metrics(), name, labels)
    }

    /// Waits for a metric to be what it should: a request is counted when its response has been passed on, which may be after the client
    /// has it.
    ///
    /// # Panics
    /// If it is not so soon.
    pub fn counts(&self, pod: &str, name: &str, labels: &[&str], good: impl Fn(f64) -> bool) {
        self.until(&format!("{name}{labels:?} of {pod}"), || match self.metric(pod, name, labels) {
            count if good(count) => Ok(()),
            count => Err(format!("it is {count}")),
        });
    }

    /// The cluster address and port of a service, the first if it has several.
    ///
    /// # Panics
    /// If it was not deployed.
    pub fn address(&self, service: &str) -> SocketAddr {
        self.addresses(service)[0]
    }

    /// All cluster addresses of a service, with its port.
    ///
    /// # Panics
    /// If it was not deployed.
    pub fn addresses(&self, service: &str) -> Vec<SocketAddr> {
        let (service, ips) = self.services.get(service).unwrap_or_else(|| panic!("no service {service}"));
        ips.iter().map(|ip| SocketAddr::from((*ip, service.port))).collect()
    }

    /// Runs the real curl in a pod; its output is the answer's head and body.
    pub fn curl(&self, pod: &str, args: &[&str]) -> Curl {
        let mut all = vec!["--silent", "--show-error", "--max-time", "20", "--include"];
        all.extend(args);
        let output = self.pod(pod).output(tools::program("curl"), all).unwrap_or_else(|error| panic!("{error}"));
        Curl::read(&output)
    }

    /// Moves a service's EndpointSlice into a file of its own, so that a test can edit it alone; gives its text.
    pub fn slice_apart(&self, service: &str) -> String {
        let (service, cluster_ips) = &self.services[service];
        let pod = |index| self.pod(&service.pod_name(index));
        let ips: Vec<IpAddr> = (0..service.pods).map(|index| pod(index).ip().into()).collect();
        let each: Vec<_> = ips.iter().map(|ip| vec![*ip]).collect();
        let (whole, slice) = (service.manifest(cluster_ips, &each), service.slice(&ips));
        let rest = whole.strip_suffix(&format!("---\n{slice}")).expect("the slice stands last");
        self.write(&format!("{}-slice.yaml", service.name), &slice);
        self.write(&format!("{}.yaml", service.name), rest);
        slice
    }

    /// Waits until `look` gives something; the text says how things stand otherwise.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn until<T>(&self, what: &str, look: impl FnMut() -> Result<T, String>) -> T {
        until(what, SOON, look).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new()
    }
}

impl Member {
    /// Starts the sidecar, or starts it again, without waiting.
    pub fn start_sidecar(&mut self, lab: &Lab) {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let sidecar = lab.sidecar(&self.pod, &self.account, &flags);
        self.sidecar = Some(sidecar.unwrap_or_else(|error| panic!("{error}")));
    }
}

fn of_family(family: Family, four: Ipv4Addr, six: Option<Ipv6Addr>) -> Vec<IpAddr> {
    let six = || IpAddr::V6(six.expect("this machine has no IPv6"));
    match family {
        Family::V4 => vec![four.into()],
        Family::V6 => vec![six()],
        Family::Dual => vec![six(), four.into()],
    }
}

fn start_app(service: &Service, pod: &Pod) -> Option<Process> {
    let kind = match service.app {
        App::Http => "http",
        App::Grpc => "grpc",
        App::Tcp => "tcp",
        App::Own => return None,
    };
    let mut args: Vec<String> = ["app", kind].iter().map(ToString::to_string).collect();
    args.push(format!("--listen={}", pod.any(service.target_port)));
    args.push(format!("--name={}", pod.name()));
    args.push(format!("--version-label={}", service.version));
    args.extend(service.args.iter().cloned());
    let app = pod.weft("app", args).unwrap_or_else(|error| panic!("{error}"));
    // By the loopback address, which is not captured.
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, service.target_port));
    let listening =
        until("the application to listen", SOON, || pod.connect(address).map_err(|error| error.to_string()));
    listening.unwrap_or_else(|error| panic!("{error}{}", app.log_tail()));
    Some(app)
}

/// Writes a file as editors do: a new one, then a rename over the old.
///
/// # Panics
/// If it cannot be written.
pub fn write_by_rename(path: &Path, text: &str) {
    let new = path.with_extension("yaml~");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// What curl got.
#[derive(Debug, Clone)]
pub struct Curl {
    /// The status, 0 without an answer.
    pub status: u16,
    /// Head and body.
    pub text: String,
    /// What it said on standard error.
    pub error: String,
}

impl Curl {
    fn read(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let status = text.split_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Self { status, text, error: String::from_utf8_lossy(&output.stderr).into_owned() }
    }

    /// The value of a header field, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let head = self.text.split("\r\n\r\n").next()?;
        let field = head.lines().filter_map(|line| line.split_once(':'));
        field.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The body of the last answer.
    pub fn body(&self) -> &str {
        self.text.rsplit_once("\r\n\r\n").map_or("", |(_, body)| body)
    }

    /// Panics with all that is known unless the status is this.
    #[must_use]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "curl got {self:?}");
        self
    }
}
