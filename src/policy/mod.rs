//! To be filled.
pub mod trace;
