//! Real OpenSSH at both ends, unmodified: log-in by key, a command, and more bytes than any buffer holds.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use weft::lab::{Pod, Process};
use weft_tests::mesh::SOON;
use weft_tests::sniff::{Sniffer, contains};
use weft_tests::{Mesh, Service, tools};

use super::{COLD, KNOWN, hears_nothing, known_within, median};
use crate::STRICT;

/// Where keys lie that live as long as the test.
struct Keys(PathBuf);

impl Keys {
    fn make(pod: &Pod) -> Self {
        let keys = Self(pod.dir().unwrap());
        for name in ["host", "user"] {
            let mut make = Command::new(tools::program("ssh-keygen"));
            let made = make.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(keys.path(name)).output().unwrap();
            assert!(made.status.success(), "{made:?}");
        }
        let host = std::fs::read_to_string(keys.path("host.pub")).unwrap();
        // That very server is met, or the client refuses.
        std::fs::write(keys.path("known"), format!("shell.shop {host}")).unwrap();
        keys
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// The server wants an account to shut itself in and an empty directory, which the Debian package makes; here they are made for its eyes
/// alone. Newer ones punish a source that comes often and does not log in, as a test does that only wants to be greeted.
const AS_INSTALLED: &str = "set -e
mount --bind \"$1/passwd\" /etc/passwd
mount -t tmpfs -o mode=755 none /run
mkdir -m 755 /run/sshd
lenient=-oPerSourcePenalties=no
\"$2\" -t $lenient -f \"$1/sshd_config\" 2>/dev/null || lenient=
exec \"$2\" -D -e $lenient -f \"$1/sshd_config\"";
const ACCOUNTS: &str = "root:*:0:0::/:/bin/sh
canary:*:0:0::/:/bin/sh
sshd:*:65534:65534::/nonexistent:/bin/false
";

fn serve(pod: &Pod, keys: &Keys) -> Process {
    let here = keys.0.display();
    std::fs::write(keys.path("passwd"), ACCOUNTS).unwrap();
    let config = format!(
        "Port 22
HostKey {here}/host
PidFile none
UsePAM no
StrictModes no
MaxStartups 1000
AuthorizedKeysFile {here}/user.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
"
    );
    std::fs::write(keys.path("sshd_config"), config).unwrap();
    let sshd = tools::program("sshd");
    let args = [Path::new("-c"), Path::new(AS_INSTALLED), Path::new("sh"), &keys.0, &sshd];
    pod.spawn("sshd", "/bin/sh", args).unwrap()
}

fn run(pod: &Pod, keys: &Keys, command: &str) -> Output {
    let option = |name: &str, path: &str| format!("-o{name}={}", keys.path(path).display());
    let args = [
        "-F".to_owned(),
        "none".to_owned(),
        option("UserKnownHostsFile", "known"),
        option("IdentityFile", "user"),
        "-oGlobalKnownHostsFile=none".to_owned(),
        "-oStrictHostKeyChecking=yes".to_owned(),
        "-oIdentitiesOnly=yes".to_owned(),
        "-oBatchMode=yes".to_owned(),
        format!("-oConnectTimeout={}", SOON.as_secs()),
        "canary@shell.shop".to_owned(),
        command.to_owned(),
    ];
    pod.output(tools::program("ssh"), args).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).trim().to_owned()
}

/// A client that waits for the server's version before it says its own, as old ones do.
fn greeted(pod: &Pod, to: SocketAddr) -> Duration {
    let begun = Instant::now();
    let mut stream = pod.connect(to).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut version = [0; 8];
    stream.read_exact(&mut version).unwrap();
    assert_eq!(&version, b"SSH-2.0-");
    begun.elapsed()
}

pub fn session() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::own("shell").ports(22, 22)).client("client").deploy(Service::own("stranger").unmeshed());
    let (shell, client, to) = (mesh.pod("shell-0"), mesh.pod("client-0"), mesh.address("shell"));
    let keys = Keys::make(shell);
    let mut server = serve(shell, &keys);
    mesh.until("sshd to listen", || {
        server.check_alive().map_err(|error| error.to_string())?;
        if server.log().contains("Server listening") { Ok(()) } else { Err(server.log()) }
    });
    // It makes a process for each connection before it greets; that is no part of the mesh, whom its own pod's loopback address leaves out.
    let alone = median((0..20).map(|_| greeted(shell, (Ipv4Addr::LOCALHOST, 22).into())).collect());
    let pod: SocketAddr = (shell.ip(), 22).into();
    let first = [to, pod].map(|to| greeted(client, to));
    eprintln!("opaque: ssh, greeted after {alone:?} without the mesh, first in it after {first:?}");
    assert!(first.iter().min().is_some_and(|first| *first < COLD + alone), "{first:?}");
    for strict in [false, true] {
        if strict {
            mesh.write("namespace.yaml", STRICT);
            mesh.until("strangers to be refused", || hears_nothing(mesh.pod("stranger-0"), pod));
        }
        let sniffer = Sniffer::start(&mesh.lab);
        let output = run(client, &keys, "echo canary");
        assert_eq!(said(&output), "canary", "strict: {strict}\n{}", server.log_tail());
        let seen = sniffer.stop();
        assert!(seen.len() > 1000 && !contains(&seen, "SSH-2.0-"), "SSH in the clear between meshed pods");
        let output = run(client, &keys, "head -c 3000000 /dev/zero");
        assert_eq!(output.stdout.len(), 3_000_000, "{}", String::from_utf8_lossy(&output.stderr));
        known_within(KNOWN + alone, "ssh", || (0..20).map(|_| greeted(client, to)).collect());
    }
    mesh.counts("shell-0", "weft_tcp_connections_opened_total", &["inbound", "tls=\"mtls\""], |count| count > 45.5);
}
