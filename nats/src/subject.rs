//! The subjects markers travel on.

use common::unit::{Token, Unit, UnitError};

/// Which of the three kinds of marker subjects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Units whose period has just ended: served first.
    Ready,
    /// Older units.
    Backfill,
    /// Units sent again to one destination.
    Replay,
}

impl Lane {
    fn token(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Backfill => "backfill",
            Self::Replay => "replay",
        }
    }
}

/// `marker.<lane>[.<destination>].<unit>`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkerSubject {
    pub lane: Lane,
    pub unit: Unit,
}

impl MarkerSubject {
    /// The subject a new marker is published on.
    pub fn announcement(unit: &Unit, backfill: bool) -> String {
        let lane = if backfill { Lane::Backfill } else { Lane::Ready };
        format!("marker.{}.{}", lane.token(), unit.subject_tokens())
    }

    pub fn parse(subject: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Shape(common::text::shorten(subject));
        let rest = subject.strip_prefix("marker.").ok_or_else(wrong)?;
        let (kind, tokens) = rest.split_once('.').ok_or_else(wrong)?;
        let (lane, tokens) = match kind {
            "ready" => (Lane::Ready, tokens),
            "backfill" => (Lane::Backfill, tokens),
            "replay" => {
                let (destination, tokens) = tokens.split_once('.').ok_or_else(wrong)?;
                let _: Token = destination.parse()?;
                (Lane::Replay, tokens)
            }
            _ => return Err(wrong()),
        };
        Ok(Self { lane, unit: Unit::from_subject_tokens(tokens)? })
    }
}

/// The last five tokens, whatever they are: a dead letter is filed under them also when they are no unit.
pub(crate) fn unit_tokens(subject: &str) -> &str {
    let start = subject.rmatch_indices('.').nth(4).map_or(0, |(at, _)| at + 1);
    &subject[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_written_and_read_back() {
        let unit: Unit = "binance/um/klines/1h/2026-02-14".parse().expect("a unit");
        let subject = MarkerSubject::announcement(&unit, false);
        assert_eq!(subject, "marker.ready.binance.um.klines.1h.2026-02-14");
        assert_eq!(MarkerSubject::parse(&subject), Ok(MarkerSubject { lane: Lane::Ready, unit: unit.clone() }));
        let replay = MarkerSubject::parse("marker.replay.primary.binance.um.klines.1h.2026-02-14");
        assert_eq!(replay, Ok(MarkerSubject { lane: Lane::Replay, unit }));
        assert!(MarkerSubject::parse("marker.ready.binance.um.klines.1h").is_err());
        assert!(MarkerSubject::parse("marker.other.binance.um.klines.1h.2026-02-14").is_err());
        assert_eq!(unit_tokens("marker.replay.primary.a.b.c.d.e"), "a.b.c.d.e");
        assert_eq!(unit_tokens("a.b"), "a.b");
    }
}
