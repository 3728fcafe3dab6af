//! The buffers that the kernel receives into: a ring of them shared by all connections, so that an idle connection holds
//! none.
//!
//! A buffer is with the kernel, or is being read for the length of one call, and goes back at once: the ring can run dry
//! only within one batch of completions, and the engine then asks again.

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

/// Buffers of an engine; a power of two.
const COUNT: u16 = 1024;
/// Octets of a buffer.
const SIZE: usize = 16 * 1024;
/// The group that receives name them by.
pub(super) const GROUP: u16 = 1;

/// The ring of buffers. It must outlive the io_uring that it is registered with.
#[derive(Debug)]
pub(super) struct Buffers {
    ring: *mut BufRingEntry,
    memory: *mut u8,
    tail: u16,
}

const RING_OCTETS: usize = COUNT as usize * size_of::<BufRingEntry>();
const MEMORY_OCTETS: usize = COUNT as usize * SIZE;

impl Buffers {
    /// Maps the memory and hands all buffers to the kernel.
    pub(super) fn register(submitter: &Submitter<'_>) -> io::Result<Buffers> {
        let ring = map(RING_OCTETS)?.cast::<BufRingEntry>();
        let memory = map(MEMORY_OCTETS)?;
        let mut buffers = Buffers { ring, memory, tail: 0 };
        for buffer in 0..COUNT {
            buffers.give_back(buffer);
        }
        // SAFETY: the ring is mapped, page-aligned, holds COUNT entries, and is unmapped only after the io_uring is gone.
        unsafe { submitter.register_buf_ring_with_flags(ring as u64, COUNT, GROUP, 0)? };
        Ok(buffers)
    }

    /// What the kernel has put into a buffer.
    pub(super) fn filled(&self, buffer: u16, len: usize) -> &[u8] {
        let at = usize::from(buffer % COUNT) * SIZE;
        // SAFETY: the range lies within the mapped memory, and the kernel does not write to a buffer that it has given out
        // until `give_back`, which takes `&mut self`.
        unsafe { std::slice::from_raw_parts(self.memory.add(at), len.min(SIZE)) }
    }

    /// Gives a buffer to the kernel.
    pub(super) fn give_back(&mut self, buffer: u16) {
        let place = usize::from(self.tail & (COUNT - 1));
        // SAFETY: the place is within the ring; the kernel reads an entry only once the tail has passed it. The entry's
        // last field in place 0 is the tail itself, which the setters do not touch.
        unsafe {
            let entry = &mut *self.ring.add(place);
            entry.set_addr(self.memory.add(usize::from(buffer) * SIZE) as u64);
            entry.set_len(SIZE as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `ring` points to the first entry of an initialised ring; the tail is an aligned u16 that the kernel reads
        // with acquire order, and only this thread writes it.
        unsafe {
            let tail = BufRingEntry::tail(self.ring).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: both were mapped by `map` with these lengths and nothing refers to them any more.
        unsafe {
            libc::munmap(self.ring.cast(), RING_OCTETS);
            libc::munmap(self.memory.cast(), MEMORY_OCTETS);
        }
    }
}

fn map(len: usize) -> io::Result<*mut u8> {
    // SAFETY: an anonymous private mapping at an address of the kernel's choice.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address.cast()) }
}
