//! Tests of the whole decoder: archives in, rows or faults out.

mod csv;
mod properties;
mod zip;

use std::io::{Cursor, Write};

use ::zip::write::SimpleFileOptions;
use ::zip::{CompressionMethod, DateTime, ZipWriter};

use super::*;
use crate::klines::Kline;

const FILE_NAME: &str = "BTCUSDT-1h-2024-01-01.zip";
const MEMBER_NAME: &str = "BTCUSDT-1h-2024-01-01.csv";
const HEADER: &str = "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,\
                      taker_buy_quote_volume,ignore\n";

fn spec(interval: &str, start: &str, end: &str) -> Spec {
    let at = |day: &str| format!("{day}T00:00:00Z").parse().expect(day);
    Spec {
        interval: interval.parse().expect(interval),
        period_start: at(start),
        period_end: at(end),
        csv_bytes_max: 64 << 20,
        rows_max: 1 << 20,
    }
}

fn hourly() -> Spec {
    spec("1h", "2024-01-01", "2024-01-02")
}

/// A zip file as another program writes it, with these members.
fn zip_of(members: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let time = DateTime::from_date_and_time(2024, 1, 2, 0, 41, 58).expect("a date that MS-DOS knows");
    let options = SimpleFileOptions::default().compression_method(method).last_modified_time(time);
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in members {
        writer.start_file(*name, options).expect("memory takes any file");
        writer.write_all(content).expect("memory takes any file");
    }
    writer.finish().expect("memory takes any file").into_inner()
}

fn deflated(csv: &[u8]) -> Vec<u8> {
    zip_of(&[(MEMBER_NAME, csv)], CompressionMethod::Deflated)
}

fn decode_csv(csv: &[u8], spec: &Spec) -> Result<Decoded, DecodeError> {
    decode(FILE_NAME, &deflated(csv), spec)
}
