//! The catalog `lake` of one query: names -> tables at the query's cut.
//!
//! The tables that the statement names were resolved, and bound to snapshots, before it is planned. Other names are known for
//! listing (`SHOW TABLES`, `information_schema`); they have columns but no rows to give.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, Session, TableProvider};
use datafusion::common::{DataFusionError, Result, exec_err};
use datafusion::datasource::TableType;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use iceberg::TableIdent;

use crate::tables::Tables;

/// Name of the catalog.
pub const CATALOG: &str = "lake";

/// The catalog of one query.
#[derive(Debug)]
pub struct QueryCatalog {
    schemas: BTreeMap<String, Arc<QuerySchema>>,
}

impl QueryCatalog {
    /// `known`: every table there is, by namespace; `bound`: those the statement names.
    pub fn new(
        known: BTreeMap<String, BTreeSet<String>>,
        mut bound: HashMap<(String, String), Arc<dyn TableProvider>>,
        tables: Arc<Tables>,
    ) -> Self {
        let schemas = known
            .into_iter()
            .map(|(namespace, names)| {
                let bound = names
                    .iter()
                    .filter_map(|name| Some((name.clone(), bound.remove(&(namespace.clone(), name.clone()))?)))
                    .collect();
                let schema = QuerySchema { namespace: namespace.clone(), names, bound, tables: Arc::clone(&tables) };
                (namespace, Arc::new(schema))
            })
            .collect();
        Self { schemas }
    }
}

impl CatalogProvider for QueryCatalog {
    fn schema_names(&self) -> Vec<String> {
        self.schemas.keys().cloned().collect()
    }
    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        Some(Arc::clone(self.schemas.get(name)?) as _)
    }
}

#[derive(Debug)]
struct QuerySchema {
    namespace: String,
    names: BTreeSet<String>,
    bound: HashMap<String, Arc<dyn TableProvider>>,
    tables: Arc<Tables>,
}

#[async_trait]
impl SchemaProvider for QuerySchema {
    fn table_names(&self) -> Vec<String> {
        self.names.iter().cloned().collect()
    }
    fn table_exist(&self, name: &str) -> bool {
        self.names.contains(name)
    }
    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        let view = self.namespace == crate::system::NAMESPACE && crate::system::VIEWS.contains(&name);
        Ok(self.names.contains(name).then_some(if view { TableType::View } else { TableType::Base }))
    }
    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if let Some(table) = self.bound.get(name) {
            return Ok(Some(Arc::clone(table)));
        }
        if !self.names.contains(name) {
            return Ok(None);
        }
        let schema = match crate::system::view_schema(name) {
            Some(schema) if self.namespace == crate::system::NAMESPACE => schema,
            _ => {
                let id =
                    TableIdent::from_strs([&self.namespace, name]).map_err(|e| DataFusionError::External(e.into()))?;
                let table = self.tables.load(&id).await.map_err(|e| DataFusionError::External(e.into()))?;
                match table {
                    Some(table) => lakeward_lake::arrow_schema(table.metadata().current_schema())
                        .map_err(|e| DataFusionError::External(e.into()))?,
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(Arc::new(Unbound { name: format!("{}.{name}", self.namespace), schema })))
    }
}

/// A table that is listed but not read.
#[derive(Debug)]
struct Unbound {
    name: String,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for Unbound {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
    fn table_type(&self) -> TableType {
        TableType::Base
    }
    async fn scan(
        &self,
        _state: &dyn Session,
        _projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        exec_err!("table {} is not in the cut of this query", self.name)
    }
}
