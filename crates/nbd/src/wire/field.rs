//! Big-endian numbers out of a slice, never beyond its end.

use super::Violation;

/// What is left of a message; `what` names it in errors.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    what: &'static str,
    whole: usize,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// All of `bytes`, which are a `what`.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Fields { what, whole: bytes.len(), rest: bytes }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let short = Violation::Short { what: self.what, length: self.whole };
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(short)?;
        self.rest = rest;
        Ok(*head)
    }

    /// The next 16 bits.
    pub fn u16(&mut self) -> Result<u16, Violation> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Result<u32, Violation> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Result<u64, Violation> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], Violation> {
        let short = Violation::Short { what: self.what, length: self.whole };
        let (head, rest) = self.rest.split_at_checked(length).ok_or(short)?;
        self.rest = rest;
        Ok(head)
    }

    /// Everything that is left.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// An error unless everything has been taken.
    pub fn end(self) -> Result<(), Violation> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Violation::Excess { what: self.what, extra: self.rest.len() })
    }
}
