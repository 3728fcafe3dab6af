//! ringpost: a mail transfer agent. The map of its modules, from the lowest layer to the highest; imports go only downwards.
#![deny(missing_docs)]

// L0: values.
pub mod address;
pub mod clock;
pub mod envelope;
pub mod event;
pub mod id;
pub mod limits;
pub mod reply;
// L1: the protocol, pure.
pub mod smtp;
// L2: decisions, pure.
pub mod policy;
pub mod queue;
// L3: the machine: io_uring, sockets, TLS, disks, clocks.
pub mod io;
// L4: one shard, and the control thread.
pub mod control;
pub mod shard;
// L5: assembly.
pub mod config;
pub mod metrics;
pub mod server;
// The command line, on top of all.
pub mod cli;
