//! The bytes of one file as sparse pages: what was never written or allocated takes no room and reads as zeros.
//!
//! Knows nothing of names, syncing or losing; `disk.rs` keeps two of these for each file.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// The unit that is kept or shared.
pub const PAGE: u64 = 4096;

type Page = Arc<[u8; PAGE as usize]>;

/// One page for all that are allocated and zero, so that files of zeros cost a pointer for each page.
static ZEROS: LazyLock<Page> = LazyLock::new(|| Arc::new([0; PAGE as usize]));

/// A file's length and pages. Pages beyond the length do not exist, and the rest of the last page is zero.
#[derive(Clone, Default)]
pub struct Content {
    len: u64,
    pages: BTreeMap<u64, Page>,
}

impl Content {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Octets of the pages that exist, for `st_blocks` and the capacity.
    pub fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Up to `size` octets from `offset`; fewer at the end of the file.
    pub fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        let end = self.len.min(offset.saturating_add(size as u64));
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        for (number, page) in self.pages.range(offset / PAGE..end.div_ceil(PAGE)) {
            let start = number * PAGE;
            let from = start.max(offset);
            let to = (start + PAGE).min(end);
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - start) as usize..(to - start) as usize]);
        }
        out
    }

    /// Writes, and lengthens the file if it reaches beyond its end.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.len = self.len.max(offset + data.len() as u64);
        self.write_within(offset, data);
    }

    /// Writes what lies within the file; the rest is dropped.
    pub fn write_within(&mut self, offset: u64, data: &[u8]) {
        let end = self.len.min(offset + data.len() as u64);
        let mut at = offset;
        while at < end {
            let start = at / PAGE * PAGE;
            let to = (start + PAGE).min(end);
            let part = &data[(at - offset) as usize..(to - offset) as usize];
            let slot = self.pages.entry(at / PAGE).or_insert_with(|| ZEROS.clone());
            let whole_and_zero = part.len() as u64 == PAGE && part.iter().all(|&octet| octet == 0);
            if whole_and_zero {
                *slot = ZEROS.clone();
            } else {
                Arc::make_mut(slot)[(at - start) as usize..(to - start) as usize].copy_from_slice(part);
            }
            at = to;
        }
    }

    /// Makes the pages of a range exist, without a change to what they say.
    pub fn allocate(&mut self, offset: u64, len: u64) {
        let end = self.len.min(offset + len);
        for number in offset / PAGE..end.div_ceil(PAGE) {
            self.pages.entry(number).or_insert_with(|| ZEROS.clone());
        }
    }

    /// Makes a range zero; pages that lie in it whole cease to exist.
    pub fn punch(&mut self, offset: u64, len: u64) {
        let end = self.len.min(offset + len);
        let file_end = self.len;
        self.pages.retain(|number, page| {
            let start = number * PAGE;
            let (from, to) = (offset.max(start), end.min(start + PAGE));
            if from >= to {
                return true;
            }
            if from == start && to == file_end.min(start + PAGE) {
                return false;
            }
            Arc::make_mut(page)[(from - start) as usize..(to - start) as usize].fill(0);
            true
        });
    }

    /// Cuts or lengthens the file; what is gained is a hole.
    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.retain(|number, _| number * PAGE < len);
            if let Some(page) = self.pages.get_mut(&(len / PAGE)) {
                Arc::make_mut(page)[(len % PAGE) as usize..].fill(0);
            }
        }
        self.len = len;
    }
}

#[test]
fn reads_back_what_was_written_and_zeros_elsewhere() {
    let mut content = Content::default();
    content.write(5000, &[7; 3000]);
    assert_eq!(content.len(), 8000);
    assert_eq!(content.read(0, 10_000), [vec![0; 5000], vec![7; 3000]].concat());
    assert_eq!(content.allocated(), PAGE);
    content.punch(4096, 2000);
    assert_eq!(content.read(6090, 8), [0, 0, 0, 0, 0, 0, 7, 7]);
    content.punch(4096, 4096);
    assert_eq!(content.allocated(), 0);
    content.write(0, &[1; 4096]);
    content.set_len(10);
    content.set_len(20);
    assert_eq!(content.read(8, 100), [vec![1; 2], vec![0; 10]].concat());
    content.allocate(0, 20);
    assert_eq!((content.len(), content.allocated()), (20, PAGE));
}
