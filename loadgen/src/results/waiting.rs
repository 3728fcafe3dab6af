//! What a great many waiting recipients cost a relay: memory, and a restart.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What waiting recipients cost. Its relay was started twice: "before" and "tried" are of the first process, "known" and what
/// follows of the second.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WaitingFigures {
    /// Recipients that waited, all of them tried once.
    pub recipients: u64,
    /// From the first message until all had been tried, in seconds.
    pub tried_seconds: f64,
    /// Memory with a share of what is common with other processes (PSS) before the run, in KiB.
    pub pss_before_kib: u64,
    /// The same when all had been tried.
    pub pss_tried_kib: u64,
    /// From the signal to the end of the first process, in seconds.
    pub stop_seconds: f64,
    /// From the start of the second process to its first greeting, in seconds.
    pub listening_seconds: f64,
    /// From the start of the second process until all messages were in its queue again, in seconds.
    pub known_seconds: f64,
    /// Memory of its own (RssAnon) then, in KiB.
    pub known_kib: u64,
    /// PSS then, in KiB.
    pub pss_known_kib: u64,
    /// Recipients that the second process had tried by then without being told to, which none was due for.
    pub tried_early: u64,
    /// How long the order to try all now took, the first time, in seconds.
    pub order_seconds: f64,
    /// How often the order was given: what fails for other reasons than the destination's has to be told again.
    pub orders: u32,
    /// Orders that the relay refused, or carried out for some only.
    pub orders_refused: u32,
    /// From the first order to the last arrival, or until the patience was over, in seconds.
    pub delivered_seconds: f64,
}

impl fmt::Display for WaitingFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |kib: u64| kib / 1024;
        writeln!(
            f,
            "  waiting       {} recipients tried {:.2} s after the first message; PSS {} MiB before, {} then",
            self.recipients,
            self.tried_seconds,
            mib(self.pss_before_kib),
            mib(self.pss_tried_kib)
        )?;
        writeln!(
            f,
            "  start again   stopped in {:.2} s, greets after {:.2} s, knows all after {:.2} s; {} MiB own, {} MiB PSS; \
             {} tried too early",
            self.stop_seconds,
            self.listening_seconds,
            self.known_seconds,
            mib(self.known_kib),
            mib(self.pss_known_kib),
            self.tried_early
        )?;
        writeln!(
            f,
            "  retry         ordered {} times ({} refused), the first took {:.2} s; all of it {:.2} s",
            self.orders, self.orders_refused, self.order_seconds, self.delivered_seconds
        )
    }
}
