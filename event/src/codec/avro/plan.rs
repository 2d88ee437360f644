//! How a schema's records are read: `registered schema, our table -> plan`, made once for both. Fields are found by name, so
//! they may come in any order, be missing, or be more than we know.

use super::names;
use super::registered::{Field, Logical, Registered, Type, TypeId};
use super::wire::{self, Cursor};
use crate::codec::json::columns::{Column, Rows};
use crate::codec::json::scan::Parsed;
use crate::codec::json::text;
use crate::schema::{TableKind, TableSchema};
use crate::types::LogicalType;

/// A field's type, where it may be a union: what to do with each branch.
pub struct Choice<T> {
    is_union: bool,
    branches: Vec<Branch<T>>,
}

enum Branch<T> {
    Null,
    Takes(T),
    /// A type that the field cannot be read from.
    Unfit,
}

impl<T> Choice<T> {
    /// None: no branch fits.
    fn of(schema: &Registered, id: TypeId, mut fit: impl FnMut(TypeId) -> Option<T>) -> Option<Self> {
        let mut branch = |id: TypeId| match &schema.node(id).ty {
            Type::Null => Branch::Null,
            _ => fit(id).map_or(Branch::Unfit, Branch::Takes),
        };
        let (is_union, branches) = match &schema.node(id).ty {
            Type::Union(branches) => (true, branches.iter().map(|id| branch(*id)).collect()),
            _ => (false, vec![branch(id)]),
        };
        let takes = branches.iter().any(|branch| matches!(branch, Branch::Takes(_)));
        // A type of nothing but null fits as well.
        (takes || branches.iter().all(|branch| matches!(branch, Branch::Null))).then_some(Self { is_union, branches })
    }

    /// Reads which branch there is; None: it is null.
    #[inline]
    fn next(&self, cursor: &mut Cursor<'_>) -> Parsed<Option<&T>> {
        let index = if self.is_union { cursor.long()? } else { 0 };
        match usize::try_from(index).ok().and_then(|index| self.branches.get(index)) {
            Some(Branch::Null) => Ok(None),
            Some(Branch::Takes(how)) => Ok(Some(how)),
            Some(Branch::Unfit) => cursor.bad(format!("branch {index} of a union, which is of another type")),
            None => cursor.bad(format!("branch {index} of a union of {}", self.branches.len())),
        }
    }
}

/// How a value is read into its column.
enum Value {
    Bool,
    Int,
    Long,
    Float,
    Double,
    Decimal,
    DecimalFixed(usize),
    Text,
    Uuid,
    UuidFixed,
    Bytes,
    Fixed(usize),
    List(Box<Choice<Value>>),
}

impl Value {
    /// How a value of the registered type becomes one of ours, exactly; None: it does not.
    fn of(schema: &Registered, id: TypeId, ours: &LogicalType) -> Option<Self> {
        let node = schema.node(id);
        let means = match &node.logical {
            Some(Logical::Other(name)) => Some(name.as_str()),
            _ => None,
        };
        let plain = node.logical.is_none();
        let or = |name: &str| plain || means == Some(name);
        Some(match (ours, &node.ty) {
            (LogicalType::Bool, Type::Boolean) if plain => Self::Bool,
            (LogicalType::Int, Type::Int) if plain => Self::Int,
            (LogicalType::Long, Type::Int) if plain => Self::Int,
            (LogicalType::Long, Type::Long) if plain => Self::Long,
            (LogicalType::Float | LogicalType::Double, Type::Float) => Self::Float,
            (LogicalType::Double, Type::Double) => Self::Double,
            (LogicalType::Decimal { scale: ours, .. }, Type::Bytes | Type::Fixed(_)) => match (&node.logical, &node.ty)
            {
                (Some(Logical::Decimal { scale }), _) if i64::try_from(*scale) != Ok(i64::from(*ours)) => return None,
                (Some(Logical::Decimal { .. }), Type::Fixed(size)) => Self::DecimalFixed(*size),
                (Some(Logical::Decimal { .. }), _) => Self::Decimal,
                _ => return None,
            },
            (LogicalType::String, Type::String) => Self::Text,
            (LogicalType::Json, Type::String) if plain => Self::Text,
            (LogicalType::Uuid, Type::String) if or("uuid") => Self::Uuid,
            (LogicalType::Uuid, Type::Fixed(16)) if or("uuid") => Self::UuidFixed,
            (LogicalType::Binary, Type::Bytes) if plain => Self::Bytes,
            (LogicalType::Binary, Type::Fixed(size)) if plain => Self::Fixed(*size),
            (LogicalType::Date, Type::Int) if or("date") => Self::Int,
            (LogicalType::Timestamp, Type::Long) if or("local-timestamp-micros") => Self::Long,
            (LogicalType::TimestampTz, Type::Long) if or("timestamp-micros") => Self::Long,
            (LogicalType::List(element), Type::Array(items)) => {
                // Elements that take no bytes could be any number.
                if matches!(schema.node(*items).ty, Type::Null) {
                    return None;
                }
                Self::List(Box::new(Choice::of(schema, *items, |id| Self::of(schema, id, element))?))
            }
            _ => return None,
        })
    }

