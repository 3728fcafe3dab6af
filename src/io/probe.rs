//! Checks before the start whether this machine lets the program run: io_uring, locked memory, open files, cores. Each
//! finding says what is wrong and what to do; nothing here changes anything but the soft limits of this process.

use std::io;

/// Each executor refuses to start below this limit of locked memory, whatever it needs itself.
const MEMLOCK_MIN: u64 = 512 * 1024;

/// Every executor registers its IO memory with so many rings, and each counts.
const RINGS: u64 = 3;

/// With fewer open files a warning is due: each session and each delivery takes one.
const OPEN_FILES_WANTED: u64 = 65_536;

/// What the process keeps open itself: log, control socket, DNS, HTTP.
const OPEN_FILES_BASE: u64 = 32;
/// What a shard keeps open: rings, wake-ups, listeners, segments; and some sessions, else it would be of no use.
const OPEN_FILES_PER_SHARD: u64 = 32;

/// Why the program cannot run here; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel is too old.
    #[error("this kernel has no io_uring; ringpost needs Linux 5.8 or newer")]
    NoIoUring,
    /// Forbidden by a filter.
    #[error(
        "io_uring is forbidden for this process, most likely by a seccomp filter: in a container, allow io_uring_setup, \
         io_uring_enter and io_uring_register (Docker: --security-opt seccomp=unconfined, or a profile that allows them)"
    )]
    IoUringFiltered,
    /// Forbidden by a sysctl.
    #[error(
        "io_uring is switched off on this machine (kernel.io_uring_disabled = {value}): set it to 0 with `sysctl -w \
         kernel.io_uring_disabled=0`, or to 1 and name this user's group in kernel.io_uring_group"
    )]
    IoUringDisabled {
        /// The sysctl's value.
        value: u8,
    },
    /// Something else.
    #[error("io_uring does not work here: {0}; check the kernel log")]
    IoUring(io::Error),
    /// So few files may be open that the program could not even keep its own.
    #[error(
        "only {have} files may be open and {shards} shards need {need} for themselves and some sessions: set LimitNOFILE=65536 \
         in the service, or `ulimit -n 65536`"
    )]
    OpenFiles {
        /// What it is.
        have: u64,
        /// What is needed.
        need: u64,
        /// For how many shards.
        shards: usize,
    },
    /// The limit of locked memory is too low.
    #[error(
        "the limit on locked memory is {have} KiB and {need} KiB are needed for {shards} shards: set LimitMEMLOCK=infinity \
         in the service, or `ulimit -l {need}`"
    )]
    LockedMemory {
        /// What it is, in KiB.
        have: u64,
        /// What is needed, in KiB.
        need: u64,
        /// For how many shards.
        shards: usize,
    },
}

/// What the machine offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The cores this process may run on.
    pub cores: Vec<usize>,
    /// How many files it may have open.
    pub open_files: u64,
    /// What an operator should know, in whole sentences.
    pub warnings: Vec<String>,
}

/// Checks everything for so many shards with so much IO memory each, and raises soft limits as far as they go.
///
/// # Errors
/// When the program cannot run here.
pub fn probe(shards: usize, io_memory: usize) -> Result<Machine, ProbeError> {
    probe_io_uring()?;
    probe_locked_memory(shards, io_memory)?;
    let open_files = raise(libc::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let need = OPEN_FILES_BASE + OPEN_FILES_PER_SHARD * shards as u64;
    if open_files < need {
        return Err(ProbeError::OpenFiles { have: open_files, need, shards });
    }
    let mut warnings = Vec::new();
    if open_files < OPEN_FILES_WANTED {
        warnings.push(format!(
            "only {open_files} files may be open, which bounds sessions and deliveries: set LimitNOFILE={OPEN_FILES_WANTED} \
             or more"
        ));
    }
    let cores = cores();
    if cores.len() < shards {
        warnings.push(format!("{shards} shards share {} cores: use as many shards as cores", cores.len()));
    }
    Ok(Machine { cores, open_files, warnings })
}

/// The cores this process may run on.
pub fn cores() -> Vec<usize> {
    // SAFETY: a set of zeros is the empty set, and the call fills it in up to the size given.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return vec![0];
        }
        set
    };
    let all = 0..libc::CPU_SETSIZE as usize;
    // SAFETY: the index is below the size of the set.
    all.filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect()
}

