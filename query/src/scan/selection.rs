//! A Parquet source whose files carry row selections (deleted rows): filter pushdown stays off, whatever the options say.
//!
//! DataFusion 54's `prune_by_limit` replaces a selection by a full scan of the row groups whose statistics say that every row
//! passes the filter. That happens only when the filter is evaluated inside the scan, under a limit; deleted rows then come
//! back (apache/datafusion#22941). The session's option alone turns pushdown on, so it is hidden from the source here.

use std::fmt;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileOpener, FileScanConfig, FileSource};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::filter_pushdown::FilterPushdownPropagation;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::{DisplayFormatType, SortOrderPushdownResult};
use object_store::ObjectStore;

pub struct SelectionSource {
    inner: Arc<dyn FileSource>,
}

impl SelectionSource {
    pub fn new(inner: Arc<dyn FileSource>) -> Self {
        Self { inner }
    }
}

fn wrap(inner: Arc<dyn FileSource>) -> Arc<dyn FileSource> {
    Arc::new(SelectionSource { inner })
}

impl FileSource for SelectionSource {
    fn create_file_opener(
        &self,
        store: Arc<dyn ObjectStore>,
        config: &FileScanConfig,
        partition: usize,
    ) -> Result<Arc<dyn FileOpener>> {
        self.inner.create_file_opener(store, config, partition)
    }

    fn create_morselizer(
        &self,
        store: Arc<dyn ObjectStore>,
        config: &FileScanConfig,
        partition: usize,
    ) -> Result<Box<dyn datafusion_datasource::morsel::Morselizer>> {
        self.inner.create_morselizer(store, config, partition)
    }

    fn table_schema(&self) -> &TableSchema {
        self.inner.table_schema()
    }
    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        wrap(self.inner.with_batch_size(batch_size))
    }
    fn filter(&self) -> Option<Arc<dyn PhysicalExpr>> {
        self.inner.filter()
    }
    fn projection(&self) -> Option<&ProjectionExprs> {
        self.inner.projection()
    }
    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        self.inner.metrics()
    }
    fn file_type(&self) -> &str {
        self.inner.file_type()
    }
    fn fmt_extra(&self, t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ", row_selections=true")?;
        self.inner.fmt_extra(t, f)
    }
    fn supports_repartitioning(&self) -> bool {
        self.inner.supports_repartitioning()
    }
    fn reorder_files(&self, files: Vec<PartitionedFile>) -> Vec<PartitionedFile> {
        self.inner.reorder_files(files)
    }

    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn FileSource>>> {
        let mut config = config.clone();
        config.execution.parquet.pushdown_filters = false;
        let result = self.inner.try_pushdown_filters(filters, &config)?;
        Ok(FilterPushdownPropagation { filters: result.filters, updated_node: result.updated_node.map(wrap) })
    }

    fn try_pushdown_sort(
        &self,
        order: &[PhysicalSortExpr],
        properties: &EquivalenceProperties,
    ) -> Result<SortOrderPushdownResult<Arc<dyn FileSource>>> {
        Ok(self.inner.try_pushdown_sort(order, properties)?.map(wrap))
    }

    fn try_pushdown_projection(&self, projection: &ProjectionExprs) -> Result<Option<Arc<dyn FileSource>>> {
        Ok(self.inner.try_pushdown_projection(projection)?.map(wrap))
    }
}
