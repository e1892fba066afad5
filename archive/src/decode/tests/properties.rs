//! Properties over generated input.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::csv::Parser;

/// Text of a decimal from its sign, digits before and digits behind the point, none of the latter being no point.
fn decimal_text(whole_digits: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    (any::<bool>(), vec(0_u8..10, whole_digits), vec(0_u8..10, 0..=8)).prop_map(|(negative, whole, fraction)| {
        let digits = |digits: &[u8]| digits.iter().map(u8::to_string).collect::<String>();
        let point = if fraction.is_empty() { "" } else { "." };
        format!("{}{}{point}{}", if negative { "-" } else { "" }, digits(&whole), digits(&fraction))
    })
}

/// What the text means, read in another way: all digits as one number, then as many zeros as are missing.
fn scaled(text: &str) -> i128 {
    let decimals = text.split_once('.').map_or(0, |(_, fraction)| fraction.len() as u32);
    let digits: i128 = text.replace('.', "").parse().expect("digits");
    digits * 10_i128.pow(8 - decimals)
}

/// Lines that are mostly rows, and now and then anything.
fn line() -> impl Strategy<Value = String> {
    let row = (0_i64..30).prop_map(|minute| {
        let open_time = 1_704_067_200_000 + minute * 60_000;
        format!("{open_time},1.5,2,-0.5,1,{minute}00000000000000.25,{},0,{minute},0,0,0", open_time + 59_999)
    });
    prop_oneof![
        20 => row,
        1 => Just(HEADER.trim().to_owned()),
        1 => "[0-9,.x-]{0,40}",
        1 => "[0-9]{900,1200}",
    ]
}

fn csv() -> impl Strategy<Value = String> {
    let line_end = prop_oneof![4 => Just("\n"), 1 => Just("\r\n")];
    (vec((line(), line_end), 0..8), prop_oneof![Just(String::new()), line(), Just("\r".to_owned())])
        .prop_map(|(lines, tail)| lines.into_iter().map(|(line, end)| line + end).collect::<String>() + &tail)
}

proptest! {
    #[test]
    fn decimals_are_read_exactly(price in decimal_text(1..11), volume in decimal_text(1..31)) {
        let csv = format!("1704067200000,{price},1,1,1,{volume},1704070799999,1,1,1,1,0\n");
        let klines = decode_csv(csv.as_bytes(), &hourly()).expect("a good row").klines;
        prop_assert_eq!(i128::from(klines.open[0]), scaled(&price));
        prop_assert_eq!(klines.volume.get(0), Some(scaled(&volume)));
    }

    #[test]
    fn where_chunks_are_cut_makes_no_difference(csv in csv(), cuts in vec(0..400_usize, 0..20)) {
        let new = || Parser::new(1_704_067_200_000_000, 1_704_153_600_000_000, u64::MAX, 0);
        let mut parser = new();
        let whole = parser.push(csv.as_bytes()).and_then(|()| parser.finish());

        let mut parser = new();
        let mut rest = csv.as_bytes();
        let in_chunks = cuts.into_iter().try_for_each(|cut| {
            let (chunk, tail) = rest.split_at(cut.min(rest.len()));
            rest = tail;
            parser.push(chunk)
        });
        let in_chunks = in_chunks.and_then(|()| parser.push(rest)).and_then(|()| parser.finish());
        prop_assert_eq!(&in_chunks, &whole);

        let mut parser = new();
        let by_bytes = csv.as_bytes().chunks(1).try_for_each(|byte| parser.push(byte));
        prop_assert_eq!(&by_bytes.and_then(|()| parser.finish()), &whole);
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..600)) {
        prop_assert!(decode(FILE_NAME, &bytes, &hourly()).is_err());
        // As the text of a CSV they are refused too, but behind a sound zip file.
        prop_assert_eq!(decode_csv(&bytes, &hourly()).map_err(|error| error.class()), Err("csv"));
    }

    #[test]
    fn mutated_archives_do_no_harm(
        csv in csv(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cut_short: bool,
    ) {
        for method in [CompressionMethod::Deflated, CompressionMethod::Stored] {
            let mut zip = zip_of(&[(MEMBER_NAME, csv.as_bytes())], method);
            for (index, value) in &changes {
                let at = index.index(zip.len());
                zip[at] = *value;
            }
            if cut_short {
                zip.truncate(cut.index(zip.len()));
            }
            // Whatever is accepted has passed the CRC and is what was packed.
            if let Ok(decoded) = decode(FILE_NAME, &zip, &hourly()) {
                let packed = decode_csv(csv.as_bytes(), &hourly()).expect("accepted before");
                prop_assert_eq!(decoded.klines, packed.klines);
            }
        }
    }
}
