//! What a disk holds and what it would hold after a power cut: for each file and directory the state that was
//! synced, apart from the changes that were only made.
//!
//! The model is as harsh as POSIX allows. The sync of a file makes its content and length durable, not its name;
//! the sync of a directory makes its entries durable, not what they name. Of what was not synced, a power cut keeps
//! any part: writes whole or torn at sectors, in any order, lengths, names. Pure: FUSE and the clock are elsewhere.

use super::content::Content;
use ringpost_load::random::Random;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

/// What a drive writes whole or not at all.
const SECTOR: usize = 512;
/// Unsynced octets from which on the oldest changes are written back, as a kernel would do.
const WRITE_BACK_ABOVE: u64 = 512 << 20;
/// The root directory.
pub const ROOT: u64 = 1;

/// One change of a file's content that is not yet durable.
#[derive(Clone)]
enum Change {
    Write { offset: u64, data: Arc<[u8]> },
    Zeros { offset: u64, len: u64 },
    Allocate { offset: u64, len: u64 },
    Punch { offset: u64, len: u64 },
    SetLen(u64),
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Change::Write { offset, data } => content.write(*offset, data),
            Change::Zeros { offset, len } => {
                for (at, data) in zero_pieces(*offset, *len) {
                    content.write(at, data);
                }
            }
            Change::Allocate { offset, len } => content.allocate(*offset, *len),
            Change::Punch { offset, len } => content.punch(*offset, *len),
            Change::SetLen(len) => content.set_len(*len),
        }
    }

    /// Applies it to the sectors that `keep` chooses, never changing the length. Where a file was lengthened is
    /// decided apart from what of its data was written.
    fn apply_sectors(&self, content: &mut Content, keep: &mut dyn FnMut() -> bool) {
        let mut pieces = |offset: u64, data: &[u8]| {
            let mut at = 0;
            while at < data.len() {
                let to_boundary = SECTOR - (offset as usize + at) % SECTOR;
                let end = data.len().min(at + to_boundary);
                if keep() {
                    content.write_within(offset + at as u64, &data[at..end]);
                }
                at = end;
            }
        };
        match self {
            Change::Write { offset, data } => pieces(*offset, data),
            Change::Zeros { offset, len } => {
                for (at, data) in zero_pieces(*offset, *len) {
                    pieces(at, data);
                }
            }
            Change::Allocate { offset, len } => content.allocate(*offset, *len),
            Change::Punch { offset, len } => {
                if keep() {
                    content.punch(*offset, *len);
                }
            }
            Change::SetLen(_) => {}
        }
    }

    /// Octets held in memory until it is durable.
    fn weight(&self) -> u64 {
        match self {
            Change::Write { data, .. } => data.len() as u64,
            _ => 64,
        }
    }
}

fn zero_pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, &'static [u8])> {
    static ZEROS: [u8; 65536] = [0; 65536];
    (0..len).step_by(ZEROS.len()).map(move |at| (offset + at, &ZEROS[..ZEROS.len().min((len - at) as usize)]))
}

/// What a node is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    File,
    Directory,
    Socket,
}

/// A file, directory or socket.
#[derive(Clone)]
pub struct Node {
    pub kind: Kind,
    pub mode: u16,
    /// As programs see it.
    pub live: Content,
    synced: Content,
    pending: Vec<(u64, Change)>,
    /// Open descriptors; a removed file lives on until they are closed.
    pub opens: u32,
}

type Names = BTreeMap<OsString, u64>;

/// One act on names, durable whole or not at all.
#[derive(Clone)]
struct NameChange {
    sequence: u64,
    sets: Vec<(u64, OsString, Option<u64>)>,
}

/// How much of the unsynced a power cut keeps.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    Nothing,
    /// Everything, as after a killed process.
    Everything,
    /// Each write whole or not, each name change or not.
    Writes,
    /// Each sector, each name change or not.
    Sectors,
    /// Everything up to a moment, the write of that moment torn.
    Prefix,
    /// Only what came last; what came before it is lost.
    Suffix,
}

impl Cut {
    /// Any of them.
    pub fn random(random: &mut Random) -> Cut {
        let cuts = [Cut::Nothing, Cut::Everything, Cut::Writes, Cut::Sectors, Cut::Prefix, Cut::Suffix];
        cuts[random.below(cuts.len() as u64) as usize]
    }
}

/// Why an act on the disk was refused; an errno.
pub type Refusal = i32;

/// The whole disk.
#[derive(Clone)]
pub struct Disk {
    nodes: HashMap<u64, Node>,
    names: HashMap<u64, Names>,
    synced_names: HashMap<u64, Names>,
    pending_names: Vec<NameChange>,
    next_node: u64,
    sequence: u64,
    weight: u64,
    /// Octets that files may take, names and metadata aside.
    pub capacity: u64,
}

