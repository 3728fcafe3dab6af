//! Threads that stay on a core.

use std::io;

/// Cores of a machine that a thread can be kept on, at most: what the kernel's usual set holds.
pub const CPUS_MAX: usize = libc::CPU_SETSIZE as usize;

/// Keeps the calling thread, the one with this number of several, on its core: the cores are taken in turn. Without cores it
/// runs where it likes.
///
/// # Errors
/// When there is no such core, or the process may not run on it; names the core.
pub fn keep_on_core(cpus: &[usize], number: usize) -> io::Result<()> {
    let Some(cpu) = cpus.get(number % cpus.len().max(1)).copied() else { return Ok(()) };
    let explain =
        |error: io::Error| io::Error::new(error.kind(), format!("no thread can be kept on core {cpu}: {error}"));
    if cpu >= CPUS_MAX {
        return Err(explain(io::ErrorKind::InvalidInput.into()));
    }
    // SAFETY: a set is plain numbers, for which all zeros is the empty set; the core is within it, and the kernel reads no
    // more than its size.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if result == 0 { Ok(()) } else { Err(explain(io::Error::last_os_error())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core() -> usize {
        // SAFETY: takes nothing and gives a number.
        usize::try_from(unsafe { libc::sched_getcpu() }).unwrap()
    }

    #[test]
    fn threads_stay_on_their_cores() {
        let cpus = [core()];
        std::thread::spawn(move || {
            for number in [0, 7] {
                keep_on_core(&cpus, number).unwrap();
                assert_eq!(core(), cpus[0]);
            }
            keep_on_core(&[], 3).unwrap();
            let error = keep_on_core(&[cpus[0], CPUS_MAX], 1).unwrap_err();
            assert!(error.to_string().contains("core 1024"), "{error}");
        })
        .join()
        .unwrap();
    }
}
