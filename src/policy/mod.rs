//! What is allowed: who may relay and how many sessions may be open. Pure decisions on values; nothing is sent,
//! stored or read from a clock here.

pub mod relay;
pub mod session_limits;
pub mod trace;