impl Disk {
    /// A disk with an empty root directory.
    pub fn new(capacity: u64) -> Disk {
        let mut disk = Disk {
            nodes: HashMap::new(),
            names: HashMap::from([(ROOT, Names::new())]),
            synced_names: HashMap::from([(ROOT, Names::new())]),
            pending_names: Vec::new(),
            next_node: ROOT,
            sequence: 0,
            weight: 0,
            capacity,
        };
        disk.add_node(Kind::Directory, 0o755);
        disk
    }

    /// The place in the order of all changes: what is made from now on comes after it.
    pub fn mark(&self) -> u64 {
        self.sequence
    }

    pub fn node(&self, number: u64) -> Result<&Node, Refusal> {
        self.nodes.get(&number).ok_or(libc::ENOENT)
    }

    pub fn node_mut(&mut self, number: u64) -> Result<&mut Node, Refusal> {
        self.nodes.get_mut(&number).ok_or(libc::ENOENT)
    }

    pub fn lookup(&self, directory: u64, name: &OsStr) -> Result<u64, Refusal> {
        self.entries(directory)?.get(name).copied().ok_or(libc::ENOENT)
    }

    pub fn entries(&self, directory: u64) -> Result<&Names, Refusal> {
        self.names.get(&directory).ok_or(libc::ENOTDIR)
    }

    /// Octets that all files take.
    pub fn used(&self) -> u64 {
        self.nodes.values().map(|node| node.live.allocated()).sum()
    }

    /// Makes a node with a name.
    pub fn create(&mut self, directory: u64, name: &OsStr, kind: Kind, mode: u16) -> Result<u64, Refusal> {
        if self.entries(directory)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let number = self.add_node(kind, mode);
        if kind == Kind::Directory {
            self.names.insert(number, Names::new());
            self.synced_names.insert(number, Names::new());
        }
        self.change_names(vec![(directory, name.to_owned(), Some(number))]);
        Ok(number)
    }

    /// Removes a name.
    pub fn unlink(&mut self, directory: u64, name: &OsStr) -> Result<(), Refusal> {
        let number = self.lookup(directory, name)?;
        if self.names.get(&number).is_some_and(|names| !names.is_empty()) {
            return Err(libc::ENOTEMPTY);
        }
        self.change_names(vec![(directory, name.to_owned(), None)]);
        self.forget_unreachable();
        Ok(())
    }

