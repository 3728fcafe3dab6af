//! The one source of chance of a simulated world: equal seeds give equal worlds. Not for secrets.

/// Nanoseconds of virtual time.
pub type Ns = u64;

/// One microsecond.
pub const US: Ns = 1_000;
/// One millisecond.
pub const MS: Ns = 1_000_000;
/// One second.
pub const S: Ns = 1_000_000_000;

/// A generator whose whole state is one number (SplitMix64: Steele, Lea & Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Equal seeds give equal sequences.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    /// A number below `bound`; 0 when the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// A number from `low` to `high`, both included.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True in `parts` of 1,000 cases.
    pub fn chance(&mut self, parts: u32) -> bool {
        self.below(1_000) < u64::from(parts)
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// A time that is mostly near `low` and now and then up to `high`: delays of networks and disks look so.
    pub fn skewed(&mut self, low: Ns, high: Ns) -> Ns {
        let span = high.saturating_sub(low);
        let roll = self.below(1 << 16);
        // The fourth power keeps the mean at a fifth of the span.
        let part = (((roll * roll) >> 16) * ((roll * roll) >> 16)) >> 16;
        low + ((u128::from(span) * u128::from(part)) >> 16) as u64
    }
}
