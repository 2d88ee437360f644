//! Infinite dates and timestamps in functions and arithmetic: `date_trunc('day', at)`, `at + interval '1 day'`, `a - b`, `extract(… from
//! at)` -> expressions that give what PostgreSQL gives, or say what cannot be given.
//!
//! To DataFusion an infinity is the greatest number of microseconds or days, and nearly everything it does with that overflows
//! and fails the query, or is silently some moment in the year 294247.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array};
use arrow::compute::nullif;
use arrow::datatypes::{DataType, Date32Type, Float64Type, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{DFSchema, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, Operator, ScalarFunctionArgs, ScalarUDFImpl, Signature,
    TypeSignature, Volatility, cast, when,
};
use datafusion::prelude::coalesce;

use lakeward_event::types::{DATE_INFINITY, TIMESTAMP_INFINITY};

use super::rewrite::{call, convert, map_array};

const TIMESTAMP: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

/// The expression with infinities as in PostgreSQL; None: it does nothing with them.
pub fn rewrite(expr: &Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    let ty = |e: &Expr| e.get_type(schema).ok();
    let infinite = |e: &Expr| ty(e).is_some_and(|t| can_be_infinite(&t)) && !is_guarded(e);
    let is_moment = |e: &Expr| ty(e).is_some_and(|t| matches!(t, DataType::Date32 | DataType::Timestamp(..)));
    match expr {
        Expr::ScalarFunction(function) if matches!(function.name(), "date_trunc" | "date_bin") => {
            let Some(moment) = function.args.get(1).filter(|e| infinite(e)).cloned() else { return Ok(None) };
            // DataFusion would take a date to nanoseconds.
            let moment = if ty(&moment) == Some(DataType::Date32) { convert(moment, &TIMESTAMP) } else { moment };
            let mut args = function.args.clone();
            let of = |argument: Expr| {
                args[1] = argument;
                Expr::ScalarFunction(ScalarFunction { func: function.func.clone(), args: args.clone() })
            };
            guarded(moment, of, schema)
        }
        Expr::ScalarFunction(function) if matches!(function.name(), "date_part" | "datepart" | "extract") => {
            let [field, moment] = function.args.as_slice() else { return Ok(None) };
            if !infinite(moment) {
                return Ok(None);
            }
            let of = |argument: Expr| {
                Expr::ScalarFunction(ScalarFunction {
                    func: function.func.clone(),
                    args: vec![field.clone(), argument],
                })
            };
            let Expr::Literal(value, _) = field else { return Ok(None) };
            let name = value.try_as_str().flatten().unwrap_or_default().to_lowercase();
            Ok(Some(match name.as_str() {
                "epoch" => {
                    let finite = of(call(Part::new(What::Finite), moment.clone()));
                    coalesce(vec![finite, call(Part::new(What::Sign), moment.clone())])
                }
                // An integer here, infinity there.
                "year" | "isoyear" | "decade" | "century" | "millennium" | "julian" => {
                    of(call(Part::new(What::Countable), moment.clone()))
                }
                // Has no hour, no month: NULL.
                _ => of(call(Part::new(What::Finite), moment.clone())),
            }))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if matches!(op, Operator::Plus | Operator::Minus) => {
            let (l, r) = (infinite(left), infinite(right));
            match (l, r) {
                // `now()` has nanoseconds and is never infinite.
                (l, r) if (l || r) && *op == Operator::Minus && is_moment(left) && is_moment(right) => {
                    let checked = |e: &Expr, can: bool| {
                        Box::new(if can { call(Part::new(What::Subtractable), e.clone()) } else { e.clone() })
                    };
                    Ok(Some(Expr::BinaryExpr(BinaryExpr::new(checked(left, l), *op, checked(right, r)))))
                }
                (true, false) => {
                    let of = |moment: Expr| Expr::BinaryExpr(BinaryExpr::new(Box::new(moment), *op, right.clone()));
                    not_of_null(guarded((**left).clone(), of, schema)?, right)
                }
                (false, true) if *op == Operator::Plus => {
                    let of = |moment: Expr| Expr::BinaryExpr(BinaryExpr::new(left.clone(), *op, Box::new(moment)));
                    not_of_null(guarded((**right).clone(), of, schema)?, left)
                }
                _ => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

fn can_be_infinite(ty: &DataType) -> bool {
    matches!(ty, DataType::Date32 | DataType::Timestamp(TimeUnit::Microsecond, _))
}

/// Rewritten already.
fn is_guarded(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(f) if f.func.inner().downcast_ref::<Part>().is_some())
}

/// `of(moment)` for finite moments; an infinite one stays what it is.
fn guarded(moment: Expr, of: impl FnOnce(Expr) -> Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    let from = moment.get_type(schema)?;
    let mut finite = of(call(Part::new(What::Finite), moment.clone()));
    let mut to = finite.get_type(schema)?;
    if let DataType::Timestamp(TimeUnit::Nanosecond, zone) = &to {
        to = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
        finite = cast(finite, to.clone());
    }
    if !can_be_infinite(&to) {
        return plan_err!("{finite} is a {to}, which has no infinity: cast {moment} to timestamp");
    }
    let infinite = call(Part::new(What::Infinite), moment);
    let infinite = if from == to { infinite } else { convert(infinite, &to) };
    Ok(Some(coalesce(vec![finite, infinite])))
}

/// An infinity plus NULL is NULL.
fn not_of_null(sum: Option<Expr>, other: &Expr) -> Result<Option<Expr>> {
    match sum {
        Some(sum) if !matches!(other, Expr::Literal(value, _) if !value.is_null()) => {
            Ok(Some(when(other.clone().is_not_null(), sum).end()?))
        }
        sum => Ok(sum),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum What {
    /// NULL in place of infinities.
    Finite,
    /// NULL in place of anything else.
    Infinite,
    /// The infinity as a float, NULL in place of anything else.
    Sign,
    /// All of it; an infinity fails the query.
    Subtractable,
    Countable,
}

/// A part of dates or timestamps.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Part {
    what: What,
    signature: Signature,
}

impl Part {
    fn new(what: What) -> Self {
        Self { what, signature: Signature::new(TypeSignature::Any(1), Volatility::Immutable) }
    }
}

/// Which rows hold an infinity.
fn infinities(array: &ArrayRef) -> Result<BooleanArray> {
    Ok(match array.data_type() {
        DataType::Date32 => BooleanArray::from_unary(array.as_primitive::<Date32Type>(), |days| {
            days == DATE_INFINITY || days == -DATE_INFINITY
        }),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            BooleanArray::from_unary(array.as_primitive::<TimestampMicrosecondType>(), |micros| {
                micros == TIMESTAMP_INFINITY || micros == -TIMESTAMP_INFINITY
            })
        }
        other => return exec_err!("{other} has no infinity"),
    })
}

/// Zero in place of infinities: functions calculate with what is beneath a NULL, too, and overflow.
fn harmless(array: &ArrayRef) -> Result<ArrayRef> {
    Ok(match array.data_type() {
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>();
            Arc::new(days.unary::<_, Date32Type>(|d| if d == DATE_INFINITY || d == -DATE_INFINITY { 0 } else { d }))
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let micros = array.as_primitive::<TimestampMicrosecondType>();
            let finite = |m| if m == TIMESTAMP_INFINITY || m == -TIMESTAMP_INFINITY { 0 } else { m };
            Arc::new(micros.unary::<_, TimestampMicrosecondType>(finite).with_timezone_opt(zone.clone()))
        }
        other => return exec_err!("{other} has no infinity"),
    })
}

impl ScalarUDFImpl for Part {
    fn name(&self) -> &str {
        match self.what {
            What::Finite => "pg_finite",
            What::Infinite => "pg_infinite",
            What::Sign => "pg_infinity",
            What::Subtractable => "pg_subtractable",
            What::Countable => "pg_countable",
        }
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match (self.what, types) {
            (What::Sign, _) => Ok(DataType::Float64),
            (_, [ty]) => Ok(ty.clone()),
            _ => plan_err!("one argument expected"),
        }
    }
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        map_array(args, |array| {
            let infinite = infinities(array)?;
            Ok(match self.what {
                What::Finite => nullif(&harmless(array)?, &infinite)?,
                What::Infinite => nullif(array, &arrow::compute::not(&infinite)?)?,
                What::Sign => {
                    let numbers = arrow::compute::cast(array, &DataType::Int64)?;
                    let signs = numbers
                        .as_primitive::<arrow::datatypes::Int64Type>()
                        .unary::<_, Float64Type>(|n| f64::INFINITY.copysign(n as f64));
                    let signs: Float64Array = signs;
                    nullif(&signs, &arrow::compute::not(&infinite)?)?
                }
                What::Subtractable if infinite.true_count() > 0 => {
                    return exec_err!(
                        "cannot subtract infinite timestamps: leave them out, they are those equal to 'infinity' or '-infinity'"
                    );
                }
                What::Countable if infinite.true_count() > 0 => {
                    return exec_err!(
                        "the year of an infinite timestamp is no integer: leave them out, they are those equal to 'infinity' or '-infinity'"
                    );
                }
                What::Subtractable | What::Countable => Arc::clone(array),
            })
        })
    }
}

/// A literal text as a date or timestamp where it is an infinity, which DataFusion does not read.
pub fn literal(text: &str, to: &DataType) -> Option<ScalarValue> {
    let positive = match text.trim().to_lowercase().as_str() {
        "infinity" | "+infinity" => true,
        "-infinity" => false,
        _ => return None,
    };
    let sign = if positive { 1 } else { -1 };
    match to {
        DataType::Date32 => Some(ScalarValue::Date32(Some(DATE_INFINITY * sign))),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            Some(ScalarValue::TimestampMicrosecond(Some(TIMESTAMP_INFINITY * i64::from(sign)), zone.clone()))
        }
        _ => None,
    }
}
