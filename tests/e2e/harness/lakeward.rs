//! The binary: a configuration file in a folder of its own, the processes started with it, and what they answer.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use super::{Mongo, Postgres, Servers, delete_topics, fresh, poll};

/// Lines of a log that a failed test shows.
const TAIL: usize = 40;

/// A configuration in the making.
pub struct Pipeline {
    servers: Servers,
    sources: String,
    names: Vec<String>,
    catalog: Option<Postgres>,
    warehouse: Option<String>,
    /// Where state, SQLite catalog and local warehouse are; None: beside the configuration.
    place: Option<PathBuf>,
    embedded: bool,
    codec: &'static str,
    /// The lines of `[log.client]`.
    log_client: String,
}

impl Pipeline {
    /// With SQLite as its catalog and a fresh prefix in MinIO as its warehouse.
    pub fn new() -> Self {
        Self::on(Servers::get())
    }

    pub fn on(servers: Servers) -> Self {
        Self {
            servers,
            sources: String::new(),
            names: Vec::new(),
            catalog: None,
            warehouse: None,
            place: None,
            embedded: false,
            codec: "json",
            log_client: String::new(),
        }
    }

    pub fn postgres(self, service: &Postgres) -> Self {
        self.source(&service.name, "postgres", &service.url)
    }

    /// All collections of the service's database.
    pub fn mongo(self, service: &Mongo) -> Self {
        let mut pipeline = self.source(&service.name, "mongodb", &service.url);
        pipeline.sources.push_str(&format!("include = [\"{}.*\"]\n", service.name));
        pipeline
    }

    /// Topics `<name>.…` that a Debezium writes; `settings`: further lines of the source.
    pub fn debezium(mut self, name: &str, settings: &str) -> Self {
        self.sources.push_str(&format!("\n[[source]]\nname = \"{name}\"\nkind = \"debezium\"\n{settings}\n"));
        self.names.push(name.to_owned());
        self
    }

    /// A source by its parts.
    pub fn source(mut self, name: &str, kind: &str, url: &str) -> Self {
        self.sources.push_str(&format!("\n[[source]]\nname = \"{name}\"\nkind = \"{kind}\"\nurl = \"{url}\"\n"));
        self.names.push(name.to_owned());
        self
    }

    /// A fresh PostgreSQL database as the catalog.
    pub fn postgres_catalog(mut self) -> Self {
        self.catalog = Some(Postgres::new(""));
        self
    }

    /// A folder beside the configuration as the warehouse.
    pub fn local_warehouse(mut self) -> Self {
        self.warehouse = Some("file://".into());
        self
    }

    /// State, catalog and warehouse in this folder, as they all are where nothing is configured.
    pub fn all_in(mut self, place: &Path) -> Self {
        self.place = Some(place.to_owned());
        self.local_warehouse()
    }

    /// Without log, catalog and warehouse: those that need no server.
    pub fn embedded(mut self) -> Self {
        self.embedded = true;
        self
    }

    /// Records in another form than `json`; of `avro`, with the registry.
    pub fn codec(mut self, codec: &'static str) -> Self {
        self.codec = codec;
        self
    }

    /// Properties of the Kafka client, as lines of TOML.
    pub fn log_client(mut self, lines: &str) -> Self {
        self.log_client = lines.to_owned();
        self
    }

