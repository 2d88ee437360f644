//! The interactive console: lines from a terminal -> statements and backslash commands -> [`Shell`].

use std::time::Duration;

use lakeward_query::{Engine, Format, Session};
use lakeward_runtime::config::Config;
use lakeward_runtime::{Error, Result};
use reedline::{
    ColumnarMenu, DefaultCompleter, DefaultPrompt, DefaultPromptSegment, Emacs, FileBackedHistory, KeyCode,
    KeyModifiers, MenuBuilder, Reedline, ReedlineEvent, ReedlineMenu, Signal, ValidationResult, Validator,
    default_emacs_keybindings,
};

use super::Shell;

/// Lines of history kept in `state_dir`.
const HISTORY: usize = 10_000;

const HELP: &str = "\
Statements end with a semicolon.
  \\dt          tables
  \\d TABLE     columns of a table
  \\timing      show how long statements take (again: no more)
  \\q           leave
  SET lakeward.as_of = '2026-01-01T00:00:00Z' (or a checkpoint id, or latest)";

/// Words that complete besides the names of tables.
const WORDS: [&str; 24] = [
    "select",
    "from",
    "where",
    "group by",
    "order by",
    "limit",
    "join",
    "left join",
    "on",
    "using",
    "as",
    "and",
    "or",
    "not",
    "null",
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "distinct",
    "explain",
    "lakeward.freshness",
    "lakeward.checkpoints",
];

/// Reads until the user leaves. Errors of statements are shown and the console goes on.
pub async fn run(config: &Config, engine: Engine, session: Session, format: Format) -> Result<()> {
    let mut shell = Shell { engine, session, format, timing: false };
    let mut editor = editor(config, &table_names(&mut shell).await)?;
    println!("lakeward {}: SQL over the lake. \\? for help, \\q to leave.", env!("CARGO_PKG_VERSION"));
    let prompt = DefaultPrompt::new(DefaultPromptSegment::Basic("lake".into()), DefaultPromptSegment::Empty);
    loop {
        // The terminal is read on a thread of its own: the runtime goes on polling.
        let (returned, line) = tokio::task::spawn_blocking({
            let prompt = prompt.clone();
            move || {
                let line = editor.read_line(&prompt);
                (editor, line)
            }
        })
        .await
        .map_err(|e| Error::bug("the console's reader panicked").source(e))?;
        editor = returned;
        match line {
            Ok(Signal::Success(line)) => {
                if matches!(line.trim(), "\\q" | "exit" | "quit") {
                    return Ok(());
                }
                if let Err(error) = line_of(&mut shell, line.trim()).await {
                    eprintln!("error: {error}");
                }
            }
            Ok(Signal::CtrlC) => {}
            Ok(Signal::CtrlD) => return Ok(()),
            Err(e) => return Err(Error::configuration("the terminal cannot be read").source(e)),
        }
    }
}

async fn line_of(shell: &mut Shell, line: &str) -> Result<()> {
    let text = match line.split_once(char::is_whitespace).unwrap_or((line, "")) {
        ("\\?", _) => {
            println!("{HELP}");
            return Ok(());
        }
        ("\\timing", _) => {
            shell.timing = !shell.timing;
            println!("Timing is {}.", if shell.timing { "on" } else { "off" });
            return Ok(());
        }
        ("\\dt", _) | ("\\d", "") => {
            "select namespace, name, rows, converging from lakeward.tables order by 1, 2".to_owned()
        }
        ("\\d", table) => format!("show columns from {}", table.trim_end_matches(';')),
        (command, _) if command.starts_with('\\') => {
            return Err(Error::refused(format!("unknown command {command}: \\? lists them")));
        }
        _ => line.to_owned(),
    };
    for statement in lakeward_query::parse(&text)? {
        shell.run(statement).await?;
    }
    Ok(())
}

/// `namespace.table` of every table, for completion; none where the lake does not answer in time.
async fn table_names(shell: &mut Shell) -> Vec<String> {
    let tables = shell.engine.tables();
    let Ok(Ok(locations)) = tokio::time::timeout(Duration::from_secs(2), tables.locations()).await else {
        return Vec::new();
    };
    locations.keys().map(ToString::to_string).collect()
}

fn editor(config: &Config, tables: &[String]) -> Result<Reedline> {
    let mut completer = DefaultCompleter::with_inclusions(&['_', '.']);
    completer.insert(WORDS.iter().map(|w| (*w).to_owned()).chain(tables.iter().cloned()).collect());
    let mut keys = default_emacs_keybindings();
    let menu = || ReedlineEvent::UntilFound(vec![ReedlineEvent::Menu("words".into()), ReedlineEvent::MenuNext]);
    keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, menu());
    let history = FileBackedHistory::with_file(HISTORY, config.state_dir.join("sql_history"))
        .map_err(|e| Error::configuration("the history file in state_dir cannot be used").source(e))?;
    Ok(Reedline::create()
        .with_history(Box::new(history))
        .with_completer(Box::new(completer))
        .with_menu(ReedlineMenu::EngineCompleter(Box::new(ColumnarMenu::default().with_name("words"))))
        .with_edit_mode(Box::new(Emacs::new(keys)))
        .with_validator(Box::new(Semicolon)))
}

/// A statement may span lines until its semicolon.
struct Semicolon;

impl Validator for Semicolon {
    fn validate(&self, line: &str) -> ValidationResult {
        let line = line.trim();
        let whole = line.is_empty() || line.ends_with(';') || line.starts_with('\\') || matches!(line, "exit" | "quit");
        if whole { ValidationResult::Complete } else { ValidationResult::Incomplete }
    }
}
