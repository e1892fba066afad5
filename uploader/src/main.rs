use std::process::ExitCode;

use common::config::Config;
use common::output::bars::LogWriter;
use common::output::{self, Failure, Output, Reply};
use common::service::{healthcheck, open_files, shutdown, telemetry};
use uploader::{Cli, Command, Progress};

fn main() -> ExitCode {
    open_files::raise_limit();
    let (cli, command) = match output::parse::<Cli>() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    let output = Output { command, json: cli.output.json };
    // Before the configuration, of which it needs one key only, and the log.
    if let Command::Healthcheck { live } = cli.command {
        return ExitCode::from(output.finish(healthcheck::run(cli.config.as_deref(), live)));
    }
    let mut config = match Config::load(cli.config.as_deref(), cli.needs()) {
        Ok(config) => config,
        Err(error) => return ExitCode::from(output.finish(Err(Failure::config(error.to_string())))),
    };
    if let Some(limit) = cli.bwlimit() {
        config.storage.bwlimit = limit.clone();
    }
    let is_quiet = !cli.is_service() && !cli.output.verbose;
    let _log = match telemetry::start(&config.log, "uploader", LogWriter, is_quiet) {
        Ok(guard) => guard,
        Err(error) => return ExitCode::from(output.finish(Err(Failure::config(error.to_string())))),
    };
    tracing::debug!(version = env!("CARGO_PKG_VERSION"), ?config, "starting");
    ExitCode::from(output.finish(start(&cli, &config, &output)))
}

fn start(cli: &Cli, config: &Config, output: &Output) -> Result<Reply, Failure> {
    let progress = if cli.shows_progress() { Progress::on_stderr() } else { Progress::hidden() };
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(async {
        let shutdown = shutdown::on_signals()?;
        let (output, ends) = (output.clone(), shutdown.clone());
        // On another thread than this one, which may be the one that hangs.
        tokio::spawn(async move {
            let stopped = uploader::hangs(ends).await;
            std::process::exit(output.finish(Err(stopped)).into());
        });
        uploader::run(cli, config, progress, shutdown).await
    });
    // What blocks on a disk does not keep the process.
    runtime.shutdown_timeout(shutdown::LEAVE);
    ended
}
