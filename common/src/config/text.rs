//! What a setting's text may be, whichever source it comes from.
//!
//! An `.env` file with the line ends of Windows, a value pasted with a blank, quotation marks that Docker's `--env-file`
//! keeps: each arrives as part of the value, and would fail far from here and in the words of some library.

/// What the text is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name, address or path: white space around it means nothing.
    Name,
    /// Half of an API token, which is sent in an HTTP header.
    Token,
    /// Whatever somebody chose; white space may belong to it.
    Password,
}

/// Takes off what cannot be meant, or says why the text cannot be used. The message repeats nothing of it.
pub(super) fn clean(text: &str, kind: Kind) -> Result<&str, &'static str> {
    let text = match kind {
        Kind::Name | Kind::Token => text.trim_matches(is_blank),
        Kind::Password => text.trim_end_matches(['\r', '\n']),
    };
    if text.chars().any(char::is_control) {
        return Err("holds a line break or another control character");
    }
    match kind {
        Kind::Password if text.starts_with(is_blank) || text.ends_with(is_blank) => {
            Err("begins or ends with white space, which servers take off; choose another password")
        }
        Kind::Password => Ok(text),
        Kind::Name | Kind::Token if text.starts_with(is_quote) || text.ends_with(is_quote) => {
            Err("begins or ends with a quotation mark that is part of the value; remove it")
        }
        Kind::Token if !text.chars().all(|c| c.is_ascii_graphic()) => {
            Err("holds a blank or a character that is not ASCII, which no key has")
        }
        Kind::Name | Kind::Token => Ok(text),
    }
}

/// White space, and the characters without a width that come along when text is copied.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'' | '`' | '\u{2018}' | '\u{2019}' | '\u{201c}' | '\u{201d}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_around_a_name_means_nothing() {
        for text in ["archive", " archive\t", "archive\r", "archive\r\n", "\u{feff}archive\u{200b}", "\u{a0}archive"] {
            assert_eq!(clean(text, Kind::Name), Ok("archive"), "{text:?}");
            assert_eq!(clean(text, Kind::Token), Ok("archive"), "{text:?}");
        }
        assert_eq!(clean("/srv/market data", Kind::Name), Ok("/srv/market data"));
        assert_eq!(clean(" \r\n", Kind::Name), Ok(""));
    }

    #[test]
    fn a_password_is_what_was_chosen_or_refused() {
        assert_eq!(clean("it's \"fine\"", Kind::Password), Ok("it's \"fine\""));
        assert_eq!(clean("hunter2\r\n", Kind::Password), Ok("hunter2"));
        for text in [" hunter2", "hunter2 ", "hun\rter2", "hunter2\t", "hunter2\0"] {
            assert!(clean(text, Kind::Password).is_err(), "{text:?}");
        }
    }

    #[test]
    fn quotation_marks_and_control_characters_are_refused() {
        for text in ["\"/data\"", "'/data'", "/data\"", "\u{201c}data\u{201d}", "a\nb", "a\0b", "a\u{1b}[2Jb"] {
            assert!(clean(text, Kind::Name).is_err(), "{text:?}");
            assert!(clean(text, Kind::Token).is_err(), "{text:?}");
        }
        for text in ["AKIA 0123", "cl\u{e9}"] {
            assert!(clean(text, Kind::Token).is_err(), "{text:?}");
        }
    }
}
