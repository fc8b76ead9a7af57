//! The memory limit that this process stands under, as cgroups of either version say it.

use std::path::Path;

/// Version 1 says "no limit" by a number about as large as there is.
const NO_LIMIT: u64 = 1 << 60;

/// The limit in bytes; `None` if there is none, or none can be read.
pub fn memory_limit() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_in(Path::new("/sys/fs/cgroup"), &own)
}

// `own` is /proc/self/cgroup. The limits of all groups above hold, too. A path that is not there is the host's, seen from a container
// that has its own group mounted at the root.
fn limit_in(root: &Path, own: &str) -> Option<u64> {
    own.lines().filter_map(|line| limit_of(root, line)).min()
}

fn limit_of(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (root, file) = match controllers {
        "" => (root.to_owned(), "memory.max"),
        names if names.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
        _ => return None,
    };
    let groups = Path::new(path.trim_start_matches('/')).ancestors();
    groups.filter_map(|group| limit_at(&root.join(group).join(file))).min()
}

fn limit_at(file: &Path) -> Option<u64> {
    let limit: u64 = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (limit < NO_LIMIT).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn the_tightest_limit_counts_in_both_versions() {
        for (name, files, own, limit) in [
            ("in a container", &[("memory.max", "67108864\n")][..], "0::/\n", Some(64 << 20)),
            ("no limit", &[("memory.max", "max\n")], "0::/\n", None),
            ("nothing to read", &[], "0::/a\n", None),
            (
                "the group above is tighter",
                &[("a/memory.max", "1000\n"), ("a/b/memory.max", "2000\n"), ("a/b/c/memory.max", "max")],
                "0::/a/b/c\n",
                Some(1000),
            ),
            (
                "version 1",
                &[
                    ("memory/a/memory.limit_in_bytes", "3000\n"),
                    ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ],
                "5:cpu,cpuacct:/x\n4:memory:/a\n0::/\n",
                Some(3000),
            ),
            (
                "version 1, the host's path in a container",
                &[("memory/memory.limit_in_bytes", "4000\n")],
                "4:memory:/kubepods/pod1/abc\n",
                Some(4000),
            ),
            ("version 1, no limit", &[("memory/memory.limit_in_bytes", "9223372036854771712")], "4:memory:/\n", None),
        ] {
            let dir = tree(files);
            assert_eq!(limit_in(dir.path(), own), limit, "{name}");
        }
    }
}
