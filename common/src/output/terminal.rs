//! Lines that fit a terminal.

use std::io::{self, IsTerminal};

/// Where a terminal does not tell its width.
const COLUMNS: usize = 80;

/// Sentences that are wider than the terminal, broken at spaces.
pub(super) fn fitted(text: &str) -> String {
    fit(text, width())
}

/// The same for what goes to stderr, which may be a terminal where stdout is none.
pub fn fit_stderr(text: &str) -> String {
    fit(text, columns(&io::stderr(), &console::Term::stderr()).unwrap_or(usize::MAX))
}

fn fit(text: &str, width: usize) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        if console::measure_text_width(line) <= width {
            lines.push(line.to_owned());
            continue;
        }
        let parts = wrap_to(line, width.saturating_sub(2));
        lines.extend(parts.into_iter().enumerate().map(|(at, part)| if at == 0 { part } else { format!("  {part}") }));
    }
    lines.join("\n")
}

/// How wide a line may be. Where stdout is no terminal nothing is cut or broken, so that a text can be searched for,
/// unless $COLUMNS asks for it.
pub fn width() -> usize {
    if let Some(columns) = columns(&io::stdout(), &console::Term::stdout()) {
        return columns;
    }
    std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok())
        .map_or(usize::MAX, |columns: usize| columns.max(40))
}

/// The width of a terminal; `None` where there is none.
fn columns(stream: &impl IsTerminal, terminal: &console::Term) -> Option<usize> {
    let size = || terminal.size_checked().map_or(COLUMNS, |(_, columns)| usize::from(columns).max(40));
    stream.is_terminal().then(size)
}

/// Breaks text at spaces so that each line, behind `indent` spaces, fits the width.
pub fn wrap(text: &str, indent: usize) -> Vec<String> {
    wrap_to(text, width().saturating_sub(indent).max(20))
}

pub(super) fn wrap_to(text: &str, available: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut current = String::new();
        for word in line.split(' ') {
            if !current.is_empty()
                && console::measure_text_width(&current) + 1 + console::measure_text_width(word) > available
            {
                lines.push(std::mem::take(&mut current));
            }
            if !current.is_empty() {
                current.push(' ');
            }
            current.push_str(word);
        }
        lines.push(current);
    }
    lines
}
