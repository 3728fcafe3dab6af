//! Load for mail servers and the means to judge what they did with it.
//!
//! A [`workload`] makes messages; [`send`] sends them and [`receive`] takes them, both on the [`engine`], which is an
//! io_uring of its own. The [`ledger`] compares what was acknowledged with what arrived, through a [`record`] of each side.
//! [`results`] are what is known of a run, [`html`] shows them, [`compare`] tells two of them apart. [`profiles`] put all of
//! it around the program under test, which [`relay`] runs and whose [`buckets`] of times it reads, and hold it against a bare
//! sync by [`sync_probe`]; [`delay`] puts a distance in between, [`names`] makes up the domains, and [`siege`] is of those who mean no good.
//!
//! [`source`] and [`sink`] are a second pair, of threads that block and speak the program's own client protocol: for tests
//! that hold single sessions in their hands (gates, breaking off, waiting for a refusal), not for load.
#![deny(missing_docs)]

pub mod buckets;
pub mod compare;
pub mod content;
pub mod delay;
pub mod destination;
pub mod engine;
pub mod hold_up;
pub mod html;
pub mod ledger;
pub mod names;
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
pub mod siege;
pub mod sink;
pub mod sink_session;
pub mod source;
pub mod sync_probe;
pub mod workload;
