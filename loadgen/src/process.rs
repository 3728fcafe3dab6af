//! What a process has used so far, as the kernel tells it in /proc. Linux only, like all of this.

use std::io;
use std::time::Duration;

/// What a process has used.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all its threads, in user space and in the kernel, to a hundredth of a second.
    pub cpu: Duration,
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// Resident memory that is no file's, in KiB: what the process itself has asked for.
    pub anonymous_kib: u64,
    /// The most resident memory so far, in KiB.
    pub most_resident_kib: u64,
}

/// The memory of a process in KiB, with its share of what it has in common with others (PSS). The kernel walks all pages for
/// it, so it is not for every tenth of a second.
///
/// # Errors
/// When the process is gone, or another's.
pub fn proportional_kib(process: u32) -> io::Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{process}/smaps_rollup has no Pss"));
    kib(&rollup, "Pss:").ok_or_else(wrong)
}

/// The line `NAME N kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

impl Usage {
    /// What a process has used.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of(process: u32) -> io::Result<Usage> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{process} cannot be read"));
        let ticks = parse_ticks(&stat).ok_or_else(wrong)?;
        // SAFETY: asks for a constant of the system.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1);
        let kib = |name: &str| kib(&status, name);
        Ok(Usage {
            cpu: Duration::from_secs_f64(ticks as f64 / per_second as f64),
            resident_kib: kib("VmRSS:").ok_or_else(wrong)?,
            anonymous_kib: kib("RssAnon:").ok_or_else(wrong)?,
            most_resident_kib: kib("VmHWM:").ok_or_else(wrong)?,
        })
    }
}

/// The sum of the fields 14 and 15; the name, field 2, may hold anything and is in parentheses.
fn parse_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_can_be_read() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(
            usage.anonymous_kib > 0
                && usage.anonymous_kib <= usage.resident_kib
                && usage.most_resident_kib >= usage.resident_kib
        );
        assert!(Usage::of(u32::MAX).is_err());
        assert!(proportional_kib(std::process::id()).unwrap() > 0 && proportional_kib(u32::MAX).is_err());
    }

    #[test]
    fn names_of_processes_do_not_matter() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14";
        assert_eq!(parse_ticks(stat), Some(42));
    }
}
