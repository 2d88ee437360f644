//! Answers for people and programs: batches -> an aligned table, CSV, JSON, newline-delimited JSON, or an Arrow IPC stream.

use std::io::Write;
use std::str::FromStr;

use arrow::array::Array;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use datafusion::physical_plan::SendableRecordBatchStream;
use futures::StreamExt;
use lakeward_runtime::{Error, Result};

use crate::engine::from_datafusion;
use crate::pg::{Printer, Style, printer};

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns and a count of rows, as psql prints them.
    Table,
    /// RFC 4180 with a header; NULL is empty and an empty text is `""`.
    Csv,
    /// One array of objects.
    Json,
    /// One object per line.
    Ndjson,
    /// Arrow IPC stream.
    Arrow,
}

impl FromStr for Format {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "table" => Self::Table,
            "csv" => Self::Csv,
            "json" => Self::Json,
            "ndjson" => Self::Ndjson,
            "arrow" => Self::Arrow,
            other => {
                return Err(Error::configuration(format!(
                    "format '{other}' is none of table, csv, json, ndjson, arrow"
                )));
            }
        })
    }
}

/// Writes a whole answer; returns how many rows it had. A table is aligned over all rows, so it is held in memory; the other
/// formats are written batch by batch.
pub async fn write(
    format: Format,
    schema: &SchemaRef,
    mut batches: SendableRecordBatchStream,
    out: &mut (dyn Write + Send),
) -> Result<u64> {
    let mut writer = Writer::new(format, schema, out)?;
    while let Some(batch) = batches.next().await {
        writer.batch(&batch.map_err(from_datafusion)?)?;
    }
    writer.finish()
}

fn io(error: std::io::Error) -> Error {
    Error::refused("writing the answer").source(error)
}

fn arrow_error(error: arrow::error::ArrowError) -> Error {
    Error::refused("writing the answer").source(error)
}

/// Writes batches one by one.
pub struct Writer<'a> {
    schema: SchemaRef,
    rows: u64,
    state: State<'a>,
}

