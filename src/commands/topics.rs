//! `lakeward topics`: [`lakeward_admin::topics`] -> text or JSON on stdout.

use lakeward_admin::topics::topics;
use lakeward_runtime::config::Config;
use lakeward_runtime::{Error, Result};

use super::ReportFormat;

#[derive(clap::Args)]
pub struct Args {
    /// table or json
    #[arg(long, value_enum, default_value = "table")]
    format: ReportFormat,
}

pub async fn run(config: &Config, args: &Args) -> Result<()> {
    let found = topics(config).await;
    match args.format {
        ReportFormat::Table => println!("{}", found.to_text().trim_end()),
        ReportFormat::Json => {
            println!("{}", serde_json::to_string(&found).map_err(|e| Error::bug("topics").source(e))?);
        }
    }
    Ok(())
}
