//! What every kind of store answers with, and what it is asked.

use jiff::Timestamp;

use common::checksum::Sha256Sum;

/// The end of the way a process stands at. It matters where the two see the store differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Uploader,
    Puller,
}

/// What a store says of an object as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Bytes.
    pub size: u64,
    /// Without its quotes. The MD5 of the content, if it was stored by a single PUT and is not `encrypted`. Empty where
    /// there is no bucket.
    pub etag: String,
    /// Encrypted by the bucket with a key of its own (SSE-KMS, SSE-C): the ETag says nothing about the content.
    pub encrypted: bool,
    /// A bucket says what was sent with the object; a folder reads the file.
    pub sha256: Option<Sha256Sum>,
}

/// What else is known of a stored object that somebody else may have put there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    pub stored: Stored,
    /// The MD5 of the content in hex, as far as the program that sent it left it.
    pub md5: Option<String>,
    /// When the file it was sent from was modified, if that is known; else when it was stored.
    pub modified: Option<Timestamp>,
}

/// What an object may be stored over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over<'s> {
    Anything,
    /// Only where nothing lies.
    Nothing,
    /// Only where this lies, as HEAD showed it.
    This(&'s Stored),
}

impl<'s> Over<'s> {
    /// Only what HEAD showed, be that nothing.
    pub fn seen(stored: Option<&'s Stored>) -> Self {
        stored.map_or(Self::Nothing, Self::This)
    }

    /// Whether this is what HEAD shows now.
    pub(crate) fn is_still(self, now: Option<&Stored>) -> bool {
        match self {
            Self::Anything => true,
            Self::Nothing => now.is_none(),
            Self::This(stored) => now == Some(stored),
        }
    }
}

/// What came of storing an object over what HEAD showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Put {
    Done,
    /// Something else lies there than was to be replaced, and stays. It may be the object itself: the answer to an earlier
    /// try of the same request can be lost.
    Changed,
    /// The file has other bytes than it was said to have. Nothing was stored.
    OtherBytes,
}

/// What came of giving an object its sha256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    Done,
    /// It is no longer the object that was asked for, or gone. Nothing was done.
    Changed,
    /// The store does not do such a thing; why.
    Refused(String),
}

/// Some of the keys below a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// At most 1,000.
    pub keys: Vec<String>,
    /// What to ask for the next page with; `None`: this is the last.
    pub next: Option<String>,
}
