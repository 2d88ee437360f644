//! `lakeward check`: [`lakeward_admin::check`] -> a list of problems on stdout; exit code 1 where there is one.

use lakeward_admin::check::{check, to_text};
use lakeward_runtime::config::Config;

/// Tries everything; false where something must be mended.
pub async fn run(config: &Config) -> bool {
    let problems = check(config).await;
    println!("{}", to_text(&problems).trim_end());
    problems.is_empty()
}