    /// Gives a node another name, in place of what had it.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), replace: bool) -> Result<(), Refusal> {
        let number = self.lookup(from.0, from.1)?;
        if !replace && self.entries(to.0)?.contains_key(to.1) {
            return Err(libc::EEXIST);
        }
        self.entries(to.0)?;
        if from != to {
            self.change_names(vec![(from.0, from.1.to_owned(), None), (to.0, to.1.to_owned(), Some(number))]);
            self.forget_unreachable();
        }
        Ok(())
    }

    /// Writes; durable at once if `durable`, otherwise after the file's next sync.
    pub fn write(&mut self, number: u64, offset: u64, data: &[u8], durable: bool) -> Result<(), Refusal> {
        self.reserve(number, offset, data.len() as u64)?;
        let change = if data.iter().all(|&octet| octet == 0) {
            Change::Zeros { offset, len: data.len() as u64 }
        } else {
            Change::Write { offset, data: data.into() }
        };
        self.change(number, change)?;
        if durable {
            let node = self.node_mut(number)?;
            if let Some((_, change)) = node.pending.pop() {
                change.apply(&mut node.synced);
                self.weight = self.weight.saturating_sub(change.weight());
            }
        }
        Ok(())
    }

    pub fn set_len(&mut self, number: u64, len: u64) -> Result<(), Refusal> {
        self.change(number, Change::SetLen(len))
    }

    /// fallocate(2) with its mode bits.
    pub fn allocate(&mut self, number: u64, offset: u64, len: u64, mode: i32) -> Result<(), Refusal> {
        let keep_len = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let known = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        if mode & !known != 0 {
            return Err(libc::EOPNOTSUPP);
        }
        if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 {
            return self.change(number, Change::Punch { offset, len });
        }
        self.reserve(number, offset, len)?;
        if !keep_len && self.node(number)?.live.len() < offset + len {
            self.change(number, Change::SetLen(offset + len))?;
        }
        if mode & libc::FALLOC_FL_ZERO_RANGE != 0 {
            self.change(number, Change::Punch { offset, len })?;
        }
        self.change(number, Change::Allocate { offset, len })
    }

    /// Makes the changes of a file up to a mark durable.
    pub fn sync_file(&mut self, number: u64, mark: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let kept = node.pending.partition_point(|(sequence, _)| *sequence <= mark);
        for (_, change) in node.pending.drain(..kept) {
            self.weight = self.weight.saturating_sub(change.weight());
            change.apply(&mut node.synced);
        }
    }

    /// Makes the entries of a directory durable, as they were at the mark. A rename that touches it is made durable
    /// on its other side, too, and with each change whatever came before to the same name.
    pub fn sync_directory(&mut self, directory: u64, mark: u64) {
        let mut needed: BTreeSet<(u64, OsString)> = BTreeSet::new();
        let mut chosen = HashSet::new();
        for change in self.pending_names.iter().rev().filter(|change| change.sequence <= mark) {
            let touches =
                |set: &(u64, OsString, Option<u64>)| set.0 == directory || needed.contains(&(set.0, set.1.clone()));
            if change.sets.iter().any(touches) {
                needed.extend(change.sets.iter().map(|(directory, name, _)| (*directory, name.clone())));
                chosen.insert(change.sequence);
            }
        }
        let (durable, pending) =
            std::mem::take(&mut self.pending_names).into_iter().partition(|change| chosen.contains(&change.sequence));
        self.pending_names = pending;
        for change in durable {
            set_names(&mut self.synced_names, &change);
        }
        self.forget_unreachable();
    }

    /// Counts a descriptor opened (1) or closed (-1).
    pub fn count_open(&mut self, number: u64, by: i32) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.opens = node.opens.saturating_add_signed(by);
            if node.opens == 0 {
                self.forget_unreachable();
            }
        }
    }

    /// Octets that would be lost, and changes of names, if nothing of the unsynced survived.
    pub fn unsynced(&self) -> (u64, usize) {
        (self.weight, self.pending_names.len())
    }

    /// The unsynced changes in files whose names end so: how many octets, and the place of the oldest in the order
    /// of all changes.
    pub fn unsynced_of(&self, name_end: &str) -> (u64, Option<u64>) {
        let named = |(name, number): (&OsString, &u64)| {
            name.to_str().is_some_and(|name| name.ends_with(name_end)).then(|| self.nodes.get(number))?
        };
        let nodes: Vec<&Node> = self.names.values().flatten().filter_map(named).collect();
        let octets = nodes.iter().flat_map(|node| &node.pending).map(|(_, change)| change.weight()).sum();
        (octets, nodes.iter().filter_map(|node| Some(node.pending.first()?.0)).min())
    }

    /// The disk as it is found after a power cut.
    pub fn after(mut self, cut: Cut, random: &mut Random) -> Disk {
        let share = random.below(101);
        let moment = self.random_moment(random);
        let keeps_names = |sequence: u64, random: &mut Random| match cut {
            Cut::Nothing => false,
            Cut::Everything => true,
            Cut::Writes | Cut::Sectors => random.percent(share),
            Cut::Prefix => sequence <= moment,
            Cut::Suffix => sequence > moment,
        };
        let mut names = std::mem::take(&mut self.synced_names);
        for change in &self.pending_names {
            if keeps_names(change.sequence, random) {
                set_names(&mut names, change);
            }
        }
        let mut found = Disk { next_node: self.next_node, sequence: self.sequence, ..Disk::new(self.capacity) };
        let mut ways = vec![ROOT];
        let mut seen = HashSet::from([ROOT]);
        while let Some(directory) = ways.pop() {
            let entries = names.remove(&directory).unwrap_or_default();
            for number in entries.values() {
                if let Some(node) = self.nodes.get(number)
                    && seen.insert(*number)
                {
                    if node.kind == Kind::Directory {
                        ways.push(*number);
                    }
                    found.nodes.insert(*number, node.after(cut, share, moment, random));
                }
            }
            let entries: Names = entries.into_iter().filter(|(_, number)| self.nodes.contains_key(number)).collect();
            found.names.insert(directory, entries.clone());
            found.synced_names.insert(directory, entries);
        }
        found
    }

    fn random_moment(&self, random: &mut Random) -> u64 {
        let first_of_nodes = self.nodes.values().filter_map(|node| Some(node.pending.first()?.0));
        let first_of_names = self.pending_names.first().map(|change| change.sequence);
        let first = first_of_nodes.chain(first_of_names).min().unwrap_or(self.sequence);
        first + random.below(self.sequence - first + 1)
    }

    fn add_node(&mut self, kind: Kind, mode: u16) -> u64 {
        let number = self.next_node;
        self.next_node += 1;
        let (live, synced) = (Content::default(), Content::default());
        self.nodes.insert(number, Node { kind, mode, live, synced, pending: Vec::new(), opens: 0 });
        number
    }

    fn change(&mut self, number: u64, change: Change) -> Result<(), Refusal> {
        self.sequence += 1;
        let sequence = self.sequence;
        self.weight += change.weight();
        let node = self.node_mut(number)?;
        change.apply(&mut node.live);
        node.pending.push((sequence, change));
        if self.weight > WRITE_BACK_ABOVE {
            let numbers: Vec<u64> = self.nodes.keys().copied().collect();
            numbers.into_iter().for_each(|number| self.sync_file(number, sequence));
        }
        Ok(())
    }

    fn change_names(&mut self, sets: Vec<(u64, OsString, Option<u64>)>) {
        self.sequence += 1;
        let change = NameChange { sequence: self.sequence, sets };
        set_names(&mut self.names, &change);
        self.pending_names.push(change);
    }

    /// Room for a write or an allocation, by what it would add to the file's end at most.
    fn reserve(&self, number: u64, offset: u64, len: u64) -> Result<(), Refusal> {
        let node = self.node(number)?;
        if node.live.len() >= offset + len && node.live.allocated() >= node.live.len() {
            return Ok(());
        }
        if self.used() + len > self.capacity { Err(libc::ENOSPC) } else { Ok(()) }
    }

    /// Drops nodes without a name, a descriptor, or a chance that a power cut brings them back.
    fn forget_unreachable(&mut self) {
        let mut named: HashSet<u64> = HashSet::from([ROOT]);
        for names in self.names.values().chain(self.synced_names.values()) {
            named.extend(names.values());
        }
        named.extend(self.pending_names.iter().flat_map(|change| change.sets.iter().filter_map(|set| set.2)));
        let mut gone = 0;
        self.nodes.retain(|number, node| {
            let kept = node.opens > 0 || named.contains(number);
            if !kept {
                gone += node.pending.iter().map(|(_, change)| change.weight()).sum::<u64>();
            }
            kept
        });
        self.weight = self.weight.saturating_sub(gone);
        self.names.retain(|number, _| named.contains(number));
        self.synced_names.retain(|number, _| named.contains(number));
    }
}

