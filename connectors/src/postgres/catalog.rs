//! Tables as the server's catalog describes them: `pg_class, pg_attribute, pg_index, pg_type -> Table -> TableShape`.
//!
//! A table, its columns and key come from one statement and so from one state of the catalog; types are read after it. DDL may
//! still come between this and the stream: [`Binding::of`](super::tuple::Binding::of) compares each Relation message with the
//! shape.

use std::sync::Arc;

use globset::{Glob, GlobSet, GlobSetBuilder};
use lakeward_event::{Column, TableId, TableSchema, schema::TableKind};
use lakeward_runtime::{Error, Result};
use tokio_postgres::{GenericClient, Row};

use super::types::{self, Attribute, ColumnType, Kind, TypeRow, Types};

/// Which tables are captured: globs on `schema.table`.
#[derive(Debug, Clone)]
pub struct TableFilter {
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl TableFilter {
    /// No `include` at all means every table. Errors: a glob that cannot be read (configuration).
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let include = if include.is_empty() { None } else { Some(globs("include", include)?) };
        Ok(Self { include, exclude: globs("exclude", exclude)? })
    }

    pub fn matches(&self, schema: &str, table: &str) -> bool {
        let name = format!("{schema}.{table}");
        self.include.as_ref().is_none_or(|globs| globs.is_match(&name)) && !self.exclude.is_match(&name)
    }
}

fn globs(setting: &'static str, patterns: &[String]) -> Result<GlobSet> {
    let wrong = |error| Error::configuration("not a glob on schema.table").with("setting", setting).source(error);
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(|e| wrong(e).with("glob", pattern))?);
    }
    set.build().map_err(wrong)
}

/// `pg_class.relreplident`: what updates and deletes say about the old row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, nothing where there is none.
    Default,
    Nothing,
    /// The whole row.
    Full,
    /// The columns of one unique index, which are then the key.
    Index,
}

impl ReplicaIdentity {
    fn from_letter(letter: u8) -> Option<Self> {
        Some(match letter {
            b'd' => Self::Default,
            b'n' => Self::Nothing,
            b'f' => Self::Full,
            b'i' => Self::Index,
            _ => return None,
        })
    }
    pub fn letter(self) -> u8 {
        match self {
            Self::Default => b'd',
            Self::Nothing => b'n',
            Self::Full => b'f',
            Self::Index => b'i',
        }
    }
}

/// A table of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// Its rows are in its [`leaves`]; changes come under its own name where the publication says `publish_via_partition_root`.
    pub partitioned: bool,
    pub replica_identity: ReplicaIdentity,
    /// In the order of their numbers. Generated columns are not among them: pgoutput does not send them.
    pub columns: Vec<TableColumn>,
    /// Indexes into `columns`: the replica identity index, else the primary key. Empty: no key.
    pub key: Vec<usize>,
    /// A key column is generated, so that no change says which row it is about: [`Table::shape`] refuses.
    pub generated_key: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumn {
    /// `pg_attribute.attnum`: survives a rename, is never used again.
    pub number: i16,
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
    /// As `format_type` prints it.
    pub source_type: String,
    pub nullable: bool,
    pub column_type: ColumnType,
}

/// Permanent ordinary tables and roots of partitioned ones, but for the system's and extensions' own.
const TABLES: &str = "
SELECT c.oid, n.nspname, c.relname, c.relkind, c.relreplident,
       a.attnum, a.attname, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       a.attgenerated <> '', k.place
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN LATERAL (
    SELECT key.place
    FROM pg_catalog.pg_index i, unnest(i.indkey) WITH ORDINALITY AS key(attnum, place)
    WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
      AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END
      AND key.place <= i.indnkeyatts AND key.attnum = a.attnum
) k ON true
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
  AND ($1::oid IS NULL OR c.oid = $1)
ORDER BY n.nspname, c.relname, c.oid, a.attnum";

