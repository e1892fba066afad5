//! What a command lists: one shape for all of them.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use super::json::to_value;
use crate::unit::Unit;

/// Something about a unit, an archive of it, or a range of units.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Finding {
    /// A unit, or the series that `from` and `to` are a range of; none, where it is about something else.
    pub unit: Option<String>,
    /// None: the unit as a whole.
    pub symbol: Option<String>,
    /// First and last day, both included.
    pub from: Option<String>,
    pub to: Option<String>,
    /// From the command's closed set, which `docs/CLI.md` lists.
    pub state: String,
    /// What kind of fault it is, from a closed set.
    pub class: Option<String>,
    /// In words.
    pub text: String,
    /// When it came into this state.
    pub since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// The command's own fields.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
    /// Stands before the line in a list for people.
    #[serde(skip)]
    pub sign: &'static str,
}

impl Finding {
    pub fn new(state: &str, text: impl Into<String>) -> Self {
        Self { state: state.to_owned(), text: text.into(), sign: "!", ..Self::default() }
    }

    pub fn of_unit(unit: &Unit, state: &str, text: impl Into<String>) -> Self {
        let (from, to) = (unit.period.first_day().to_string(), unit.period.last_day().to_string());
        Self { unit: Some(unit.to_string()), from: Some(from), to: Some(to), ..Self::new(state, text) }
    }

    /// Of a name that may be a unit's.
    pub fn named(name: &str, state: &str, text: impl Into<String>) -> Self {
        match name.parse::<Unit>() {
            Ok(unit) => Self::of_unit(&unit, state, text),
            Err(_) => Self { unit: Some(name.to_owned()), ..Self::new(state, text) },
        }
    }

    #[must_use]
    pub fn sign(mut self, sign: &'static str) -> Self {
        self.sign = sign;
        self
    }

    #[must_use]
    pub fn symbol(mut self, symbol: impl Into<String>) -> Self {
        self.symbol = Some(symbol.into());
        self
    }

    #[must_use]
    pub fn class(mut self, class: impl Into<String>) -> Self {
        self.class = Some(class.into()).filter(|class| !class.is_empty());
        self
    }

    #[must_use]
    pub fn in_state_since(mut self, since: impl Into<Option<Timestamp>>) -> Self {
        self.since = since.into();
        self
    }

    #[must_use]
    pub fn destination(mut self, destination: impl Into<String>) -> Self {
        self.destination = Some(destination.into());
        self
    }

    #[must_use]
    pub fn field(mut self, name: &str, value: &impl Serialize) -> Self {
        self.fields.insert(name.to_owned(), to_value(value));
        self
    }
}
