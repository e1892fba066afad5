//! What a zip file may look like and what it may not.

use super::*;

const ROW: &[u8] = b"1704067200000,1,2,0.5,1.5,10,1704070799999,15,3,4,6,0\n";
/// Where fields stand in a directory entry.
const CENTRAL_FLAGS: usize = 8;
const CENTRAL_METHOD: usize = 10;
const CENTRAL_DATE: usize = 14;
const CENTRAL_CRC: usize = 16;
const CENTRAL_COMPRESSED: usize = 20;
const CENTRAL_DECLARED: usize = 24;
const CENTRAL_OFFSET: usize = 42;
/// What a field of the local header lies before that of the directory entry.
const LOCAL_SHIFT: usize = 2;

fn put(zip: &mut [u8], at: usize, value: &[u8]) {
    zip[at..at + value.len()].copy_from_slice(value);
}

/// Where the directory starts in a zip file without a comment.
fn directory_at(zip: &[u8]) -> usize {
    let at = zip.len() - 6;
    u32::from_le_bytes(zip[at..at + 4].try_into().expect("four bytes")) as usize
}

/// Overwrites a field in the directory, and in the local header too.
fn put_both(zip: &mut [u8], field: usize, value: &[u8]) {
    let directory = directory_at(zip);
    put(zip, directory + field, value);
    put(zip, field - LOCAL_SHIFT, value);
}

fn put_central(zip: &mut [u8], field: usize, value: &[u8]) {
    let directory = directory_at(zip);
    put(zip, directory + field, value);
}

#[track_caller]
fn refuses(zip: &[u8], class: &str, message: &str) {
    let error = decode(FILE_NAME, zip, &hourly()).expect_err(message);
    assert_eq!(error.to_string(), format!("{FILE_NAME}: {message}"));
    assert_eq!(error.class(), class);
}

#[track_caller]
fn refuses_changed(class: &str, message: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut zip = deflated(ROW);
    change(&mut zip);
    refuses(&zip, class, message);
}

#[test]
fn stored_and_deflated_members_are_read() {
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let decoded = decode(FILE_NAME, &zip_of(&[(MEMBER_NAME, ROW)], method), &hourly()).expect("a good archive");
        assert_eq!(decoded.klines.len(), 1);
    }
    let zip = zip_of(&[("币安人生USDT-1h-2024-01-01.csv", ROW)], CompressionMethod::Deflated);
    assert!(decode("币安人生USDT-1h-2024-01-01.zip", &zip, &hourly()).is_ok());
}

#[test]
fn large_members_are_inflated_in_chunks_with_the_same_result() {
    let csv: Vec<u8> = (0..250_000_i64)
        .flat_map(|index| {
            let open_time = 1_704_067_200_000_000 + index * 1_000;
            let row = format!("{open_time},42283.58000000,42554.57,42261.02,42475.23,1,{open_time},1,{index},1,1,0\n");
            row.into_bytes()
        })
        .collect();
    assert!(csv.len() > 16 << 20);
    let whole = decode_csv(&csv, &hourly()).expect("a good archive");
    assert_eq!((whole.klines.len(), whole.klines.trades[249_999]), (250_000, 249_999));
    let stored = decode(FILE_NAME, &zip_of(&[(MEMBER_NAME, &csv)], CompressionMethod::Stored), &hourly());
    assert_eq!(stored, Ok(whole));

    let good = deflated(&csv);
    let declared = csv.len() as u64;
    let check = |message: &str, class: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut zip = good.clone();
        change(&mut zip);
        refuses(&zip, class, message);
    };
    check(&format!("the member inflates beyond the {} bytes it declares", declared - 1), "bomb", &|zip| {
        put_both(zip, CENTRAL_DECLARED, &(declared as u32 - 1).to_le_bytes());
    });
    check(&format!("the member inflates to {declared} bytes, it declares {}", declared + 1), "zip", &|zip| {
        put_both(zip, CENTRAL_DECLARED, &(declared as u32 + 1).to_le_bytes());
    });
    check("damaged zip file: the deflated data ends early", "zip", &|zip| {
        put_both(zip, CENTRAL_COMPRESSED, &1_000_u32.to_le_bytes());
    });
    let stored = libdeflater::crc32(&csv);
    check(&format!("CRC-32 of the member is {stored:08x}, the zip file says {:08x}", !stored), "crc", &|zip| {
        put_both(zip, CENTRAL_CRC, &(!stored).to_le_bytes());
    });
    // A fault of the text is reported only where the bytes are sound.
    let broken = [&csv[..], b"x"].concat();
    refuses(&deflated(&broken), "csv", "line 250001, column 1 (open_time): not a plain whole number: 'x'");
    let mut zip = deflated(&broken);
    let computed = libdeflater::crc32(&broken);
    put_both(&mut zip, CENTRAL_CRC, &0_u32.to_le_bytes());
    refuses(&zip, "crc", &format!("CRC-32 of the member is {computed:08x}, the zip file says 00000000"));
}

#[test]
fn what_is_no_whole_zip_file_is_refused() {
    let zip = deflated(ROW);
    let cut = "a zip file without its end: it was cut short, or bytes were added";
    for length in 4..zip.len() {
        refuses(&zip[..length], "zip", cut);
    }
    refuses(b"", "zip", "an empty file");
    refuses(&[&zip[..], b"\n"].concat(), "zip", cut);
    refuses(&[b"x", &zip[..]].concat(), "zip", "damaged zip file: the directory is not where the end record says");
    refuses(b"<html>404</html>", "zip", "an HTML page, and no zip file");
}

