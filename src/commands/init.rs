//! `lakeward init`: a commented configuration for the local stack, written once.

use std::io::Write;
use std::path::Path;

use lakeward_runtime::{Error, Result};

const TEMPLATE: &str = include_str!("init.toml");

/// Writes the template to `path`; refuses to overwrite.
pub fn run(path: &Path) -> Result<()> {
    let mut file = std::fs::File::create_new(path).map_err(|e| {
        let message = if e.kind() == std::io::ErrorKind::AlreadyExists {
            format!("{} exists already: move it away or name another with --config", path.display())
        } else {
            format!("cannot write {}", path.display())
        };
        Error::configuration(message).source(e)
    })?;
    file.write_all(TEMPLATE.as_bytes())
        .map_err(|e| Error::configuration(format!("cannot write {}", path.display())).source(e))?;
    println!("wrote {}: name your databases in it, then run `lakeward check`", path.display());
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use lakeward_runtime::config::{Config, LogConfig};

    /// As it is written, and with everything in it that is only shown.
    #[test]
    fn the_template_is_a_valid_configuration() {
        let env = ["USERS_PASSWORD", "CATALOG_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
            .map(|name| (name.to_owned(), "x".to_owned()));
        let config = Config::parse(super::TEMPLATE, env.clone()).unwrap();
        assert_eq!(config.sources.len(), 2);
        assert!(matches!(config.log, LogConfig::Embedded(_)) && config.warehouse.url.starts_with("file://"));

        let shown = |line: &str| {
            line.strip_prefix("# ").filter(|l| l.starts_with(['[', '"']) || l.contains(" = ")).map(str::to_owned)
        };
        let whole: Vec<String> =
            super::TEMPLATE.lines().map(|line| shown(line).unwrap_or_else(|| line.to_owned())).collect();
        let config = Config::parse(&whole.join("\n"), env).unwrap();
        let LogConfig::Kafka(kafka) = &config.log else { panic!("kafka is shown") };
        assert_eq!((kafka.partitions, kafka.client.len()), (4, 1));
        assert!(config.warehouse.url.starts_with("s3://"));
    }
}