    /// Appends the value that is next.
    #[inline]
    fn read(&self, cursor: &mut Cursor<'_>, column: &mut Column) -> Parsed<()> {
        let taken = match self {
            Self::Bool => column.append_bool(cursor.boolean()?),
            Self::Int => column.append_long(cursor.int()?.into()),
            Self::Long => column.append_long(cursor.long()?),
            Self::Float => column.append_float(cursor.float()?),
            Self::Double => column.append_double(cursor.double()?),
            Self::Decimal => append_decimal(cursor.bytes()?, column),
            Self::DecimalFixed(size) => append_decimal(cursor.take(*size)?, column),
            Self::Text => append_bytes(cursor.text()?.as_bytes(), column),
            Self::Uuid => text::parse_uuid(cursor.bytes()?).is_some_and(|uuid| column.append_uuid(&uuid)),
            Self::UuidFixed => cursor.take(16)?.try_into().is_ok_and(|uuid| column.append_uuid(uuid)),
            Self::Bytes => append_bytes(cursor.bytes()?, column),
            Self::Fixed(size) => append_bytes(cursor.take(*size)?, column),
            Self::List(elements) => column.append_list(|column| {
                while let Some((count, _)) = cursor.block()? {
                    for _ in 0..count {
                        elements.append(cursor, column)?;
                    }
                }
                Ok(true)
            })?,
        };
        if taken {
            Ok(())
        } else {
            cursor.bad(format!("not a value of type {:?}, or too much of one column", column.ty()))
        }
    }
}

fn append_decimal(bytes: &[u8], column: &mut Column) -> bool {
    wire::decimal(bytes).is_some_and(|unscaled| column.append_decimal(unscaled))
}

fn append_bytes(bytes: &[u8], column: &mut Column) -> bool {
    column.append_with(|data| {
        data.extend_from_slice(bytes);
        Some(())
    })
}

impl Choice<Value> {
    #[inline]
    fn append(&self, cursor: &mut Cursor<'_>, column: &mut Column) -> Parsed<()> {
        match self.next(cursor)? {
            Some(value) => value.read(cursor, column),
            None => {
                column.append_null();
                Ok(())
            }
        }
    }
}

/// How a row of the table is read.
pub struct Row {
    /// The record's fields in their order.
    fields: Vec<Known>,
    /// Columns that the record does not have.
    missing: Vec<usize>,
}

/// A field of a row.
struct Known {
    ty: TypeId,
    /// Which column it is, and how that is read; None: one that we do not have.
    column: Option<(usize, Choice<Value>)>,
}

