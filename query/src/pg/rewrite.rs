//! uuid, text and infinity in queries: `id = '…'`, `id IN ('…')`, `'…'::uuid`, `id::text`, `day > now()`, `at::date`, `at =
//! 'infinity'` -> what DataFusion can plan and run. Functions and arithmetic of infinities are in [`infinity`].
//!
//! A uuid column is 16 bytes to DataFusion, which does not compare them with text; and its casts to text print an infinite
//! date as an error of the whole query.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeBinaryBuilder, StringBuilder};
use arrow::datatypes::{DataType, Date32Type, Field, FieldRef, TimeUnit, TimestampMicrosecondType};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue, exec_err, plan_err};
use datafusion::execution::SessionStateBuilder;
use datafusion::logical_expr::expr::{InList, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr, TypePlanner};
use datafusion::logical_expr::{
    Between, BinaryExpr, Cast, ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, TryCast, TypeSignature, Volatility, cast,
};
use datafusion::optimizer::{Analyzer, AnalyzerRule};
use datafusion::sql::sqlparser::ast::{BinaryOperator, DataType as SqlType, TimezoneInfo};

use lakeward_event::types::{DATE_INFINITY, TIMESTAMP_INFINITY};

use super::infinity;
use super::text::{Style, parse_uuid, printer};

const UUID: DataType = DataType::FixedSizeBinary(16);

/// Adds all of it to a session.
pub fn install(builder: SessionStateBuilder) -> SessionStateBuilder {
    let mut builder = builder.with_type_planner(Arc::new(Types));
    builder.expr_planners().get_or_insert_default().insert(0, Arc::new(Comparisons));
    let mut rules: Vec<Arc<dyn AnalyzerRule + Send + Sync>> = vec![Arc::new(Texts)];
    rules.extend(Analyzer::new().rules);
    builder.with_analyzer_rules(rules)
}

