//! Columns by field id: an expression over the table's columns -> the same over one file's columns.
//!
//! Names say nothing across schema changes: a renamed column has its old name in older files, and a dropped column's name may
//! have been given to a new one. Field ids never change.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column, Literal};
use datafusion::physical_expr_adapter::{PhysicalExprAdapter, PhysicalExprAdapterFactory};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

/// The field id that a Parquet file or a table's schema gives a column.
pub fn field_id(field: &Field) -> Option<i32> {
    field.metadata().get(PARQUET_FIELD_ID_META_KEY)?.parse().ok()
}

/// Makes an adapter per file.
#[derive(Debug)]
pub struct FieldIdAdapterFactory {
    /// Field ids of float columns that are not known to be free of NaN.
    may_hold_nan: Arc<HashSet<i32>>,
}

impl FieldIdAdapterFactory {
    pub fn new(may_hold_nan: Arc<HashSet<i32>>) -> Self {
        Self { may_hold_nan }
    }
}

impl PhysicalExprAdapterFactory for FieldIdAdapterFactory {
    fn create(&self, table: SchemaRef, file: SchemaRef) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let by_id: HashMap<i32, usize> =
            file.fields().iter().enumerate().filter_map(|(i, f)| Some((field_id(f)?, i))).collect();
        let mut columns = HashMap::with_capacity(table.fields().len());
        for field in table.fields() {
            let id = field_id(field);
            // A file without any id was not written for Iceberg; its names are all there is.
            let index = match id {
                Some(id) if !by_id.is_empty() => by_id.get(&id).copied(),
                _ => file.index_of(field.name()).ok(),
            };
            let opaque = id.is_some_and(|id| self.may_hold_nan.contains(&id));
            columns.insert(field.name().clone(), Mapped { field: Arc::clone(field), index, opaque });
        }
        Ok(Arc::new(FieldIdAdapter { columns, file }))
    }
}

/// A column of the table and where it is in the file.
#[derive(Debug)]
struct Mapped {
    field: FieldRef,
    index: Option<usize>,
    opaque: bool,
}

#[derive(Debug)]
struct FieldIdAdapter {
    columns: HashMap<String, Mapped>,
    file: SchemaRef,
}

impl FieldIdAdapter {
    fn column(&self, name: &str) -> Result<Arc<dyn PhysicalExpr>> {
        let Some(mapped) = self.columns.get(name) else { return exec_err!("column '{name}' is not in the table") };
        let Some(index) = mapped.index else {
            if !mapped.field.is_nullable() {
                return exec_err!("required column '{name}' is missing in a data file");
            }
            return Ok(Arc::new(Literal::new(ScalarValue::try_from(mapped.field.data_type())?)));
        };
        let in_file = self.file.field(index);
        let mut expr: Arc<dyn PhysicalExpr> = Arc::new(Column::new(in_file.name(), index));
        if in_file.data_type() != mapped.field.data_type() {
            expr = Arc::new(CastExpr::new(expr, mapped.field.data_type().clone(), None));
        }
        if mapped.opaque {
            expr = Arc::new(Opaque { inner: expr });
        }
        Ok(expr)
    }
}

impl PhysicalExprAdapter for FieldIdAdapter {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        expr.transform_up(|expr| {
            let Some(column) = expr.downcast_ref::<Column>() else { return Ok(Transformed::no(expr)) };
            Ok(Transformed::yes(self.column(column.name())?))
        })
        .data()
    }
}

/// A float column that may hold NaN. It evaluates to the column; its only use is that no pruning sees through it: Parquet's
/// bounds leave NaN out, and NaN sorts above everything, so `f > 5` would skip the row group {NaN, 3}.
#[derive(Debug, Clone, Eq)]
struct Opaque {
    inner: Arc<dyn PhysicalExpr>,
}

impl PartialEq for Opaque {
    fn eq(&self, other: &Self) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Hash for Opaque {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl fmt::Display for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}

impl PhysicalExpr for Opaque {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.inner.data_type(schema)
    }
    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.inner.nullable(schema)
    }
    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.inner.return_field(schema)
    }
    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.inner.evaluate(batch)
    }
    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }
    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        match children.pop() {
            Some(inner) => Ok(Arc::new(Self { inner })),
            None => exec_err!("an opaque column has one child"),
        }
    }
    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}
