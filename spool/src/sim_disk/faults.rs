//! What a simulated disk is told to do wrong: by rates, or the next operation of a kind. Nothing here fails.

/// How a simulated disk behaves. Rates are parts of 1,000.
#[derive(Clone, Debug)]
pub struct SimDiskConfig {
    /// Bytes of every segment.
    pub segment_size: u32,
    /// How many bytes fit: segments, spares and content files.
    pub capacity: u64,
    /// Writes of segments and contents that fail with EIO.
    pub write_errors: u32,
    /// Syncs that fail with EIO.
    pub sync_errors: u32,
    /// Reads that fail with EIO.
    pub read_errors: u32,
    /// Preparations, recycles and removals that fail with EIO.
    pub name_errors: u32,
}

impl SimDiskConfig {
    /// A disk without faults and with much room.
    pub fn sound(segment_size: u32) -> SimDiskConfig {
        SimDiskConfig {
            segment_size,
            capacity: u64::MAX,
            write_errors: 0,
            sync_errors: 0,
            read_errors: 0,
            name_errors: 0,
        }
    }
}

/// Which operation a planned fault hits: the next of its kind.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum FaultAt {
    /// `Prepare`.
    Prepare,
    /// `Write`.
    Write,
    /// `Sync`.
    Sync,
    /// `Read`.
    Read,
    /// `Recycle` and `Discard`.
    Recycle,
    /// `ContentWrite`.
    ContentWrite,
    /// `ContentSync`.
    ContentSync,
    /// `ContentRemove`.
    ContentRemove,
}
