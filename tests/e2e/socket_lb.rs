//! A cluster whose load balancer rewrites ClusterIPs where applications connect: the sidecar sees a pod's address, and the Service by its name alone.

use std::net::SocketAddr;

use weft_tests::bpf::Rewriter;
use weft_tests::{Mesh, Service, Trial, test};

pub fn tests() -> Vec<Trial> {
    // Only root of the machine may load a program; an ordinary user has nothing to skip to.
    let root = rustix::process::geteuid().is_root() && owns_the_machine();
    vec![test("socket_lb_a_rewritten_clusterip_means_its_service", means_its_service).with_ignored_flag(!root)]
}

/// Root of a user namespace of its own is nobody outside.
fn owns_the_machine() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"))
}

/// What a process of the pod is answered that connects to this address and names this host; in the rewriter's cgroup, if there is one.
fn get(mesh: &Mesh, rewriter: Option<&Rewriter>, pod: &str, to: SocketAddr, host: &str) -> String {
    let joins = rewriter.map_or_else(|| ":".to_owned(), |found| format!("echo $$ >{}", found.processes().display()));
    let script = format!(
        "{joins} && exec 3<>/dev/tcp/{}/{} && printf 'GET / HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n' >&3 && cat <&3",
        to.ip(),
        to.port()
    );
    let output = mesh.pod(pod).output("bash", ["-c", &script]).unwrap();
    assert!(output.status.success(), "{host}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn means_its_service() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").pods(2)).deploy(Service::http("other"));
    mesh.deploy(Service::own("client").sidecar_arg("--socket-lb")).deploy(Service::own("plain"));
    let (service, pod) = (mesh.address("web"), SocketAddr::from((mesh.pod("web-0").ip(), 8080)));
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (service, pod) else { panic!("both are of IPv4") };
    let dir = mesh.lab.dir().join("cgroups");
    std::fs::create_dir(&dir).unwrap();
    let rewriter = Rewriter::if_possible(&dir, from, to);
    // Where there is no BPF on cgroups, the client does itself what the program would have done: nothing behind connect(2) can tell.
    let called = if rewriter.is_some() { service } else { pod };
    mesh.write("route.yaml", ROUTE);
    for client in ["client-0", "plain-0"] {
        mesh.until("the Service's route to be in force", || {
            let answer = get(&mesh, None, client, service, "web");
            if is_service(&answer) { Ok(()) } else { Err(answer) }
        });
    }
    let answers = |client: &str, host: &str| [(); 5].map(|()| get(&mesh, rewriter.as_ref(), client, called, host));
    let is_pod = |answer: &String| !is_service(answer) && answer.contains("\"web-0\"");
    // The program does rewrite: without the flag it is that very pod, whatever the name.
    assert!(answers("plain-0", "web").iter().all(is_pod));
    for host in ["web", "web.shop", "web.shop.svc.cluster.local", "WEB.shop.svc:80"] {
        assert!(answers("client-0", host).iter().all(|answer| is_service(answer)), "{host}");
    }
    // Another Service's name, one of nobody, another port, and no name: that very pod.
    for host in ["other", "nobody.shop", "api.example.com", "web:81", &to.to_string()] {
        assert!(answers("client-0", host).iter().all(is_pod), "{host}");
    }
}

/// What goes by the Service bears its mark.
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: x-meant, value: service}]}
    backendRefs: [{name: web, port: 80}]
";

fn is_service(answer: &str) -> bool {
    answer.to_ascii_lowercase().contains("x-meant: service")
}
