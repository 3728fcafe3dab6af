//! Chunked slabs and the intrusive lists in them: where the queue keeps millions of small things.
//!
//! A slab hands out `u32` places and grows by one chunk at a time, so memory never doubles and nothing is ever
//! moved; a chunk that becomes empty is given back while another one has room. A list is circular and doubly
//! linked through its members, so that every operation on it is O(1) and costs no memory of its own.
//! Not for sharing between threads. It does not fail: a place outside the slab is a defect of the queue itself
//! and stops the program; places that come from outside are looked up with [`Slab::get`].

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};

/// The link that leads nowhere, and the place that no slab hands out.
pub const NONE: u32 = u32::MAX;

/// Places per chunk: 512 messages are 45 KiB, little enough for a shard that has nothing to do.
const CHUNK: usize = 512;

/// What a slab can hold: a value with a link, which chains the places that are free.
pub trait Place: Default {
    /// The link.
    fn link(&self) -> u32;
    /// Sets the link.
    fn set_link(&mut self, to: u32);
}

/// What a list can chain: the link leads to the next member, this one back.
pub trait Linked: Place {
    /// The link back.
    fn back(&self) -> u32;
    /// Sets the link back.
    fn set_back(&mut self, to: u32);
}

#[derive(Debug)]
struct Chunk<T> {
    /// Empty after the chunk was given back, else of capacity `CHUNK`.
    places: Vec<T>,
    /// The first free place, in the whole slab's numbers.
    free: u32,
    used: usize,
}

/// Values at fixed places.
#[derive(Debug)]
pub struct Slab<T> {
    chunks: Vec<Chunk<T>>,
    /// Chunks with memory and room. The lowest is filled first, so that the upper ones can become empty.
    open: BTreeSet<u32>,
    /// Chunks whose memory was given back.
    released: Vec<u32>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { chunks: Vec::new(), open: BTreeSet::new(), released: Vec::new(), len: 0 }
    }
}

impl<T: Place> Slab<T> {
    /// An empty slab, without memory.
    pub fn new() -> Slab<T> {
        Slab::default()
    }

    /// How many places are taken.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no place is taken.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts a value at a place of its own.
    pub fn insert(&mut self, value: T) -> u32 {
        let number = match self.open.first() {
            Some(&number) => number,
            None => self.open_chunk(),
        };
        let chunk = &mut self.chunks[number as usize];
        let place = if chunk.free == NONE {
            chunk.places.push(value);
            number * CHUNK as u32 + (chunk.places.len() - 1) as u32
        } else {
            let place = chunk.free;
            let vacant = &mut chunk.places[place as usize % CHUNK];
            chunk.free = vacant.link();
            *vacant = value;
            place
        };
        chunk.used += 1;
        if chunk.used == CHUNK {
            self.open.remove(&number);
        }
        self.len += 1;
        place
    }

    fn open_chunk(&mut self) -> u32 {
        let number = self.released.pop().unwrap_or_else(|| {
            self.chunks.push(Chunk { places: Vec::new(), free: NONE, used: 0 });
            (self.chunks.len() - 1) as u32
        });
        self.chunks[number as usize].places.reserve_exact(CHUNK);
        self.open.insert(number);
        number
    }

    /// Takes the value out; its place may be handed out again.
    pub fn remove(&mut self, place: u32) -> T {
        let number = place / CHUNK as u32;
        let chunk = &mut self.chunks[number as usize];
        let value = std::mem::take(&mut chunk.places[place as usize % CHUNK]);
        chunk.places[place as usize % CHUNK].set_link(chunk.free);
        chunk.free = place;
        chunk.used -= 1;
        self.len -= 1;
        self.open.insert(number);
        // One chunk with room is always kept, so that filling and emptying at a border costs no allocation.
        if chunk.used == 0 && self.open.len() > 1 {
            *chunk = Chunk { places: Vec::new(), free: NONE, used: 0 };
            self.open.remove(&number);
            self.released.push(number);
        }
        value
    }

    /// The value at a place that may never have been handed out. A free place shows the default value.
    pub fn get(&self, place: u32) -> Option<&T> {
        self.chunks.get(place as usize / CHUNK)?.places.get(place as usize % CHUNK)
    }

    /// As [`Slab::get`], to change it.
    pub fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        self.chunks.get_mut(place as usize / CHUNK)?.places.get_mut(place as usize % CHUNK)
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, place: u32) -> &T {
        &self.chunks[place as usize / CHUNK].places[place as usize % CHUNK]
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, place: u32) -> &mut T {
        &mut self.chunks[place as usize / CHUNK].places[place as usize % CHUNK]
    }
}

/// A circular list through members of one slab. It knows its first member; the last is the one before it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct List {
    head: u32,
}

impl Default for List {
    fn default() -> List {
        List::EMPTY
    }
}

impl List {
    /// The list without members.
    pub const EMPTY: List = List { head: NONE };

