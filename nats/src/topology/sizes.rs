//! Sizes for people.

/// Bytes for people, as configuration has them.
pub(super) fn gibibytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = UNITS.iter().find(|(_, shift)| bytes >> shift > 0);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(name, shift)| {
            let tenths = (bytes * 10) >> shift;
            if tenths.is_multiple_of(10) {
                format!("{} {name}", tenths / 10)
            } else {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::gibibytes;

    #[test]
    fn sizes_are_written_as_they_are_configured() {
        let check = |bytes: u64, text| assert_eq!(gibibytes(bytes), text);
        check(2 << 30, "2 GiB");
        check(2560 << 20, "2.5 GiB");
        check(64 << 20, "64 MiB");
        check(100_000, "97.6 KiB");
        check(12, "12 B");
    }
}
