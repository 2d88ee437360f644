//! What each command does: arguments -> library calls -> printed answer.

pub mod check;
pub mod init;
pub mod run;
pub mod sql;
pub mod status;
pub mod tail;
pub mod topics;
pub mod verify;

use std::process::ExitCode;

use lakeward_runtime::config::Config;
use lakeward_runtime::{Action, Error, Result, telemetry};

use crate::{Cli, Command};

/// Runs the command; an `Err` becomes a message and an exit code.
pub fn dispatch(cli: &Cli) -> Result<ExitCode> {
    if let Command::Init = cli.command {
        init::run(&cli.config)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Daemons tell what they do; a command's answer is not to be drowned.
    let level = if matches!(cli.command, Command::Run(_)) { "info" } else { "warn" };
    telemetry::init(Some(cli.log.as_deref().unwrap_or(level)), cli.log_format.into())?;
    let config = Config::load(&cli.config)?;
    std::fs::create_dir_all(&config.state_dir)
        .map_err(|e| Error::file(Action::Configuration, "state_dir cannot be made", &config.state_dir, e))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::human("the async runtime cannot start").source(e))?;
    let code = runtime.block_on(async {
        match &cli.command {
            Command::Init => {}
            Command::Run(args) => run::run(config, args).await?,
            Command::Check => return Ok(answer(check::run(&config).await)),
            Command::Status(args) => status::run(&config, args).await?,
            Command::Topics(args) => topics::run(&config, args).await?,
            Command::Tail(args) => tail::run(&config, args).await?,
            Command::Sql(args) => sql::run(&config, args).await?,
            Command::Verify(args) => return Ok(answer(verify::run(&config, args).await?)),
        }
        Ok(ExitCode::SUCCESS)
    });
    // A blocking read of a log or a terminal must not hold the exit back.
    runtime.shutdown_background();
    code
}

/// How a report is printed.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum ReportFormat {
    Table,
    Json,
}

/// Exit code 1: the answer is no.
fn answer(yes: bool) -> ExitCode {
    ExitCode::from(if yes { 0 } else { 1 })
}
