//! To be filled.
pub mod dsn;
mod dsn_text;
