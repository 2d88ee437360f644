//! The columns of a collection, and documents in them: `batch of documents -> changes of columns -> arrays`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryBuilder, BooleanBuilder, FixedSizeBinaryBuilder, Float64Builder, Int32Builder, Int64Builder,
    StringArray, StringBuilder, TimestampMicrosecondBuilder,
};

use super::value::{Fields, Value, is_special, write_relaxed};
use crate::codec::json::scan::{Bad, Parsed, Raw, append_unescaped};
use crate::codec::json::text::parse_binary;
use crate::error::{Error, Result};
use crate::schema::{DOC_COLUMN, ID_COLUMN};
use crate::types::LogicalType;

/// When a row keeps its whole document in `_doc` (`document` of a table's configuration).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentRule {
    Always,
    /// Where a value is in no column.
    Conflict,
    Never,
}

/// A top-level field that has a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldColumn {
    pub name: String,
    pub ty: LogicalType,
}

/// What a batch of documents asks of the table's schema. Indexes are those of [`ColumnSet::columns`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnChange {
    Added {
        column: usize,
    },
    /// `from` int or long. To double it is no promotion of Iceberg's: the caller widens when it can rewrite the table, and
    /// until then takes the column back with [`ColumnSet::keep`].
    Widened {
        column: usize,
        from: LogicalType,
        to: LogicalType,
    },
}

/// The columns of a collection: top-level fields in the order in which they were first seen, without `_id` and `_doc`.
#[derive(Debug, Clone, Default)]
pub struct ColumnSet {
    columns: Vec<FieldColumn>,
    by_name: HashMap<String, usize>,
    /// Fields by name in lower case: one that differs from another only in case gets no column.
    by_folded: HashMap<String, usize>,
    scratch: Vec<u8>,
}

/// A value that its column cannot hold (it is null there), or that has no column at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub row: usize,
    /// None: the field's name cannot be a column's; it lives in `_doc` only.
    pub column: Option<usize>,
    pub field: String,
    /// The value, canonical Extended JSON.
    pub text: String,
}

/// Documents as columns.
#[derive(Debug)]
pub struct Documents {
    /// One array per column of the set, in its order.
    pub columns: Vec<ArrayRef>,
    /// `_doc`, as the rule wants it.
    pub doc: StringArray,
    pub conflicts: Vec<Conflict>,
    /// Rows whose text is no document, and why. Their columns mean nothing: they are dead letters.
    pub malformed: Vec<(usize, Error)>,
}

/// The column type that a value asks for; None: null fits every type.
fn type_of(value: &Value<'_>) -> Option<LogicalType> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(_) => LogicalType::Bool,
        Value::Int(_) => LogicalType::Int,
        Value::Long(_) => LogicalType::Long,
        Value::Double(_) => LogicalType::Double,
        Value::Text(_) | Value::ObjectId(_) | Value::Decimal(_) => LogicalType::String,
        Value::Date(_) => LogicalType::TimestampTz,
        Value::Binary(base64, subtype) if is_uuid(base64, *subtype) => LogicalType::Uuid,
        Value::Binary(..) => LogicalType::Binary,
        Value::Json(_) => LogicalType::Json,
    })
}

/// 16 bytes of subtype 4.
fn is_uuid(base64: &[u8], subtype: u8) -> bool {
    subtype == 4 && base64.len() == 24 && base64.ends_with(b"==")
}

/// The union of two types; None: they cannot be joined.
fn union(a: &LogicalType, b: &LogicalType) -> Option<LogicalType> {
    use LogicalType::{Double, Int, Long};
    match (a, b) {
        _ if a == b => Some(a.clone()),
        (Int, Long) | (Long, Int) => Some(Long),
        (Int | Long, Double) | (Double, Int | Long) => Some(Double),
        _ => None,
    }
}

impl ColumnSet {
    /// The set of a table that has these columns already (`_id` and `_doc` left out).
    pub fn new(columns: impl IntoIterator<Item = FieldColumn>) -> Self {
        let mut set = Self::default();
        for column in columns {
            set.add(column.name, column.ty);
        }
        set
    }

    pub fn columns(&self) -> &[FieldColumn] {
        &self.columns
    }

    /// Sets a column's type, where the table could not follow a widening (yet).
    pub fn keep(&mut self, column: usize, ty: LogicalType) -> Result<()> {
        match self.columns.get_mut(column) {
            Some(found) => found.ty = ty,
            None => return Err(Error::inconsistent("column set", format!("it has no column {column}"))),
        }
        Ok(())
    }

