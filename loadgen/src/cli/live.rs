//! The line that shows how a run goes on: on a terminal, rewritten each second. Elsewhere nothing is shown.

use ringpost_load::send::tally::Point;
use std::io::{IsTerminal, Write};

/// The line of one run.
pub struct Live {
    on_terminal: bool,
    recent: Vec<Point>,
    shown: bool,
}

/// How much of the run a line is about, in seconds.
const WINDOW: f64 = 1.0;

impl Live {
    /// Nothing shown yet.
    pub fn new() -> Live {
        Live { on_terminal: std::io::stderr().is_terminal(), recent: Vec::new(), shown: false }
    }

    /// Takes a point; shows the line when a second is over.
    pub fn show(&mut self, point: &Point, queued: Option<u64>) {
        if !self.on_terminal {
            return;
        }
        self.recent.push(*point);
        let length: f64 = self.recent.iter().map(|point| point.length).sum();
        if length < WINDOW {
            return;
        }
        let rate = self.recent.iter().map(|point| point.acknowledged).sum::<u64>() as f64 / length;
        let worst =
            |figure: fn(&Point) -> u64| self.recent.iter().map(figure).max().unwrap_or_default() as f64 / 1000.0;
        let (p50, p99, p999) = (worst(|point| point.p50_us), worst(|point| point.p99_us), worst(|point| point.p999_us));
        let queue = queued.map_or_else(String::new, |queued| format!("  queued {queued}"));
        // A terminal that is gone does not end the run.
        let _ = write!(
            std::io::stderr(),
            "\r\x1b[K{:7.1} s  {rate:8.0}/s  in flight {:5}  p50 {p50:.2} ms  p99 {p99:.2}  p99.9 {p999:.2}{queue}",
            point.at,
            point.in_flight
        );
        self.shown = true;
        self.recent.clear();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if self.shown {
            let _ = writeln!(std::io::stderr());
        }
    }
}
