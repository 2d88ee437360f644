//! `lakeward status`: [`lakeward_admin::status`] -> text or JSON on stdout, once or again and again.

use std::io::IsTerminal;
use std::time::Duration;

use lakeward_admin::status::status;
use lakeward_runtime::config::Config;
use lakeward_runtime::{Error, Result};

use super::ReportFormat;

/// Between looks with `--watch`.
const EVERY: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub struct Args {
    /// table or json
    #[arg(long, value_enum, default_value = "table")]
    format: ReportFormat,
    /// Show it again every two seconds, until interrupted
    #[arg(long)]
    watch: bool,
}

pub async fn run(config: &Config, args: &Args) -> Result<()> {
    loop {
        let now = status(config).await;
        if args.watch && std::io::stdout().is_terminal() {
            // clear the screen, cursor to the top left
            print!("\x1b[2J\x1b[H");
        }
        match args.format {
            ReportFormat::Table => println!("{}", now.to_text().trim_end()),
            ReportFormat::Json => {
                println!("{}", serde_json::to_string(&now).map_err(|e| Error::bug("status").source(e))?);
            }
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
    }
}