const TYPES: &str = "
SELECT t.oid, t.typname, t.typtype, t.typbasetype, t.typtypmod, t.typdelim,
       CASE WHEN t.typoutput = 'pg_catalog.array_out'::regproc THEN t.typelem ELSE 0::oid END,
       quote_ident(pn.nspname) || '.' || quote_ident(p.proname),
       (SELECT e.extname::text FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
        WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = t.oid
          AND d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.deptype = 'e' LIMIT 1),
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
             WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
       ARRAY(SELECT a.atttypid FROM pg_catalog.pg_attribute a
             WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
       ARRAY(SELECT a.atttypmod FROM pg_catalog.pg_attribute a
             WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
FROM pg_catalog.pg_type t
JOIN pg_catalog.pg_proc p ON p.oid = t.typoutput
JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace
WHERE t.oid = ANY($1)";

const LEAVES: &str = "
SELECT c.oid, n.nspname, c.relname
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
  AND (c.oid = $1 OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree($1::oid::regclass) WHERE isleaf))
ORDER BY c.oid";

/// The user's tables that `filter` lets through, by schema and name: ordinary ones and roots of partitioned ones. Not temporary
/// and unlogged ones (nothing of them is in the WAL), partitions, and tables of extensions.
pub async fn list_tables<C: GenericClient + Sync>(client: &C, filter: &TableFilter) -> Result<Vec<Table>> {
    read_tables(client, None, |schema, name| filter.matches(schema, name)).await
}

/// The table with this oid; `None` where there is none that [`list_tables`] could list.
pub async fn read_table<C: GenericClient + Sync>(client: &C, oid: u32) -> Result<Option<Table>> {
    Ok(read_tables(client, Some(oid), |_, _| true).await?.pop())
}

/// A table that holds rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    pub oid: u32,
    /// `"schema"."table"`
    pub qualified: String,
}

/// The tables that hold a table's rows: itself, or its partitions at the bottom (of which there may be none).
pub async fn leaves<C: GenericClient + Sync>(client: &C, oid: u32) -> Result<Vec<Leaf>> {
    let rows = client.query(LEAVES, &[&oid]).await.map_err(|e| unreadable(e).with("table", oid))?;
    rows.iter().map(|row| Ok(Leaf { oid: get(row, 0)?, qualified: qualified(get(row, 1)?, get(row, 2)?) })).collect()
}

async fn read_tables<C: GenericClient + Sync>(
    client: &C,
    oid: Option<u32>,
    wanted: impl Fn(&str, &str) -> bool,
) -> Result<Vec<Table>> {
    let rows = client.query(TABLES, &[&oid]).await.map_err(unreadable)?;
    let mut tables: Vec<Table> = Vec::new();
    // Key columns of the table at hand: place in the key, index of the column.
    let mut key: Vec<(i64, usize)> = Vec::new();
    for row in &rows {
        let (oid, schema, name): (u32, &str, &str) = (get(row, 0)?, get(row, 1)?, get(row, 2)?);
        if !wanted(schema, name) {
            continue;
        }
        if tables.last().is_none_or(|t| t.oid != oid) {
            end_key(&mut tables, &mut key);
            let letter = letter(row, 4)?;
            let replica_identity = ReplicaIdentity::from_letter(letter)
                .ok_or_else(|| Error::human(format!("unknown replica identity {:?}", char::from(letter))))?;
            tables.push(Table {
                oid,
                schema: schema.into(),
                name: name.into(),
                partitioned: self::letter(row, 3)? == b'p',
                replica_identity,
                columns: Vec::new(),
                key: Vec::new(),
                generated_key: false,
            });
        }
        let (Some(table), Some(number)) = (tables.last_mut(), get::<Option<i16>>(row, 5)?) else { continue };
        let place: Option<i64> = get(row, 12)?;
        if get::<bool>(row, 11)? {
            table.generated_key |= place.is_some();
            continue;
        }
        key.extend(place.map(|place| (place, table.columns.len())));
        let (type_oid, type_modifier) = (get(row, 7)?, get(row, 8)?);
        table.columns.push(TableColumn {
            number,
            name: get(row, 6)?,
            type_oid,
            type_modifier,
            source_type: get(row, 9)?,
            nullable: !get::<bool>(row, 10)?,
            // Known once the types are read, below.
            column_type: types::column_type(&Types::new(), type_oid, type_modifier),
        });
    }
    end_key(&mut tables, &mut key);

    let types = read_types(client, tables.iter().flat_map(|t| &t.columns).map(|c| c.type_oid)).await?;
    for column in tables.iter_mut().flat_map(|t| &mut t.columns) {
        if !types.contains_key(&column.type_oid) {
            return Err(Error::retry("a type was dropped while the catalog was read").with("type", &column.source_type));
        }
        column.column_type = types::column_type(&types, column.type_oid, column.type_modifier);
    }
    Ok(tables)
}

