//! A socket-level load balancer in miniature: a BPF program on a cgroup that rewrites one ClusterIP to a pod's address where a process of that
//! cgroup connects, as Cilium's does. Assembled by hand, loaded by bpf(2) itself.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper; its attributes live on this stack while it is called")]

use std::fs::{self, File};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`, attached as `BPF_CGROUP_INET4_CONNECT`.
const SOCK_ADDR: u32 = 18;
const INET4_CONNECT: u32 = 10;

/// Where the cgroup and its hierarchy are; both go when this is dropped, and the program with them.
#[derive(Debug)]
pub struct Rewriter {
    mount: PathBuf,
    cgroup: PathBuf,
    program: OwnedFd,
}

impl Rewriter {
    /// What processes of a new cgroup connect to `from` goes to `to`. `dir` is an empty directory, into which the hierarchy is mounted.
    ///
    /// # Errors
    /// What the kernel says: no right, or no BPF on cgroups.
    pub fn new(dir: &Path, from: SocketAddrV4, to: SocketAddrV4) -> io::Result<Self> {
        let program = load(&program(from, to))?;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", dir, "cgroup2", flags, None)?;
        let cgroup = dir.join(format!("weft-test-{}", std::process::id()));
        let this = Self { mount: dir.to_owned(), cgroup, program };
        fs::create_dir(&this.cgroup)?;
        let directory = File::open(&this.cgroup)?;
        let attach = [number(directory.as_raw_fd()), number(this.program.as_raw_fd()), INET4_CONNECT, 0];
        bpf(PROG_ATTACH, &bytes(&attach)).map(|_| this)
    }

    /// [`Rewriter::new`], or `None` and why not.
    pub fn if_possible(dir: &Path, from: SocketAddrV4, to: SocketAddrV4) -> Option<Self> {
        let made = Self::new(dir, from, to);
        made.inspect_err(|error| eprintln!("no BPF on cgroups here ({error}): the client connects to the pod itself"))
            .ok()
    }

    /// A process that writes its id here belongs to it.
    pub fn processes(&self) -> PathBuf {
        self.cgroup.join("cgroup.procs")
    }
}

impl Drop for Rewriter {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.cgroup);
        let _ = rustix::mount::unmount(&self.mount, rustix::mount::UnmountFlags::DETACH);
    }
}

fn number(fd: i32) -> u32 {
    fd.unsigned_abs()
}

/// One instruction: operation, registers (source in the upper half), offset, immediate.
fn instruction(operation: u8, registers: u8, offset: i16, immediate: u32) -> [u8; 8] {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    [operation, registers, o0, o1, i0, i1, i2, i3]
}

/// Of `struct bpf_sock_addr`, which r1 points to: `user_ip4` stands at 4, `user_port` at 24, both as on the wire.
fn program(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    const LOAD: u8 = 0x61;
    const STORE: u8 = 0x63;
    const IF_NOT: u8 = 0x56;
    const SET: u8 = 0xb4;
    const EXIT: u8 = 0x95;
    let ip = |addr: SocketAddrV4| u32::from_ne_bytes(addr.ip().octets());
    let port = |addr: SocketAddrV4| u32::from(addr.port().to_be());
    [
        instruction(LOAD, 0x12, 4, 0),
        instruction(IF_NOT, 0x02, 6, ip(from)),
        instruction(LOAD, 0x12, 24, 0),
        instruction(IF_NOT, 0x02, 4, port(from)),
        instruction(SET, 0x02, 0, ip(to)),
        instruction(STORE, 0x21, 4, 0),
        instruction(SET, 0x02, 0, port(to)),
        instruction(STORE, 0x21, 24, 0),
        // 1: go on and connect.
        instruction(SET, 0x00, 0, 1),
        instruction(EXIT, 0x00, 0, 0),
    ]
    .concat()
}

fn bytes(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn load(program: &[u8]) -> io::Result<OwnedFd> {
    let licence = c"Apache-2.0";
    let mut attributes = bytes(&[SOCK_ADDR, program.len() as u32 / 8]);
    attributes.extend((program.as_ptr() as u64).to_ne_bytes());
    attributes.extend((licence.as_ptr() as u64).to_ne_bytes());
    // No log, no kernel version, no flags, no name, no device; then how it will be attached.
    attributes.extend(bytes(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    attributes.extend(bytes(&[INET4_CONNECT]));
    let fd = bpf(PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf(command: libc::c_long, attributes: &[u8]) -> io::Result<i32> {
    // SAFETY: the kernel reads as many bytes as the slice has; what they point to outlives the call, since our callers hold it.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), attributes.len()) };
    i32::try_from(answer).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)
}
