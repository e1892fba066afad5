//! What a CSV may look like and what it may not.

use super::*;

/// 2024-01-01 00:00 UTC, in ms.
const DAY: i64 = 1_704_067_200_000;
const HOUR: i64 = 3_600_000;
const ROW: &str = "1704067200000,42283.58,42554.57,42261.02,42475.23,1271.68108,1704070799999,53957248.97,47134,682.57,\
                   28957416.81,0";

/// A row that opens at `open_time` with plain values.
fn row_at(open_time: i64) -> String {
    format!("{open_time},1,2,0.5,1.5,10,{},15,3,4,6,0", open_time + HOUR - 1)
}

/// The standard row with another text in one column, counted from 1.
fn row_with(column: usize, text: &str) -> String {
    let mut fields: Vec<&str> = ROW.split(',').collect();
    fields[column - 1] = text;
    fields.join(",")
}

/// Expects these open_times (ms).
#[track_caller]
fn accepts(csv: &str, open_times: &[i64]) -> Decoded {
    let decoded = decode_csv(csv.as_bytes(), &hourly()).unwrap_or_else(|error| panic!("{error}"));
    let expected: Vec<i64> = open_times.iter().map(|ms| ms * 1_000).collect();
    assert_eq!(decoded.klines.open_time, expected);
    assert_eq!(decoded.csv_bytes, csv.len() as u64);
    decoded
}

/// Expects this message, without the file name.
#[track_caller]
fn refuses(csv: impl AsRef<[u8]>, message: &str) {
    let error = decode_csv(csv.as_ref(), &hourly()).expect_err(message);
    assert_eq!(error.to_string(), format!("{FILE_NAME}: {message}"));
    assert_eq!(error.class(), "csv");
}

#[test]
fn every_column_goes_to_its_place_scaled_exactly() {
    let decoded = accepts(ROW, &[DAY]);
    let expected = Kline {
        open_time: 1_704_067_200_000_000,
        close_time: 1_704_070_799_999_000,
        open: 4_228_358_000_000,
        high: 4_255_457_000_000,
        low: 4_226_102_000_000,
        close: 4_247_523_000_000,
        volume: 127_168_108_000,
        quote_volume: 5_395_724_897_000_000,
        trades: 47_134,
        taker_buy_volume: 68_257_000_000,
        taker_buy_quote_volume: 2_895_741_681_000_000,
    };
    assert_eq!(decoded.klines.get(0), Some(expected));
    assert_eq!((decoded.expected_rows, decoded.missing_rows), (24, 23));
    assert_eq!((decoded.time_unit, decoded.header), (TimeUnit::Milliseconds, false));
    assert_eq!(decoded.member_time, Some("2024-01-02T00:41:58Z".parse().expect("a time")));
}

#[test]
fn line_ends_and_headers_are_told_per_file() {
    let (first, second) = (row_at(DAY), row_at(DAY + HOUR));
    let both = [DAY, DAY + HOUR];
    accepts(&format!("{first}\n{second}\n"), &both);
    accepts(&format!("{first}\n{second}"), &both);
    accepts(&format!("{first}\r\n{second}\r\n"), &both);
    accepts(&format!("{first}\r\n{second}"), &both);
    assert!(!accepts(&format!("{first}\n"), &[DAY]).header);
    assert!(accepts(&format!("{HEADER}{first}\n"), &[DAY]).header);
    assert!(accepts(&format!("{}{first}\n", HEADER.to_uppercase().replace('\n', "\r\n")), &[DAY]).header);

    refuses(
        format!("{HEADER}{first}\n{HEADER}"),
        "line 3: header line among the rows: 'open_time,open,high,low,close,volume,clo…'",
    );
    refuses(format!("time,open\n{first}\n"), "line 1: neither a row nor the known header: 'time,open'");
    refuses(
        format!("{},x\n{first}\n", HEADER.trim()),
        "line 1: neither a row nor the known header: 'open_time,open,high,low,close,volume,clo…'",
    );
    refuses(
        format!("\u{feff}{first}\n"),
        "line 1: byte order mark: '\\u{feff}1704067200000,1,2,0.5,1.5,10,1704070799…'",
    );
    refuses(format!("{first}\r"), "line 1, column 12 (ignore): not a plain decimal number: '0\\r'");
    refuses("", "no rows");
    refuses(HEADER, "no rows");
    refuses(HEADER.trim(), "no rows");
}

#[test]
fn blank_lines_are_refused() {
    let row = row_at(DAY);
    refuses("\n", "line 1: blank line: ''");
    refuses(format!("\n{row}\n"), "line 1: blank line: ''");
    refuses(format!("{HEADER}\r\n{row}\n"), "line 2: blank line: ''");
    refuses(format!("{row}\n\n"), "line 2: blank line: ''");
    refuses(format!("{row}\r\n\r\n"), "line 2: blank line: ''");
    refuses(format!("{row}\n \n"), "line 2, column 1 (open_time): not a plain whole number: ' '");
}

