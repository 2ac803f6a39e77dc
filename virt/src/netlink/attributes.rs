//! Attributes: type, length, value, one after the other, each at a multiple of four.

/// Set in the type of an attribute that holds others, and of one in network byte order.
const FLAGS: u16 = 0xc000;
const NESTED: u16 = 0x8000;

/// The attributes of a message: their types and their values.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !FLAGS, value))
    })
}

/// The value of the first attribute of this type.
pub fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// The same of a 32-bit number.
pub fn find_u32(bytes: &[u8], wanted: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(*find(bytes, wanted)?.first_chunk()?))
}

/// Attributes in the making, behind whatever is there already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// Behind `header`, whose size is a multiple of four.
    pub fn behind(header: &[u8]) -> Attributes {
        Attributes(header.to_vec())
    }

    /// Adds one. A value that is too long becomes one that no kernel takes.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(0);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a number.
    pub fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a number in the order of the network.
    pub fn put_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds a text, with its end.
    pub fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        self.put(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Adds one that holds others.
    pub fn nest(&mut self, kind: u16, inner: &Attributes) -> &mut Self {
        self.put(kind | NESTED, &inner.0)
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_found_again() {
        let mut inner = Attributes::default();
        inner.put_text(1, "veth").put(2, &[7]);
        let mut all = Attributes::behind(&[9; 8]);
        all.put_u32(3, 0x1234_5678).nest(4, &inner);
        let body = &all.bytes()[8..];
        assert_eq!(find_u32(body, 3), Some(0x1234_5678));
        let inner: Vec<_> = attributes(find(body, 4).unwrap()).collect();
        assert_eq!(inner, [(1, &b"veth\0"[..]), (2, &[7][..])]);
        assert_eq!(find(body, 5), None);
    }

    #[test]
    fn what_is_cut_off_ends_the_list() {
        for bytes in [&[8, 0, 1, 0, 1, 2][..], &[3, 0, 1, 0], &[0; 4], &[4]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
