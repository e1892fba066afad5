//! Versions: which archive's row of an open_time is right, and which row ClickHouse shows. A row's `version` has two parts:
//!
//! | bits | name | meaning |
//! |---|---|---|
//! | low 48 | own version | when the archive that brought the row was generated, in ms: even for a day's archive, odd for a month's |
//! | high 16 | rank epoch | 0 as an archive's rows are loaded; 1 and more where [`crate::load::superseded_rows`] wrote a row again, or a tombstone |
//!
//! Own versions decide which archive's row is right; the rank epoch makes the engine show it where own versions alone would
//! show another one: a row that only a former revision had, or a tombstone above a row that another archive has.

use common::unit::Period;
use jiff::Timestamp;

const OWN_VERSION_BITS: u32 = 48;
/// The lowest version with a rank epoch of 1.
pub(crate) const RANKED: u64 = 1 << OWN_VERSION_BITS;
/// [`own_version`] of a row of `klines`, in SQL.
pub(crate) const OWN_VERSION: &str = "bitAnd(klines.version, 281474976710655)";

/// The version of an archive's rows as they are loaded: when it was generated, in ms, made even for a day's archive; a
/// month's is one less.
///
/// Zip time stamps are whole pairs of seconds, so they are even as they are, and a day generated at the same time as its
/// month wins.
pub(crate) fn version(generated_at: Timestamp, period: Period) -> u64 {
    let even = u64::try_from(generated_at.as_millisecond()).unwrap_or_default().min(RANKED - 1) & !1;
    if period.is_month() { even.saturating_sub(1) } else { even }
}

/// What [`version`] was of the archive that brought a row with this version.
pub(crate) fn own_version(version: u64) -> u64 {
    version & (RANKED - 1)
}

/// The version with which a row of this own version outranks a row that is stored with `outranked`; `None` if there are no
/// more rank epochs.
pub(crate) fn outranking(outranked: u64, own_version: u64) -> Option<u64> {
    let epoch = (outranked >> OWN_VERSION_BITS) + 1;
    (epoch < 1 << (u64::BITS - OWN_VERSION_BITS)).then_some(epoch << OWN_VERSION_BITS | own_version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_tell_days_from_months() {
        let at = |ms| Timestamp::from_millisecond(ms).expect("a time");
        let (day, month) = ("2026-02-14".parse().expect("a day"), "2026-02".parse().expect("a month"));
        assert_eq!(version(at(1_771_116_240_000), day), 1_771_116_240_000);
        assert_eq!(version(at(1_771_116_240_001), day), 1_771_116_240_000);
        assert_eq!(version(at(1_771_116_240_000), month), 1_771_116_239_999);
        assert!(version(at(1_771_116_240_002), month) > version(at(1_771_116_240_000), day));
    }

    #[test]
    fn a_rank_epoch_outranks_every_own_version_below_it() {
        let loaded = version(
            Timestamp::from_millisecond(1_771_116_240_000).expect("a time"),
            "2026-02".parse().expect("a month"),
        );
        let first = outranking(loaded, 6).expect("an epoch");
        assert!(first > loaded && own_version(first) == 6);
        let second = outranking(first, loaded).expect("an epoch");
        assert!(second > first && own_version(second) == loaded);
        assert_eq!(second % 2, 1, "the kind stays");
        assert_eq!(outranking(u64::MAX, loaded), None);
        assert_eq!(own_version(loaded), loaded);
    }
}
