//! Faults: the real program on full, failing and damaged disks, short of descriptors, memory or io_uring, without DNS, on
//! a clock that jumps, and among clients and destinations that misbehave. Each test shows what is answered and told,
//! and that nothing acknowledged is lost. See docs/TESTING.md.

#[path = "faults/ahead.rs"]
mod ahead;
#[path = "faults/clock.rs"]
mod clock;
#[path = "powerloss/content.rs"]
#[allow(dead_code)]
mod content;
#[path = "faults/damage.rs"]
mod damage;
#[path = "faults/descriptors.rs"]
mod descriptors;
#[path = "faults/destinations.rs"]
mod destinations;
#[path = "powerloss/disk.rs"]
#[allow(dead_code)]
mod disk;
#[path = "faults/failing_disk.rs"]
mod failing_disk;
#[path = "powerloss/fuse.rs"]
#[allow(dead_code)]
mod fuse;
#[path = "faults/large.rs"]
mod large;
#[path = "faults/mail.rs"]
mod mail;
#[path = "faults/names.rs"]
mod names;
#[path = "faults/program.rs"]
mod program;
#[path = "faults/rude_clients.rs"]
mod rude_clients;
#[path = "faults/start.rs"]
mod start;
