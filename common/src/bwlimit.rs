//! How fast bytes may go (`storage.bwlimit`, `--bwlimit`), in rclone's notation: `10M`, `10M:1M` (up and down), `08:00,512K 19:00,off`, `Mon-08:00,512K Sat-00:00,off`.

use std::num::NonZeroU64;
use std::str::FromStr;

use jiff::civil::DateTime;

use crate::text::shorten;

const DAY_MINUTES: u32 = 24 * 60;

/// Which way bytes go, as seen from here. Each way has its own limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Up,
    Down,
}

/// A limit, or a timetable of limits by the local time. The default is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BwLimit {
    /// Sorted by `minute`; empty: no limit.
    slots: Vec<Slot>,
}

/// From this minute of the week on (Monday 00:00 is 0), until the next slot's; the last one lasts into the next week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    minute: u32,
    rates: Rates,
}

/// Bytes a second; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rates {
    up: Option<NonZeroU64>,
    down: Option<NonZeroU64>,
}

/// What cannot be understood, and what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{part}' is not {meaning}")]
pub struct BwLimitError {
    part: String,
    meaning: &'static str,
}

impl BwLimit {
    pub fn is_off(&self) -> bool {
        self.slots.iter().all(|slot| slot.rates.up.is_none() && slot.rates.down.is_none())
    }

    /// Bytes a second at this local time; `None`: no limit.
    pub fn at(&self, local: DateTime, direction: Direction) -> Option<NonZeroU64> {
        let day = u32::from(local.weekday().to_monday_zero_offset().unsigned_abs());
        let of_day = u32::from(local.hour().unsigned_abs()) * 60 + u32::from(local.minute().unsigned_abs());
        let minute = day * DAY_MINUTES + of_day;
        let begun = self.slots.iter().rev().find(|slot| slot.minute <= minute);
        let rates = begun.or(self.slots.last())?.rates;
        match direction {
            Direction::Up => rates.up,
            Direction::Down => rates.down,
        }
    }
}

impl FromStr for BwLimit {
    type Err = BwLimitError;

    fn from_str(text: &str) -> Result<Self, BwLimitError> {
        let mut slots = Vec::new();
        if text.contains([',', ' ']) {
            for part in text.split_ascii_whitespace() {
                let slot = part.split_once(',').filter(|(_, rates)| !rates.contains(','));
                let (time, rates) = slot.ok_or_else(|| bad(part, "a time and a limit such as 08:00,512K"))?;
                let rates = parse_rates(rates)?;
                slots.extend(minutes(time)?.into_iter().map(|minute| Slot { minute, rates }));
            }
            // Of two for the same minute the one written last counts.
            slots.reverse();
            slots.sort_by_key(|slot| slot.minute);
            slots.dedup_by_key(|slot| slot.minute);
        } else {
            slots.push(Slot { minute: 0, rates: parse_rates(text)? });
        }
        Ok(Self { slots })
    }
}

fn bad(part: &str, meaning: &'static str) -> BwLimitError {
    BwLimitError { part: shorten(part), meaning }
}

/// `08:00`, which is every day, or `Mon-08:00`.
fn minutes(time: &str) -> Result<Vec<u32>, BwLimitError> {
    let (day, hour_minute) = match time.split_once('-') {
        Some((day, rest)) => (Some(weekday(day)?), rest),
        None => (None, time),
    };
    let number = |text: &str, max: u32| {
        let digits = text.len() == 2 && text.bytes().all(|c| c.is_ascii_digit());
        text.parse::<u32>().ok().filter(|number| digits && *number <= max)
    };
    let parsed = hour_minute.split_once(':').and_then(|(hour, minute)| Some((number(hour, 23)?, number(minute, 59)?)));
    let (hour, minute) = parsed.ok_or_else(|| bad(hour_minute, "a time of day such as 08:00"))?;
    let days = day.map_or(0..7, |day| day..day + 1);
    Ok(days.map(|day| day * DAY_MINUTES + hour * 60 + minute).collect())
}

/// English, in full or by three letters, in whatever case.
fn weekday(text: &str) -> Result<u32, BwLimitError> {
    let names = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
    let text_lower = text.to_ascii_lowercase();
    let day = names.iter().zip(0..).find(|(name, _)| **name == text_lower || name[..3] == text_lower);
    day.map(|(_, day)| day).ok_or_else(|| bad(text, "a day of the week such as Mon"))
}

/// `10M`, or `10M:1M` for up and down.
fn parse_rates(text: &str) -> Result<Rates, BwLimitError> {
    match text.split_once(':') {
        Some((up, down)) => Ok(Rates { up: parse_rate(up)?, down: parse_rate(down)? }),
        None => parse_rate(text).map(|rate| Rates { up: rate, down: rate }),
    }
}

