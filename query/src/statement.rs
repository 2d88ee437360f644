//! One statement of a session: what it is before any table is looked at. Text -> [`Kind`].
//!
//! Only what reads is let through, by a list of what is allowed: a statement nobody thought of is refused.

use datafusion::sql::parser::{DFParser, Statement as Parsed};
use datafusion::sql::sqlparser::ast::{Expr, ObjectName, Set, Statement as Sql, Value};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use lakeward_runtime::{Error, Result};

use crate::cut::AsOf;

/// A parsed statement.
#[derive(Debug, Clone)]
pub struct Statement(Parsed);

/// What to do with a statement.
pub enum Kind {
    /// Plan and run it.
    Query {
        parsed: Parsed,
        explain: bool,
    },
    SetAsOf(AsOf),
    /// A DataFusion option of this session.
    SetOption {
        name: String,
        value: String,
    },
    ShowAsOf,
}

/// Options a session may set: none of them reads or writes anything.
const OPTIONS: [&str; 4] =
    ["datafusion.execution.", "datafusion.optimizer.", "datafusion.explain.", "datafusion.sql_parser."];

/// The statements of a text, separated by semicolons; none where there is only space.
pub fn parse(text: &str) -> Result<Vec<Statement>> {
    let parsed =
        DFParser::parse_sql_with_dialect(text, &PostgreSqlDialect {}).map_err(crate::engine::from_datafusion)?;
    Ok(parsed.into_iter().map(Statement).collect())
}

impl Statement {
    pub(crate) fn kind(&self) -> Result<Kind> {
        match &self.0 {
            Parsed::Statement(sql) => self.sql(sql),
            Parsed::Explain(explain) => match Statement((*explain.statement).clone()).kind()? {
                Kind::Query { .. } => Ok(Kind::Query { parsed: self.0.clone(), explain: true }),
                _ => Err(Error::refused("only queries can be explained")),
            },
            Parsed::CopyTo(_) => Err(read_only("COPY")),
            Parsed::CreateExternalTable(_) => Err(read_only("CREATE EXTERNAL TABLE")),
            Parsed::Reset(reset) => match reset {
                datafusion::sql::parser::ResetStatement::Variable(name) if variable(name) == "lakeward.as_of" => {
                    Ok(Kind::SetAsOf(AsOf::Latest))
                }
                _ => Err(Error::refused("RESET: only lakeward.as_of can be reset")),
            },
        }
    }

    fn sql(&self, sql: &Sql) -> Result<Kind> {
        let query = |explain| Ok(Kind::Query { parsed: self.0.clone(), explain });
        match sql {
            // The planner refuses what writes inside a query (SELECT INTO, data-modifying WITH).
            Sql::Query(_) | Sql::ShowTables { .. } | Sql::ShowColumns { .. } | Sql::ShowFunctions { .. } => {
                query(false)
            }
            Sql::ExplainTable { .. } => query(false),
            Sql::Explain { statement, .. } => match Statement(Parsed::Statement(statement.clone())).kind()? {
                Kind::Query { .. } => query(true),
                _ => Err(Error::refused("only queries can be explained")),
            },
            Sql::ShowVariable { variable } => {
                let name: Vec<_> = variable.iter().map(|i| i.value.to_lowercase()).collect();
                if name.join(".") == "lakeward.as_of" { Ok(Kind::ShowAsOf) } else { query(false) }
            }
            Sql::Set(Set::SingleAssignment { variable: name, values, .. }) => set(&variable(name), values),
            other => {
                let text = other.to_string();
                let mut words = text.split_whitespace();
                let verb = words.next().unwrap_or_default().to_uppercase();
                Err(match verb.as_str() {
                    "CREATE" | "DROP" | "ALTER" => {
                        read_only(&format!("{verb} {}", words.next().unwrap_or_default().to_uppercase()))
                    }
                    "INSERT" | "UPDATE" | "DELETE" | "MERGE" | "TRUNCATE" | "COPY" => read_only(&verb),
                    _ => Error::refused(format!("{verb} is not supported")),
                })
            }
        }
    }
}

fn read_only(what: &str) -> Error {
    Error::refused(format!("{} is refused: the lake is read-only, it changes only with its sources", what.trim()))
}

fn variable(name: &ObjectName) -> String {
    name.to_string().replace('"', "").to_lowercase()
}

fn set(name: &str, values: &[Expr]) -> Result<Kind> {
    let value = match values {
        [Expr::Value(value)] => match &value.value {
            Value::SingleQuotedString(s) | Value::DoubleQuotedString(s) | Value::EscapedStringLiteral(s) => s.clone(),
            other => other.to_string(),
        },
        [other] => other.to_string().replace('"', ""),
        _ => return Err(Error::refused(format!("SET {name}: one value expected"))),
    };
    if name == "lakeward.as_of" {
        return Ok(Kind::SetAsOf(AsOf::parse(&value)?));
    }
    if OPTIONS.iter().any(|prefix| name.starts_with(prefix)) {
        return Ok(Kind::SetOption { name: name.into(), value });
    }
    Err(Error::refused(format!("SET {name}: no such setting; lakeward.as_of is the one of Lakeward's own")))
}