impl Row {
    fn of(schema: &Registered, id: TypeId, table: &TableSchema) -> Result<Self, String> {
        let Type::Record(of) = &schema.node(id).ty else { return Err("no record".into()) };
        let ours = names::fields(&table.columns);
        let by_name = |field: &Field| {
            let name = field.column.as_ref().unwrap_or(&field.name);
            table.columns.iter().position(|column| column.name == *name)
        };
        let named: Vec<_> = of.iter().map(by_name).collect();
        let mut found = vec![false; ours.len()];
        let mut fields = Vec::with_capacity(of.len());
        for (field, named_as) in of.iter().zip(&named) {
            // A registry may have dropped the property: then a column that no other field names goes by what we would call it.
            let called = || match field.column {
                Some(_) => None,
                None => ours.iter().position(|ours| *ours == field.name).filter(|i| !named.contains(&Some(*i))),
            };
            let column = named_as.or_else(called);
            let Some(column) = column else {
                fields.push(Known { ty: field.ty, column: None });
                continue;
            };
            if std::mem::replace(&mut found[column], true) {
                return Err(format!("two fields for column {}", table.columns[column].name));
            }
            let ty = &table.columns[column].ty;
            let Some(value) = Choice::of(schema, field.ty, |id| Value::of(schema, id, ty)) else {
                return Err(format!("field {} is not of type {ty:?}, as version {} has it", field.name, table.version));
            };
            fields.push(Known { ty: field.ty, column: Some((column, value)) });
        }
        let missing = (0..found.len()).filter(|column| !found[*column]).collect();
        Ok(Self { fields, missing })
    }

    /// Appends a value to each of the columns; null to those for which `is_unchanged`, whatever stands there.
    #[inline]
    fn read(
        &self,
        schema: &Registered,
        cursor: &mut Cursor<'_>,
        columns: &mut [Column],
        is_unchanged: impl Fn(usize) -> bool,
    ) -> Parsed<()> {
        for Known { ty, column } in &self.fields {
            match column {
                Some((index, _)) if is_unchanged(*index) => {
                    schema.skip(*ty, cursor)?;
                    columns[*index].append_null();
                }
                Some((index, value)) => value.append(cursor, &mut columns[*index])?,
                None => schema.skip(*ty, cursor)?,
            }
        }
        for index in &self.missing {
            columns[*index].append_null();
        }
        Ok(())
    }
}

impl Choice<Row> {
    /// Appends a row, or null for one.
    #[inline]
    pub fn read_row(
        &self,
        schema: &Registered,
        cursor: &mut Cursor<'_>,
        rows: &mut Rows,
        is_unchanged: impl Fn(usize) -> bool,
    ) -> Parsed<()> {
        match self.next(cursor)? {
            None => rows.append_null(),
            Some(row) => {
                row.read(schema, cursor, rows.start_row(), is_unchanged)?;
                rows.end_row();
            }
        }
        Ok(())
    }
}

/// A text.
pub struct Text;
/// A whole number: of 32 bits, else of 64.
pub struct Number(bool);

impl Text {
    fn of(schema: &Registered, id: TypeId) -> Option<Choice<Self>> {
        Choice::of(schema, id, |id| matches!(schema.node(id).ty, Type::String).then_some(Self))
    }
}

impl Choice<Text> {
    pub fn read<'a>(&self, cursor: &mut Cursor<'a>) -> Parsed<Option<&'a str>> {
        self.next(cursor)?.map(|Text| cursor.text()).transpose()
    }
}

impl Number {
    fn of(schema: &Registered, id: TypeId) -> Option<Choice<Self>> {
        Choice::of(schema, id, |id| match schema.node(id).ty {
            Type::Int => Some(Self(true)),
            Type::Long => Some(Self(false)),
            _ => None,
        })
    }
}

impl Choice<Number> {
    pub fn read(&self, cursor: &mut Cursor<'_>) -> Parsed<Option<i64>> {
        self.next(cursor)?
            .map(|Number(narrow)| if *narrow { cursor.int().map(i64::from) } else { cursor.long() })
            .transpose()
    }
}

/// How an envelope is read: its fields in their order.
pub struct Envelope {
    pub schema: Registered,
    pub fields: Vec<Part>,
}

/// A field of an envelope.
pub enum Part {
    After(Choice<Row>),
    Before(Choice<Row>),
    AfterDocument(Choice<Text>),
    BeforeDocument(Choice<Text>),
    Patch(Choice<Text>),
    Source(Vec<Source>),
    Op(Choice<Text>),
    Other(TypeId),
}