#[test]
fn there_is_one_member_of_the_right_name() {
    let zip = |names: &[&str]| {
        let members: Vec<(&str, &[u8])> = names.iter().map(|&name| (name, ROW)).collect();
        zip_of(&members, CompressionMethod::Deflated)
    };
    refuses(&zip(&[]), "member", "exactly one member expected, found 0");
    refuses(&zip(&[MEMBER_NAME, "README.txt"]), "member", "exactly one member expected, found 2");
    for name in
        ["BTCUSDT-1m-2024-01-01.csv", "a/BTCUSDT-1h-2024-01-01.csv", "../BTCUSDT-1h-2024-01-01.csv", "/etc/passwd"]
    {
        refuses(&zip(&[name]), "member", &format!("member '{MEMBER_NAME}' expected, found '{name}'"));
    }
    for name in ["BTCUSDT-1h-2024-01-01", "../x.zip", "a\\b.zip", ".zip", ""] {
        let error = decode(name, &zip(&[MEMBER_NAME]), &hourly()).expect_err(name);
        assert_eq!(error.class(), "member");
    }
    // Two members of which the end record admits one.
    let mut two = zip(&[MEMBER_NAME, "BTCUSDT-1h-2024-01-02.csv"]);
    let end = two.len() - 22;
    put(&mut two, end + 8, &[1, 0, 1, 0]);
    refuses(&two, "zip", "damaged zip file: the directory holds more than it declares");
}

#[test]
fn headers_that_lie_are_refused() {
    refuses_changed("unsupported", "the member is encrypted", |zip| put_both(zip, CENTRAL_FLAGS, &[1, 0]));
    refuses_changed("unsupported", "compression method 93 is not supported: stored and deflate are", |zip| {
        put_both(zip, CENTRAL_METHOD, &[93, 0]);
    });
    let disagree = |what: &str| format!("the local header and the directory of the zip file disagree on the {what}");
    refuses_changed("zip", &disagree("method"), |zip| put_central(zip, CENTRAL_METHOD, &[0, 0]));
    refuses_changed("zip", &disagree("encryption"), |zip| put(zip, CENTRAL_FLAGS - LOCAL_SHIFT, &[1, 0]));
    refuses_changed("zip", &disagree("CRC"), |zip| put_central(zip, CENTRAL_CRC, &[0; 4]));
    refuses_changed("zip", &disagree("size"), |zip| put_central(zip, CENTRAL_DECLARED, &[9, 0, 0, 0]));
    refuses_changed("zip", &disagree("size"), |zip| put_central(zip, CENTRAL_COMPRESSED, &[9, 0, 0, 0]));
    refuses_changed("zip", &disagree("name"), |zip| put(zip, 30, b"E"));
    refuses_changed("zip", "damaged zip file: the member lies outside the file", |zip| {
        put_both(zip, CENTRAL_COMPRESSED, &[0xff, 0xff, 0, 0]);
    });
    refuses_changed("zip", "damaged zip file: the member lies outside the file", |zip| {
        put_central(zip, CENTRAL_OFFSET, &[0xff, 0xff, 0, 0]);
    });
    refuses_changed("zip", "damaged zip file: no local header where the directory says", |zip| {
        put_central(zip, CENTRAL_OFFSET, &[1, 0, 0, 0]);
    });
    let (stored, computed) = (0_u32, libdeflater::crc32(ROW));
    refuses_changed("crc", &format!("CRC-32 of the member is {computed:08x}, the zip file says {stored:08x}"), |zip| {
        put_both(zip, CENTRAL_CRC, &stored.to_le_bytes());
    });
    // An impossible date is no reason to refuse what is otherwise sound.
    let mut zip = deflated(ROW);
    put_both(&mut zip, CENTRAL_DATE, &[0, 0]);
    assert_eq!(decode(FILE_NAME, &zip, &hourly()).expect("a good archive").member_time, None);
}

#[test]
fn sizes_are_bounded_before_and_while_inflating() {
    let bytes = ROW.len() as u64;
    let spec = Spec { csv_bytes_max: bytes - 1, ..hourly() };
    let error = decode(FILE_NAME, &deflated(ROW), &spec).expect_err("too large");
    assert_eq!(error.class(), "bomb");
    assert_eq!(
        error.to_string(),
        format!("{FILE_NAME}: the member declares {bytes} bytes, the limit is {}", bytes - 1)
    );
    refuses_changed("bomb", &format!("the member inflates beyond the {} bytes it declares", bytes - 1), |zip| {
        put_both(zip, CENTRAL_DECLARED, &(bytes as u32 - 1).to_le_bytes());
    });
    refuses_changed("zip", &format!("the member inflates to {bytes} bytes, it declares {}", bytes + 1), |zip| {
        put_both(zip, CENTRAL_DECLARED, &(bytes as u32 + 1).to_le_bytes());
    });
    refuses_changed("zip", "damaged zip file: the deflated data is corrupt", |zip| {
        let data = 30 + MEMBER_NAME.len();
        put(zip, data, &[0xff; 8]);
    });
}