/// Makes a small ring and closes it: glommio would panic where that fails.
fn probe_io_uring() -> Result<(), ProbeError> {
    // struct io_uring_params: 120 bytes, zeros for the defaults.
    let mut parameters = [0_u64; 15];
    // SAFETY: the parameters are as large as the kernel's structure, which it reads and fills in.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4_u32, parameters.as_mut_ptr()) };
    if ring >= 0 {
        // SAFETY: the descriptor was just given to us and nobody else has it.
        unsafe { libc::close(ring as libc::c_int) };
        return Ok(());
    }
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    Err(judge(io::Error::last_os_error(), disabled.as_deref()))
}

fn judge(error: io::Error, disabled: Option<&str>) -> ProbeError {
    let value = disabled.and_then(|text| text.trim().parse::<u8>().ok()).unwrap_or(0);
    match error.raw_os_error() {
        Some(libc::ENOSYS) => ProbeError::NoIoUring,
        Some(libc::EPERM) if value > 0 => ProbeError::IoUringDisabled { value },
        Some(libc::EPERM | libc::EACCES) => ProbeError::IoUringFiltered,
        _ => ProbeError::IoUring(error),
    }
}

fn probe_locked_memory(shards: usize, io_memory: usize) -> Result<(), ProbeError> {
    let registered = RINGS * (io_memory.max(64 * 1024) as u64) * shards as u64;
    let need = registered.max(MEMLOCK_MIN);
    let Some((soft, _)) = raise(libc::RLIMIT_MEMLOCK) else { return Ok(()) };
    // With the right to lock memory only the check of the executor itself counts.
    let enough = if may_lock() { MEMLOCK_MIN } else { need };
    if soft < enough {
        return Err(ProbeError::LockedMemory { have: soft / 1024, need: need.div_ceil(1024), shards });
    }
    Ok(())
}

/// Whether this process has CAP_IPC_LOCK, so that locked memory is not counted.
fn may_lock() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|capabilities| capabilities & (1 << CAP_IPC_LOCK) != 0)
}

/// Raises a soft limit to its hard limit. Gives both as they are then.
fn raise(resource: libc::__rlimit_resource_t) -> Option<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is a valid structure that the call fills in.
    if unsafe { libc::getrlimit(resource, &mut limit) } != 0 {
        return None;
    }
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
        // SAFETY: the limit is a valid structure that the call only reads.
        if unsafe { libc::setrlimit(resource, &raised) } == 0 {
            limit = raised;
        }
    }
    Some((limit.rlim_cur, limit.rlim_max))
}

impl Machine {
    /// How many connections to destinations each shard may have, so that they and clients' sessions find descriptors: half
    /// of what the program does not need for itself.
    pub fn outgoing_per_shard(&self, shards: u8) -> usize {
        let shards = u64::from(shards.max(1));
        let left = self.open_files.saturating_sub(OPEN_FILES_BASE + OPEN_FILES_PER_SHARD * shards);
        usize::try_from(left / shards / 2).unwrap_or(usize::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_runs_shards() {
        let machine = probe(1, 64 * 1024).unwrap();
        assert!(!machine.cores.is_empty() && machine.open_files > 0);
        let few = Machine { open_files: OPEN_FILES_BASE + 2 * OPEN_FILES_PER_SHARD + 400, ..machine };
        assert_eq!((few.outgoing_per_shard(2), few.outgoing_per_shard(200)), (100, 1));
    }

    #[test]
    fn each_cause_has_its_cure() {
        let error = |number| io::Error::from_raw_os_error(number);
        assert!(judge(error(libc::ENOSYS), None).to_string().contains("Linux 5.8"));
        assert!(judge(error(libc::EPERM), Some("2\n")).to_string().contains("kernel.io_uring_disabled = 2"));
        assert!(judge(error(libc::EPERM), Some("0\n")).to_string().contains("seccomp"));
        assert!(judge(error(libc::EPERM), None).to_string().contains("seccomp"));
        assert!(judge(error(libc::ENOMEM), None).to_string().contains("check the kernel log"));
    }
}
