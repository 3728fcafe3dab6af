//! Names the file when a mapped page cannot be read. A read error of the disk under a memory map is a SIGBUS, which ends
//! the process: this says first which file and where, so that the operator knows the damage and `ringpost spool verify` can
//! be told of it.
//!
//! The handler runs in the midst of anything, so it only looks into a table of atomics and calls write(2) and the like; it
//! then leaves the signal to its default action, which ends the process (and dumps core where that is wanted).

use ringpost_spool::FileId;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// At most so many maps are known; those beyond are mapped all the same, but not named.
const MAPS_MAX: usize = 4096;

/// In the tag of a content file, where a segment's number has a zero.
const CONTENT: usize = 2;
const SEGMENT: usize = 1;

struct Slot {
    /// First address; 0 when the slot is free, 1 while it is being filled.
    start: AtomicUsize,
    length: AtomicUsize,
    kind: AtomicUsize,
    name: AtomicU64,
}

static SLOTS: [Slot; MAPS_MAX] = [const {
    Slot { start: AtomicUsize::new(0), length: AtomicUsize::new(0), kind: AtomicUsize::new(0), name: AtomicU64::new(0) }
}; MAPS_MAX];

/// A map that the handler can name, as long as this is held.
#[derive(Debug)]
pub struct NamedMap {
    slot: Option<usize>,
}

impl Drop for NamedMap {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            SLOTS[slot].start.store(0, Ordering::Release);
        }
    }
}

/// Tells the handler which file a map shows from its first byte on. Drop the result before the map.
pub fn name_map(map: &[u8], file: FileId) -> NamedMap {
    let start = map.as_ptr() as usize;
    let free =
        SLOTS.iter().position(|slot| slot.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok());
    if let Some(slot) = free.map(|index| &SLOTS[index]) {
        let (kind, name) = match file {
            FileId::Segment(segment) => (SEGMENT, u64::from(segment.0)),
            FileId::Content(content) => (CONTENT, content),
        };
        slot.kind.store(kind, Ordering::Relaxed);
        slot.name.store(name, Ordering::Relaxed);
        slot.length.store(map.len(), Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
    }
    NamedMap { slot: free }
}

/// Installs the handler for the whole process. To be called once, before anything is mapped.
///
/// # Errors
/// When the system refuses, which it has no reason to.
pub fn install_sigbus_handler() -> io::Result<()> {
    // SAFETY: a sigaction of zeros is valid: default handler, empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    action.sa_sigaction = handler as libc::sighandler_t;
    // With RESETHAND the second SIGBUS, which follows when the handler returns, takes the default action.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what may be done in a signal handler.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo, and for SIGBUS it holds an address.
    let address = unsafe { (*info).si_addr() } as usize;
    let mut text = Text { bytes: [0; 200], length: 0 };
    describe(address, &mut text);
    // SAFETY: the text is valid for its length; write(2) may be called in a signal handler.
    unsafe { libc::write(libc::STDERR_FILENO, text.bytes.as_ptr().cast(), text.length) };
    // The handler returns, the access is made again, and the default action ends the process.
}

fn describe(address: usize, text: &mut Text) {
    for slot in &SLOTS {
        let start = slot.start.load(Ordering::Acquire);
        let Some(offset) = address.checked_sub(start) else { continue };
        if start <= 1 || offset >= slot.length.load(Ordering::Relaxed) {
            continue;
        }
        let name = slot.name.load(Ordering::Relaxed);
        text.push(b"ringpost: the disk failed to read spool file ");
        if slot.kind.load(Ordering::Relaxed) == CONTENT {
            text.push(b"content/");
            text.push_hex(name, 16);
        } else {
            text.push(b"segments/");
            text.push_hex(name >> 24, 2);
            text.push(b"-");
            text.push_hex(name & 0x00ff_ffff, 6);
            text.push(b".seg");
        }
        text.push(b" at offset 0x");
        text.push_hex(offset as u64, 8);
        text.push(b"; check the disk, then run `ringpost spool verify`\n");
        return;
    }
    text.push(b"ringpost: a memory map cannot be read at address 0x");
    text.push_hex(address as u64, 16);
    text.push(b"; check the disk\n");
}

/// A line that is put together without an allocation; what does not fit is cut off.
struct Text {
    bytes: [u8; 200],
    length: usize,
}

impl Text {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
    }

    fn push_hex(&mut self, value: u64, digits: u32) {
        for digit in (0..digits).rev() {
            let nibble = (value >> (4 * digit)) & 0xf;
            self.push(&[b"0123456789abcdef"[nibble as usize]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringpost_spool::SegmentId;

    fn described(address: usize) -> String {
        let mut text = Text { bytes: [0; 200], length: 0 };
        describe(address, &mut text);
        String::from_utf8(text.bytes[..text.length].to_vec()).unwrap()
    }

    #[test]
    fn an_address_is_named_by_file_and_offset_while_its_map_is_known() {
        let map = vec![0; 10_000];
        let content = vec![0; 10];
        let address = map.as_ptr() as usize + 0x1234;
        let named = name_map(&map, FileId::Segment(SegmentId(0x0300_00ab)));
        let other = name_map(&content, FileId::Content(0xfeed));
        assert!(described(address).contains("segments/03-0000ab.seg at offset 0x00001234;"), "{}", described(address));
        let text = described(content.as_ptr() as usize);
        assert!(text.contains("content/000000000000feed at offset 0x00000000;"), "{text}");
        drop(named);
        assert!(described(address).contains("at address 0x"));
        drop(other);
    }

    /// A map beyond a truncated file's end is the simplest SIGBUS; a child process meets it.
    #[test]
    fn the_process_ends_by_the_signal_after_naming_the_file() {
        let mut pipe = [0; 2];
        // SAFETY: the array takes the two descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        let path = std::env::temp_dir().join(format!("ringpost-sigbus-{}", std::process::id()));
        std::fs::write(&path, vec![1; 8192]).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // SAFETY: nobody else knows the file; that it is truncated under the map is the point of the test.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        file.set_len(0).unwrap();
        std::fs::remove_file(&path).unwrap();
        let named = name_map(&map, FileId::Content(7));
        // SAFETY: the child calls only what may be called after a fork of a threaded process: sigaction, dup2, a load.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: the descriptor is the pipe's.
            unsafe { libc::dup2(pipe[1], libc::STDERR_FILENO) };
            let _ = install_sigbus_handler();
            // SAFETY: the address is mapped; that the page cannot be read is what is tested.
            let byte = unsafe { std::ptr::read_volatile(map.as_ptr().add(4096)) };
            // SAFETY: ends the child at once. It is not reached.
            unsafe { libc::_exit(i32::from(byte)) };
        }
        // SAFETY: the descriptors are this test's own.
        unsafe { libc::close(pipe[1]) };
        let mut status = 0;
        // SAFETY: the child is ours and `status` takes its end.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        let mut text = String::new();
        // SAFETY: the descriptor is open and owned by nothing else.
        let mut reader: std::fs::File = unsafe { std::os::fd::FromRawFd::from_raw_fd(pipe[0]) };
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        drop(named);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "status {status:x}");
        assert!(text.contains("content/0000000000000007 at offset 0x00001000;"), "{text}");
    }
}