#[test]
fn a_row_has_twelve_columns() {
    let shown = "1704067200000,42283.58,42554.57,42261.02…";
    refuses(format!("{ROW}\n1704067200000,1,2\n"), "line 2: 12 columns expected, found 3: '1704067200000,1,2'");
    refuses(format!("{ROW},\n"), &format!("line 1: 12 columns expected, found 13: '{shown}'"));
    refuses(format!("{ROW},0"), &format!("line 1: 12 columns expected, found 13: '{shown}'"));
    refuses(
        ROW.strip_suffix(",0").expect("a last column"),
        &format!("line 1: 12 columns expected, found 11: '{shown}'"),
    );
    refuses(row_with(6, ""), "line 1, column 6 (volume): empty field: ''");
    refuses(row_with(12, ""), "line 1, column 12 (ignore): empty field: ''");
    refuses(row_with(12, "x"), "line 1, column 12 (ignore): not a plain decimal number: 'x'");
    for ignored in ["17928899.62484339", "-1", "0.000000000001", "999999999999999999999999999999999999999999999"] {
        accepts(&row_with(12, ignored), &[DAY]);
    }
    refuses(
        row_with(12, &"0".repeat(65)),
        &format!("line 1, column 12 (ignore): field too long: '{}…'", "0".repeat(40)),
    );
    refuses(row_with(1, &"9".repeat(2_000)), &format!("line 1: line too long: '{}…'", "9".repeat(40)));
    refuses(format!("{ROW}\n{}", "x".repeat(5_000_000)), &format!("line 2: line too long: '{}…'", "x".repeat(40)));
}

#[test]
fn decimals_are_exact_or_refused() {
    let check_price = |text: &str, expected: i64| {
        assert_eq!(accepts(&row_with(3, text), &[DAY]).klines.high, [expected], "{text}");
    };
    check_price("0", 0);
    check_price("-0.0", 0);
    check_price("1", 100_000_000);
    check_price("0.1", 10_000_000);
    check_price("-0.00000001", -1);
    check_price("0.1000000000", 10_000_000);
    check_price("0000000000000000000000.5", 50_000_000);
    check_price("9999999999.99999999", 999_999_999_999_999_999);
    check_price("-9999999999.99999999", -999_999_999_999_999_999);
    let check_volume = |text: &str, expected: i128| {
        assert_eq!(accepts(&row_with(8, text), &[DAY]).klines.quote_volume.get(0), Some(expected), "{text}");
    };
    check_volume("99999999999.99999999", 9_999_999_999_999_999_999);
    check_volume("999999999999.99999999", 99_999_999_999_999_999_999);
    check_volume("2302259463.19881273", 230_225_946_319_881_273);
    check_volume("999999999999999999999999999999.99999999", 10_i128.pow(38) - 1);
    check_volume("-999999999999999999999999999999.99999999", 1 - 10_i128.pow(38));

    let too_large = |text| format!("line 1, column 3 (high): too large for Decimal(18, 8): '{text}'");
    refuses(row_with(3, "10000000000"), &too_large("10000000000"));
    refuses(row_with(3, "-10000000000.00000000"), &too_large("-10000000000.00000000"));
    let huge = "1000000000000000000000000000000";
    refuses(row_with(3, huge), &too_large(huge));
    refuses(row_with(8, huge), &format!("line 1, column 8 (quote_volume): too large for Decimal(38, 8): '{huge}'"));
    refuses(row_with(3, "0.100000001"), "line 1, column 3 (high): more than 8 decimals: '0.100000001'");
    for text in ["1e5", "+1", " 1", "1 ", "1.", ".5", "-", "--1", "1.2.3", "1_000", "NaN", "\"1\"", "0x1", "１", "1\0"]
    {
        let quoted: String = text.chars().flat_map(char::escape_debug).collect();
        refuses(row_with(3, text), &format!("line 1, column 3 (high): not a plain decimal number: '{quoted}'"));
    }
}

#[test]
fn trades_are_whole_numbers() {
    let check = |text: &str, expected: u64| assert_eq!(accepts(&row_with(9, text), &[DAY]).klines.trades, [expected]);
    check("0", 0);
    check("7600000", 7_600_000);
    check("18446744073709551615", u64::MAX);
    check("00000000000000000000000000000000042", 42);
    for text in ["18446744073709551616", "99999999999999999999999999"] {
        refuses(row_with(9, text), &format!("line 1, column 9 (count): too large for UInt64: '{text}'"));
    }
    for text in ["1.0", "-1", "+1", "1e3", "a"] {
        refuses(row_with(9, text), &format!("line 1, column 9 (count): not a plain whole number: '{text}'"));
    }
}

