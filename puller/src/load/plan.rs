//! Which archives of a unit are loaded together: parts that fit the memory and one insert.

use common::marker::Object;

use crate::job::spec::footprint;
use crate::load::loader::Loader;

/// One insert is whole or not at all only within one block of the server: 1,048,449 rows.
pub(super) const PART_ROWS_MAX: u64 = 1_000_000;
/// A unit of more rows goes in several parts, so that one is inserted while another is fetched and decoded.
const PART_ROWS_GOOD: u64 = 300_000;
/// Parts of one unit in flight at once, as far as there is memory.
pub(super) const PARTS_MAX: usize = 3;

impl Loader {
    /// Several parts must fit into memory together.
    pub(super) fn part_bytes_max(&self) -> u64 {
        self.memory.total_bytes() / PARTS_MAX as u64
    }

    /// Cuts the objects into parts of about the same size.
    pub(super) fn parts<'a, 'j>(&self, objects: &'a [&'j Object], rows: u64) -> Vec<&'a [&'j Object]> {
        let rows_all = rows * objects.len() as u64;
        let bytes_all: u64 = objects.iter().map(|object| footprint(object, rows)).sum();
        let count = (rows_all.div_ceil(PART_ROWS_MAX))
            .max(bytes_all.div_ceil(self.part_bytes_max()))
            .max(rows_all.div_ceil(PART_ROWS_GOOD).min(PARTS_MAX as u64));
        let (rows_good, bytes_good) = (rows_all.div_ceil(count.max(1)), bytes_all.div_ceil(count.max(1)));
        let mut parts = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (index, object) in objects.iter().enumerate() {
            let next = footprint(object, rows);
            let full = (index - start) as u64 * rows >= rows_good
                || bytes >= bytes_good
                || bytes + next > self.part_bytes_max()
                || (index - start + 1) as u64 * rows > PART_ROWS_MAX;
            if index > start && full {
                parts.push(&objects[start..index]);
                (start, bytes) = (index, 0);
            }
            bytes += next;
        }
        if start < objects.len() {
            parts.push(&objects[start..]);
        }
        parts
    }
}
