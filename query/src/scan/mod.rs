//! A table at one snapshot, as DataFusion scans it: manifests -> [`plan`] -> file groups -> DataFusion's Parquet source.
//!
//! Pruning, dynamic filters, late reading and caches are DataFusion's. Ours: which rows of which files are live, columns by
//! field id, and what may be said about both.

mod adapter;
mod plan;
mod selection;
mod statistics;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::TableType;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;

pub use plan::{Plan, Planner};

/// One table at one snapshot; the SQL side of a [`Plan`].
#[derive(Debug)]
pub struct SnapshotTable {
    plan: Arc<Plan>,
}

impl SnapshotTable {
    pub fn new(plan: Arc<Plan>) -> Self {
        Self { plan }
    }
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }
}

#[async_trait]
impl TableProvider for SnapshotTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.plan.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Filters prune files, row groups and pages; which rows pass is decided above the scan.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = &self.plan;
        let url = ObjectStoreUrl::parse(&plan.store_url)?;
        let store = state.runtime_env().object_store(&url)?;
        let footers = state.runtime_env().cache_manager.get_file_metadata_cache();
        let parquet = ParquetSource::new(Arc::clone(&plan.schema))
            .with_parquet_file_reader_factory(Arc::new(CachedParquetFileReaderFactory::new(store, footers)))
            .with_enable_page_index(true);
        let source: Arc<dyn FileSource> = if plan.has_selections {
            Arc::new(selection::SelectionSource::new(Arc::new(parquet)))
        } else {
            Arc::new(parquet)
        };
        let groups = FileGroup::new(plan.files.clone()).split_files(state.config().target_partitions());
        let config = FileScanConfigBuilder::new(url, source)
            .with_file_groups(groups)
            .with_statistics(plan.statistics.clone())
            .with_limit(limit)
            .with_expr_adapter(Some(Arc::new(adapter::FieldIdAdapterFactory::new(plan.may_hold_nan.clone()))))
            .with_projection_indices(projection.cloned())?
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}