enum State<'a> {
    Table { out: &'a mut (dyn Write + Send), cells: Vec<Vec<String>> },
    Text { format: Format, out: &'a mut (dyn Write + Send), buffer: String, keys: Vec<String> },
    Arrow(StreamWriter<&'a mut (dyn Write + Send)>),
}

impl<'a> Writer<'a> {
    pub fn new(format: Format, schema: &SchemaRef, out: &'a mut (dyn Write + Send)) -> Result<Self> {
        let mut buffer = String::new();
        let state = match format {
            Format::Table => State::Table { out, cells: vec![Vec::new(); schema.fields().len()] },
            Format::Arrow => State::Arrow(StreamWriter::try_new(out, schema).map_err(arrow_error)?),
            Format::Csv | Format::Json | Format::Ndjson => {
                let mut keys = Vec::with_capacity(schema.fields().len());
                for (i, field) in schema.fields().iter().enumerate() {
                    if format == Format::Csv {
                        if i > 0 {
                            buffer.push(',');
                        }
                        csv_value(field.name(), &mut buffer);
                    } else {
                        let mut key = String::new();
                        crate::pg::json_string(field.name(), &mut key);
                        keys.push(key);
                    }
                }
                buffer.push_str(match format {
                    Format::Csv => "\n",
                    Format::Json => "[",
                    _ => "",
                });
                State::Text { format, out, buffer, keys }
            }
        };
        Ok(Self { schema: SchemaRef::clone(schema), rows: 0, state })
    }

    pub fn batch(&mut self, batch: &RecordBatch) -> Result<()> {
        let before = self.rows;
        self.rows += batch.num_rows() as u64;
        match &mut self.state {
            State::Arrow(writer) => writer.write(batch).map_err(arrow_error),
            State::Table { cells, .. } => {
                for (column, texts) in batch.columns().iter().zip(cells) {
                    let print = psql(column)?;
                    for row in 0..batch.num_rows() {
                        let mut text = String::new();
                        print(row, &mut text);
                        texts.push(text);
                    }
                }
                Ok(())
            }
            State::Text { format, out, buffer, keys } => {
                let style = if *format == Format::Csv { Style::Text } else { Style::Json };
                let print: Vec<Printer<'_>> =
                    batch.columns().iter().map(|c| printer(c, style)).collect::<Result<_, _>>().map_err(arrow_error)?;
                let mut value = String::new();
                for row in 0..batch.num_rows() {
                    if *format == Format::Csv {
                        for (i, (print, column)) in print.iter().zip(batch.columns()).enumerate() {
                            if i > 0 {
                                buffer.push(',');
                            }
                            if !column.is_null(row) {
                                value.clear();
                                print(row, &mut value);
                                csv_value(&value, buffer);
                            }
                        }
                    } else {
                        if *format == Format::Json {
                            buffer.push_str(if before + row as u64 == 0 { "\n" } else { ",\n" });
                        }
                        buffer.push('{');
                        for (i, (print, key)) in print.iter().zip(keys.iter()).enumerate() {
                            if i > 0 {
                                buffer.push(',');
                            }
                            buffer.push_str(key);
                            buffer.push(':');
                            print(row, buffer);
                        }
                        buffer.push('}');
                    }
                    if *format != Format::Json {
                        buffer.push('\n');
                    }
                }
                out.write_all(buffer.as_bytes()).map_err(io)?;
                buffer.clear();
                Ok(())
            }
        }
    }

    /// Writes what is left; returns the number of rows.
    pub fn finish(self) -> Result<u64> {
        match self.state {
            State::Arrow(mut writer) => writer.finish().map_err(arrow_error)?,
            State::Text { format, out, mut buffer, .. } => {
                if format == Format::Json {
                    buffer.push_str(if self.rows == 0 { "]\n" } else { "\n]\n" });
                }
                out.write_all(buffer.as_bytes()).map_err(io)?;
                out.flush().map_err(io)?;
            }
            State::Table { out, cells } => {
                out.write_all(aligned(&self.schema, &cells, self.rows).as_bytes()).map_err(io)?;
                out.flush().map_err(io)?;
            }
        }
        Ok(self.rows)
    }
}

/// psql prints booleans as `t` and `f`.
fn psql(column: &arrow::array::ArrayRef) -> Result<Printer<'_>> {
    if let Some(values) = column.as_any().downcast_ref::<arrow::array::BooleanArray>() {
        return Ok(Box::new(move |row, out| {
            if values.is_valid(row) {
                out.push(if values.value(row) { 't' } else { 'f' });
            }
        }));
    }
    printer(column, Style::Text).map_err(arrow_error)
}

fn csv_value(value: &str, out: &mut String) {
    if value.is_empty() || value.contains(['"', ',', '\n', '\r']) {
        out.push('"');
        out.push_str(&value.replace('"', "\"\""));
        out.push('"');
    } else {
        out.push_str(value);
    }
}

fn aligned(schema: &SchemaRef, cells: &[Vec<String>], rows: u64) -> String {
    let right = |ty: &DataType| ty.is_numeric();
    let widths: Vec<usize> = schema
        .fields()
        .iter()
        .zip(cells)
        .map(|(f, column)| column.iter().flat_map(|c| c.lines()).map(width).max().unwrap_or(0).max(width(f.name())))
        .collect();
    let mut out = String::new();
    let line = |out: &mut String, texts: &mut dyn Iterator<Item = (&str, bool, bool)>| {
        let start = out.len();
        for (i, ((text, centre, right), width_of)) in texts.zip(&widths).enumerate() {
            out.push_str(if i == 0 { " " } else { "| " });
            let space = width_of.saturating_sub(width(text));
            let left = if centre {
                space / 2
            } else if right {
                space
            } else {
                0
            };
            out.extend(std::iter::repeat_n(' ', left));
            out.push_str(text);
            out.extend(std::iter::repeat_n(' ', space - left + 1));
        }
        let end = out[start..].trim_end().len() + start;
        out.truncate(end);
        out.push('\n');
    };
    line(&mut out, &mut schema.fields().iter().map(|f| (f.name().as_str(), true, false)));
    for (i, width) in widths.iter().enumerate() {
        if i > 0 {
            out.push('+');
        }
        out.extend(std::iter::repeat_n('-', width + 2));
    }
    out.push('\n');
    for row in 0..rows as usize {
        // A value of several lines takes as many lines of the table.
        let height = cells.iter().filter_map(|c| c.get(row)).map(|c| c.lines().count()).max().unwrap_or(1).max(1);
        for part in 0..height {
            let texts = cells.iter().zip(schema.fields()).map(|(column, field)| {
                let text = column.get(row).and_then(|c| c.lines().nth(part)).unwrap_or("");
                (text, false, right(field.data_type()))
            });
            line(&mut out, &mut texts.into_iter());
        }
    }
    out.push_str(&match rows {
        1 => "(1 row)\n".to_string(),
        rows => format!("({rows} rows)\n"),
    });
    out
}

/// Characters, which is close enough to columns of a terminal.
fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests;
