//! PostgreSQL's habits that DataFusion lacks. Arrow values -> the text PostgreSQL prints; uuid literals and casts in queries.

mod infinity;
mod rewrite;
#[cfg(test)]
mod tests;
mod text;

pub use rewrite::install;
pub(crate) use text::json_string;
pub use text::{Printer, Style, parse_uuid, printer, timestamptz_text};
