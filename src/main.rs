//! The command line: arguments -> the libraries' entry points -> stdout (results), stderr (logs, progress), exit code.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use lakeward_runtime::{Action, Error, telemetry};

/// For librdkafka too, which allocates a few times per record. glibc's allocator gives a batch's buffers back to the system and
/// takes them again for the next, and the system clears their pages each time: a tenth of a snapshot's CPU. jemalloc keeps
/// them for seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Streams every service's database into one lakehouse, and answers SQL across them at one consistent moment.
#[derive(Parser)]
#[command(name = "lakeward", version, about)]
struct Cli {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", env = "LAKEWARD_CONFIG", default_value = "lakeward.toml")]
    config: PathBuf,
    /// error, warn, info, debug or trace, or directives such as `info,lakeward_sink=debug`
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl From<LogFormat> for telemetry::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Write a commented lakeward.toml
    Init,
    /// Try every source, log, catalog and warehouse setting and list all problems with their fix
    Check,
    /// Run connectors, sink and query server (default: all) until SIGTERM or SIGINT
    Run(commands::run::Args),
    /// SQL over the lake; interactive without -c and -f
    Sql(commands::sql::Args),
    /// Sources, positions, tables, freshness, last error
    Status(commands::status::Args),
    /// Prove that source and lake are equal at one position; prints differing keys
    Verify(commands::verify::Args),
    /// Topics, partitions, lag, retention against lag, last checkpoint
    Topics(commands::topics::Args),
    /// Decoded changes of a table as they come, whatever the codec
    Tail(commands::tail::Args),
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