    /// Writes the configuration.
    pub fn build(self) -> Lakeward {
        let dir = TempDir::new().unwrap();
        let name = fresh("e2e");
        let place = self.place.as_deref().unwrap_or(dir.path());
        let catalog = match &self.catalog {
            Some(database) => database.url.clone(),
            None => format!("sqlite:{}", place.join("catalog.db").display()),
        };
        let warehouse = match &self.warehouse {
            Some(scheme) => format!("url = \"{scheme}{}\"", place.join("warehouse").display()),
            None => format!(
                "url = \"s3://lake/test-{}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\naccess_key_id = \"lakeward\"\n\
                 secret_access_key = \"lakeward-secret\"",
                fresh(""),
                self.servers.s3
            ),
        };
        let registry =
            if self.codec == "avro" { format!("registry = \"{}\"\n", self.servers.registry) } else { String::new() };
        let places = if self.embedded && self.codec == "avro" {
            format!("[log]\nkind = \"embedded\"\ncodec = \"avro\"\n{registry}\n")
        } else if self.embedded {
            String::new()
        } else {
            format!(
                "[log]\nkind = \"kafka\"\nbrokers = \"{}\"\ncodec = \"{}\"\npartitions = 2\nretention = \"1h\"\n{registry}\n\
                 [log.client]\n{}\n\
                 [catalog]\nurl = \"{catalog}\"\n\n[warehouse]\n{warehouse}\n\n",
                self.servers.kafka, self.codec, self.log_client
            )
        };
        let lakeward = Lakeward {
            template: format!(
                "name = \"{name}\"\nstate_dir = \"STATE_DIR\"\ncheckpoint_interval = \"500ms\"\n{}\n{places}\
                 [sink]\ncommit_interval = \"1s\"\nmemory = \"256MiB\"\n",
                self.sources
            ),
            config: dir.path().join("lakeward.toml"),
            dir,
            servers: self.servers,
            names: if self.embedded { Vec::new() } else { self.names },
            catalog: self.catalog,
            started: AtomicU32::new(0),
            environment: Vec::new(),
        };
        let state_dir = self.place.map(|place| place.join("state").display().to_string());
        lakeward.write_config(&lakeward.config, state_dir.as_deref().unwrap_or("state"), &[]);
        lakeward
    }
}

/// A pipeline's configuration, and what is asked of it.
pub struct Lakeward {
    dir: TempDir,
    template: String,
    config: PathBuf,
    servers: Servers,
    /// Of the sources that have topics on Kafka.
    names: Vec<String>,
    catalog: Option<Postgres>,
    started: AtomicU32,
    /// What its processes get in their environment.
    environment: Vec<(String, String)>,
}

/// Passwords of the stack's servers, and the one that tests give instead.
const SECRETS: [&str; 2] = ["lakeward-secret", "wrong-password"];

