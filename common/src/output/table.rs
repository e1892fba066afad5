//! Columns that fit the width.

use console::{Alignment, measure_text_width, pad_str, truncate_str};

use super::terminal::width;
use crate::text::printable;

const GAP: usize = 2;
/// What the last column keeps where the others are wide.
const LAST_MIN: usize = 12;

/// A table without lines. A row is one line; the last column gives way first where there is no room, then the widest.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    lay_out(header, rows, width())
}

fn lay_out(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>, width: usize) -> String {
    let mut lines: Vec<Vec<String>> = vec![header.iter().map(ToString::to_string).collect()];
    lines.extend(rows.into_iter().map(|row| row.iter().map(|cell| printable(cell)).collect()));
    let mut widths = vec![0; header.len()];
    for line in &lines {
        for (cell, width) in line.iter().zip(&mut widths) {
            *width = measure_text_width(cell).max(*width);
        }
    }
    let last = widths.len().saturating_sub(1);
    loop {
        let excess = (widths.iter().sum::<usize>() + GAP * last).saturating_sub(width);
        let widest = widths[..last].iter().copied().enumerate().max_by_key(|(_, width)| *width);
        match widest {
            _ if excess == 0 => break,
            _ if widths[last] > LAST_MIN => widths[last] = widths[last].saturating_sub(excess).max(LAST_MIN),
            Some((index, width)) if width > LAST_MIN => widths[index] -= 1,
            Some(_) | None => break,
        }
    }
    let line = |cells: Vec<String>| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| {
            let cell = truncate_str(cell, *width, "…");
            pad_str(&cell, *width, Alignment::Left, None).into_owned()
        });
        cells.collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end().to_owned()
    };
    lines.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_line_within_the_width() {
        let row = |name: &str, text: &str| vec![name.to_owned(), "12".to_owned(), text.to_owned()];
        let rows = [row("primary", "short"), row("backup", &"long ".repeat(50)), row("a", "two\nlines \u{1b}[2J")];
        let text = lay_out(&["NAME", "N", "TEXT"], rows, 40);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!((lines[0], lines[1]), ("NAME     N   TEXT", "primary  12  short"));
        assert!(lines.iter().all(|line| measure_text_width(line) <= 40), "{text}");
        assert!(lines[2].ends_with('…') && lines[3].contains("two\\nlines \\u{1b}"), "{text}");
        let text = lay_out(&["NAME", "N", "TEXT"], [row(&"wide".repeat(20), "x")], 40);
        assert!(text.lines().all(|line| measure_text_width(line) <= 40), "{text}");
    }
}
