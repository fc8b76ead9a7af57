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

    /// The most that this process ever had resident, in KiB.
    pub fn peak(pid: u32) -> Result<f64, Error> {
        number(&read(pid, "status")?, "VmHWM:").ok_or_else(|| unreadable(pid, "status"))
    }
}

/// The machine's CPU time so far, in ticks.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Of all CPUs, idle or not.
    total: f64,
    /// What processes used.
    busy: f64,
    /// What this process and its children used, and the children's own that have ended.
    own: f64,
}

impl Machine {
    /// Now.
    pub fn now() -> Result<Self, Error> {
        let path = PathBuf::from("/proc/stat");
        let text = std::fs::read_to_string(&path).map_err(|source| Error::File { path, source })?;
        let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
        let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
        // User, nice, system; then idle, and what interrupts take, which is nobody's.
        let sum = |count: usize| ticks.iter().take(count).sum::<f64>();
        Ok(Self { total: sum(8), busy: sum(3), own: own_ticks() })
    }

    /// The share of all CPUs that other processes took since an earlier look, 0 to 1: a build beside the bench makes every figure worse.
    pub fn others_since(self, before: Self) -> f64 {
        let others = (self.busy - before.busy) - (self.own - before.own);
        (others / (self.total - before.total).max(1.0)).clamp(0.0, 1.0)
    }
}

fn own_ticks() -> f64 {
    let own = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0.0 };
    let stats = processes.flatten().filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok());
    stats.filter_map(|stat| family_ticks(&stat, own)).sum()
}

/// All that a process and its children that have ended used, if it is this one or a child of its.
fn family_ticks(stat: &str, family: u32) -> Option<f64> {
    let id: u32 = stat.split(' ').next()?.parse().ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let parent: u32 = fields.get(1)?.parse().ok()?;
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<f64>().ok());
    (id == family || parent == family).then(|| ticks.sum())
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
    fn a_family_is_a_process_and_its_children() {
        let stat = "12 (a) S 7 2 3 4 5 6 7 8 9 10 70 7 3 1 20 0";
        assert_eq!(
            (family_ticks(stat, 7), family_ticks(stat, 12), family_ticks(stat, 1)),
            (Some(81.0), Some(81.0), None)
        );
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
        assert!(Memory::peak(std::process::id()).unwrap() >= memory.anonymous);
        assert!(Usage::of(std::process::id()).unwrap().switches > 0.0);
    }
}
