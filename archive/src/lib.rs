//! What is inside an archive of the exchange: the zip file, and the rows in it.
//!
//! Both sites read archives with it, so that what the uploader announces is what a worker can open and decode. It does no
//! I/O: the bytes of a zip file come from a [`Source`]. It panics on no input. Decimals go from text to scaled integers,
//! never through floating point.
//!
//! Refused here: files, sockets, async, ClickHouse and its formats (of it only the hash of a row is known here).

mod decode;

mod csv;
mod row;

mod row_hash;

mod klines;
mod volumes;

mod fault;
mod interval;

mod zip;

pub use csv::TimeUnit;
pub use decode::{CHUNK_ROWS, Decoded, Outline, Spec, chunks, decode, outline};
pub use fault::{Column, CsvFault, CsvFaultKind, DecodeError};
pub use interval::{Interval, IntervalError};
pub use klines::{Kline, Klines, ROW_BYTES};
pub use volumes::Volumes;
pub use zip::{Archive, ArchiveFault, Source, printable, printable_name};