    /// First pass: takes up the fields of `documents` (null: no document) and says what is new. Documents that cannot be
    /// read change nothing here; [`build`](Self::build) names them.
    pub fn observe(&mut self, documents: &StringArray) -> Vec<ColumnChange> {
        let known = self.columns.len();
        let before: Vec<_> = self.columns.iter().map(|column| column.ty.clone()).collect();
        for document in documents.iter().flatten() {
            // Half a document must not leave columns behind: what would change the set is done once it is read to its end.
            if self.observe_one(document, false).is_ok_and(|is_new| is_new) {
                let _ = self.observe_one(document, true);
            }
        }
        let widened = before
            .into_iter()
            .enumerate()
            .filter(|(i, from)| self.columns[*i].ty != *from)
            .map(|(i, from)| ColumnChange::Widened { column: i, from, to: self.columns[i].ty.clone() });
        widened.chain((known..self.columns.len()).map(|column| ColumnChange::Added { column })).collect()
    }

    /// Whether a document has something new; with `take` that becomes part of the set.
    fn observe_one(&mut self, document: &str, take: bool) -> Parsed<bool> {
        let mut fields = Fields::new(document.as_bytes())?;
        let (mut expected, mut is_new) = (0, false);
        while let Some((name, raw)) = fields.next()? {
            let ty = type_of(&Value::parse(raw)?);
            if name.bytes == ID_COLUMN.as_bytes() {
                continue;
            }
            let found = self.find(name, expected)?;
            let Some(ty) = ty else { continue };
            match found {
                Found::Column(column) => {
                    expected = column + 1;
                    let found = &mut self.columns[column].ty;
                    if *found != ty
                        && let Some(joined) = union(found, &ty).filter(|joined| joined != found)
                    {
                        is_new = true;
                        if take {
                            *found = joined;
                        }
                    }
                }
                Found::Unknown(name) => {
                    is_new = true;
                    if take {
                        expected = self.columns.len() + 1;
                        self.add(name, ty);
                    }
                }
                Found::NoColumn => {}
            }
        }
        Ok(is_new)
    }

    fn add(&mut self, name: String, ty: LogicalType) {
        let index = self.columns.len();
        self.by_folded.entry(name.to_lowercase()).or_insert(index);
        self.by_name.insert(name.clone(), index);
        self.columns.push(FieldColumn { name, ty });
    }

    /// Finds a field's column; documents of a collection mostly have their fields in one order, so `expected` comes first.
    fn find(&mut self, name: Raw<'_>, expected: usize) -> Parsed<Found> {
        if !name.escaped && self.columns.get(expected).is_some_and(|column| column.name.as_bytes() == name.bytes) {
            return Ok(Found::Column(expected));
        }
        self.scratch.clear();
        append_unescaped(name, &mut self.scratch)?;
        let Ok(name) = std::str::from_utf8(&self.scratch) else {
            return Err(Bad { reason: "name is not UTF-8".into(), at: name.at });
        };
        if let Some(column) = self.by_name.get(name) {
            return Ok(Found::Column(*column));
        }
        let folded = name.to_lowercase();
        if name.is_empty() || folded == DOC_COLUMN || folded == ID_COLUMN || self.by_folded.contains_key(&folded) {
            return Ok(Found::NoColumn);
        }
        Ok(Found::Unknown(name.to_owned()))
    }

    /// Second pass: the documents as columns. Fields that [`observe`](Self::observe) was not shown count as conflicts.
    pub fn build(&mut self, documents: &StringArray, rule: DocumentRule) -> Result<Documents> {
        let mut builders: Vec<_> = self.columns.iter().map(|column| Builder::new(&column.ty)).collect();
        let mut doc = StringBuilder::new();
        let mut conflicts = Vec::new();
        let mut malformed = Vec::new();
        for row in 0..documents.len() {
            let document = documents.is_valid(row).then(|| documents.value(row));
            let known_conflicts = conflicts.len();
            if let Some(document) = document
                && let Err(bad) = self.take(document, row, &mut builders, &mut conflicts)
            {
                conflicts.truncate(known_conflicts);
                malformed.push((row, super::malformed("document", bad)));
            }
            for builder in &mut builders {
                if builder.len() == row {
                    builder.append_null();
                }
            }
            let wanted = match rule {
                DocumentRule::Always => true,
                DocumentRule::Conflict => conflicts.len() > known_conflicts,
                DocumentRule::Never => false,
            };
            doc.append_option(document.filter(|_| wanted));
        }
        Ok(Documents {
            columns: builders.iter_mut().map(Builder::finish).collect(),
            doc: doc.finish(),
            conflicts,
            malformed,
        })
    }