    /// The first member, or [`NONE`].
    pub fn head(&self) -> u32 {
        self.head
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.head == NONE
    }

    /// Appends.
    pub fn push_back<T: Linked>(&mut self, slab: &mut Slab<T>, member: u32) {
        if self.head == NONE {
            slab[member].set_link(member);
            slab[member].set_back(member);
            self.head = member;
            return;
        }
        let tail = slab[self.head].back();
        slab[tail].set_link(member);
        slab[member].set_back(tail);
        slab[member].set_link(self.head);
        slab[self.head].set_back(member);
    }

    /// Puts a member before all others.
    pub fn push_front<T: Linked>(&mut self, slab: &mut Slab<T>, member: u32) {
        self.push_back(slab, member);
        self.head = member;
    }

    /// Takes a member out, wherever it stands.
    pub fn unlink<T: Linked>(&mut self, slab: &mut Slab<T>, member: u32) {
        let (next, back) = (slab[member].link(), slab[member].back());
        if next == member {
            self.head = NONE;
        } else {
            slab[back].set_link(next);
            slab[next].set_back(back);
            if self.head == member {
                self.head = next;
            }
        }
        slab[member].set_link(NONE);
        slab[member].set_back(NONE);
    }

    /// Takes the first member out.
    pub fn pop_front<T: Linked>(&mut self, slab: &mut Slab<T>) -> Option<u32> {
        let head = self.head;
        if head == NONE {
            return None;
        }
        self.unlink(slab, head);
        Some(head)
    }

    /// Appends all members of another list in their order.
    pub fn append<T: Linked>(&mut self, slab: &mut Slab<T>, other: List) {
        if other.head == NONE {
            return;
        }
        if self.head == NONE {
            *self = other;
            return;
        }
        let (tail, other_tail) = (slab[self.head].back(), slab[other.head].back());
        slab[tail].set_link(other.head);
        slab[other.head].set_back(tail);
        slab[other_tail].set_link(self.head);
        slab[self.head].set_back(other_tail);
    }

    /// Makes the second member the first and the first the last.
    pub fn rotate<T: Linked>(&mut self, slab: &Slab<T>) {
        if self.head != NONE {
            self.head = slab[self.head].link();
        }
    }

    /// The member after this one, or [`NONE`] after the last.
    pub fn after<T: Linked>(&self, slab: &Slab<T>, member: u32) -> u32 {
        let next = slab[member].link();
        if next == self.head { NONE } else { next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, Debug)]
    struct Bead {
        link: u32,
        back: u32,
        value: u32,
    }

    impl Place for Bead {
        fn link(&self) -> u32 {
            self.link
        }
        fn set_link(&mut self, to: u32) {
            self.link = to;
        }
    }

    impl Linked for Bead {
        fn back(&self) -> u32 {
            self.back
        }
        fn set_back(&mut self, to: u32) {
            self.back = to;
        }
    }

    fn bead(value: u32) -> Bead {
        Bead { link: 0, back: 0, value }
    }

    #[test]
    fn places_are_reused_and_empty_chunks_given_back() {
        let mut slab = Slab::new();
        let places: Vec<u32> = (0..3 * CHUNK as u32).map(|value| slab.insert(bead(value))).collect();
        assert_eq!(slab.len(), 3 * CHUNK);
        for (value, &place) in places.iter().enumerate() {
            assert_eq!(slab[place].value, value as u32);
        }
        for &place in &places[CHUNK..] {
            slab.remove(place);
        }
        assert_eq!(slab.chunks.iter().filter(|chunk| chunk.places.capacity() > 0).count(), 2);
        assert_eq!(slab.released.len(), 1);
        for value in 0..2 * CHUNK as u32 {
            slab.insert(bead(value));
        }
        assert_eq!(slab.chunks.len(), 3);
        assert!(slab.get(4 * CHUNK as u32).is_none() && slab.get(NONE).is_none());
    }

    #[test]
    fn a_list_keeps_its_order() {
        let mut slab = Slab::new();
        let mut list = List::EMPTY;
        let beads: Vec<u32> = (0..4).map(|value| slab.insert(bead(value))).collect();
        list.push_back(&mut slab, beads[1]);
        list.push_back(&mut slab, beads[2]);
        list.push_front(&mut slab, beads[0]);
        let mut other = List::EMPTY;
        other.push_back(&mut slab, beads[3]);
        list.append(&mut slab, other);
        list.unlink(&mut slab, beads[1]);
        assert_eq!(list.after(&slab, beads[0]), beads[2]);
        assert_eq!(list.after(&slab, beads[3]), NONE);
        list.rotate(&slab);
        let order: Vec<u32> = std::iter::from_fn(|| list.pop_front(&mut slab)).collect();
        assert_eq!(order, [beads[2], beads[3], beads[0]]);
        assert!(list.is_empty());
    }
}
