//! Load for mail servers and the means to judge what they did with it.
//!
//! A workload makes messages, a source sends them, a sink receives them, the ledger compares what was acknowledged
//! with what arrived, and a report says it in figures. Only source and sink know how bytes are moved.

pub mod random;
