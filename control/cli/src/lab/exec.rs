//! `weft lab-exec`: the step between starting a process and the program that it shall be.
//!
//! A child cannot be moved into namespaces between fork and exec without `unsafe`, so this small command does it: it ties its life to
//! the parent's, enters the pod's network namespace, binds files over others in a mount namespace of its own, and becomes the
//! program. The process id stays the same.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use weft_capture::netns::{self, NetNs};

use crate::exit::Failure;

/// `weft lab-exec`, used by the lab only.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The network namespace to enter
    #[arg(long, value_name = "PATH")]
    netns: PathBuf,
    /// End with this process
    #[arg(long, value_name = "PID")]
    parent: i32,
    /// Be this user, and the group of the same number, without any right
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// SOURCE:TARGET, a file to see in another's place; repeatable
    #[arg(long, value_name = "SOURCE:TARGET")]
    bind: Vec<String>,
    /// The program and its arguments
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

/// Becomes the program; returns only if that is impossible.
///
/// # Errors
/// [`crate::exit::Exit`] 3 with the step that failed.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    tie_to_parent()?;
    // The parent may have died before that.
    if rustix::process::getppid().map(rustix::process::Pid::as_raw_nonzero).map(std::num::NonZero::get)
        != Some(args.parent)
    {
        return Err(failed("starting", &"the lab is gone"));
    }
    NetNs::open(&args.netns).and_then(|net| net.enter()).map_err(|error| failed("entering the pod", &error))?;
    if !args.bind.is_empty() {
        netns::new_mount_namespace().map_err(|error| failed("mounts", &error))?;
        for pair in &args.bind {
            let (source, target) = pair.split_once(':').ok_or_else(|| failed("--bind", &"expected SOURCE:TARGET"))?;
            // A machine without the file has nothing to hide.
            if Path::new(target).exists() {
                rustix::mount::mount_bind(source, target)
                    .map_err(|error| failed(&format!("binding {target}"), &error))?;
            }
        }
    }
    if let Some(uid) = args.uid {
        become_user(uid).map_err(|error| failed("becoming another user", &error))?;
        // The kernel forgets it when the user changes.
        tie_to_parent()?;
    }
    let Some((program, rest)) = args.command.split_first() else {
        return Err(failed("starting", &"no program given"));
    };
    let error = Command::new(program).args(rest).exec();
    Err(failed(&format!("{}", Path::new(program).display()), &error))
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::here(format!("lab-exec: {what}: {error}"))
}

fn tie_to_parent() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| failed("tying this process to its parent", &error))
}

/// This process has one thread, so the thread's credentials are the process's. Capabilities go with uid 0.
fn become_user(uid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (rustix::process::Uid::from_raw(uid), rustix::process::Gid::from_raw(uid));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}
