//! The `puller` binary: wiring only.

use std::process::ExitCode;

use clap::Parser;
use common::bars::LogWriter;
use common::config::Config;
use common::{exit, healthcheck, shutdown, telemetry};
use puller::{Cli, Command, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before the configuration, of which it needs one key only, and the log.
    if let Command::Healthcheck { live } = cli.command {
        return ExitCode::from(healthcheck::run("puller", cli.config.as_deref(), live));
    }
    let config = match Config::load(cli.config.as_deref(), cli.command.needs()) {
        Ok(config) => config,
        Err(error) => return fail(&error, exit::USAGE),
    };
    let _log = match telemetry::start(&config.log, "puller", LogWriter) {
        Ok(guard) => guard,
        Err(error) => return fail(&error, exit::USAGE),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, exit::SOME_FAILED),
    };
    let code = runtime.block_on(async {
        match shutdown::on_signals() {
            Ok(stop) => run(cli.command, config, stop).await,
            Err(error) => {
                tracing::error!(%error, "cannot listen for signals");
                exit::SOME_FAILED
            }
        }
    });
    ExitCode::from(code)
}

fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    use std::io::Write;
    // Nothing is left to tell it to when stderr is closed.
    let _told = writeln!(std::io::stderr(), "puller: {error}");
    ExitCode::from(code)
}
