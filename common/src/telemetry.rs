//! Logs: structured, on stderr, and in a file a day when `local.log_dir` is set.

use std::io::IsTerminal;
use std::path::PathBuf;

use tracing::{Level, Metadata};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone)]
pub struct LogSettings {
    /// A level, or directives such as `info,puller=debug`.
    pub level: String,
    pub format: LogFormat,
    pub dir: Option<PathBuf>,
}

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
/// lines and bar do not write over each other). Where that is a terminal and `is_quiet`, it shows no line about a single
/// unit and none below a warning: the command has its bar, and says at its end how it went. The file has them all.
///
/// # Errors
/// The level cannot be understood, or the folder cannot be written to.
pub fn start<W>(settings: &LogSettings, binary: &str, stderr: W, is_quiet: bool) -> Result<LogGuard, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(directives(&settings.level))
        .map_err(|source| TelemetryError::Level { level: settings.level.clone(), source })?;
    let ansi = std::io::stderr().is_terminal();
    let is_quiet = is_quiet && ansi;
    // Inside a span a line is about a delivery, thus a unit.
    let shown = dynamic_filter_fn(move |metadata, context| {
        !is_quiet || metadata.is_span() || is_for_a_watcher(metadata) && context.lookup_current().is_none()
    });
    let on_stderr = layer(settings.format, stderr, ansi).with_filter(shown);
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
    let libraries = if matches!(level, "off" | "error") { level } else { "warn" };
    format!("{libraries},common={level},nats={level},uploader={level},puller={level}")
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