fn end_key(tables: &mut [Table], key: &mut Vec<(i64, usize)>) {
    key.sort_unstable();
    if let Some(table) = tables.last_mut() {
        table.key = key.drain(..).map(|(_, index)| index).collect();
    }
}

/// Numbers of the columns that a table had and has no more.
pub async fn dropped_columns<C: GenericClient + Sync>(client: &C, oid: u32) -> Result<Vec<i16>> {
    let rows = client
        .query(
            "SELECT attnum FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND attisdropped",
            &[&oid],
        )
        .await
        .map_err(|e| unreadable(e).with("table", oid))?;
    rows.iter().map(|row| get(row, 0)).collect()
}

/// How values of a type (oid and modifier) travel, and the type's name; for columns that no table has any more. None: the
/// type is gone too.
pub async fn column_type<C: GenericClient + Sync>(
    client: &C,
    oid: u32,
    modifier: i32,
) -> Result<Option<(ColumnType, String)>> {
    let types = read_types(client, std::iter::once(oid)).await?;
    if !types.contains_key(&oid) {
        return Ok(None);
    }
    let row = client.query_one("SELECT format_type($1, $2)", &[&oid, &modifier]).await.map_err(unreadable)?;
    Ok(Some((types::column_type(&types, oid, modifier), get(&row, 0)?)))
}

/// Reads these types and all that they are made of.
async fn read_types<C: GenericClient + Sync>(client: &C, oids: impl Iterator<Item = u32>) -> Result<Types> {
    let mut types = Types::new();
    let mut missing: Vec<u32> = oids.collect();
    while !missing.is_empty() {
        missing.sort_unstable();
        missing.dedup();
        let rows = client.query(TYPES, &[&missing]).await.map_err(unreadable)?;
        let mut parts = Vec::new();
        for row in &rows {
            let row = type_row(row)?;
            parts.extend(types::parts(&row));
            types.insert(row.oid, row);
        }
        // One that was dropped meanwhile is asked for once: only rows that were found have parts.
        parts.retain(|oid| !types.contains_key(oid));
        missing = parts;
    }
    Ok(types)
}

fn type_row(row: &Row) -> Result<TypeRow> {
    let names: Vec<String> = get(row, 9)?;
    let oids: Vec<u32> = get(row, 10)?;
    let modifiers: Vec<i32> = get(row, 11)?;
    let attributes = names.into_iter().zip(oids).zip(modifiers);
    Ok(TypeRow {
        oid: get(row, 0)?,
        name: get(row, 1)?,
        kind: letter(row, 2)?,
        base: get(row, 3)?,
        base_modifier: get(row, 4)?,
        delimiter: letter(row, 5)?,
        element: get(row, 6)?,
        output: get(row, 7)?,
        extension: get(row, 8)?,
        attributes: attributes
            .map(|((name, type_oid), type_modifier)| Attribute { name, type_oid, type_modifier })
            .collect(),
    })
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, index: usize) -> Result<T> {
    row.try_get(index).map_err(|e| Error::human("the server's catalog has another form").source(e))
}

/// A value of type `"char"`.
fn letter(row: &Row, index: usize) -> Result<u8> {
    Ok(get::<i8>(row, index)? as u8)
}

/// What the server refuses needs a person; a connection that broke is made anew.
fn unreadable(error: tokio_postgres::Error) -> Error {
    use lakeward_runtime::Action;
    // Connection, transaction rollback, resources, intervention by an operator.
    let passing = |code: &str| ["08", "40", "53", "55", "57"].iter().any(|class| code.starts_with(class));
    let action = match error.code() {
        Some(state) if !passing(state.code()) => Action::Human,
        _ => Action::Retry,
    };
    Error::new(action, "cannot read the source's catalog").source(error)
}

