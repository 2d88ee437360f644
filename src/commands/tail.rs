//! `lakeward tail`: [`lakeward_admin::tail`] -> a line on stdout for each change, until an interrupt or until nobody reads them.

use std::io::{BufWriter, stdout};
use std::os::fd::AsFd;

use lakeward_admin::tail::{Form, Options, tail};
use lakeward_runtime::config::Config;
use lakeward_runtime::{Result, shutdown};
use tokio::io::Interest;
use tokio::net::unix::pipe;

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(clap::Args)]
pub struct Args {
    /// A table as SQL names it (users.orders), or its topic (users.public.orders)
    table: String,
    /// text, or json: an object for each change
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Show everything that the log still has first, not only what comes from now on
    #[arg(long)]
    from_beginning: bool,
    /// End after so many changes
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<u64>,
    /// End when everything is shown that is in the log now
    #[arg(short = 'e', long)]
    exit: bool,
}

pub async fn run(config: &Config, args: &Args) -> Result<()> {
    let stop = shutdown::on_signals()?;
    let options = Options {
        form: match args.format {
            Format::Text => Form::Text,
            Format::Json => Form::Json,
        },
        from_beginning: args.from_beginning,
        limit: args.limit,
        exit_at_end: args.exit,
    };
    let out = Box::new(BufWriter::new(stdout()));
    tokio::select! {
        done = tail(config, &args.table, options, out, &stop) => done,
        () = nobody_reads() => Ok(()),
    }
}

/// Returns when stdout is a pipe whose other end was closed, though there may be nothing to write: `| head -1` would otherwise wait
/// for a change that may never come.
async fn nobody_reads() {
    let stdout = stdout().as_fd().try_clone_to_owned();
    // Not for a file, which cannot be waited for.
    if let Ok(pipe) = stdout.and_then(pipe::Sender::from_owned_fd_unchecked)
        && pipe.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
