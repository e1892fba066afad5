//! Where the bytes of a zip file are.

use std::borrow::Cow;

use crate::zip::fault::ArchiveFault;

/// The bytes of a zip file, in memory or elsewhere.
pub trait Source {
    type Error: From<ArchiveFault>;

    /// How many there are.
    fn bytes(&self) -> u64;

    /// `count` bytes from `at`; asked only for what lies within.
    ///
    /// # Errors
    /// They cannot be read.
    fn range(&self, at: u64, count: usize) -> Result<Cow<'_, [u8]>, Self::Error>;
}

impl Source for [u8] {
    type Error = ArchiveFault;

    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn range(&self, at: u64, count: usize) -> Result<Cow<'_, [u8]>, ArchiveFault> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..count));
        from.map(Cow::Borrowed).ok_or(ArchiveFault::Damaged("a part of it lies outside the file"))
    }
}
