//! Cuts the input of a fuzz target into settings, the sizes of pieces, and the bytes that are to be cut so.

/// What a target makes of its input.
pub struct Pieces<'a> {
    /// One octet of settings.
    pub settings: u8,
    /// Sizes of pieces, used over and over, each at least 1.
    sizes: [usize; 3],
    /// The bytes themselves.
    pub bytes: &'a [u8],
}

impl<'a> Pieces<'a> {
    /// None if the input is too short to say anything.
    pub fn of(input: &'a [u8]) -> Option<Pieces<'a>> {
        let (head, bytes) = input.split_first_chunk::<4>()?;
        let sizes = [head[1], head[2], head[3]].map(|size| usize::from(size % 32) + 1);
        Some(Pieces { settings: head[0], sizes, bytes })
    }

    /// The bytes in pieces.
    pub fn cut(&self) -> Vec<&'a [u8]> {
        let mut rest = self.bytes;
        let mut pieces = Vec::new();
        for size in self.sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        pieces
    }
}
