//! Values as JSON.

use serde::Serialize;
use serde_json::Value;

pub(super) fn to_value(content: &impl Serialize) -> Value {
    serde_json::to_value(content).expect("texts, numbers and maps with text keys always serialise")
}
