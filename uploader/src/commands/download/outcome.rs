//! What came of an archive that the exchange was asked for.

/// What came of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DownloadOutcome {
    /// It is here now; the bytes are those of the whole archive.
    Downloaded {
        bytes: u64,
    },
    /// It was here, and still is what the exchange has, as far as that was asked.
    Unchanged,
    NotPublished,
}
