//! Text from outside, made safe for a terminal.

use serde_json::Value;

/// A text of unknown origin in one line: control, bidirectional, zero-width and all other characters that are not seen
/// as themselves are written as escapes.
pub fn printable(text: &str) -> String {
    escape(text, |_| false)
}

/// The same for a text of several lines: line feeds stay.
pub fn printable_lines(text: &str) -> String {
    escape(text, |c| c == '\n')
}

/// JSON, indented, in which the same characters are escaped as JSON escapes them.
pub fn printable_json(value: &Value) -> String {
    let json = serde_json::to_string_pretty(value).expect("a value always serialises");
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        // Outside of its texts JSON is ASCII; in them the encoder has escaped ASCII's controls, DEL apart.
        if c == '\n' || is_seen(c) {
            safe.push(c);
        } else {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| safe.push_str(&format!("\\u{unit:04x}")));
        }
    }
    safe
}

fn escape(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if stays(c) || is_seen(c) {
            safe.push(c);
        } else {
            safe.extend(c.escape_debug());
        }
    }
    safe
}

/// Whether a character shows itself, and nothing else, wherever it stands. The standard library keeps the list.
pub fn is_seen(c: char) -> bool {
    matches!(c, '\\' | '\'' | '"') || c.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_is_escaped() {
        let check = |text: &str, expected: &str| assert_eq!(printable(text), expected);
        check("BTCUSDT '1h' \"a\\b\" é 币安人生USDT", "BTCUSDT '1h' \"a\\b\" é 币安人生USDT");
        check("a\u{1b}[2Jb\r\n\tc\u{7}\u{7f}\u{9b}", "a\\u{1b}[2Jb\\r\\n\\tc\\u{7}\\u{7f}\\u{9b}");
        check(
            "\u{202e}txt\u{2066}\u{200b}\u{200d}\u{feff}\u{ad}",
            "\\u{202e}txt\\u{2066}\\u{200b}\\u{200d}\\u{feff}\\u{ad}",
        );
        assert_eq!(printable_lines("a\nb\u{1b}"), "a\nb\\u{1b}");
    }

    #[test]
    fn json_stays_json() {
        let value = serde_json::json!({"a": "\u{1b}]0;x\u{7} \u{202e}\u{9b}\u{7f}\u{e0041}é\\ \"q\""});
        let text = printable_json(&value);
        assert!(text.chars().all(|c| c == '\n' || is_seen(c)), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), value);
    }
}
