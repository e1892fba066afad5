//! Opens an archive held in memory and inflates its one member, checked against size and CRC.

use flate2::{Decompress, FlushDecompress, Status};
use jiff::Timestamp;
use libdeflater::{Crc, DecompressionError, Decompressor};

use super::directory::{Member, only_member};
use super::fault::{ArchiveFault, printable};

const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// Members up to this size are inflated at once by libdeflate, which is faster; larger ones in chunks.
const ONE_SHOT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Size of the chunks a larger member is inflated in.
const CHUNK_BYTES: usize = 256 * 1024;

/// An archive whose directory has been read and found in order.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    member: Member<'a>,
}

impl<'a> Archive<'a> {
    /// `file_name` is the archive's own name, e.g. `BTCUSDT-1h-2026-02-14.zip`: its member must be called
    /// `BTCUSDT-1h-2026-02-14.csv`, in UTF-8.
    pub(super) fn open(file_name: &str, zip: &'a [u8], csv_bytes_max: u64) -> Result<Self, ArchiveFault> {
        let file_name_fault = || ArchiveFault::FileName(printable(file_name.as_bytes()));
        let stem = file_name.strip_suffix(".zip").ok_or_else(file_name_fault)?;
        if stem.is_empty() || stem.contains(['/', '\\', '\0']) {
            return Err(file_name_fault());
        }
        let member = only_member(zip, &format!("{stem}.csv"))?;
        if !matches!(member.method, STORED | DEFLATED) {
            return Err(ArchiveFault::Method(member.method));
        }
        if member.declared_bytes > csv_bytes_max {
            return Err(ArchiveFault::TooLarge { declared_bytes: member.declared_bytes, limit_bytes: csv_bytes_max });
        }
        Ok(Self { member })
    }

    /// Size of the CSV; what [`Self::inflate`] hands out is exactly as long.
    pub(super) fn csv_bytes(&self) -> u64 {
        self.member.declared_bytes
    }

    pub(super) fn member_time(&self) -> Option<Timestamp> {
        self.member.time
    }

    /// Hands the CSV to `sink`, in one piece or in chunks.
    ///
    /// A large member reaches `sink` before its CRC is known, so what `sink` made of it may be used only after `Ok`.
    /// A fault of the archive outranks one that `sink` reports: damaged bytes explain any nonsense in the text.
    pub(super) fn inflate<E: From<ArchiveFault>>(&self, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let Member { method, declared_bytes, compressed, .. } = self.member;
        if method == STORED {
            self.check(compressed.len() as u64, libdeflater::crc32(compressed))?;
            return compressed.chunks(CHUNK_BYTES).try_for_each(sink);
        }
        if declared_bytes <= ONE_SHOT_BYTES_MAX {
            let csv = self.inflate_at_once()?;
            return sink(&csv);
        }
        let mut sunk = Ok(());
        self.inflate_in_chunks(|chunk| {
            if sunk.is_ok() {
                sunk = sink(chunk);
            }
        })?;
        sunk
    }

    fn inflate_at_once(&self) -> Result<Vec<u8>, ArchiveFault> {
        let Member { declared_bytes, compressed, .. } = self.member;
        let mut csv = vec![0; declared_bytes as usize];
        let inflated = Decompressor::new().deflate_decompress(compressed, &mut csv).map_err(|error| match error {
            DecompressionError::BadData => ArchiveFault::Damaged("the deflated data is corrupt"),
            DecompressionError::InsufficientSpace => ArchiveFault::Overrun { declared_bytes },
        })?;
        self.check(inflated as u64, libdeflater::crc32(&csv))?;
        Ok(csv)
    }

    fn inflate_in_chunks(&self, mut sink: impl FnMut(&[u8])) -> Result<(), ArchiveFault> {
        let Member { declared_bytes, compressed, .. } = self.member;
        let mut inflater = Decompress::new(false);
        let mut crc = Crc::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let (read_before, made_before) = (inflater.total_in(), inflater.total_out());
            let input = compressed.get(read_before as usize..).unwrap_or_default();
            let status = inflater
                .decompress(input, &mut buffer, FlushDecompress::None)
                .map_err(|_| ArchiveFault::Damaged("the deflated data is corrupt"))?;
            if inflater.total_out() > declared_bytes {
                return Err(ArchiveFault::Overrun { declared_bytes });
            }
            let made = (inflater.total_out() - made_before) as usize;
            let chunk = buffer.get(..made).unwrap_or_default();
            crc.update(chunk);
            sink(chunk);
            if status == Status::StreamEnd {
                return self.check(inflater.total_out(), crc.sum());
            }
            if made == 0 && inflater.total_in() == read_before {
                return Err(ArchiveFault::Damaged("the deflated data ends early"));
            }
        }
    }

    fn check(&self, actual_bytes: u64, computed: u32) -> Result<(), ArchiveFault> {
        let Member { declared_bytes, crc: stored, .. } = self.member;
        if actual_bytes > declared_bytes {
            return Err(ArchiveFault::Overrun { declared_bytes });
        }
        if actual_bytes < declared_bytes {
            return Err(ArchiveFault::Underrun { declared_bytes, actual_bytes });
        }
        if computed != stored {
            return Err(ArchiveFault::Crc { stored, computed });
        }
        Ok(())
    }
}
