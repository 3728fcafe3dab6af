//! Load for mail servers and the means to judge what they did with it.
//!
//! A [`workload`] makes messages, a [`source`] sends them, a [`sink`] receives them, the [`ledger`] compares what
//! was acknowledged with what arrived, and a [`report`] says it in figures. Only source and sink know how bytes are
//! moved; everything else stays the same under another engine. [`relay`] runs the program under test.
#![deny(missing_docs)]

pub mod compare;
pub mod content;
pub mod delay;
pub mod destination;
pub mod engine;
pub mod html;
pub mod ledger;
mod notice;
pub mod process;
pub mod profiles;
pub mod random;
pub mod receive;
pub mod record;
pub mod relay;
pub mod report;
pub mod results;
pub mod send;
pub mod session;
pub mod sink;
pub mod sink_session;
pub mod source;
pub mod workload;
