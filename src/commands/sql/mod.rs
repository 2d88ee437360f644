//! `lakeward sql`: text from -c, -f, a pipe or the console -> [`lakeward_query::Engine`] -> rows on stdout.

mod console;

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use lakeward_lake::Lake;
use lakeward_query::{AsOf, Engine, Format, Session, Statement, format};
use lakeward_runtime::config::Config;
use lakeward_runtime::{Error, Result};

#[derive(clap::Args)]
pub struct Args {
    /// SQL to run; several statements are separated by semicolons
    #[arg(short = 'c', value_name = "SQL", conflicts_with = "file")]
    command: Option<String>,
    /// A file of SQL to run; - is standard input
    #[arg(short = 'f', value_name = "FILE")]
    file: Option<PathBuf>,
    /// table, csv, json, ndjson or arrow
    #[arg(long, default_value = "table")]
    format: Format,
    /// A time (2026-01-01T00:00:00Z), a checkpoint id, or latest
    #[arg(long, value_name = "WHEN", default_value = "latest")]
    as_of: String,
}

pub async fn run(config: &Config, args: &Args) -> Result<()> {
    let lake = Lake::open(&config.catalog, &config.warehouse).await?;
    let engine = Engine::open(config, lake).await?;
    let mut session = Session::default();
    session.as_of = AsOf::parse(&args.as_of)?;
    let text = match (&args.command, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) if path.as_os_str() != "-" => std::fs::read_to_string(path)
            .map_err(|e| Error::configuration(format!("cannot read {}", path.display())).source(e))?,
        (None, file) => {
            if file.is_none() && std::io::stdin().is_terminal() {
                return console::run(config, engine, session, args.format).await;
            }
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| Error::configuration("cannot read standard input").source(e))?;
            text
        }
    };
    let mut shell = Shell { engine, session, format: args.format, timing: false };
    for statement in lakeward_query::parse(&text)? {
        shell.run(statement).await?;
    }
    Ok(())
}

/// A client's state: what it has set, and how it wants to see answers.
struct Shell {
    engine: Engine,
    session: Session,
    format: Format,
    timing: bool,
}

impl Shell {
    /// Runs one statement; rows go to stdout, the moment they are true for and notices to stderr.
    async fn run(&mut self, statement: Statement) -> Result<()> {
        let started = Instant::now();
        let answer = self.engine.run(&mut self.session, statement).await?;
        for notice in &answer.notices {
            eprintln!("NOTICE: {notice}");
        }
        if let Some(cut) = &answer.cut
            && cut.at.is_some()
        {
            eprintln!("-- as of {}", cut.notice());
        }
        if !answer.is_query {
            return Ok(());
        }
        // Into memory first: a page of a table is aligned over all rows anyway, and a failing query prints no half answer.
        let mut bytes = Vec::new();
        format::write(self.format, &answer.schema, answer.batches, &mut bytes).await?;
        let mut out = std::io::stdout();
        match out.write_all(&bytes).and_then(|()| out.flush()) {
            // `| head` has seen enough.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.map_err(|e| Error::refused("writing the answer").source(e))?,
        }
        if self.timing {
            eprintln!("Time: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
        }
        Ok(())
    }
}