/// Bytes a second: `10M` is 10 MiB, also written `10Mi` or `10MiB`; a number alone is KiB; `off` and `0` are no limit.
fn parse_rate(text: &str) -> Result<Option<NonZeroU64>, BwLimitError> {
    let refuse = || bad(text, "a limit such as 10M, 512K or off");
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let power = match unit.as_str() {
        "b" => 0,
        "" | "k" | "ki" | "kib" => 1,
        "m" | "mi" | "mib" => 2,
        "g" | "gi" | "gib" => 3,
        "t" | "ti" | "tib" => 4,
        "p" | "pi" | "pib" => 5,
        _ => return Err(refuse()),
    };
    // Digits and a point only: the parser of floating point would also take "1e9", "inf" and signs.
    let number: f64 = if digits.bytes().all(|c| c.is_ascii_digit() || c == b'.') {
        digits.parse().map_err(|_| refuse())?
    } else {
        return Err(refuse());
    };
    let bytes = number * f64::from(1024).powi(power);
    // Less than a byte a second would be no limit by rounding.
    Ok(if number == 0.0 { None } else { NonZeroU64::new((bytes as u64).max(1)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn at(limit: &str, local: &str) -> (u64, u64) {
        let limit: BwLimit = limit.parse().expect(limit);
        let local: DateTime = local.parse().expect(local);
        let rate = |direction| limit.at(local, direction).map_or(0, NonZeroU64::get);
        (rate(Direction::Up), rate(Direction::Down))
    }

    /// 2026-02-14 was a Saturday.
    const SATURDAY: &str = "2026-02-14T12:00";

    #[test]
    fn single_limits_are_rclones() {
        let check = |text: &str, bytes: u64| assert_eq!(at(text, SATURDAY), (bytes, bytes), "{text}");
        check("10M", 10 << 20);
        check("10m", 10 << 20);
        check("10MiB", 10 << 20);
        check("512K", 512 << 10);
        check("512k", 512 << 10);
        check("512", 512 << 10);
        check("1.5M", 3 << 19);
        check("100B", 100);
        check("1G", 1 << 30);
        check("0.0001B", 1);
        check("off", 0);
        check("OFF", 0);
        check("0", 0);
        assert_eq!(at("10M:1M", SATURDAY), (10 << 20, 1 << 20));
        assert_eq!(at("off:1M", SATURDAY), (0, 1 << 20));
        assert!("off".parse::<BwLimit>().expect("off").is_off());
        assert!("08:00,off".parse::<BwLimit>().expect("off").is_off());
        assert!(!"off:1M".parse::<BwLimit>().expect("a limit").is_off());
        assert!(BwLimit::default().is_off());
    }

    #[test]
    fn a_timetable_counts_by_the_local_time() {
        let table = "08:00,512K 12:00,10M:1M 19:00,off";
        let check = |time: &str, expected| assert_eq!(at(table, &format!("2026-02-14T{time}")), expected, "{time}");
        check("00:00", (0, 0));
        check("07:59:59", (0, 0));
        check("08:00", (512 << 10, 512 << 10));
        check("11:59", (512 << 10, 512 << 10));
        check("12:00", (10 << 20, 1 << 20));
        check("19:00", (0, 0));
        check("23:59", (0, 0));
        // The order in which they are written does not matter, but of two for one minute the last one counts.
        assert_eq!(at("19:00,off 08:00,1M", "2026-02-14T09:00"), (1 << 20, 1 << 20));
        assert_eq!(at("08:00,1M 08:00,2M", "2026-02-14T09:00"), (2 << 20, 2 << 20));
    }

    #[test]
    fn a_timetable_may_name_days() {
        let table = "Mon-08:00,512K fri-19:00,off 12:00,1M Sunday-20:00,2M";
        let check = |local: &str, kib: u64| assert_eq!(at(table, local).0, kib << 10, "{local}");
        // From Sunday evening into Monday.
        check("2026-02-16T07:59", 2048);
        check("2026-02-16T08:00", 512);
        check("2026-02-16T12:00", 1024);
        check("2026-02-17T08:00", 1024);
        check("2026-02-20T19:00", 0);
        check("2026-02-21T11:59", 0);
        check("2026-02-21T12:00", 1024);
        check("2026-02-22T20:00", 2048);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, message: &str| {
            let error = text.parse::<BwLimit>().expect_err(text).to_string();
            assert!(error.starts_with(message), "{text}: {error}");
        };
        check("", "'' is not a limit");
        check("fast", "'fast' is not a limit");
        check("10X", "'10X' is not a limit");
        check("-1M", "'-1M' is not a limit");
        check("1e3", "'1e3' is not a limit");
        check("10M:", "'' is not a limit");
        check("10M:1M:1M", "'1M:1M' is not a limit");
        check("08:00,512K 19:00", "'19:00' is not a time and a limit");
        check("08:00,512K,1M", "'08:00,512K,1M' is not a time and a limit");
        check("24:00,512K", "'24:00' is not a time of day");
        check("8:00,512K", "'8:00' is not a time of day");
        check("08:60,512K", "'08:60' is not a time of day");
        check("Someday-08:00,512K", "'Someday' is not a day of the week");
        check("08:00,512Q 19:00,off", "'512Q' is not a limit");
    }
}
