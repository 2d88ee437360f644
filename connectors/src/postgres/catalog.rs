//! signatures first; bodies follow in the next commits
use std::sync::Arc;
use lakeward_event::TableSchema;
use lakeward_runtime::Result;
use tokio_postgres::Client;

/// Which tables of a database are captured: globs on `schema.table`.
pub struct TableFilter { /* private */ }
impl TableFilter {
    /// Empty `include`: all of the user's tables. Errors: Configuration, names the glob.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> { unimplemented!() }
    pub fn matches(&self, schema: &str, table: &str) -> bool { unimplemented!() }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity { Default, Nothing, Full, Index }

/// A table of the source as its catalog describes it.
#[derive(Debug, Clone)]
pub struct Table {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// `p` partitioned: its rows are in its leaves, changes are published as the root's.
    pub partitioned: bool,
    pub persistence: u8, // 'p' | 'u' (unlogged: nothing of it is in the WAL; list_tables leaves those out)
    pub replica_identity: ReplicaIdentity,
    pub columns: Vec<TableColumn>,  // generated columns are left out: pgoutput does not send them
    /// Indexes into columns: replica identity index, else primary key.
    pub key: Vec<usize>,
}
#[derive(Debug, Clone)]
pub struct TableColumn { pub attnum: i16, pub name: String, pub type_oid: u32, pub type_modifier: i32, pub source_type: String, pub nullable: bool, pub column_type: super::types::ColumnType }

/// User tables (ordinary and partition roots; no partitions, temporary, unlogged, system tables) the filter lets through.
pub async fn list_tables(client: &Client, filter: &TableFilter) -> Result<Vec<Table>> { unimplemented!() }
/// One table by oid (None: gone). A consistent read of one statement snapshot each.
pub async fn read_table(client: &Client, oid: u32) -> Result<Option<Table>> { unimplemented!() }
/// Leaves of a partitioned table, or the table itself: (oid, quoted qualified name, relpages). 
pub async fn leaves(client: &Client, oid: u32) -> Result<Vec<Leaf>> { unimplemented!() }
#[derive(Debug, Clone)]
pub struct Leaf { pub oid: u32, pub qualified: String }

impl Table {
    /// The shape under schema version `version` of the source named `source`. Error Human: nothing Lakeward can carry (over 65535 columns…)
    pub fn shape(&self, source: &str, version: u32) -> Result<TableShape> { unimplemented!() }
    /// `"schema"."table"`, quoted.
    pub fn qualified(&self) -> String { unimplemented!() }
}

/// A `TableSchema` and how its values travel. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TableShape { /* private: Arc */ }
impl TableShape {
    pub fn schema(&self) -> &Arc<TableSchema> { unimplemented!() }
    pub fn relation_oid(&self) -> u32 { unimplemented!() }
    /// The SELECT list for a snapshot (`a, textin(b_out(b)), …`), for `COPY (SELECT … FROM ONLY leaf WHERE ctid …) TO STDOUT (FORMAT binary)`; columns by name, so it is right for leaves whose columns are in another order.
    pub fn snapshot_select(&self) -> &str { unimplemented!() }
}

/// `"it""s"`
pub fn quote_identifier(name: &str) -> String { unimplemented!() }
/// `'it''s'`
pub fn quote_literal(text: &str) -> String { unimplemented!() }
