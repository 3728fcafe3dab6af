//! Faults planted on purpose, to prove that the model test would find them. Only with the feature `planted-faults`,
//! which no release has.

use std::cell::Cell;

/// A fault.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum PlantedFault {
    /// What was written is reported durable before its sync.
    AckBeforeSync,
    /// A segment with outcomes is recycled while the segments of their messages are still there.
    TombstoneEarly,
    /// Batches of an earlier use of a segment are taken for new.
    StaleGeneration,
}

thread_local! {
    static PLANTED: Cell<Option<PlantedFault>> = const { Cell::new(None) };
}

/// Plants a fault in everything this thread does, or removes it.
pub fn plant(fault: Option<PlantedFault>) {
    PLANTED.set(fault);
}

pub(crate) fn is(fault: PlantedFault) -> bool {
    PLANTED.get() == Some(fault)
}
