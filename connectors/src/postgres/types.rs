//! What a PostgreSQL type becomes: `pg_type rows -> ColumnType { logical type, how values are read, how a snapshot selects them }`.
//!
//! The stream is in text, the server's own form (its `binary` is for a whole subscription, and most send functions have forms
//! that only the server can print). A snapshot is COPY BINARY: types with a plain binary form are selected as they are, all
//! others as `textin(<the type's output function>(column))`. A cast to text would be another text: `inet::text` adds a mask,
//! `char(n)::text` drops the padding, `xml::text` keeps an encoding.

use std::collections::HashMap;
use std::sync::Arc;

use lakeward_event::LogicalType;

use super::array::Punctuation;

/// One row of `pg_type`, as far as it decides.
#[derive(Debug, Clone)]
pub struct TypeRow {
    pub oid: u32,
    pub name: String,
    /// The name of the extension that owns it.
    pub extension: Option<String>,
    /// `typtype`: `b`ase, `c`omposite, `d`omain, `e`num, `p`seudo, `r`ange, `m`ultirange.
    pub kind: u8,
    /// Domains: the type beneath, and its modifier.
    pub base: u32,
    pub base_modifier: i32,
    /// The element type where this is a true array (its output function is `array_out`), else 0.
    pub element: u32,
    pub delimiter: u8,
    /// The output function, quoted and qualified.
    pub output: String,
    /// Composites: attributes in order.
    pub attributes: Vec<Attribute>,
}

#[derive(Debug, Clone)]
pub struct Attribute {
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
}

/// The types that some columns need, by oid.
pub type Types = HashMap<u32, TypeRow>;

/// What a column's type means for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnType {
    pub logical: LogicalType,
    pub kind: Kind,
    /// The output function by which a snapshot selects the column; `None`: selected as it is, in binary.
    pub output: Option<String>,
}

/// How a value's bytes are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Scalar(Scalar),
    /// Always text.
    List {
        element: Scalar,
        marks: Punctuation,
    },
}

/// How one value's bytes are read, and by that its logical type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scalar {
    Bool,
    /// int2 or int4: the length of the binary form tells.
    Int,
    /// int8 or oid.
    Long,
    Float,
    Double,
    Decimal {
        precision: u8,
        scale: u8,
    },
    /// numeric as the server's text.
    Numeric,
    /// The server's text.
    Text,
    Json,
    /// As json, but its binary form begins with a version.
    Jsonb,
    Uuid,
    Bytea,
    Date,
    Timestamp,
    TimestampTz,
    /// Row text, made into a JSON object.
    Composite(Arc<Composite>),
}

/// A composite type's fields.
#[derive(Debug, PartialEq, Eq)]
pub struct Composite {
    pub fields: Vec<(String, Kind)>,
}

impl Scalar {
    pub fn logical(&self) -> LogicalType {
        match self {
            Self::Bool => LogicalType::Bool,
            Self::Int => LogicalType::Int,
            Self::Long => LogicalType::Long,
            Self::Float => LogicalType::Float,
            Self::Double => LogicalType::Double,
            Self::Decimal { precision, scale } => LogicalType::Decimal { precision: *precision, scale: *scale as i8 },
            Self::Numeric | Self::Text => LogicalType::String,
            Self::Json | Self::Jsonb | Self::Composite(_) => LogicalType::Json,
            Self::Uuid => LogicalType::Uuid,
            Self::Bytea => LogicalType::Binary,
            Self::Date => LogicalType::Date,
            Self::Timestamp => LogicalType::Timestamp,
            Self::TimestampTz => LogicalType::TimestampTz,
        }
    }
}

impl Kind {
    pub fn logical(&self) -> LogicalType {
        match self {
            Self::Scalar(scalar) => scalar.logical(),
            Self::List { element, .. } => LogicalType::List(Box::new(element.logical())),
        }
    }
}

