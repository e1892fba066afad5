//! Large archives, made fast: a sound zip of the right name whose one member holds noise instead of rows.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use zip::{CompressionMethod, ZipWriter};

use super::ArchiveSpec;
use crate::{Context, Failure, Result};

impl ArchiveSpec {
    /// Writes an archive of a little more than so many bytes in this one's place, and no `.CHECKSUM`. The seed decides
    /// its content.
    pub fn write_bulk(&self, data_dir: &Path, bytes: u64) -> Result<PathBuf> {
        let path = data_dir.join(self.path());
        let folder = path.parent().ok_or_else(|| Failure::new("an archive has a folder"))?;
        fs::create_dir_all(folder).context(format!("making {}", folder.display()))?;
        let doing = format!("writing {}", path.display());
        let file = BufWriter::new(File::create(&path).context(&doing)?);
        let mut writer = ZipWriter::new(file);
        let options = self.zip_options().compression_method(CompressionMethod::Stored);
        writer.start_file(format!("{}.csv", self.stem()), options).context(&doing)?;
        // xorshift: noise that can be made again.
        let mut state = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut chunk = Vec::with_capacity(1 << 16);
        let mut left = bytes;
        while left > 0 {
            chunk.clear();
            while chunk.len() < 1 << 16 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                chunk.extend_from_slice(&state.to_le_bytes());
            }
            let count = left.min(chunk.len() as u64);
            writer.write_all(&chunk[..count as usize]).context(&doing)?;
            left -= count;
        }
        writer.finish().context(&doing)?.flush().context(&doing)?;
        Ok(path)
    }
}
