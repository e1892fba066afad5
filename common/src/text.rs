//! Text from outside, made fit for messages and terminals.

mod chain;
mod printable;

pub use chain::chain;
pub use printable::{is_seen, printable, printable_json, printable_lines};

/// Untrusted text made fit for a message: control characters escaped, at most 80 characters.
pub fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut short: String = text.chars().take(CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}
