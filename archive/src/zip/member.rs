//! Opens an archive and inflates its one member, checked against size and CRC.

use std::borrow::Cow;
use std::cmp::Ordering;

use flate2::{Decompress, FlushDecompress, Status};
use jiff::Timestamp;
use libdeflater::{Crc, DecompressionError, Decompressor};

use crate::zip::directory::{Member, only_member};
use crate::zip::fault::{ArchiveFault, printable};
use crate::zip::source::Source;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// Members up to this size are inflated at once by libdeflate, which is faster; larger ones in chunks.
const ONE_SHOT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Size of the chunks a larger member is read and inflated in.
const CHUNK_BYTES: usize = 256 * 1024;

/// An archive whose directory has been read and found in order.
#[derive(Debug)]
pub struct Archive<'a, S: Source + ?Sized> {
    source: &'a S,
    member: Member,
}

impl<'a, S: Source + ?Sized> Archive<'a, S> {
    /// `file_name` is the archive's own name, e.g. `BTCUSDT-1h-2026-02-14.zip`: its member must be called
    /// `BTCUSDT-1h-2026-02-14.csv`, in UTF-8.
    pub fn open(file_name: &str, source: &'a S, csv_bytes_max: u64) -> Result<Self, S::Error> {
        let file_name_fault = || ArchiveFault::FileName(printable(file_name.as_bytes()));
        let stem = file_name.strip_suffix(".zip").ok_or_else(file_name_fault)?;
        if stem.is_empty() || stem.contains(['/', '\\', '\0']) {
            return Err(file_name_fault().into());
        }
        let member = only_member(source, &format!("{stem}.csv"))?;
        if !matches!(member.method, STORED | DEFLATED) {
            return Err(ArchiveFault::Method(member.method).into());
        }
        if member.declared_bytes > csv_bytes_max {
            let fault = ArchiveFault::TooLarge { declared_bytes: member.declared_bytes, limit_bytes: csv_bytes_max };
            return Err(fault.into());
        }
        let archive = Self { source, member };
        if archive.member.method == STORED {
            // What is only stored is as long as the CSV. Otherwise more than `csv_bytes_max` would be handed out.
            archive.check_length(archive.compressed_bytes())?;
        }
        Ok(archive)
    }

    /// Size of the CSV; what [`Self::inflate`] hands out is exactly as long.
    pub fn csv_bytes(&self) -> u64 {
        self.member.declared_bytes
    }

    pub fn member_time(&self) -> Option<Timestamp> {
        self.member.time
    }

    fn compressed_bytes(&self) -> u64 {
        self.member.compressed.end - self.member.compressed.start
    }

