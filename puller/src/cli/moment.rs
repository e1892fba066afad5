//! Times on the command line: RFC 3339, a day, or a duration from now.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// How long.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write a number and a unit, e.g. 30s, 10m or 2h".to_owned())
}

/// A time in the past; `2h` is two hours ago.
pub(crate) fn past(text: &str) -> Result<Timestamp, String> {
    parse(text, Timestamp::checked_sub)
}

/// A time to come; `2h` is in two hours.
pub(crate) fn future(text: &str) -> Result<Timestamp, String> {
    let at = parse(text, Timestamp::checked_add)?;
    if at <= common::clock::now() {
        return Err(format!("{at} is in the past"));
    }
    Ok(at)
}

fn parse(
    text: &str,
    shift: impl Fn(Timestamp, SignedDuration) -> Result<Timestamp, jiff::Error>,
) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Ok(midnight) = text.parse::<Date>().and_then(|day| day.to_zoned(TimeZone::UTC)) {
        return Ok(midnight.timestamp());
    }
    let out_of_range = |error: &dyn std::fmt::Display| format!("'{text}' is out of range: {error}");
    match humantime::parse_duration(text) {
        Ok(duration) => {
            let duration = SignedDuration::try_from(duration).map_err(|error| out_of_range(&error))?;
            shift(common::clock::now(), duration).map_err(|error| out_of_range(&error))
        }
        Err(_) => Err("write a time as 2026-02-14T08:00:00Z, a day as 2026-02-14, or a duration as 2h or 3d".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        for text in ["foo", "10", "", "-5s"] {
            assert!(duration(text).is_err_and(|why| why.contains("10m")), "{text}");
        }
    }

    #[test]
    fn times_are_written_in_three_ways() {
        assert_eq!(past("2026-02-14T08:00:00Z"), Ok("2026-02-14T08:00:00Z".parse().expect("a time")));
        assert_eq!(past("2026-02-14"), Ok("2026-02-14T00:00:00Z".parse().expect("a time")));
        let two_hours = SignedDuration::from_hours(2);
        let near = |at: Timestamp, to: Timestamp| at.duration_since(to).abs() < SignedDuration::from_mins(1);
        assert!(near(past("2h").expect("a time"), common::clock::now() - two_hours));
        assert!(near(future("2h").expect("a time"), common::clock::now() + two_hours));
        for text in ["", "soon", "2026-02-30", "99999999999999y"] {
            assert!(past(text).is_err(), "{text}");
        }
        assert!(future("2020-01-01").is_err());
    }
}
