//! The arguments that all commands have in common, and command lines that are wrong.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Parser};

use super::{Failure, Output, after_printing};

/// What every command takes.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct OutputArgs {
    /// Print JSON: one envelope for all commands, also when they fail; see docs/CLI.md
    #[arg(long, global = true)]
    pub json: bool,

    /// Say more: on a terminal also log lines, in lists also what is right
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

/// What every command takes that prints a list.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct ListArgs {
    /// Print the whole list, and all of each text
    #[arg(long)]
    pub all: bool,
}

/// The command line, or the exit code where it is wrong or only asks for help.
///
/// # Errors
/// The exit code, with everything said.
pub fn parse<C: Parser>() -> Result<(C, String), ExitCode> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let command = command_name(&C::command(), &args);
    match C::try_parse_from(&args) {
        Ok(cli) => Ok((cli, command)),
        Err(error) if !error.use_stderr() => {
            // Help and version.
            Err(ExitCode::from(after_printing(error.print(), crate::output::exit::DONE, &command)))
        }
        Err(error) => {
            let output = Output { command, json: is_json(&args) };
            let text = error.render().to_string();
            Err(ExitCode::from(output.finish(Err(Failure::usage(text.trim_end().trim_start_matches("error: "))))))
        }
    }
}

/// Binary and subcommands, as far as the words of a command line name them.
pub fn command_name(command: &clap::Command, args: &[OsString]) -> String {
    let (mut command, mut name) = (command, vec![command.get_name().to_owned()]);
    for arg in args.iter().skip(1) {
        if let Some(found) = command.find_subcommand(arg) {
            command = found;
            name.push(found.get_name().to_owned());
        }
    }
    name.join(" ")
}

/// Whether a command line that may be wrong asks for JSON.
pub fn is_json(args: &[OsString]) -> bool {
    args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json")
}