/// Types nest (domain over array of composite …); PostgreSQL forbids cycles, a catalog read while it changed may show one.
const MAX_DEPTH: usize = 32;

/// What a column of this type is to us. A type that is not in `types` is carried as text.
pub fn column_type(types: &Types, oid: u32, modifier: i32) -> ColumnType {
    let (oid, modifier) = beneath_domains(types, oid, modifier);
    let kind = kind(types, oid, modifier, 0);
    let plain = match &kind {
        Kind::Scalar(Scalar::Text) => {
            binary_is_text(oid) || types.get(&oid).is_some_and(|t| t.kind == b'e' || is_citext(t))
        }
        Kind::Scalar(Scalar::Composite(_)) | Kind::List { .. } => false,
        Kind::Scalar(_) => true,
    };
    let output = if plain { None } else { types.get(&oid).map(|t| t.output.clone()) };
    ColumnType { logical: kind.logical(), kind, output }
}

/// The types that `oid` is made of, one step down: what has to be read before [`column_type`] can look at it.
pub fn parts(row: &TypeRow) -> impl Iterator<Item = u32> + '_ {
    [row.base, row.element].into_iter().chain(row.attributes.iter().map(|a| a.type_oid)).filter(|oid| *oid != 0)
}

fn beneath_domains(types: &Types, mut oid: u32, mut modifier: i32) -> (u32, i32) {
    for _ in 0..MAX_DEPTH {
        match types.get(&oid) {
            Some(row) if row.kind == b'd' => (oid, modifier) = (row.base, row.base_modifier),
            _ => break,
        }
    }
    (oid, modifier)
}

fn kind(types: &Types, oid: u32, modifier: i32, depth: usize) -> Kind {
    let (oid, modifier) = beneath_domains(types, oid, modifier);
    let Some(row) = types.get(&oid) else { return Kind::Scalar(Scalar::Text) };
    if row.element != 0 && depth < MAX_DEPTH {
        // The modifier of an array is that of its elements.
        return match kind(types, row.element, modifier, depth + 1) {
            Kind::Scalar(element) => Kind::List { element, marks: Punctuation::array(row.delimiter) },
            // An array over a domain over an array.
            Kind::List { .. } => Kind::Scalar(Scalar::Text),
        };
    }
    if row.name == "vector" && row.extension.as_deref() == Some("vector") {
        return Kind::List { element: Scalar::Float, marks: Punctuation::VECTOR };
    }
    if row.kind == b'c' && depth < MAX_DEPTH {
        let field = |a: &Attribute| (a.name.clone(), kind(types, a.type_oid, a.type_modifier, depth + 1));
        let fields = row.attributes.iter().map(field).collect();
        return Kind::Scalar(Scalar::Composite(Arc::new(Composite { fields })));
    }
    Kind::Scalar(scalar(oid, modifier))
}

/// The built-in scalars, by their fixed oids (`pg_type.dat`).
fn scalar(oid: u32, modifier: i32) -> Scalar {
    match oid {
        16 => Scalar::Bool,
        17 => Scalar::Bytea,
        20 | 26 => Scalar::Long,
        21 | 23 => Scalar::Int,
        114 => Scalar::Json,
        700 => Scalar::Float,
        701 => Scalar::Double,
        1082 => Scalar::Date,
        1114 => Scalar::Timestamp,
        1184 => Scalar::TimestampTz,
        1700 => numeric(modifier),
        2950 => Scalar::Uuid,
        3802 => Scalar::Jsonb,
        _ => Scalar::Text,
    }
}

/// Text types whose send function gives the bytes that the output function prints: name, text, bpchar, varchar.
fn binary_is_text(oid: u32) -> bool {
    matches!(oid, 19 | 25 | 1042 | 1043)
}

fn is_citext(row: &TypeRow) -> bool {
    row.name == "citext" && row.extension.as_deref() == Some("citext")
}

