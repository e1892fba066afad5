//! Logs: structured, on stderr, and in a file a day when `local.log_dir` is set.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use tracing::{Level, Metadata};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::{LogFormat, LogSettings};
use crate::output::fit_stderr;

/// Writes out what is buffered for the log file when dropped.
#[must_use = "dropping it stops the log file"]
pub struct LogGuard {
    _file: Option<WorkerGuard>,
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log.level: '{level}' is neither a level nor a list of directives: {source}")]
    Level { level: String, source: tracing_subscriber::filter::ParseError },
    #[error("local.log_dir: cannot write to {dir}: {source}", dir = dir.display())]
    Dir { dir: PathBuf, source: tracing_appender::rolling::InitError },
    #[error("logging was set up twice: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets up logging for the process; `stderr` is where lines go (a progress bar passes its own writer, so that
/// lines and bar do not write over each other). `is_command`: a command, which says at its end how it went. Where stderr is a
/// terminal it shows no line about a single unit then and none below a warning, without the time and broken to the
/// terminal's width. The file has them all.
///
/// # Errors
/// The level cannot be understood, or the folder cannot be written to.
pub fn start<W>(settings: &LogSettings, binary: &str, stderr: W, is_command: bool) -> Result<LogGuard, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(directives(&settings.level))
        .map_err(|source| TelemetryError::Level { level: settings.level.clone(), source })?;
    let ansi = io::stderr().is_terminal();
    let is_quiet = is_command && ansi;
    // Inside a span a line is about a delivery, thus a unit.
    let shown = dynamic_filter_fn(move |metadata, context| {
        // A command that cannot connect to NATS ends with the reason, so that the library need not say it before.
        let is_said_at_the_end = is_command && metadata.target() == "async_nats::connector";
        let is_shown = || is_for_a_watcher(metadata) && context.lookup_current().is_none();
        !is_said_at_the_end && (!is_quiet || metadata.is_span() || is_shown())
    });
    let on_stderr: Box<dyn Layer<Registry> + Send + Sync> = match settings.format {
        LogFormat::Text if is_quiet => {
            let lines = tracing_subscriber::fmt::layer().with_writer(Fitted(stderr)).without_time();
            lines.with_target(false).boxed()
        }
        LogFormat::Text | LogFormat::Json => layer(settings.format, stderr, ansi),
    };
    let on_stderr = on_stderr.with_filter(shown);
    let (in_file, guard) = match &settings.dir {
        None => (None, None),
        Some(dir) => {
            let daily = tracing_appender::rolling::Builder::new()
                .rotation(tracing_appender::rolling::Rotation::DAILY)
                .filename_prefix(binary)
                .filename_suffix("log")
                .build(dir)
                .map_err(|source| TelemetryError::Dir { dir: dir.clone(), source })?;
            let (writer, guard) = tracing_appender::non_blocking(daily);
            (Some(layer(settings.format, writer, false)), Some(guard))
        }
    };
    tracing_subscriber::registry().with(on_stderr.and_then(in_file).with_filter(filter)).try_init()?;
    Ok(LogGuard { _file: guard })
}

/// Whether a line is more than one of a unit's many, all of which the command's result sums up.
fn is_for_a_watcher(metadata: &Metadata<'_>) -> bool {
    const OF_A_UNIT: [&str; 6] = ["unit", "archive", "subject", "sequence", "key", "attempt"];
    let names_a_unit = metadata.fields().iter().any(|field| OF_A_UNIT.contains(&field.name()));
    *metadata.level() <= Level::WARN && !names_a_unit
}

/// A plain level is ours; libraries below it are heard from `warn` on. Directives are taken as they are.
fn directives(level: &str) -> String {
    if level.contains(['=', ',']) {
        return level.to_owned();
    }
    let level = level.to_lowercase();
    let libraries = if matches!(level.as_str(), "off" | "error") { level.as_str() } else { "warn" };
    format!("{libraries},common={level},nats={level},uploader={level},puller={level}")
}

/// Breaks lines at spaces so that they fit the terminal.
struct Fitted<W>(W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for Fitted<W> {
    type Writer = Fitted<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        Fitted(self.0.make_writer())
    }
}

impl<W: Write> Write for Fitted<W> {
    /// A line of the log comes whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        self.0.write_all(format!("{}\n", fit_stderr(text.trim_start().trim_end_matches('\n'))).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn layer<W>(format: LogFormat, writer: W, ansi: bool) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(ansi);
    match format {
        LogFormat::Text => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}
