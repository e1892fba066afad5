//! The progress of an upload: a bar on a terminal, a line for each unit in a log.

use tests::Result;
use tests::data::mark_all;
use tests::project::Project;
use tests::servers::{Stack, ensure_installed, repository};

use crate::scenario::{SOON, hours};

const UNITS: usize = 3;

/// Three units of 2 MiB each.
fn project(label: &str) -> Result<Project> {
    let project = Project::new(Stack::shared(), label)?;
    for day in 1..=UNITS {
        for symbol in ["AUSDT", "BUSDT", "CUSDT", "DUSDT"] {
            let spec = hours(symbol, &format!("2025-03-{day:02}"));
            spec.write_bulk(project.data_dir(), 512 << 10)?;
        }
    }
    mark_all(project.data_dir())?;
    Ok(project)
}

/// `1.02 MiB/s` in bytes a second.
fn rate(text: &str) -> Option<f64> {
    let (number, unit) = text.split_once(' ')?;
    let unit = match unit.split_once("/s")?.0 {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        _ => return None,
    };
    Some(number.replace(',', "").parse::<f64>().ok()? * unit)
}

#[test]
fn a_terminal_shows_bytes_rate_and_the_time_left() -> Result<()> {
    let project = project("terminal")?;
    let (python, terminal) = (&ensure_installed()?.python, repository().join("tests/servers/terminal.py"));
    let shown = project
        .start_by(
            &[python.as_ref(), terminal.as_ref()],
            "uploader",
            &["upload", "--bwlimit", "1M"],
            &[("TERM", "xterm")],
        )?
        .wait(SOON)?
        .expect_code(0)?
        .stdout;

    // bytes ████░░ 2.50 MiB/6.00 MiB 2s at 1.02 MiB/s, 3s left
    let frames = shown.split("bytes ").filter_map(|frame| {
        let (bytes, rest) = frame.split_once(" at ")?;
        let (speed, rest) = rest.split_once(", ")?;
        let left = rest.split_once("s left")?.0.parse::<u64>().ok()?;
        Some((bytes.rsplit(' ').nth(1)?.to_owned(), rate(speed)?, left))
    });
    let frames: Vec<_> = frames.collect();
    // A busy machine may be slower than the limit, and the rate that is shown is smoothed; nothing makes it much faster.
    let is_shown = |rate: f64| rate > 0.0 && rate < 2.0 * f64::from(1 << 20);
    let midway = frames.iter().filter(|(_, rate, left)| is_shown(*rate) && *left > 0);
    assert!(midway.count() > 3, "{frames:?} in {shown}");
    let first = frames.iter().map(|(.., left)| *left).find(|left| *left > 0).expect("a time left");
    let last = frames.last().expect("a frame").2;
    assert!(last < first, "{first} s at first, {last} s at last: {frames:?}");
    assert!(shown.contains("6.00 MiB"), "the whole of it: {shown}");
    Ok(())
}

#[test]
fn a_log_without_a_terminal_has_one_line_for_each_unit() -> Result<()> {
    let project = project("no-terminal")?;
    let uploaded = project.uploader(&["upload"])?.expect_code(0)?;
    let lines: Vec<&str> = uploaded.stderr.lines().collect();
    for day in 1..=UNITS {
        let unit = format!("binance/spot/klines/1h/2025-03-{day:02}");
        let of_unit: Vec<_> = lines.iter().filter(|line| line.contains(&unit)).collect();
        assert!(matches!(of_unit[..], [line] if line.contains("published")), "{unit}: {lines:#?}");
    }
    assert!(!uploaded.stderr.contains("ETA") && !uploaded.stderr.contains('\r'), "{}", uploaded.stderr);
    Ok(())
}
