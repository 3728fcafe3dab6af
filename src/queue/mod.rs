//! stub
pub mod destination;
pub mod recipient_state;
pub mod retry;
pub mod slab;
pub mod timer_wheel;
