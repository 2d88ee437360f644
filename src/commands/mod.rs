//! What each command does: arguments -> library calls -> printed answer.

pub mod init;

use std::process::ExitCode;

use lakeward_runtime::Result;

use crate::{Cli, Command};

/// Runs the command; an `Err` becomes a message and an exit code.
pub fn dispatch(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::Init => init::run(&cli.config)?,
    }
    Ok(ExitCode::SUCCESS)
}