/// `atttypmod` of numeric: 4 + (precision << 16 | scale as 11 bits with sign); -1 without precision.
fn numeric(modifier: i32) -> Scalar {
    if modifier < 4 {
        return Scalar::Numeric;
    }
    let packed = modifier - 4;
    let precision = (packed >> 16) & 0xFFFF;
    let scale = ((packed & 0x7FF) ^ 1024) - 1024;
    match (u8::try_from(precision), u8::try_from(scale)) {
        (Ok(precision @ 1..=38), Ok(scale)) if scale <= precision => Scalar::Decimal { precision, scale },
        _ => Scalar::Numeric,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(oid: u32, name: &str, kind: u8) -> TypeRow {
        TypeRow {
            oid,
            name: name.into(),
            extension: None,
            kind,
            base: 0,
            base_modifier: -1,
            element: 0,
            delimiter: b',',
            output: format!("pg_catalog.{name}out"),
            attributes: Vec::new(),
        }
    }

    fn modifier(precision: i32, scale: i32) -> i32 {
        4 + ((precision << 16) | (scale & 0x7FF))
    }

    fn types() -> Types {
        let rows = [
            row(23, "int4", b'b'),
            row(1700, "numeric", b'b'),
            row(869, "inet", b'b'),
            TypeRow { element: 1700, ..row(1231, "_numeric", b'b') },
            TypeRow { base: 1700, base_modifier: modifier(10, 2), ..row(9000, "price", b'd') },
            TypeRow { base: 9000, ..row(9001, "sale_price", b'd') },
            TypeRow { element: 9001, ..row(9002, "_sale_price", b'b') },
            TypeRow { base: 9002, ..row(9003, "prices", b'd') },
            row(9004, "mood", b'e'),
            TypeRow { extension: Some("vector".into()), ..row(9005, "vector", b'b') },
            row(9006, "vector", b'b'),
        ];
        rows.into_iter().map(|r| (r.oid, r)).collect()
    }

    #[test]
    fn numeric_is_decimal_only_where_a_decimal_holds_it() {
        let of = |p, s| numeric(modifier(p, s));
        assert_eq!(of(10, 2), Scalar::Decimal { precision: 10, scale: 2 });
        assert_eq!(of(38, 38), Scalar::Decimal { precision: 38, scale: 38 });
        assert_eq!(of(5, 0), Scalar::Decimal { precision: 5, scale: 0 });
        for (precision, scale) in [(39, 2), (300, 2), (3, -2), (3, 5), (1000, 1000)] {
            assert_eq!(of(precision, scale), Scalar::Numeric, "numeric({precision},{scale})");
        }
        assert_eq!(numeric(-1), Scalar::Numeric);
    }

    #[test]
    fn domains_are_what_is_beneath_them() {
        let decimal = Scalar::Decimal { precision: 10, scale: 2 };
        let list = Kind::List { element: decimal.clone(), marks: Punctuation::array(b',') };
        assert_eq!(column_type(&types(), 9001, -1).kind, Kind::Scalar(decimal));
        assert_eq!(column_type(&types(), 9002, -1).kind, list);
        assert_eq!(column_type(&types(), 9003, -1).kind, list);
        assert_eq!(column_type(&types(), 1231, modifier(10, 2)).kind, list);
    }

    #[test]
    fn snapshot_selects_by_output_function_what_has_no_plain_binary_form() {
        let output = |oid| column_type(&types(), oid, -1).output;
        assert_eq!(output(23), None);
        assert_eq!(output(9004), None);
        assert_eq!(output(869).as_deref(), Some("pg_catalog.inetout"));
        assert_eq!(output(1231).as_deref(), Some("pg_catalog._numericout"));
    }

    #[test]
    fn only_the_extensions_vector_is_a_vector() {
        assert_eq!(column_type(&types(), 9005, -1).logical, LogicalType::List(Box::new(LogicalType::Float)));
        assert_eq!(column_type(&types(), 9006, -1).logical, LogicalType::String);
    }
}
