//! What is allowed: who may log in, who may relay, how often clients may connect and how many sessions may be open. Pure decisions on values; nothing is sent,
//! stored or read from a clock here.

pub mod admission;
pub mod charge;
pub mod connection_rate;
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
pub mod suppression;
pub mod trace;
pub mod usage;
