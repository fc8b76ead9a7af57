//! What the process itself costs, read from /proc at a scrape.

/// What /proc says of this process; what it does not say is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Resident memory in bytes.
    pub resident_bytes: Option<f64>,
    /// User and system time in seconds.
    pub cpu_seconds: Option<f64>,
    /// Open file descriptors, without the one that counts them.
    pub open_fds: Option<f64>,
}

impl Cost {
    /// As of now.
    pub fn now() -> Self {
        let fds = std::fs::read_dir("/proc/self/fd").ok();
        Self {
            resident_bytes: resident_bytes(),
            cpu_seconds: cpu_seconds(),
            open_fds: fds.map(|fds| fds.count().saturating_sub(1) as f64),
        }
    }
}

fn resident_bytes() -> Option<f64> {
    Some(pages()?.0 as f64 * rustix::param::page_size() as f64)
}

/// Resident memory that is of this process alone, in bytes: what it would take to be without it. Pages of files, which the kernel can take
/// back, are not in it.
pub fn private_bytes() -> Option<u64> {
    let (resident, of_files) = pages()?;
    Some(resident.saturating_sub(of_files) * rustix::param::page_size() as u64)
}

// Resident pages, and how many of them are of files.
fn pages() -> Option<(u64, u64)> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut fields = statm.split_whitespace().skip(1);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold spaces and parentheses: fields count from behind its last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_costs_something() {
        let cost = Cost::now();
        assert!(cost.resident_bytes.unwrap() > 100_000.0);
        let private = private_bytes().unwrap() as f64;
        assert!(private > 10_000.0 && private < cost.resident_bytes.unwrap() * 2.0, "{private}");
        assert!(cost.cpu_seconds.unwrap() >= 0.0);
        assert!(cost.open_fds.unwrap() >= 3.0);
    }
}
