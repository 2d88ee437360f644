//! `lakeward verify`: [`lakeward_admin::verify`] -> a report on stdout; exit code 1 where source and lake differ.

use lakeward_admin::verify::verify;
use lakeward_runtime::config::Config;
use lakeward_runtime::{Error, Result};

use super::ReportFormat;

#[derive(clap::Args)]
pub struct Args {
    /// Tables to compare, or globs (users.orders, users.public.*); all without a name
    tables: Vec<String>,
    /// table or json
    #[arg(long, value_enum, default_value = "table")]
    format: ReportFormat,
}

/// Compares; false where anything differs or was skipped.
pub async fn run(config: &Config, args: &Args) -> Result<bool> {
    let report = verify(config, &args.tables, |step| eprintln!("{step}")).await?;
    match args.format {
        ReportFormat::Table => println!("{}", report.to_text().trim_end()),
        ReportFormat::Json => {
            let json = serde_json::to_string_pretty(&report).map_err(|e| Error::bug("report").source(e))?;
            println!("{json}");
        }
    }
    Ok(report.is_equal())
}
