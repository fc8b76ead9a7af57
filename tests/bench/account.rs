//! What a process has used, from the kernel's own accounting: CPU time and context switches of all its threads, memory.

use std::path::PathBuf;

use super::Error;

/// CPU time and context switches of a process since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// User and system time of all threads, those that have ended too, in microseconds (the kernel rounds to a tick, 10 ms).
    pub cpu_us: f64,
    /// Context switches of the threads that live, voluntary and not.
    pub switches: f64,
}

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Memory {
    /// All resident pages, the binary's own included.
    pub rss: f64,
    /// Those that no file backs: what the process has allocated.
    pub anonymous: f64,
}

impl Usage {
    /// Of this process.
    pub fn of(pid: u32) -> Result<Self, Error> {
        let ticks = cpu_ticks(&read(pid, "stat")?).ok_or_else(|| unreadable(pid, "stat"))?;
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        Ok(Self { cpu_us: ticks / per_second * 1e6, switches: switches(pid)? })
    }

    /// What was used since an earlier look.
    pub fn since(self, before: Self) -> Self {
        Self { cpu_us: self.cpu_us - before.cpu_us, switches: self.switches - before.switches }
    }
}

impl Memory {
    /// Of this process.
    pub fn of(pid: u32) -> Result<Self, Error> {
        let text = read(pid, "smaps_rollup")?;
        let field = |name: &str| number(&text, name).ok_or_else(|| unreadable(pid, "smaps_rollup"));
        Ok(Self { rss: field("Rss:")?, anonymous: field("Anonymous:")? })
    }
}

/// The share of the machine's CPUs that was busy during `span`, 0 to 1.
pub fn busy(span: std::time::Duration) -> Result<f64, Error> {
    let look = || -> Result<(f64, f64), Error> {
        let path = PathBuf::from("/proc/stat");
        let text = std::fs::read_to_string(&path).map_err(|source| Error::File { path, source })?;
        let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
        let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
        let idle = ticks.iter().skip(3).take(2).sum::<f64>();
        Ok((ticks.iter().take(8).sum::<f64>() - idle, ticks.iter().take(8).sum()))
    };
    let before = look()?;
    std::thread::sleep(span);
    let after = look()?;
    Ok((after.0 - before.0) / (after.1 - before.1).max(1.0))
}

fn read(pid: u32, file: &str) -> Result<String, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/{file}"));
    std::fs::read_to_string(&path).map_err(|source| Error::File { path, source })
}

fn unreadable(pid: u32, file: &str) -> Error {
    Error::Program { name: format!("/proc/{pid}/{file}"), reason: "does not read as it should".to_owned() }
}

/// utime and stime: fields 14 and 15, counted after the name, which may hold anything.
fn cpu_ticks(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
}

fn switches(pid: u32) -> Result<f64, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/task"));
    let threads = std::fs::read_dir(&path).map_err(|source| Error::File { path, source })?;
    let mut sum = 0.0;
    for thread in threads.flatten() {
        // A thread may end between the listing and the look.
        let Ok(text) = std::fs::read_to_string(thread.path().join("status")) else { continue };
        sum += number(&text, "voluntary_ctxt_switches:").unwrap_or(0.0);
        sum += number(&text, "nonvoluntary_ctxt_switches:").unwrap_or(0.0);
    }
    Ok(sum)
}

/// The number that follows a name at the start of a line.
fn number(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 70 7 0 0 20 0";
        assert_eq!(cpu_ticks(stat), Some(77.0));
        assert_eq!(cpu_ticks("12 no name"), None);
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Rss:   120 kB\nnonvoluntary_ctxt_switches:\t3\nvoluntary_ctxt_switches:\t9\n";
        assert_eq!(number(text, "Rss:"), Some(120.0));
        assert_eq!(number(text, "voluntary_ctxt_switches:"), Some(9.0));
    }

    #[test]
    fn this_process_has_used_something() {
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(memory.rss >= memory.anonymous && memory.anonymous > 0.0);
        assert!(Usage::of(std::process::id()).unwrap().switches > 0.0);
    }
}
