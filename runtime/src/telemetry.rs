//! Logs and metrics of a process: `tracing` -> lines on stderr; `metrics` -> a recorder that [`health`](crate::health) renders.

use std::io::IsTerminal as _;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::{Error, Result};

/// Form of the log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// Upper bounds of histograms of seconds: from a cached plan to a snapshot of minutes.
const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

/// Sends logs to stderr. `level` is a level for Lakeward itself, dependencies being told to say warnings only, or a list of
/// directives such as `info,lakeward_sink=debug`; None: `info`.
pub fn init(level: Option<&str>, format: Format) -> Result<()> {
    let filter = filter(level.unwrap_or("info"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|e| Error::bug("logging is set up twice").source(e))
}

fn filter(level: &str) -> Result<EnvFilter> {
    let directives = if level.contains(['=', ',']) { level.to_owned() } else { format!("warn,lakeward={level}") };
    EnvFilter::try_new(directives).map_err(|e| {
        Error::configuration(format!("--log {level}: want error, warn, info, debug or trace, or directives")).source(e)
    })
}

/// Takes the process's metrics; the handle renders them in Prometheus' text form. Once per process.
pub fn metrics() -> Result<PrometheusHandle> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|e| Error::bug("metrics cannot be set up").source(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_for_lakeward_and_directives_are_taken_as_they_are() -> Result<()> {
        // EnvFilter prints the most specific directive first.
        assert_eq!(filter("debug")?.to_string(), "lakeward=debug,warn");
        assert_eq!(filter("error,lakeward_sink=trace")?.to_string(), "lakeward_sink=trace,error");
        assert!(filter("loud").is_err());
        Ok(())
    }
}