fn is_text(ty: &DataType) -> bool {
    matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// What a cast to text must print itself.
fn prints_differently(ty: &DataType) -> bool {
    matches!(
        ty,
        DataType::FixedSizeBinary(16)
            | DataType::Date32
            | DataType::Timestamp(..)
            | DataType::Binary
            | DataType::List(_)
    )
}

pub(super) fn call(function: impl ScalarUDFImpl + 'static, argument: Expr) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(ScalarUDF::new_from_impl(function)), vec![argument]))
}

fn as_text(expr: Expr) -> Expr {
    call(ToText::new(), expr)
}

/// A text as uuid: at once where it is a literal.
fn as_uuid(expr: Expr) -> Result<Expr> {
    if let Expr::Literal(value, metadata) = &expr
        && let Some(text) = value.try_as_str()
    {
        let Some(text) = text else {
            return Ok(Expr::Literal(ScalarValue::FixedSizeBinary(16, None), metadata.clone()));
        };
        let Some(bytes) = parse_uuid(text) else { return plan_err!("invalid input syntax for type uuid: \"{text}\"") };
        return Ok(Expr::Literal(ScalarValue::FixedSizeBinary(16, Some(bytes.to_vec())), metadata.clone()));
    }
    Ok(call(ToUuid::new(), expr))
}

/// Brings a uuid and a text side by side: a literal becomes a uuid, with any other text the uuid becomes text, so that a text
/// which is none compares as different and fails nothing.
fn reconcile(left: Expr, right: Expr, schema: &DFSchema) -> Result<Option<(Expr, Expr)>> {
    let (l, r) = (left.get_type(schema)?, right.get_type(schema)?);
    Ok(if l == UUID && is_text(&r) {
        Some(if matches!(right, Expr::Literal(..)) { (left, as_uuid(right)?) } else { (as_text(left), right) })
    } else if is_text(&l) && r == UUID {
        Some(if matches!(left, Expr::Literal(..)) { (as_uuid(left)?, right) } else { (left, as_text(right)) })
    } else if l == DataType::Date32 && matches!(r, DataType::Timestamp(..)) {
        Some((convert(left, &r), right))
    } else if matches!(l, DataType::Timestamp(..)) && r == DataType::Date32 {
        let right = convert(right, &l);
        Some((left, right))
    } else if let (
        DataType::Timestamp(TimeUnit::Microsecond, here),
        DataType::Timestamp(TimeUnit::Microsecond, there),
    ) = (&l, &r)
    {
        // With a zone and without one: DataFusion's cast goes by way of a calendar that has no infinity.
        match (here, there) {
            (Some(_), None) => Some((left, convert(right, &l))),
            (None, Some(_)) => Some((convert(left, &r), right)),
            _ => None,
        }
    } else if let Some(value) = infinite_literal(&right, &l) {
        Some((left, value))
    } else {
        infinite_literal(&left, &r).map(|value| (value, right))
    })
}

/// `'infinity'` beside a date or timestamp of this type.
fn infinite_literal(expr: &Expr, other: &DataType) -> Option<Expr> {
    let Expr::Literal(value, metadata) = expr else { return None };
    let value = infinity::literal(value.try_as_str()??, other)?;
    Some(Expr::Literal(value, metadata.clone()))
}

fn is_infinite(expr: &Expr, other: Option<&DataType>) -> bool {
    other.is_some_and(|ty| infinite_literal(expr, ty).is_some())
}

/// A date or timestamp as a timestamp like `other`: DataFusion's own casts go by way of nanoseconds or a calendar, where an
/// infinite one fails the query.
pub(super) fn convert(moment: Expr, other: &DataType) -> Expr {
    let zone = if let DataType::Timestamp(_, zone) = other { zone.clone() } else { None };
    call(Convert::new("pg_timestamp", DataType::Timestamp(TimeUnit::Microsecond, zone)), moment)
}

/// `uuid = text` is refused as soon as it is planned, so it is rewritten while it is.
#[derive(Debug)]
struct Comparisons;

impl ExprPlanner for Comparisons {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let op = match expr.op {
            BinaryOperator::Eq => Operator::Eq,
            BinaryOperator::NotEq => Operator::NotEq,
            BinaryOperator::Lt => Operator::Lt,
            BinaryOperator::LtEq => Operator::LtEq,
            BinaryOperator::Gt => Operator::Gt,
            BinaryOperator::GtEq => Operator::GtEq,
            _ => return Ok(PlannerResult::Original(expr)),
        };
        // A side whose type is not known yet (a placeholder) is none of ours.
        match reconcile(expr.left.clone(), expr.right.clone(), schema) {
            Ok(Some((left, right))) => {
                Ok(PlannerResult::Planned(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)))))
            }
            Ok(None) => Ok(PlannerResult::Original(expr)),
            Err(error) if expr.left.get_type(schema).is_ok() && expr.right.get_type(schema).is_ok() => Err(error),
            Err(_) => Ok(PlannerResult::Original(expr)),
        }
    }
}

/// `'…'::uuid`; timestamps have microseconds, as PostgreSQL's and the lake's do.
#[derive(Debug)]
struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, sql_type: &SqlType) -> Result<Option<FieldRef>> {
        Ok(match sql_type {
            SqlType::Uuid => Some(Arc::new(Field::new("uuid", UUID, true))),
            SqlType::Timestamp(None, zone) => {
                let zone = match zone {
                    TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => None,
                    TimezoneInfo::Tz | TimezoneInfo::WithTimeZone => Some("UTC".into()),
                };
                Some(Arc::new(Field::new("timestamp", DataType::Timestamp(TimeUnit::Microsecond, zone), true)))
            }
            _ => None,
        })
    }
}

/// What planning lets through: lists, ranges and casts. Runs before DataFusion's coercion.
#[derive(Debug)]
struct Texts;

impl AnalyzerRule for Texts {
    fn name(&self) -> &str {
        "postgres_texts"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| {
            let schema = if let LogicalPlan::TableScan(scan) = &plan {
                // Its own schema is projected; filters see all columns.
                Arc::new(DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?)
            } else {
                let mut merged = DFSchema::empty();
                for input in plan.inputs() {
                    merged.merge(input.schema());
                }
                Arc::new(merged)
            };
            // `USING` pairs columns without planning a comparison.
            let plan = match plan {
                LogicalPlan::Join(mut join) => {
                    for (left, right) in &mut join.on {
                        if let Some(pair) = reconcile(left.clone(), right.clone(), &schema)? {
                            (*left, *right) = pair;
                        }
                    }
                    LogicalPlan::Join(join)
                }
                plan => plan,
            };
            // The rewriting must not show in the names of the result's columns.
            let names = NamePreserver::new(&plan);
            let result = plan.map_expressions(|expr| {
                let name = names.save(&expr);
                Ok(expr.transform_up(|e| rewrite(e, &schema))?.update_data(|e| name.restore(e)))
            })?;
            if result.transformed { result.map_data(LogicalPlan::recompute_schema) } else { Ok(result) }
        })
        .data()
    }
}

