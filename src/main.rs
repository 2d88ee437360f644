//! The command line: arguments -> the libraries' entry points -> stdout (results), stderr (logs, progress), exit code.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lakeward_runtime::{Action, Error};

/// Streams every service's database into one lakehouse, and answers SQL across them at one consistent moment.
#[derive(Parser)]
#[command(name = "lakeward", version, about)]
struct Cli {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", env = "LAKEWARD_CONFIG", default_value = "lakeward.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a commented lakeward.toml
    Init,
}

fn main() -> ExitCode {
    lakeward_runtime::crash::setup();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap's own code for usage errors is 2, ours too; help and version are not errors
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match commands::dispatch(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Exit codes of interface: 1 the answer is no, 2 usage or configuration, 3 a retry may cure it, 4 a person must look.
fn exit_code(error: &Error) -> u8 {
    match error.action() {
        Action::Refused => 1,
        Action::Configuration => 2,
        Action::Retry | Action::Rebase => 3,
        Action::Resnapshot | Action::Human | Action::Bug => 4,
    }
}