/// Asserts how a command ended and what it said, on both outputs, which hold no secret; all of that.
#[track_caller]
pub fn said(output: &Output, code: i32, words: &[&str]) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
    assert!(!SECRETS.iter().any(|secret| text.contains(secret)), "a secret is shown: {text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// What `lakeward verify` found.
#[derive(Debug)]
pub struct Verified {
    pub code: i32,
    /// The report as JSON; null where there is none.
    pub report: Value,
    pub stderr: String,
}

impl Lakeward {
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the configuration is.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The database that is the catalog, where it is one.
    pub fn catalog(&self) -> Option<&Postgres> {
        self.catalog.as_ref()
    }

    /// Variables of the processes to come.
    pub fn set_environment(&mut self, variables: &[(&str, &str)]) {
        self.environment = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    }

    /// Writes the configuration with some of its text replaced, to be given to [`Lakeward::start_with`].
    pub fn variant(&self, state_dir: &str, replace: &[(&str, &str)]) -> PathBuf {
        let path = self.dir.path().join(format!("lakeward-{}.toml", fresh("")));
        self.write_config(&path, state_dir, replace);
        path
    }

    /// `state_dir`: relative to the folder of the configuration.
    fn write_config(&self, path: &Path, state_dir: &str, replace: &[(&str, &str)]) {
        let state_dir = self.dir.path().join(state_dir);
        let mut text = self.template.replace("STATE_DIR", &state_dir.display().to_string());
        for (from, to) in replace {
            assert!(text.contains(from), "the configuration has `{from}`:\n{text}");
            text = text.replace(from, to);
        }
        std::fs::write(path, text).unwrap();
    }

    fn command(&self, config: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lakeward"));
        command.arg("--config").arg(config).args(arguments).env_remove("FAILPOINTS").stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end.
    pub fn call(&self, arguments: &[&str]) -> Output {
        self.call_with(&self.config, arguments)
    }

    pub fn call_with(&self, config: &Path, arguments: &[&str]) -> Output {
        self.command(config, arguments).output().expect("lakeward can be started")
    }

    /// Starts `lakeward run` with these roles and options.
    pub fn start(&self, arguments: &[&str]) -> Process {
        self.start_with(&self.config, arguments, "")
    }

    /// The same, to die at a crash point when it was passed so many times.
    pub fn start_failing(&self, arguments: &[&str], point: &str, passes: u32) -> Process {
        let rule = if passes == 0 { "return".to_owned() } else { format!("{passes}*off->return") };
        self.start_with(&self.config, arguments, &format!("{point}={rule}"))
    }

    pub fn start_with(&self, config: &Path, arguments: &[&str], failpoints: &str) -> Process {
        self.spawn(self.command(config, &["run"]), arguments, failpoints)
    }

    /// `lakeward run` in a process whose files may not grow beyond so many KiB: writing more fails.
    pub fn start_limited(&self, arguments: &[&str], kib: u32) -> Process {
        let ours = self.command(&self.config, &["run"]);
        let mut command = Command::new("bash");
        // Without the trap a write beyond the limit is a signal that kills.
        command.args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\"", &kib.to_string()]);
        command.arg(ours.get_program()).args(ours.get_args()).env_remove("FAILPOINTS").stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.spawn(command, arguments, "")
    }

    fn spawn(&self, mut command: Command, arguments: &[&str], failpoints: &str) -> Process {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.dir.path().join(format!("{number:03}-run-{}.log", arguments.join("-").replace('/', "_")));
        if let Ok(level) = std::env::var("LAKEWARD_TEST_LOG") {
            command.args(["--log", &level]);
        }
        command.args(arguments).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        if !failpoints.is_empty() {
            command.env("FAILPOINTS", failpoints);
        }
        Process {
            child: command.spawn().expect("lakeward can be started"),
            what: format!("run {arguments:?} {failpoints}"),
            log,
        }
    }

    /// `run --until-caught-up` to its end.
    pub fn catch_up(&self) {
        let mut process = self.start(&["--until-caught-up"]);
        let status = process.wait();
        assert!(status.success(), "run --until-caught-up ended with {status}");
    }

    /// The rows of a query as JSON objects; Err: exit code and message.
    pub fn try_sql(&self, query: &str) -> Result<Vec<Value>, (i32, String)> {
        let output = self.call(&["sql", "--format", "json", "-c", query]);
        if !output.status.success() {
            let code = output.status.code().unwrap_or(-1);
            return Err((code, String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        let rows = serde_json::from_str(&text);
        Ok(rows.unwrap_or_else(|e| panic!("`lakeward sql` answers in JSON: {e}: {text}")))
    }

    /// The rows of a query that must have an answer.
    pub fn sql(&self, query: &str) -> Vec<Value> {
        self.try_sql(query).unwrap_or_else(|(code, error)| panic!("exit {code} for {query}\n{error}"))
    }

    /// The rows of a query, each value as PostgreSQL's text.
    pub fn rows(&self, query: &str) -> Vec<Vec<Option<String>>> {
        let output = self.call(&["sql", "--format", "csv", "-c", query]);
        assert!(output.status.success(), "{query}: {}", String::from_utf8_lossy(&output.stderr));
        csv(&String::from_utf8(output.stdout).expect("UTF-8"))
    }

    /// The value of a query for one value.
    pub fn value(&self, query: &str) -> Value {
        let rows = self.sql(query);
        let first = rows.first().and_then(Value::as_object).and_then(|row| row.values().next());
        first.cloned().unwrap_or_else(|| panic!("no row: {query}"))
    }

    /// Waits until a query for one value answers this.
    pub fn wait_for_value(&self, query: &str, expected: &Value) {
        let mut last = String::new();
        let found = poll(|| {
            let answer = self.try_sql(query);
            last = format!("{answer:?}");
            let rows = answer.ok()?;
            (rows.first()?.as_object()?.values().next()? == expected).then_some(())
        });
        assert!(found.is_some(), "{query}: waited in vain for {expected}; the last answer: {last}");
    }

    /// `lakeward verify`, whatever it finds. Connectors and sink must be running.
    pub fn verify_any(&self, tables: &[&str]) -> Verified {
        let output = self.call(&[&["verify", "--format", "json"], tables].concat());
        Verified {
            code: output.status.code().unwrap_or(-1),
            report: serde_json::from_slice(&output.stdout).unwrap_or_default(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `lakeward verify` finds no difference in any table; the report.
    pub fn verify(&self) -> Value {
        let verified = self.verify_any(&[]);
        let found = serde_json::to_string_pretty(&verified.report).unwrap_or_default();
        assert_eq!(verified.code, 0, "verify: {}\n{}", super::clip(&found), verified.stderr);
        verified.report
    }

    /// What a failed test shows: the end of each process's log.
    fn show_logs(&self) {
        let mut logs: Vec<PathBuf> = std::fs::read_dir(self.dir.path())
            .map(|entries| {
                entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "log")).collect()
            })
            .unwrap_or_default();
        // Those written to last: a process that ran all the time has an early name.
        logs.sort_by_cached_key(|log| log.metadata().and_then(|file| file.modified()).ok());
        let first = logs.len().saturating_sub(4);
        for log in &logs[first..] {
            eprintln!("---- {}", log.display());
            eprintln!("{}", tail(log));
        }
    }
}

impl Drop for Lakeward {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
            if std::env::var_os("LAKEWARD_TEST_KEEP").is_some() {
                self.dir.disable_cleanup(true);
                eprintln!("---- kept: {}", self.dir.path().display());
            }
        }
        if !self.names.is_empty() {
            delete_topics(&self.servers.kafka, &self.names);
        }
    }
}

/// Rows of CSV, the line of names among them; nothing at all between two commas is NULL.
fn csv(text: &str) -> Vec<Vec<Option<String>>> {
    let (mut rows, mut row, mut value, mut quoted, mut open) = (Vec::new(), Vec::new(), String::new(), false, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if open && chars.peek() == Some(&'"') => value.extend(chars.next()),
            '"' => (open, quoted) = (!open, true),
            ',' | '\n' if !open => {
                let value = std::mem::take(&mut value);
                row.push((quoted || !value.is_empty()).then_some(value));
                quoted = false;
                if c == '\n' {
                    rows.push(std::mem::take(&mut row));
                }
            }
            c => value.push(c),
        }
    }
    rows
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

/// A running `lakeward run`; killed when dropped.
pub struct Process {
    child: Child,
    what: String,
    log: PathBuf,
}

impl Process {
    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let ended = poll(|| self.child.try_wait().unwrap());
        ended.unwrap_or_else(|| panic!("{} goes on and on:\n{}", self.what, tail(&self.log)))
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL; it must have run until now.
    pub fn kill(mut self) {
        assert!(self.is_running(), "{} ended by itself:\n{}", self.what, tail(&self.log));
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; it drains and ends with 0.
    pub fn stop(mut self) {
        assert!(self.is_running(), "{} ended by itself:\n{}", self.what, tail(&self.log));
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{} after SIGTERM: {status}\n{}", self.what, tail(&self.log));
    }

    /// Waits for the death at a crash point.
    pub fn dies_at(mut self, point: &str) {
        let status = self.wait();
        let log = self.log();
        assert!(
            log.contains(&format!("failpoint {point} fired")),
            "{point} never fired ({status}):\n{}",
            tail(&self.log)
        );
        assert_eq!(status.signal(), Some(9), "{} ended with {status}", self.what);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
