//! A schema as somebody registered it: `JSON -> types that name each other`. Nothing of it is believed: it may be of another
//! shape than ours, refer to itself, or be made to hurt.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::COLUMN;
use super::wire::Cursor;
use crate::codec::json::scan::Parsed;
use crate::codec::registry::RegisteredSchema;

/// Bytes of a schema with all that it refers to. A table of 1,600 columns, PostgreSQL's most, has about 300 KB.
const MAX_TEXT: usize = 16 << 20;
/// Values inside of one another, at most, where a value is skipped.
const MAX_DEPTH: usize = 64;

/// Index of a type within its [`Registered`].
pub type TypeId = usize;

/// A registered schema.
#[derive(Debug, Default)]
pub struct Registered {
    nodes: Vec<Node>,
    pub root: TypeId,
}

#[derive(Debug)]
pub struct Node {
    pub ty: Type,
    pub logical: Option<Logical>,
}

/// Avro's types.
#[derive(Debug)]
pub enum Type {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    /// Always some bytes.
    Fixed(usize),
    Enum,
    Array(TypeId),
    Map(TypeId),
    Union(Vec<TypeId>),
    Record(Vec<Field>),
}

/// What a type means besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Logical {
    Decimal { scale: u64 },
    Other(String),
}

#[derive(Debug)]
pub struct Field {
    pub name: String,
    /// The column that the field says it is, where its name is not the column's.
    pub column: Option<String>,
    pub ty: TypeId,
}

impl Registered {
    pub fn parse(schema: &RegisteredSchema) -> Result<Self, String> {
        let bytes = schema.references.iter().map(String::len).sum::<usize>() + schema.text.len();
        if bytes > MAX_TEXT {
            return Err(format!("a schema of {bytes} bytes"));
        }
        let mut parser = Parser::default();
        // serde_json refuses what is nested too deeply, and so nothing here is deep.
        for text in schema.references.iter().chain([&schema.text]) {
            let json: Value = serde_json::from_str(text).map_err(|error| format!("not a schema: {error}"))?;
            parser.schema.root = parser.ty(&json, "")?;
        }
        Ok(parser.schema)
    }

    /// A type; `id` is of this schema.
    pub fn node(&self, id: TypeId) -> &Node {
        &self.nodes[id]
    }

    /// Moves past a value.
    pub fn skip(&self, id: TypeId, cursor: &mut Cursor<'_>) -> Parsed<()> {
        self.skip_in(id, cursor, 0)
    }

