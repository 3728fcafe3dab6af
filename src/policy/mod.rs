//! What is allowed: who may log in, who may relay and how many sessions may be open. Pure decisions on values; nothing is sent,
//! stored or read from a clock here.

pub mod dkim;
pub mod domain;
pub mod headers;
pub mod identity;
pub mod lockout;
pub mod logins;
pub mod quota;
pub mod relay;
pub mod scram;
pub mod session_limits;
pub mod trace;