    fn take(
        &mut self,
        document: &str,
        row: usize,
        builders: &mut [Builder],
        conflicts: &mut Vec<Conflict>,
    ) -> Parsed<()> {
        let mut fields = Fields::new(document.as_bytes())?;
        let mut expected = 0;
        while let Some((name, raw)) = fields.next()? {
            let value = Value::parse(raw)?;
            if name.bytes == ID_COLUMN.as_bytes() {
                continue;
            }
            let column = match self.find(name, expected)? {
                Found::Column(column) => Some(column),
                // A field that never was anything but null has no type, and no column yet.
                Found::Unknown(_) if matches!(value, Value::Null) => continue,
                Found::Unknown(_) | Found::NoColumn => None,
            };
            if let Some(column) = column {
                expected = column + 1;
                // A document can have two fields of one name: the first has the column.
                let builder = &mut builders[column];
                if builder.len() == row && builder.append(&value, raw)? {
                    continue;
                }
            }
            let mut field = Vec::new();
            append_unescaped(name, &mut field)?;
            conflicts.push(Conflict {
                row,
                column,
                field: String::from_utf8_lossy(&field).into_owned(),
                text: String::from_utf8_lossy(raw).into_owned(),
            });
        }
        Ok(())
    }
}

enum Found {
    Column(usize),
    Unknown(String),
    NoColumn,
}

/// Builder of one column.
enum Builder {
    Bool(BooleanBuilder),
    Int(Int32Builder),
    Long(Int64Builder),
    Double(Float64Builder),
    Text(StringBuilder, Vec<u8>),
    Json(StringBuilder, Vec<u8>),
    Timestamp(TimestampMicrosecondBuilder),
    Uuid(FixedSizeBinaryBuilder, Vec<u8>),
    Binary(BinaryBuilder, Vec<u8>),
}

impl Builder {
    /// Types that no field of a document asks for are text.
    fn new(ty: &LogicalType) -> Self {
        match ty {
            LogicalType::Bool => Self::Bool(BooleanBuilder::new()),
            LogicalType::Int => Self::Int(Int32Builder::new()),
            LogicalType::Long => Self::Long(Int64Builder::new()),
            LogicalType::Double => Self::Double(Float64Builder::new()),
            LogicalType::TimestampTz => Self::Timestamp(TimestampMicrosecondBuilder::new()),
            LogicalType::Uuid => Self::Uuid(FixedSizeBinaryBuilder::new(16), Vec::new()),
            LogicalType::Binary => Self::Binary(BinaryBuilder::new(), Vec::new()),
            LogicalType::Json => Self::Json(StringBuilder::new(), Vec::new()),
            _ => Self::Text(StringBuilder::new(), Vec::new()),
        }
    }

    fn len(&self) -> usize {
        use arrow::array::ArrayBuilder;
        match self {
            Self::Bool(b) => b.len(),
            Self::Int(b) => b.len(),
            Self::Long(b) => b.len(),
            Self::Double(b) => b.len(),
            Self::Text(b, _) | Self::Json(b, _) => b.len(),
            Self::Timestamp(b) => b.len(),
            Self::Uuid(b, _) => b.len(),
            Self::Binary(b, _) => b.len(),
        }
    }

    fn append_null(&mut self) {
        match self {
            Self::Bool(b) => b.append_null(),
            Self::Int(b) => b.append_null(),
            Self::Long(b) => b.append_null(),
            Self::Double(b) => b.append_null(),
            Self::Text(b, _) | Self::Json(b, _) => b.append_null(),
            Self::Timestamp(b) => b.append_null(),
            Self::Uuid(b, _) => b.append_null(),
            Self::Binary(b, _) => b.append_null(),
        }
    }