    /// The compressed bytes from `at` on, a chunk of them at most; none at the end.
    fn chunk(&self, at: u64) -> Result<Cow<'_, [u8]>, S::Error> {
        let left = self.compressed_bytes().saturating_sub(at).min(CHUNK_BYTES as u64);
        self.source.range(self.member.compressed.start + at, left as usize)
    }

    /// Hands the CSV to `sink`, in one piece or in chunks.
    ///
    /// A large member reaches `sink` before its CRC is known, so what `sink` made of it may be used only after `Ok`.
    /// A fault of the archive outranks one that `sink` reports: damaged bytes explain any nonsense in the text.
    pub fn inflate<E: From<S::Error>>(&self, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let Member { method, declared_bytes, .. } = self.member;
        if method == DEFLATED && declared_bytes.max(self.compressed_bytes()) <= ONE_SHOT_BYTES_MAX {
            let csv = self.inflate_at_once()?;
            return sink(&csv);
        }
        let mut sunk = Ok(());
        let buffered = |chunk: &[u8]| {
            if sunk.is_ok() {
                sunk = sink(chunk);
            }
        };
        if method == STORED {
            self.copy_in_chunks(buffered)?;
        } else {
            self.inflate_in_chunks(buffered)?;
        }
        sunk
    }

    fn copy_in_chunks(&self, mut sink: impl FnMut(&[u8])) -> Result<(), S::Error> {
        let (mut crc, mut at) = (Crc::new(), 0);
        loop {
            let chunk = self.chunk(at)?;
            if chunk.is_empty() {
                return Ok(self.check(at, crc.sum())?);
            }
            at += chunk.len() as u64;
            crc.update(&chunk);
            sink(&chunk);
        }
    }

    fn inflate_at_once(&self) -> Result<Vec<u8>, S::Error> {
        let compressed = self.source.range(self.member.compressed.start, self.compressed_bytes() as usize)?;
        let declared_bytes = self.member.declared_bytes;
        let mut csv = vec![0; declared_bytes as usize];
        let inflated = Decompressor::new().deflate_decompress(&compressed, &mut csv).map_err(|error| match error {
            DecompressionError::BadData => ArchiveFault::Damaged("the deflated data is corrupt"),
            DecompressionError::InsufficientSpace => ArchiveFault::Overrun { declared_bytes },
        })?;
        self.check(inflated as u64, libdeflater::crc32(&csv))?;
        Ok(csv)
    }

    fn inflate_in_chunks(&self, mut sink: impl FnMut(&[u8])) -> Result<(), S::Error> {
        let declared_bytes = self.member.declared_bytes;
        let mut inflater = Decompress::new(false);
        let mut crc = Crc::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        let (mut input, mut input_at) = (self.chunk(0)?, 0);
        loop {
            let (read_before, made_before) = (inflater.total_in(), inflater.total_out());
            if read_before == input_at + input.len() as u64 {
                (input, input_at) = (self.chunk(read_before)?, read_before);
            }
            let rest = input.get((read_before - input_at) as usize..).unwrap_or_default();
            let status = inflater
                .decompress(rest, &mut buffer, FlushDecompress::None)
                .map_err(|_| ArchiveFault::Damaged("the deflated data is corrupt"))?;
            if inflater.total_out() > declared_bytes {
                return Err(ArchiveFault::Overrun { declared_bytes }.into());
            }
            let made = (inflater.total_out() - made_before) as usize;
            let chunk = buffer.get(..made).unwrap_or_default();
            crc.update(chunk);
            sink(chunk);
            if status == Status::StreamEnd {
                return Ok(self.check(inflater.total_out(), crc.sum())?);
            }
            if made == 0 && inflater.total_in() == read_before {
                return Err(ArchiveFault::Damaged("the deflated data ends early").into());
            }
        }
    }

    fn check_length(&self, actual_bytes: u64) -> Result<(), ArchiveFault> {
        let Member { declared_bytes, .. } = self.member;
        match actual_bytes.cmp(&declared_bytes) {
            Ordering::Greater => Err(ArchiveFault::Overrun { declared_bytes }),
            Ordering::Less => Err(ArchiveFault::Underrun { declared_bytes, actual_bytes }),
            Ordering::Equal => Ok(()),
        }
    }

    fn check(&self, actual_bytes: u64, computed: u32) -> Result<(), ArchiveFault> {
        self.check_length(actual_bytes)?;
        let Member { crc: stored, .. } = self.member;
        if computed != stored {
            return Err(ArchiveFault::Crc { stored, computed });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A zip of one member that is stored, with this size in its directory.
    fn stored(csv: &[u8], declared_bytes: u32) -> Vec<u8> {
        let name = b"A-1h-2026-02-14.csv";
        let length = csv.len() as u32;
        let facts = |signature: &[u8], versions: &[u16]| {
            let mut bytes = signature.to_vec();
            versions.iter().for_each(|version| bytes.extend(version.to_le_bytes()));
            // Flags, method, time and date.
            [0_u16, STORED, 0, 0x5c4e].iter().for_each(|field| bytes.extend(field.to_le_bytes()));
            [libdeflater::crc32(csv), length, declared_bytes]
                .iter()
                .for_each(|field| bytes.extend(field.to_le_bytes()));
            [name.len() as u16, 0].iter().for_each(|field| bytes.extend(field.to_le_bytes()));
            bytes
        };
        let mut zip = facts(b"PK\x03\x04", &[20]);
        zip.extend(name);
        zip.extend(csv);
        let directory = zip.len() as u32;
        zip.extend(facts(b"PK\x01\x02", &[20, 20]));
        // Comment, disk, attributes, and where the member begins.
        zip.extend([0; 14]);
        zip.extend(name);
        let directory_bytes = zip.len() as u32 - directory;
        zip.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
        [directory_bytes, directory].iter().for_each(|field| zip.extend(field.to_le_bytes()));
        zip.extend([0; 2]);
        zip
    }

    #[test]
    fn a_stored_member_of_another_length_than_declared_hands_out_nothing() {
        let open = |zip: &[u8]| {
            let archive = Archive::open("A-1h-2026-02-14.zip", zip, 1024)?;
            let mut csv: Vec<u8> = Vec::new();
            archive.inflate(|chunk| {
                csv.extend(chunk);
                Ok::<_, ArchiveFault>(())
            })?;
            Ok::<_, ArchiveFault>(csv)
        };
        assert_eq!(open(&stored(b"1,2,3\n", 6)).expect("a sound archive"), b"1,2,3\n");
        let longer = stored(&[b'1'; 4096], 6);
        let error = Archive::open("A-1h-2026-02-14.zip", longer.as_slice(), 1024).expect_err("longer than declared");
        assert!(matches!(error, ArchiveFault::Overrun { declared_bytes: 6 }), "{error}");
        let error = open(&stored(b"1,2,3\n", 7)).expect_err("shorter than declared");
        assert!(matches!(error, ArchiveFault::Underrun { declared_bytes: 7, actual_bytes: 6 }), "{error}");
    }
}