/// A field of `source`.
pub enum Source {
    Micros(Choice<Number>),
    Lsn(Choice<Number>),
    ClusterTime(Choice<Number>),
    Ordinal(Choice<Number>),
    Xid(Choice<Number>),
    TransactionHash(Choice<Text>),
    Other(TypeId),
}

impl Envelope {
    /// Fails with the reason why records of this schema are not changes of the table.
    pub fn new(schema: Registered, table: &TableSchema) -> Result<Self, String> {
        let Type::Record(of) = &schema.node(schema.root).ty else { return Err("it is no record".into()) };
        let documents = table.kind == TableKind::Documents;
        let mut required = ["before", "after", "source", "op"].to_vec();
        let mut fields = Vec::with_capacity(of.len());
        for field in of {
            let (name, ty) = (field.name.as_str(), field.ty);
            let row = || {
                let mut refused = None;
                let row = Choice::of(&schema, ty, |id| Row::of(&schema, id, table).map_err(|e| refused = Some(e)).ok());
                row.ok_or_else(|| format!("its field {name}: {}", refused.unwrap_or_default()))
            };
            let text = || Text::of(&schema, ty).ok_or_else(|| format!("its field {name} is no text"));
            fields.push(match name {
                "after" if documents => Part::AfterDocument(text()?),
                "before" if documents => Part::BeforeDocument(text()?),
                "after" => Part::After(row()?),
                "before" => Part::Before(row()?),
                "patch" => Part::Patch(text()?),
                "source" => Part::Source(source(&schema, ty, documents)?),
                "op" => Part::Op(text()?),
                _ => Part::Other(ty),
            });
            required.retain(|required| *required != name);
        }
        match required.first() {
            Some(missing) => Err(format!("it is no envelope: it has no field {missing}")),
            None => Ok(Self { schema, fields }),
        }
    }
}

fn source(schema: &Registered, id: TypeId, documents: bool) -> Result<Vec<Source>, String> {
    let Type::Record(of) = &schema.node(id).ty else { return Err("its field source is no record".into()) };
    let field = |field: &Field| {
        let ty = field.ty;
        let number = || Number::of(schema, ty).ok_or_else(|| format!("its field source.{} is no number", field.name));
        Ok(match field.name.as_str() {
            "ts_us" => Source::Micros(number()?),
            "lsn" => Source::Lsn(number()?),
            "clusterTime" => Source::ClusterTime(number()?),
            "ord" => Source::Ordinal(number()?),
            "txId" if documents => {
                Source::TransactionHash(Text::of(schema, ty).ok_or("its field source.txId is no text")?)
            }
            "txId" => Source::Xid(number()?),
            _ => Source::Other(ty),
        })
    };
    of.iter().map(field).collect()
}

/// How the `id` of a collection's key is read: the key's fields in their order.
pub struct DocumentKey {
    schema: Registered,
    fields: Vec<Result<Choice<Text>, TypeId>>,
}

impl DocumentKey {
    pub fn new(schema: Registered) -> Result<Self, String> {
        let Type::Record(of) = &schema.node(schema.root).ty else { return Err("it is no record".into()) };
        let field = |field: &Field| match (field.name.as_str(), Text::of(&schema, field.ty)) {
            ("id", Some(text)) => Ok(text),
            _ => Err(field.ty),
        };
        let fields: Vec<_> = of.iter().map(field).collect();
        if !fields.iter().any(Result::is_ok) {
            return Err("it has no text id".into());
        }
        Ok(Self { schema, fields })
    }

    pub fn read<'a>(&self, cursor: &mut Cursor<'a>) -> Parsed<&'a str> {
        let mut id = None;
        for field in &self.fields {
            match field {
                Ok(text) => id = text.read(cursor)?,
                Err(ty) => self.schema.skip(*ty, cursor)?,
            }
        }
        cursor.end()?;
        match id {
            Some(id) => Ok(id),
            None => cursor.bad("a key whose id is null"),
        }
    }
}
