//! Takes numbers and bytes from the input of a fuzz target, one after the other; zeros once it is used up.

/// What is left of an input.
pub struct Taker<'a> {
    rest: &'a [u8],
}

impl<'a> Taker<'a> {
    /// From the beginning.
    pub fn new(input: &'a [u8]) -> Taker<'a> {
        Taker { rest: input }
    }

    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// The next two bytes.
    pub fn number(&mut self) -> u16 {
        u16::from(self.byte()) | u16::from(self.byte()) << 8
    }

    /// The next bytes, fewer at the end.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }
}