fn rewrite(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    // An expression over columns of an outer query has no type here; it is left as it is.
    let ty = |e: &Expr| e.get_type(schema).ok();
    match expr {
        Expr::InList(InList { expr, list, negated }) if ty(&expr) == Some(UUID) => {
            let list = list
                .into_iter()
                .map(|e| if ty(&e).is_some_and(|t| is_text(&t)) { as_uuid(e) } else { Ok(e) })
                .collect::<Result<_>>()?;
            Ok(Transformed::yes(Expr::InList(InList { expr, list, negated })))
        }
        Expr::Between(Between { expr, negated, low, high }) if ty(&expr) == Some(UUID) => {
            let bound = |e: Expr| if ty(&e).is_some_and(|t| is_text(&t)) { as_uuid(e) } else { Ok(e) };
            let (low, high) = (Box::new(bound(*low)?), Box::new(bound(*high)?));
            Ok(Transformed::yes(Expr::Between(Between { expr, negated, low, high })))
        }
        Expr::InList(InList { expr, list, negated }) if list.iter().any(|e| is_infinite(e, ty(&expr).as_ref())) => {
            let of = ty(&expr).unwrap_or(DataType::Null);
            // All of this type: beside another, DataFusion would take them to nanoseconds.
            let item = |e: Expr| match infinite_literal(&e, &of) {
                Some(infinite) => infinite,
                None if ty(&e).is_some_and(|t| is_text(&t)) => cast(e, of.clone()),
                None => e,
            };
            let list = list.into_iter().map(item).collect();
            Ok(Transformed::yes(Expr::InList(InList { expr, list, negated })))
        }
        Expr::Between(Between { expr, negated, low, high })
            if is_infinite(&low, ty(&expr).as_ref()) || is_infinite(&high, ty(&expr).as_ref()) =>
        {
            let of = ty(&expr).unwrap_or(DataType::Null);
            let bound = |e: Expr| Box::new(infinite_literal(&e, &of).unwrap_or(e));
            let (low, high) = (bound(*low), bound(*high));
            Ok(Transformed::yes(Expr::Between(Between { expr, negated, low, high })))
        }
        Expr::Cast(Cast { expr, field })
            if is_text(field.data_type()) && ty(&expr).is_some_and(|t| prints_differently(&t)) =>
        {
            Ok(Transformed::yes(as_text(*expr)))
        }
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field })
            if *field.data_type() == UUID && ty(&expr).is_some_and(|t| is_text(&t)) =>
        {
            Ok(Transformed::yes(as_uuid(*expr)?))
        }
        Expr::Cast(Cast { expr, field })
            if *field.data_type() == DataType::Date32
                && ty(&expr).is_some_and(|t| matches!(t, DataType::Timestamp(TimeUnit::Microsecond, _))) =>
        {
            Ok(Transformed::yes(call(Convert::new("pg_date", DataType::Date32), *expr)))
        }
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field })
            if infinite_literal(&expr, field.data_type()).is_some() =>
        {
            Ok(infinite_literal(&expr, field.data_type()).map_or(Transformed::no(*expr), Transformed::yes))
        }
        Expr::Cast(Cast { expr, field })
            if matches!(field.data_type(), DataType::Timestamp(TimeUnit::Microsecond, _))
                && ty(&expr).is_some_and(|t| {
                    matches!(t, DataType::Date32 | DataType::Timestamp(TimeUnit::Microsecond, _))
                        && t != *field.data_type()
                }) =>
        {
            Ok(Transformed::yes(convert(*expr, field.data_type())))
        }
        expr => Ok(match infinity::rewrite(&expr, schema)? {
            Some(expr) => Transformed::yes(expr),
            None => Transformed::no(expr),
        }),
    }
}

/// Between dates and timestamps of microseconds; infinite stays infinite, as in PostgreSQL. The session's time zone is UTC.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Convert {
    name: &'static str,
    to: DataType,
    signature: Signature,
}

