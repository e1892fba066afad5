//! The `puller` binary: wiring only.

use std::process::ExitCode;

use common::config::Config;
use common::output::bars::LogWriter;
use common::output::{self, Failure, Output, Reply};
use common::service::{healthcheck, open_files, shutdown, telemetry};
use puller::{Cli, Command, run};

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
    let config = match Config::load(cli.config.as_deref(), cli.command.needs()) {
        Ok(config) => config,
        Err(error) => return ExitCode::from(output.finish(Err(Failure::config(error.to_string())))),
    };
    let is_quiet = cli.command.is_watched() && !cli.output.verbose;
    let _log = match telemetry::start(&config.log, "puller", LogWriter, is_quiet) {
        Ok(guard) => guard,
        Err(error) => return ExitCode::from(output.finish(Err(Failure::config(error.to_string())))),
    };
    ExitCode::from(output.finish(start(cli, config)))
}

fn start(cli: Cli, config: Config) -> Result<Reply, Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(async {
        let stop = shutdown::on_signals()?;
        run(cli.command, config, cli.output.verbose, stop).await
    });
    // What blocks on a disk does not keep the process.
    runtime.shutdown_timeout(shutdown::LEAVE);
    ended
}