impl Table {
    /// The shape under version `version` of this table's schema, in the source of this name. Errors: a key that the stream
    /// does not carry (human).
    pub fn shape(&self, source: &str, version: u32) -> Result<TableShape> {
        let id = TableId::new(source, &self.schema, &self.name);
        if self.generated_key {
            return Err(Error::human(
                "a generated column is part of the key, and logical replication does not send it",
            )
            .with("table", id));
        }
        let columns = self.columns.iter().map(|column| Column {
            id: i32::from(column.number),
            name: column.name.clone(),
            ty: column.column_type.logical.clone(),
            source_type: column.source_type.clone(),
            nullable: column.nullable,
        });
        let schema = TableSchema {
            table: id,
            kind: TableKind::Relational,
            version,
            columns: columns.collect(),
            key: self.key.clone(),
        };
        schema.validate().map_err(|e| Error::bug("a schema made from the catalog is not valid").source(e))?;
        let select: Vec<_> = self.columns.iter().map(select).collect();
        Ok(TableShape {
            inner: Arc::new(Shape {
                schema: Arc::new(schema),
                relation_oid: self.oid,
                replica_identity: self.replica_identity,
                columns: self.columns.clone(),
                snapshot_select: select.join(", "),
            }),
        })
    }

    /// `"schema"."table"`
    pub fn qualified(&self) -> String {
        qualified(&self.schema, &self.name)
    }
}

fn select(column: &TableColumn) -> String {
    let name = quote_identifier(&column.name);
    match &column.column_type.output {
        Some(output) => format!("pg_catalog.textin({output}({name}))"),
        None => name,
    }
}

/// A table's schema, and how its values travel. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TableShape {
    inner: Arc<Shape>,
}

#[derive(Debug)]
struct Shape {
    schema: Arc<TableSchema>,
    relation_oid: u32,
    replica_identity: ReplicaIdentity,
    columns: Vec<TableColumn>,
    snapshot_select: String,
}

impl TableShape {
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.inner.schema
    }
    pub fn relation_oid(&self) -> u32 {
        self.inner.relation_oid
    }
    pub fn replica_identity(&self) -> ReplicaIdentity {
        self.inner.replica_identity
    }
    /// What a snapshot selects, for `COPY (SELECT … FROM ONLY "leaf" WHERE …) TO STDOUT (FORMAT binary)`. Columns are named, so
    /// it is right for leaves that have them in another order.
    pub fn snapshot_select(&self) -> &str {
        &self.inner.snapshot_select
    }
    /// Type and modifier of a column of the schema, as a Relation message names them.
    pub(super) fn column_oid(&self, index: usize) -> Option<(u32, i32)> {
        self.inner.columns.get(index).map(|c| (c.type_oid, c.type_modifier))
    }
    pub(super) fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.inner.columns.iter().map(|c| &c.column_type.kind)
    }
    pub(super) fn copied_as_text(&self) -> impl Iterator<Item = bool> {
        self.inner.columns.iter().map(|c| c.column_type.output.is_some())
    }
}

/// `"it""s"`
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `'it''s'`, and with backslashes ` E'\\'`, whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_identifier(schema), quote_identifier(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_globs_on_schema_and_table() {
        let list = |globs: &[&str]| globs.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>();
        let filter = TableFilter::new(&list(&["public.*", "shop.order?"]), &list(&["*.tmp_*"])).unwrap();
        assert!(filter.matches("public", "users") && filter.matches("shop", "orders"));
        assert!(!filter.matches("shop", "items") && !filter.matches("public", "tmp_1"));
        assert!(TableFilter::new(&[], &[]).unwrap().matches("any", "thing"));
        let error = TableFilter::new(&list(&["public.["]), &[]).unwrap_err();
        assert!(error.to_string().contains("glob=public.["), "{error}");
    }

    #[test]
    fn quoting_doubles_the_quote() {
        assert_eq!(quote_identifier("we\"ird"), "\"we\"\"ird\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\b"), " E'a\\\\b'");
    }
}