impl Convert {
    fn new(name: &'static str, to: DataType) -> Self {
        Self { name, to, signature: Signature::new(TypeSignature::Any(1), Volatility::Immutable) }
    }
}

const MICROS_PER_DAY: i64 = 86_400_000_000;

impl ScalarUDFImpl for Convert {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(self.to.clone())
    }
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        map_array(args, |array| {
            Ok(match (array.data_type(), &self.to) {
                (DataType::Date32, DataType::Timestamp(_, zone)) => {
                    // A finite date that no timestamp can hold is before or after all of them, as an infinite one.
                    let micros = array.as_primitive::<Date32Type>().unary::<_, TimestampMicrosecondType>(|days| {
                        let micros = i64::from(days).checked_mul(MICROS_PER_DAY);
                        micros.unwrap_or(if days > 0 { TIMESTAMP_INFINITY } else { -TIMESTAMP_INFINITY })
                    });
                    Arc::new(micros.with_timezone_opt(zone.clone()))
                }
                // A moment is the same number with a zone and without one.
                (DataType::Timestamp(TimeUnit::Microsecond, _), DataType::Timestamp(TimeUnit::Microsecond, zone)) => {
                    let micros = array.as_primitive::<TimestampMicrosecondType>().clone();
                    Arc::new(micros.with_timezone_opt(zone.clone()))
                }
                (DataType::Timestamp(TimeUnit::Microsecond, _), DataType::Date32) => {
                    let days =
                        array.as_primitive::<TimestampMicrosecondType>().unary::<_, Date32Type>(
                            |micros| match micros {
                                TIMESTAMP_INFINITY => DATE_INFINITY,
                                micros if micros == -TIMESTAMP_INFINITY => -DATE_INFINITY,
                                micros => i32::try_from(micros.div_euclid(MICROS_PER_DAY)).unwrap_or(DATE_INFINITY),
                            },
                        );
                    Arc::new(days)
                }
                (from, to) => return exec_err!("{}: no conversion from {from} to {to}", self.name),
            })
        })
    }
}

/// `value::text`, as PostgreSQL prints it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ToText {
    signature: Signature,
}

impl ToText {
    fn new() -> Self {
        Self { signature: Signature::new(TypeSignature::Any(1), Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for ToText {
    fn name(&self) -> &str {
        "pg_text"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        map_array(args, |array| {
            let print = printer(array, Style::Text)?;
            let mut texts = StringBuilder::with_capacity(array.len(), array.len() * 16);
            let mut text = String::new();
            let nulls = array.logical_nulls();
            for row in 0..array.len() {
                if nulls.as_ref().is_some_and(|n| n.is_null(row)) {
                    texts.append_null();
                } else {
                    text.clear();
                    print(row, &mut text);
                    texts.append_value(&text);
                }
            }
            Ok(Arc::new(texts.finish()))
        })
    }
}

/// `text::uuid`
#[derive(Debug, PartialEq, Eq, Hash)]
struct ToUuid {
    signature: Signature,
}

impl ToUuid {
    fn new() -> Self {
        Self { signature: Signature::string(1, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for ToUuid {
    fn name(&self) -> &str {
        "pg_uuid"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(UUID)
    }
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        map_array(args, |array| {
            let texts = arrow::compute::cast(array, &DataType::Utf8)?;
            let texts = texts.as_string::<i32>();
            let mut uuids = FixedSizeBinaryBuilder::with_capacity(texts.len(), 16);
            for text in texts {
                match text.map(|t| parse_uuid(t).ok_or(t)) {
                    None => uuids.append_null(),
                    Some(Ok(bytes)) => uuids.append_value(bytes)?,
                    Some(Err(text)) => return exec_err!("invalid input syntax for type uuid: \"{text}\""),
                }
            }
            Ok(Arc::new(uuids.finish()))
        })
    }
}

pub(super) fn map_array(
    args: ScalarFunctionArgs,
    map: impl Fn(&ArrayRef) -> Result<ArrayRef>,
) -> Result<ColumnarValue> {
    match args.args.first() {
        Some(ColumnarValue::Array(array)) => Ok(ColumnarValue::Array(map(array)?)),
        Some(ColumnarValue::Scalar(value)) => {
            let array = map(&value.to_array()?)?;
            Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?))
        }
        None => exec_err!("one argument expected"),
    }
}
