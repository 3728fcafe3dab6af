//! Makes the executor's rings with a flag that the executor cannot set itself.
//!
//! A completion is finished in the context of the thread that made the ring. Unless told otherwise the kernel interrupts that
//! thread for it, wherever it runs: an interrupt between processors for each packet that a shard waits for. A shard looks
//! at its ring often enough, and with IORING_SETUP_COOP_TASKRUN (Linux 5.19) the kernel leaves it the time
//! (docs/adr/0001-runtime-and-its-cures.md has the measurement).
//!
//! The linker puts this function in place of liburing's (`--wrap` in build.rs). A program that is linked without that
//! option, as a benchmark of parts may be, works all the same.

use std::io;

/// `IORING_SETUP_COOP_TASKRUN` of the kernel's interface.
const COOP_TASKRUN: u32 = 1 << 8;

/// `IORING_SETUP_IOPOLL`: such a ring finishes nothing by interrupts.
const IOPOLL: u32 = 1;

/// `IORING_REGISTER_IOWQ_AFF`.
const REGISTER_IOWQ_AFF: libc::c_uint = 17;

/// The size of `struct io_uring_params`, and where its flags stand, in words of four octets.
const PARAMS_WORDS: usize = 30;
const FLAGS: usize = 2;

/// Makes a ring as asked, with the flag where the kernel knows it. Gives its descriptor, or -1 and `errno`.
///
/// # Safety
/// `params` points to a `struct io_uring_params` that this call may write.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap___sys_io_uring_setup(entries: libc::c_uint, params: *mut u32) -> libc::c_int {
    // SAFETY: the caller gives a whole structure of that size, aligned for 32-bit words.
    let params = unsafe { &mut *params.cast::<[u32; PARAMS_WORDS]>() };
    if params[FLAGS] & IOPOLL == 0 {
        let mut with_flag = *params;
        with_flag[FLAGS] |= COOP_TASKRUN;
        match setup(entries, &mut with_flag) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Ok(ring) => {
                *params = with_flag;
                free_workers(ring);
                return ring;
            }
            // `errno` stands as the call left it.
            Err(_) => return -1,
        }
    }
    setup(entries, params).unwrap_or(-1)
}

/// Lets the kernel's workers of a ring run on every core that the process may use. What cannot be done at once, a sync for
/// one, is done by such a worker; it takes over the pinning of the thread that made the ring, and would wait for the shard to
/// leave its core.
fn free_workers(ring: libc::c_int) {
    // SAFETY: a set of zeros is an empty set.
    let mut cores: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // The first thread is never pinned, and its number is the process's.
    // SAFETY: the set may be written and has the size that is given; the kernel keeps no pointer to it.
    let known = unsafe { libc::sched_getaffinity(libc::getpid(), size, &raw mut cores) } == 0;
    if known {
        // A kernel before 5.14 does not know it: then the workers stay where the shard is.
        // SAFETY: the set is read only, with the size that is given.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                ring,
                REGISTER_IOWQ_AFF,
                (&raw const cores).cast::<libc::c_void>(),
                size,
            )
        };
    }
}

fn setup(entries: libc::c_uint, params: &mut [u32; PARAMS_WORDS]) -> io::Result<libc::c_int> {
    // SAFETY: the structure is whole and may be written; the kernel keeps no pointer to it.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, params.as_mut_ptr()) };
    if ring < 0 { Err(io::Error::last_os_error()) } else { Ok(ring as libc::c_int) }
}
