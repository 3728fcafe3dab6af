//! A small seeded generator of pseudo-random numbers (SplitMix64), so that a log and a simulated disk do the same
//! thing for the same seed. Not for secrets: a generation only has to differ from the generations before it.

/// The generator: its whole state is one number.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Equal seeds give equal sequences.
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True in `parts` of 1,000 cases.
    pub(crate) fn chance(&mut self, parts: u32) -> bool {
        self.below(1_000) < u64::from(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_sequences() {
        let (mut one, mut two, mut other) = (Rng::new(7), Rng::new(7), Rng::new(8));
        let first: Vec<u64> = (0..8).map(|_| one.next()).collect();
        assert_eq!(first, (0..8).map(|_| two.next()).collect::<Vec<u64>>());
        assert_ne!(first, (0..8).map(|_| other.next()).collect::<Vec<u64>>());
        assert_eq!((0..100).filter(|_| one.chance(1_000)).count(), 100);
        assert_eq!((0..100).filter(|_| one.chance(0)).count(), 0);
    }
}
