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
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as f64)
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
        assert!(cost.cpu_seconds.unwrap() >= 0.0);
        assert!(cost.open_fds.unwrap() >= 3.0);
    }
}
