//! What is allowed: who may log in, who may relay, how often clients may connect and how many sessions may be open; and what
//! the replies of others mean. Pure decisions on values; nothing is sent,
//! stored or read from a clock here.

pub mod admission;
pub mod charge;
pub mod classify;
pub mod connection_rate;
pub mod dane;
pub mod dkim;
pub mod domain;
pub mod headers;
pub mod identity;
pub mod lockout;
pub mod logins;
pub mod mta_sts;
pub mod outbound_tls;
pub mod quota;
pub mod relay;
pub mod scram;
pub mod session_limits;
pub mod suppression;
pub mod trace;
pub mod usage;
