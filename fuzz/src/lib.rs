//! The pure modules of ringpost, taken from their files, for the fuzz targets in fuzz_targets/.
//!
//! They are compiled here rather than used from the ringpost library so that only they are instrumented, and the
//! runtime, TLS and HTTP need not be built for it. A module that imports from a higher layer does not compile here.

#[path = "../../src/address.rs"]
pub mod address;
#[path = "../../src/clock.rs"]
pub mod clock;
#[path = "../../src/envelope.rs"]
pub mod envelope;
#[path = "../../src/id.rs"]
pub mod id;
#[path = "../../src/limits.rs"]
pub mod limits;
#[path = "../../src/reply/mod.rs"]
pub mod reply;
#[path = "../../src/smtp/mod.rs"]
pub mod smtp;

pub mod pieces;
pub mod taker;