impl Node {
    fn after(&self, cut: Cut, share: u64, moment: u64, random: &mut Random) -> Node {
        let content = match cut {
            Cut::Nothing => self.synced.clone(),
            Cut::Everything => self.live.clone(),
            _ => self.partly(cut, share, moment, random),
        };
        Node { kind: self.kind, mode: self.mode, live: content.clone(), synced: content, pending: Vec::new(), opens: 0 }
    }

    fn partly(&self, cut: Cut, share: u64, moment: u64, random: &mut Random) -> Content {
        let mut content = self.synced.clone();
        let len = self.random_len(random);
        // Data is written within the greatest length that the file ever had, and then cut to the length it has.
        let greatest = self.lens().max().unwrap_or(0);
        content.set_len(greatest);
        for (sequence, change) in &self.pending {
            match cut {
                Cut::Writes if !random.percent(share) => {}
                Cut::Prefix if *sequence > moment => {}
                Cut::Suffix if *sequence < moment => {}
                Cut::Sectors => change.apply_sectors(&mut content, &mut || random.percent(share)),
                Cut::Prefix | Cut::Suffix if *sequence == moment => {
                    change.apply_sectors(&mut content, &mut || random.percent(50));
                }
                _ => change.apply_sectors(&mut content, &mut || true),
            }
        }
        content.set_len(len);
        content
    }

    /// The lengths that the file had since it was synced.
    fn lens(&self) -> impl Iterator<Item = u64> {
        let mut len = self.synced.len();
        std::iter::once(len).chain(self.pending.iter().map(move |(_, change)| {
            len = match change {
                Change::Write { offset, data } => len.max(offset + data.len() as u64),
                Change::Zeros { offset, len: more } => len.max(offset + more),
                Change::SetLen(len) => *len,
                Change::Allocate { .. } | Change::Punch { .. } => len,
            };
            len
        }))
    }

    fn random_len(&self, random: &mut Random) -> u64 {
        let lens: Vec<u64> = self.lens().collect();
        lens[random.below(lens.len() as u64) as usize]
    }
}

fn set_names(names: &mut HashMap<u64, Names>, change: &NameChange) {
    for (directory, name, number) in &change.sets {
        let entries = names.entry(*directory).or_default();
        match number {
            Some(number) => entries.insert(name.clone(), *number),
            None => entries.remove(name),
        };
    }
}
