//! What happened in a world, line by line: hashed whole, so that two runs can be compared, and kept for its last few
//! thousand lines, to be read when the oracle finds something.

use crate::world::random::{Ns, S};
use std::collections::VecDeque;
use std::fmt::{Arguments, Write};

/// Lines kept.
const KEPT: usize = 3_000;

/// The trace of one world.
#[derive(Debug)]
pub struct Trace {
    lines: VecDeque<String>,
    hash: u64,
    count: u64,
    /// Every line goes to standard output at once.
    print: bool,
    scratch: String,
}

impl Trace {
    /// An empty one.
    pub fn new(print: bool) -> Trace {
        Trace { lines: VecDeque::new(), hash: 0xcbf2_9ce4_8422_2325, count: 0, print, scratch: String::new() }
    }

    /// Adds a line.
    pub fn line(&mut self, at: Ns, text: Arguments<'_>) {
        self.scratch.clear();
        // Writing to a String cannot fail.
        let _ = write!(self.scratch, "{:>6}.{:06} ", at / S, at % S / 1_000);
        let _ = self.scratch.write_fmt(text);
        while let Some(at) = self.scratch.find("\r\n") {
            self.scratch.replace_range(at..at + 2, " | ");
        }
        for byte in self.scratch.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        self.count += 1;
        if self.print {
            println!("{}", self.scratch);
        }
        let kept = if self.lines.len() >= KEPT { self.lines.pop_front().unwrap_or_default() } else { String::new() };
        let line = std::mem::replace(&mut self.scratch, kept);
        self.lines.push_back(line);
    }

    /// Stands for all lines so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many lines there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last lines.
    pub fn tail(&self) -> impl Iterator<Item = &String> {
        self.lines.iter()
    }
}