    /// Appends the value if the column can hold exactly it; nothing otherwise.
    fn append(&mut self, value: &Value<'_>, raw: &[u8]) -> Parsed<bool> {
        match (self, value) {
            (builder, Value::Null) => builder.append_null(),
            (Self::Bool(b), Value::Bool(value)) => b.append_value(*value),
            (Self::Int(b), Value::Int(value)) => b.append_value(*value),
            (Self::Long(b), Value::Int(value)) => b.append_value((*value).into()),
            (Self::Long(b), Value::Long(value)) => b.append_value(*value),
            (Self::Double(b), Value::Double(value)) => b.append_value(*value),
            (Self::Double(b), Value::Int(value)) => b.append_value((*value).into()),
            (Self::Double(b), Value::Long(value)) if exact_double(*value).is_some() => {
                b.append_option(exact_double(*value));
            }
            (Self::Text(b, scratch), Value::Text(text)) => {
                scratch.clear();
                append_unescaped(*text, scratch)?;
                return Ok(append_text(b, scratch));
            }
            (Self::Text(b, _), Value::ObjectId(text) | Value::Decimal(text)) => return Ok(append_text(b, text)),
            (Self::Timestamp(b), Value::Date(millis)) => match millis.checked_mul(1000) {
                Some(micros) => b.append_value(micros),
                None => return Ok(false),
            },
            (Self::Uuid(b, scratch), Value::Binary(base64, subtype)) if is_uuid(base64, *subtype) => {
                scratch.clear();
                return Ok(parse_binary(base64, scratch).is_some() && b.append_value(&*scratch).is_ok());
            }
            (Self::Binary(b, scratch), Value::Binary(base64, subtype)) if !is_uuid(base64, *subtype) => {
                scratch.clear();
                if parse_binary(base64, scratch).is_none() {
                    return Ok(false);
                }
                b.append_value(&*scratch);
            }
            (Self::Json(b, scratch), Value::Json(_)) => {
                if is_special(raw) {
                    return Ok(append_text(b, raw));
                }
                scratch.clear();
                write_relaxed(raw, scratch)?;
                return Ok(append_text(b, scratch));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(b) => Arc::new(b.finish()),
            Self::Int(b) => Arc::new(b.finish()),
            Self::Long(b) => Arc::new(b.finish()),
            Self::Double(b) => Arc::new(b.finish()),
            Self::Text(b, _) | Self::Json(b, _) => Arc::new(b.finish()),
            Self::Timestamp(b) => Arc::new(b.finish().with_timezone("UTC")),
            Self::Uuid(b, _) => Arc::new(b.finish()),
            Self::Binary(b, _) => Arc::new(b.finish()),
        }
    }
}

fn append_text(builder: &mut StringBuilder, text: &[u8]) -> bool {
    match std::str::from_utf8(text) {
        Ok(text) => builder.append_value(text),
        Err(_) => return false,
    }
    true
}

/// The double of the same value; beyond 2^53 most integers have none.
fn exact_double(value: i64) -> Option<f64> {
    let double = value as f64;
    // `as` saturates: i64::MAX would seem to come back equal.
    (double < 9_223_372_036_854_775_808.0 && double as i64 == value).then_some(double)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
    use proptest::prelude::*;

    use super::*;

    fn docs(texts: &[&str]) -> StringArray {
        StringArray::from(texts.to_vec())
    }

    fn types(set: &ColumnSet) -> Vec<(&str, LogicalType)> {
        set.columns().iter().map(|column| (column.name.as_str(), column.ty.clone())).collect()
    }

    #[test]
    fn fields_become_columns() {
        let mut set = ColumnSet::default();
        let batch = docs(&[
            r#"{"_id":{"$numberInt":"1"},"n":{"$numberInt":"5"},"s":"x\u00fc","b":true,"nothing":null,
                "at":{"$date":{"$numberLong":"1500"}},"o":{"$oid":"65a1b2c3d4e5f60718293a4b"},
                "d":{"$numberDecimal":"1.50"},"u":{"$binary":{"base64":"AAECAwQFBgcICQoLDA0ODw==","subType":"04"}},
                "x":{"$binary":{"base64":"AQI=","subType":"00"}},"doc":{"k":[{"$numberLong":"7"}]},
                "ts":{"$timestamp":{"t":1,"i":2}},"f":{"$numberDouble":"-0.0"}}"#,
            r#"{"_id":"x","s":null,"n":null}"#,
        ]);
        let changes = set.observe(&batch);
        assert_eq!(changes, (0..11).map(|column| ColumnChange::Added { column }).collect::<Vec<_>>());
        use LogicalType as T;
        assert_eq!(
            types(&set),
            [
                ("n", T::Int),
                ("s", T::String),
                ("b", T::Bool),
                ("at", T::TimestampTz),
                ("o", T::String),
                ("d", T::String),
                ("u", T::Uuid),
                ("x", T::Binary),
                ("doc", T::Json),
                ("ts", T::Json),
                ("f", T::Double)
            ]
        );
        let built = set.build(&batch, DocumentRule::Conflict).unwrap();
        assert!(built.conflicts.is_empty() && built.malformed.is_empty());
        assert_eq!(built.doc.null_count(), 2);
        let c = &built.columns;
        for (column, array) in set.columns().iter().zip(c) {
            assert_eq!(array.data_type(), &column.ty.arrow());
            assert_eq!((array.len(), array.is_null(0), array.is_null(1)), (2, false, true), "{}", column.name);
        }
        assert_eq!(c[0].as_primitive::<Int32Type>().value(0), 5);
        assert_eq!(c[1].as_string::<i32>().value(0), "xü");
        assert_eq!(c[3].as_primitive::<TimestampMicrosecondType>().value(0), 1_500_000);
        assert_eq!(c[4].as_string::<i32>().value(0), "65a1b2c3d4e5f60718293a4b");
        assert_eq!(c[5].as_string::<i32>().value(0), "1.50");
        assert_eq!(c[6].as_fixed_size_binary().value(0), (0..16).collect::<Vec<u8>>());
        assert_eq!(c[7].as_binary::<i32>().value(0), [1, 2]);
        assert_eq!(c[8].as_string::<i32>().value(0), r#"{"k":[7]}"#);
        assert_eq!(c[9].as_string::<i32>().value(0), r#"{"$timestamp":{"t":1,"i":2}}"#);
        assert!(c[10].as_primitive::<Float64Type>().value(0).is_sign_negative());
        assert!(set.observe(&batch).is_empty());
    }

    #[test]
    fn numbers_widen_and_nothing_is_rounded() {
        let mut set = ColumnSet::new([FieldColumn { name: "n".into(), ty: LogicalType::Int }]);
        let long = docs(&[r#"{"n":{"$numberInt":"1"}}"#, r#"{"n":{"$numberLong":"9007199254740993"}}"#]);
        let (from, to) = (LogicalType::Int, LogicalType::Long);
        assert_eq!(set.observe(&long), [ColumnChange::Widened { column: 0, from, to: to.clone() }]);
        let built = set.build(&long, DocumentRule::Conflict).unwrap();
        assert_eq!(built.columns[0].as_primitive::<Int64Type>().values(), &[1, 9_007_199_254_740_993]);
        let double = docs(&[
            r#"{"n":{"$numberDouble":"0.5"}}"#,
            r#"{"n":{"$numberLong":"9007199254740993"}}"#,
            r#"{"n":{"$numberLong":"9223372036854775807"}}"#,
            r#"{"n":{"$numberLong":"4"}}"#,
        ]);
        let widened = ColumnChange::Widened { column: 0, from: to.clone(), to: LogicalType::Double };
        assert_eq!(set.observe(&double), [widened]);
        let built = set.build(&double, DocumentRule::Conflict).unwrap();
        let values: Vec<_> = built.columns[0].as_primitive::<Float64Type>().iter().collect();
        assert_eq!(values, [Some(0.5), None, None, Some(4.0)]);
        assert_eq!(built.conflicts.iter().map(|c| (c.row, c.column)).collect::<Vec<_>>(), [(1, Some(0)), (2, Some(0))]);
        // the table cannot follow yet: doubles are conflicts
        set.keep(0, to).unwrap();
        let built = set.build(&double, DocumentRule::Conflict).unwrap();
        assert_eq!(built.columns[0].as_primitive::<Int64Type>().iter().collect::<Vec<_>>()[0], None);
        assert_eq!(built.conflicts.len(), 1);
        assert_eq!((built.doc.is_valid(0), built.doc.is_null(1)), (true, true));
    }

    #[test]
    fn conflicts_keep_the_column_and_the_document() {
        let mut set = ColumnSet::default();
        let batch = docs(&[
            r#"{"a":"text"}"#,
            r#"{"a":{"$numberInt":"1"},"b":true}"#,
            r#"{"A":"other case"}"#,
            r#"{"":"empty","_doc":"taken"}"#,
            r#"{"a":"once","a":"twice"}"#,
            "{\"a\":\"half",
            r#"{"c":"cut","d":nope}"#,
        ]);
        set.observe(&batch);
        assert_eq!(types(&set), [("a", LogicalType::String), ("b", LogicalType::Bool)]);
        let built = set.build(&batch, DocumentRule::Conflict).unwrap();
        let conflicts: Vec<_> = built.conflicts.iter().map(|c| (c.row, c.column, &*c.field, &*c.text)).collect();
        assert_eq!(
            conflicts,
            [
                (1, Some(0), "a", r#"{"$numberInt":"1"}"#),
                (2, None, "A", r#""other case""#),
                (3, None, "", r#""empty""#),
                (3, None, "_doc", r#""taken""#),
                (4, Some(0), "a", r#""twice""#),
            ]
        );
        assert_eq!(built.malformed.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [5, 6]);
        let kept: Vec<_> = (0..7).map(|row| built.doc.is_valid(row)).collect();
        assert_eq!(kept, [false, true, true, true, true, false, false]);
        assert_eq!(built.doc.value(1), batch.value(1));
        assert_eq!(set.build(&batch, DocumentRule::Never).unwrap().doc.null_count(), 7);
        assert_eq!(set.build(&batch, DocumentRule::Always).unwrap().doc.null_count(), 0);
    }

    /// A caller that builds without observing loses no value either: the document is kept.
    #[test]
    fn a_field_without_a_column_is_a_conflict() {
        let batch = docs(&[r#"{"new":{"$numberInt":"1"}}"#, r#"{"new":null}"#]);
        let built = ColumnSet::default().build(&batch, DocumentRule::Conflict).unwrap();
        assert_eq!(
            built.conflicts.iter().map(|c| (c.row, c.column, &*c.field)).collect::<Vec<_>>(),
            [(0, None, "new")]
        );
        assert_eq!((built.doc.is_valid(0), built.doc.is_null(1)), (true, true));
    }

    fn any_value() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            any::<i32>().prop_map(|v| format!(r#"{{"$numberInt":"{v}"}}"#)),
            any::<i64>().prop_map(|v| format!(r#"{{"$numberLong":"{v}"}}"#)),
            any::<f64>().prop_map(|v| format!(r#"{{"$numberDouble":"{v:?}"}}"#)),
            any::<i64>().prop_map(|v| format!(r#"{{"$date":{{"$numberLong":"{v}"}}}}"#)),
            "[ -~]{0,6}".prop_map(|v| serde_json::to_string(&v).unwrap()),
            "\\{\"\\$(oid|date|binary|numberInt)\":\"[a-z]{0,3}\"\\}",
            Just("null".to_owned()),
            Just("true".to_owned()),
        ];
        leaf.prop_recursive(3, 8, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(|v| format!("[{}]", v.join(","))),
                proptest::collection::vec(inner, 0..3).prop_map(|v| {
                    let fields: Vec<_> = v.iter().enumerate().map(|(i, v)| format!("\"k{i}\":{v}")).collect();
                    format!("{{{}}}", fields.join(","))
                }),
            ]
        })
    }

    proptest! {
        /// No value is lost: it is in its column, or in `_doc`.
        #[test]
        fn every_value_is_somewhere(
            rows in proptest::collection::vec(proptest::collection::vec(("[abcB_]{0,2}", any_value()), 0..4), 1..6)
        ) {
            let texts: Vec<_> = rows.iter().map(|fields| {
                let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                format!("{{{}}}", fields.join(","))
            }).collect();
            let batch = StringArray::from(texts);
            let mut set = ColumnSet::default();
            set.observe(&batch);
            prop_assert!(set.observe(&batch).is_empty());
            let built = set.build(&batch, DocumentRule::Conflict).unwrap();
            prop_assert!(built.malformed.is_empty());
            for (row, fields) in rows.iter().enumerate() {
                for (name, value) in fields {
                    let column = set.columns().iter().position(|column| column.name == *name);
                    let held = column.is_some_and(|column| built.columns[column].is_valid(row));
                    prop_assert!(value == "null" || held || built.doc.is_valid(row), "{name} {value}");
                }
            }
        }

        #[test]
        fn broken_documents_never_panic(text in "[{}\\[\\]\":,a$0-9\\\\n.-]{0,24}") {
            let batch = StringArray::from(vec![text.as_str()]);
            let mut set = ColumnSet::default();
            set.observe(&batch);
            let built = set.build(&batch, DocumentRule::Always).unwrap();
            prop_assert_eq!(built.doc.len(), 1);
            let valid = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text).is_ok();
            prop_assert!(!valid || built.malformed.is_empty());
        }
    }
}