#[test]
fn times_are_ms_or_us_by_the_first_row() {
    let us = "1704067200000000,1,1,1,1,1,1704070799999999,1,1,1,1,0\n";
    let decoded = accepts(us, &[DAY]);
    assert_eq!((decoded.time_unit, decoded.klines.close_time), (TimeUnit::Microseconds, vec![1_704_070_799_999_999]));

    let ms = row_at(DAY);
    refuses(
        format!("{ms}\n{us}"),
        "line 2, column 1 (open_time): time in another unit than the first row's: '1704067200000000'",
    );
    refuses(
        format!("{us}{ms}"),
        "line 2, column 1 (open_time): time in another unit than the first row's: '1704067200000'",
    );
    refuses(
        row_with(7, "1704070799999999"),
        "line 1, column 7 (close_time): time in another unit than the first row's: '1704070799999999'",
    );
    for text in ["1704067200", "0", "170406720000000", "1704067200000000000", "9999999999999999999"] {
        refuses(
            row_with(1, text),
            &format!("line 1, column 1 (open_time): not a time in ms (13 digits) or µs (16 digits): '{text}'"),
        );
    }
    refuses(row_with(7, "0"), "line 1, column 7 (close_time): not a time in ms (13 digits) or µs (16 digits): '0'");
    refuses(row_with(7, "-1704067200000"), "line 1, column 7 (close_time): not a plain whole number: '-1704067200000'");
    // As published for 2018-02: the exchange was down, and the candle closes before it opens.
    accepts(&row_with(7, "1704067199999"), &[DAY]);
    accepts(&row_with(7, "1704067200000"), &[DAY]);
    // A candle cut short by an outage, and one that does not begin on the hour.
    accepts(&row_with(7, "1704067200001"), &[DAY]);
    accepts(&row_at(DAY + 1), &[DAY + 1]);
}

#[test]
fn an_open_time_is_inside_the_period() {
    let last = DAY + 24 * HOUR - 1;
    accepts(&row_at(last), &[last]);
    for outside in [DAY - 1, last + 1] {
        refuses(
            format!("{}\n{}\n", row_at(DAY), row_at(outside)),
            &format!("line 2, column 1 (open_time): open_time is outside the archive's period: '{outside}'"),
        );
    }
    // The week of 2024-01-29 and the three days from 2024-01-30 may stand in February.
    let check = |interval: &str, open_time: &str, accepted: bool| {
        let february = spec(interval, "2024-02-01", "2024-03-01");
        let ms: Timestamp = open_time.parse().expect(open_time);
        let decoded = decode_csv(row_at(ms.as_millisecond()).as_bytes(), &february);
        assert_eq!(decoded.is_ok(), accepted, "{interval} {open_time}: {decoded:?}");
    };
    check("1w", "2024-01-29T00:00:00Z", true);
    check("1w", "2024-01-25T00:00:00Z", false);
    check("3d", "2024-01-30T00:00:00Z", true);
    check("3d", "2024-01-29T00:00:00Z", false);
    check("1mo", "2024-02-01T00:00:00Z", true);
    check("1mo", "2024-01-01T00:00:00Z", false);
    check("1d", "2024-01-31T00:00:00Z", false);
    check("1w", "2024-03-01T00:00:00Z", false);
}

#[test]
fn rows_come_out_in_order_and_once() {
    let [a, b, c] = [DAY, DAY + HOUR, DAY + 2 * HOUR];
    let csv = |times: &[i64]| times.iter().map(|&time| row_at(time) + "\n").collect::<String>();
    let decoded = accepts(&csv(&[c, a, b]), &[a, b, c]);
    assert_eq!(decoded.klines.close_time[0], (a + HOUR - 1) * 1_000, "columns are sorted together");

    let duplicate = |line: u64, first_line: u64, time: i64| {
        format!("line {line}, column 1 (open_time): open_time was already in line {first_line}: '{time}'")
    };
    refuses(csv(&[a, b, b]), &duplicate(3, 2, b));
    refuses(csv(&[a, b, c, a]), &duplicate(4, 1, a));
    refuses(format!("{HEADER}{}", csv(&[c, b, a, b, c])), &duplicate(5, 3, b));
    let more_than_expected: Vec<i64> = (0..25).map(|index| DAY + index * (HOUR / 2)).collect();
    assert_eq!(accepts(&csv(&more_than_expected), &more_than_expected).missing_rows, 0);
}

#[test]
fn messages_quote_untrusted_text_safely() {
    refuses(
        b"1704067200000,\xff\x1b[31m\r,1",
        "line 1, column 2 (open): not a plain decimal number: '�\\u{1b}[31m\\r'",
    );
    let error = decode("a\x1bb.zip", b"none", &hourly()).expect_err("no zip");
    assert_eq!(error.to_string(), "a\\u{1b}b.zip: not a zip file");
}

#[test]
fn more_rows_than_the_period_can_have_are_refused() {
    let csv: String = (0..5).map(|minute| format!("{}\n", row_at(DAY + minute * 60_000))).collect();
    let spec = Spec { rows_max: 5, ..hourly() };
    assert!(decode_csv(csv.as_bytes(), &spec).is_ok());
    let spec = Spec { rows_max: 4, ..hourly() };
    let error = decode_csv(csv.as_bytes(), &spec).expect_err("too many").to_string();
    assert!(error.contains("line 5: more than 4 rows, the most that its period can have"), "{error}");
    // The same where rows are taken as they come.
    assert!(outline(FILE_NAME, &deflated(csv.as_bytes()), &spec).is_err());
}
