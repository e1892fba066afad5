use std::process::ExitCode;

use clap::Parser;
use common::bars::LogWriter;
use common::config::Config;
use common::{exit, healthcheck, shutdown, telemetry};
use uploader::{Cli, Command, Progress};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before the configuration, of which it needs one key only, and the log.
    if let Command::Healthcheck { live } = cli.command {
        return ExitCode::from(healthcheck::run("uploader", cli.config.as_deref(), live));
    }
    match start(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("uploader: {error}");
            ExitCode::from(exit::USAGE)
        }
    }
}

fn start(cli: &Cli) -> Result<u8, Box<dyn std::error::Error>> {
    let mut config = Config::load(cli.config.as_deref(), cli.needs())?;
    if let Some(limit) = cli.bwlimit() {
        config.storage.bwlimit = limit.clone();
    }
    let progress = if cli.shows_progress() { Progress::on_stderr() } else { Progress::hidden() };
    let _log = telemetry::start(&config.log, "uploader", LogWriter)?;
    tracing::debug!(version = env!("CARGO_PKG_VERSION"), ?config, "starting");
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let shutdown = shutdown::on_signals()?;
        Ok(uploader::run(cli, &config, progress, shutdown).await)
    })
}
