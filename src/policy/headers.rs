//! The header section of a content, field by field (RFC 5322 2.2). Content has clean CRLF line ends by now.
//!
//! Nothing here fails: a line that is no field is passed over, as other programs do that will read the message.

/// One header field.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its name without the white space that may stand before the colon.
    pub name: &'a [u8],
    /// Everything behind the colon, folded lines and the final CRLF included.
    pub value: &'a [u8],
}

/// The octets of the header section with the empty line that ends it; None when that has not come yet.
pub fn section_len(content: &[u8]) -> Option<usize> {
    if content.starts_with(b"\r\n") {
        return Some(2);
    }
    memchr::memmem::find(content, b"\r\n\r\n").map(|at| at + 4)
}

/// The fields of a header section, in their order.
pub fn fields(section: &[u8]) -> impl Iterator<Item = Field<'_>> {
    let mut rest = section;
    std::iter::from_fn(move || {
        loop {
            if rest.is_empty() || rest.starts_with(b"\r\n") {
                return None;
            }
            let (whole, behind) = rest.split_at(field_len(rest));
            rest = behind;
            let Some(colon) = memchr::memchr(b':', whole) else { continue };
            let name = whole[..colon].trim_ascii_end();
            if !name.is_empty() && name.iter().all(u8::is_ascii_graphic) {
                return Some(Field { name, value: &whole[colon + 1..] });
            }
        }
    })
}

/// The header section without the fields of this name; None when there are none.
pub fn without(section: &[u8], name: &str) -> Option<Vec<u8>> {
    fields(section).find(|field| field.name.eq_ignore_ascii_case(name.as_bytes()))?;
    let mut kept = Vec::with_capacity(section.len());
    let mut rest = section;
    while !rest.is_empty() {
        let (whole, behind) = rest.split_at(field_len(rest));
        let is_it = fields(whole).any(|field| field.name.eq_ignore_ascii_case(name.as_bytes()));
        if !is_it {
            kept.extend_from_slice(whole);
        }
        rest = behind;
    }
    Some(kept)
}

/// The first line with those that continue it.
fn field_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    while let Some(end) = memchr::memchr(b'\n', &bytes[len..]) {
        len += end + 1;
        if !matches!(bytes.get(len), Some(b' ' | b'\t')) {
            return len;
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_with_their_folded_lines() {
        let section = b"From: a@b.example\r\nno field\r\nSubject :\r\n folded\r\n\tmore\r\n odd: x\r\n: empty\r\nX:\r\n\r\nTo: body\r\n";
        let found: Vec<(&[u8], &[u8])> = fields(section).map(|field| (field.name, field.value)).collect();
        let expected: [(&[u8], &[u8]); 3] =
            [(b"From", b" a@b.example\r\n"), (b"Subject", b"\r\n folded\r\n\tmore\r\n odd: x\r\n"), (b"X", b"\r\n")];
        assert_eq!(found, expected);
        assert_eq!(fields(b"Last: without end").map(|field| field.value).collect::<Vec<_>>(), [b" without end"]);
        assert_eq!(fields(b"\r\nA: b\r\n").count(), 0);
    }

    #[test]
    fn fields_of_a_name_are_left_out_whole() {
        let section = b"To: a@b.example\r\nBcc: c@b.example,\r\n d@b.example\r\nSubject: Bcc: x\r\nBCC:\r\n\r\n";
        assert_eq!(without(section, "Bcc").unwrap(), b"To: a@b.example\r\nSubject: Bcc: x\r\n\r\n");
        assert_eq!(without(b"To: a@b.example\r\n\r\n", "Bcc"), None);
    }

    #[test]
    fn the_section_ends_at_the_empty_line() {
        for (content, len) in
            [(&b"A: b\r\n\r\nbody"[..], Some(8)), (b"\r\nbody", Some(2)), (b"A: b\r\n", None), (b"", None)]
        {
            assert_eq!(section_len(content), len);
        }
    }
}