    fn skip_in(&self, id: TypeId, cursor: &mut Cursor<'_>, depth: usize) -> Parsed<()> {
        if depth > MAX_DEPTH {
            return cursor.bad("nested too deeply");
        }
        cursor.visit()?;
        match &self.node(id).ty {
            Type::Null => {}
            Type::Boolean => {
                cursor.boolean()?;
            }
            Type::Int | Type::Long | Type::Enum => {
                cursor.long()?;
            }
            Type::Float => {
                cursor.take(4)?;
            }
            Type::Double => {
                cursor.take(8)?;
            }
            Type::Bytes | Type::String => {
                cursor.bytes()?;
            }
            Type::Fixed(size) => {
                cursor.take(*size)?;
            }
            Type::Union(branches) => {
                let branch = cursor.long()?;
                match usize::try_from(branch).ok().and_then(|branch| branches.get(branch)) {
                    Some(branch) => self.skip_in(*branch, cursor, depth + 1)?,
                    None => return cursor.bad(format!("branch {branch} of a union of {}", branches.len())),
                }
            }
            Type::Record(fields) => {
                for field in fields {
                    self.skip_in(field.ty, cursor, depth + 1)?;
                }
            }
            Type::Array(items) | Type::Map(items) => {
                let is_map = matches!(self.node(id).ty, Type::Map(_));
                while let Some((count, size)) = cursor.block()? {
                    if let Some(size) = size {
                        cursor.take(size)?;
                        continue;
                    }
                    for _ in 0..count {
                        if is_map {
                            cursor.bytes()?;
                        }
                        self.skip_in(*items, cursor, depth + 1)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Parser {
    schema: Registered,
    /// Named types by their full names.
    names: HashMap<String, TypeId>,
}

impl Parser {
    fn add(&mut self, ty: Type, logical: Option<Logical>) -> TypeId {
        self.schema.nodes.push(Node { ty, logical });
        self.schema.nodes.len() - 1
    }

    /// Reads a schema that stands inside of the namespace.
    fn ty(&mut self, json: &Value, namespace: &str) -> Result<TypeId, String> {
        match json {
            Value::String(name) => self.named(name, None, namespace),
            Value::Array(branches) => {
                let branches =
                    branches.iter().map(|branch| self.ty(branch, namespace)).collect::<Result<Vec<_>, _>>()?;
                if branches.iter().any(|branch| matches!(self.schema.nodes[*branch].ty, Type::Union(_))) {
                    return Err("a union in a union".into());
                }
                Ok(self.add(Type::Union(branches), None))
            }
            Value::Object(object) => self.object(object, namespace),
            other => Err(format!("{} where a type must be", shortened(other))),
        }
    }

    fn named(&mut self, name: &str, logical: Option<Logical>, namespace: &str) -> Result<TypeId, String> {
        let ty = match name {
            "null" => Type::Null,
            "boolean" => Type::Boolean,
            "int" => Type::Int,
            "long" => Type::Long,
            "float" => Type::Float,
            "double" => Type::Double,
            "bytes" => Type::Bytes,
            "string" => Type::String,
            _ => {
                let known = self.names.get(&full_name(name, namespace)).or_else(|| self.names.get(name));
                return known.copied().ok_or_else(|| format!("nothing says what type {name} is"));
            }
        };
        Ok(self.add(ty, logical))
    }

    fn object(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<TypeId, String> {
        let kind = match object.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            Some(inner) => return self.ty(inner, namespace),
            None => return Err("a type without `type`".into()),
        };
        let logical = logical(object);
        match kind {
            "array" | "map" => {
                let of = if kind == "array" { "items" } else { "values" };
                let of = self.ty(object.get(of).unwrap_or(&Value::Null), namespace)?;
                Ok(self.add(if kind == "array" { Type::Array(of) } else { Type::Map(of) }, logical))
            }
            "record" | "error" | "enum" | "fixed" => self.definition(object, kind, logical, namespace),
            name => self.named(name, logical, namespace),
        }
    }

    fn definition(
        &mut self,
        object: &Map<String, Value>,
        kind: &str,
        logical: Option<Logical>,
        namespace: &str,
    ) -> Result<TypeId, String> {
        let text = |name: &str| object.get(name).and_then(Value::as_str);
        let name = text("name").ok_or_else(|| format!("a type of kind {kind} without a name"))?;
        let name = full_name(name, text("namespace").unwrap_or(namespace));
        let inside = name.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
        let ty = match kind {
            "enum" => Type::Enum,
            "fixed" => match object.get("size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok()) {
                Some(size @ 1..) => Type::Fixed(size),
                _ => return Err(format!("{name} has no size")),
            },
            _ => Type::Record(Vec::new()),
        };
        let is_record = matches!(ty, Type::Record(_));
        let id = self.add(ty, logical);
        // Known before its fields are read: they may refer to it.
        if self.names.insert(name.clone(), id).is_some() {
            return Err(format!("{name} is defined twice"));
        }
        if is_record {
            let fields =
                object.get("fields").and_then(Value::as_array).ok_or_else(|| format!("{name} has no fields"))?;
            let fields = fields.iter().map(|field| self.field(field, &name, &inside)).collect::<Result<Vec<_>, _>>()?;
            let mut names: Vec<_> = fields.iter().map(|field| field.name.as_str()).collect();
            names.sort_unstable();
            if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(format!("{name} has two fields {}", twice[0]));
            }
            self.schema.nodes[id].ty = Type::Record(fields);
        }
        Ok(id)
    }

    fn field(&mut self, json: &Value, record: &str, namespace: &str) -> Result<Field, String> {
        let text = |name: &str| json.get(name).and_then(Value::as_str).map(str::to_owned);
        let name = text("name").ok_or_else(|| format!("a field of {record} without a name"))?;
        let ty = self.ty(json.get("type").unwrap_or(&Value::Null), namespace)?;
        Ok(Field { column: text(COLUMN), name, ty })
    }
}

fn full_name(name: &str, namespace: &str) -> String {
    if namespace.is_empty() || name.contains('.') { name.to_owned() } else { format!("{namespace}.{name}") }
}

fn logical(object: &Map<String, Value>) -> Option<Logical> {
    match object.get("logicalType")?.as_str()? {
        "decimal" => Some(Logical::Decimal { scale: object.get("scale").map_or(Some(0), Value::as_u64)? }),
        other => Some(Logical::Other(other.to_owned())),
    }
}

fn shortened(json: &Value) -> String {
    json.to_string().chars().take(40).collect()
}
