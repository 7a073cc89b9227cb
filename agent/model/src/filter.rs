//! Row filters: the part of SQL's conditions that a log's reader can decide exactly as
//! the server does.
//!
//! A condition compares columns with constants. Text is compared byte by byte, for equality
//! only: an order or an equality under a collation is the server's secret. Everything
//! else is compared by value. Logic has three values, as in SQL: a row is carried where
//! the condition is true, neither where it is false nor where it is unknown.

use crate::schema::{Column, LakeType, TableSchema};
use crate::{ColumnBuilder, column::CellRef};
use arrow::datatypes::i256;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// How a column is compared with a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `=`
    Equal,
    /// `<>`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Comparison::Equal => order.is_eq(),
            Comparison::NotEqual => order.is_ne(),
            Comparison::Less => order.is_lt(),
            Comparison::LessOrEqual => order.is_le(),
            Comparison::Greater => order.is_gt(),
            Comparison::GreaterOrEqual => order.is_ge(),
        }
    }

    fn sql(self) -> &'static str {
        match self {
            Comparison::Equal => "=",
            Comparison::NotEqual => "<>",
            Comparison::Less => "<",
            Comparison::LessOrEqual => "<=",
            Comparison::Greater => ">",
            Comparison::GreaterOrEqual => ">=",
        }
    }
}

/// A constant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Literal {
    /// Digits with an optional sign and point.
    Number(String),
    /// A quoted text: for text, dates and times.
    Text(String),
    /// `TRUE`, `FALSE`
    Boolean(bool),
}

/// A condition's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// A column against a constant.
    Compare(String, Comparison, Literal),
    /// `column IS NULL`
    IsNull(String),
    /// All of them.
    And(Vec<Condition>),
    /// One of them.
    Or(Vec<Condition>),
    /// Its contrary.
    Not(Box<Condition>),
}

/// The rows of a table that are carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// As the user wrote it.
    pub text: String,
    /// What it says.
    pub condition: Condition,
}

/// How a server writes the parts of a condition.
pub trait FilterDialect {
    /// A column's quoted name.
    fn identifier(&self, name: &str) -> String;
    /// A text constant.
    fn text(&self, value: &str) -> String;
    /// The value of a column whose lake type is text, for a comparison byte by byte.
    fn exact_text(&self, column: &Column) -> String;
    /// A text constant for a comparison byte by byte.
    fn exact_literal(&self, value: &str) -> String {
        self.text(value)
    }
}

impl Filter {
    /// The columns that it looks at.
    pub fn columns(&self) -> BTreeSet<String> {
        let mut out = BTreeSet::new();
        collect(&self.condition, &mut out);
        out
    }

    /// The condition in the server's own words, for a WHERE.
    ///
    /// Errors as [`Self::bind`].
    pub fn sql(&self, schema: &TableSchema, dialect: &dyn FilterDialect) -> Result<String, String> {
        render(&self.condition, schema, dialect)
    }

    /// Prepares the condition for one schema version.
    ///
    /// Errors: what the condition cannot say of a column of its type, or a column that
    /// is not there.
    pub fn bind(&self, schema: &TableSchema) -> Result<BoundFilter, String> {
        Ok(BoundFilter(bind(&self.condition, schema)?))
    }
}

fn collect(condition: &Condition, out: &mut BTreeSet<String>) {
    match condition {
        Condition::Compare(column, ..) | Condition::IsNull(column) => {
            out.insert(column.clone());
        }
        Condition::And(all) | Condition::Or(all) => all.iter().for_each(|c| collect(c, out)),
        Condition::Not(c) => collect(c, out),
    }
}

fn column<'s>(schema: &'s TableSchema, name: &str) -> Result<(usize, &'s Column), String> {
    let found = schema
        .columns
        .iter()
        .enumerate()
        .find(|(_, c)| c.name == name);
    found.ok_or_else(|| format!("the filter names column `{name}`, which the table does not carry"))
}

fn render(
    condition: &Condition,
    schema: &TableSchema,
    dialect: &dyn FilterDialect,
) -> Result<String, String> {
    let all = |list: &[Condition], word: &str| {
        let parts: Result<Vec<String>, String> =
            list.iter().map(|c| render(c, schema, dialect)).collect();
        Ok::<_, String>(format!("({})", parts?.join(word)))
    };
    Ok(match condition {
        Condition::And(list) => all(list, " AND ")?,
        Condition::Or(list) => all(list, " OR ")?,
        Condition::Not(c) => format!("(NOT {})", render(c, schema, dialect)?),
        Condition::IsNull(name) => {
            format!(
                "({} IS NULL)",
                dialect.identifier(&column(schema, name)?.1.name)
            )
        }
        Condition::Compare(name, op, literal) => {
            let column = column(schema, name)?.1;
            let constant = constant(column, *op, literal)?;
            let (left, right) = match (&constant, literal) {
                (Constant::Text(text, _), _) => {
                    (dialect.exact_text(column), dialect.exact_literal(text))
                }
                (Constant::Boolean(b), _) => (
                    dialect.identifier(name),
                    if *b { "TRUE" } else { "FALSE" }.to_owned(),
                ),
                (_, Literal::Number(n)) => (dialect.identifier(name), n.clone()),
                (_, Literal::Text(t)) => (dialect.identifier(name), dialect.text(t)),
                (_, Literal::Boolean(b)) => (dialect.identifier(name), u8::from(*b).to_string()),
            };
            format!("({left} {} {right})", op.sql())
        }
    })
}

/// A constant as its column's values are compared.
#[derive(Debug, Clone, PartialEq)]
enum Constant {
    Boolean(bool),
    /// Unscaled, with its scale.
    Decimal(i256, u32),
    Float(f64),
    /// And whether blanks at the end do not count.
    Text(String, bool),
    /// Days or microseconds.
    Moment(i64),
}

fn constant(column: &Column, op: Comparison, literal: &Literal) -> Result<Constant, String> {
    let misfit = || {
        format!(
            "the filter compares column `{}` ({}) with a constant of another type",
            column.name, column.lake_type
        )
    };
    match (&column.lake_type, literal) {
        (LakeType::Boolean, Literal::Boolean(b)) => Ok(Constant::Boolean(*b)),
        (LakeType::Boolean, Literal::Number(n)) => match n.as_str() {
            "0" => Ok(Constant::Boolean(false)),
            "1" => Ok(Constant::Boolean(true)),
            _ => Err(misfit()),
        },
        (
            LakeType::Int8
            | LakeType::Int16
            | LakeType::Int32
            | LakeType::Int64
            | LakeType::Decimal { .. },
            literal,
        ) => match literal {
            Literal::Number(n) => decimal(n).ok_or_else(misfit),
            // MySQL's TRUE and FALSE are 1 and 0.
            Literal::Boolean(b) => Ok(Constant::Decimal(i256::from(i32::from(*b)), 0)),
            Literal::Text(_) => Err(misfit()),
        },
        (LakeType::Float32 | LakeType::Float64, Literal::Number(n)) => {
            n.parse().map(Constant::Float).map_err(|_| misfit())
        }
        (LakeType::Utf8, Literal::Text(t)) => {
            if !matches!(op, Comparison::Equal | Comparison::NotEqual) {
                return Err(format!(
                    "the filter orders column `{}` by its text, which only the server's collation \
                     can; text allows =, <>, IN and IS NULL",
                    column.name
                ));
            }
            // PostgreSQL's char(n): its padding is no part of the value.
            let padded = column.source_type.starts_with("character(")
                || column.source_type.starts_with("bpchar");
            let text = if padded { t.trim_end_matches(' ') } else { t };
            Ok(Constant::Text(text.to_owned(), padded))
        }
        (LakeType::Date32, Literal::Text(t)) => date(t).map(Constant::Moment).ok_or_else(misfit),
        (LakeType::Timestamp | LakeType::TimestampUtc, Literal::Text(t)) => {
            timestamp(t).map(Constant::Moment).ok_or_else(misfit)
        }
        (LakeType::Binary | LakeType::List(_) | LakeType::Map | LakeType::Time64, _) => {
            Err(format!(
                "the filter compares column `{}` ({}), of which it can only say IS NULL",
                column.name, column.lake_type
            ))
        }
        _ => Err(misfit()),
    }
}

fn decimal(text: &str) -> Option<Constant> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all = [whole, fraction].concat();
    // 38 digits are all that a column has.
    if all.is_empty() || all.len() > 38 || !all.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: i128 = all.parse().ok()?;
    let value = i256::from_i128(if negative { -value } else { value });
    Some(Constant::Decimal(value, fraction.len() as u32))
}

/// Days since 1970-01-01 of `YYYY-MM-DD`.
fn date(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, '-');
    let (y, m, d) = (parts.next()?, parts.next()?, parts.next()?);
    if y.len() != 4 || m.len() != 2 || d.len() != 2 {
        return None;
    }
    let (y, m, d): (i64, i64, i64) = (y.parse().ok()?, m.parse().ok()?, d.parse().ok()?);
    let leap = y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
    let length = match m {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=length).contains(&d) {
        return None;
    }
    // Days from civil, with the year beginning in March.
    let shifted = if m > 2 { y } else { y - 1 };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * (if m > 2 { m - 3 } else { m + 9 }) + 2) / 5 + d - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

/// Microseconds since 1970 of `YYYY-MM-DD[( |T)HH:MM[:SS[.ffffff]]][Z|+00[:00]]`; UTC is the
/// only zone.
fn timestamp(text: &str) -> Option<i64> {
    let text = ["Z", "+00:00", "+00"]
        .iter()
        .find_map(|z| text.strip_suffix(z))
        .unwrap_or(text);
    let (day, time) = match text.split_once([' ', 'T']) {
        Some((day, time)) => (day, time),
        None => (text, "00:00"),
    };
    let mut parts = time.splitn(3, ':');
    let two = |p: Option<&str>, max: i64| {
        let p = p.filter(|p| p.len() == 2)?;
        p.parse().ok().filter(|v: &i64| (0..max).contains(v))
    };
    let (hour, minute) = (two(parts.next(), 24)?, two(parts.next(), 60)?);
    let seconds = parts.next().unwrap_or("00");
    let (second, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let second = two(Some(second), 60)?;
    if fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let micros: i64 = format!("{fraction:0<6}").parse().ok()?;
    Some(((date(day)? * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000 + micros)
}

#[derive(Debug)]
enum Bound {
    Compare(usize, Comparison, Constant),
    IsNull(usize),
    And(Vec<Bound>),
    Or(Vec<Bound>),
    Not(Box<Bound>),
}

fn bind(condition: &Condition, schema: &TableSchema) -> Result<Bound, String> {
    let all = |list: &[Condition]| {
        list.iter()
            .map(|c| bind(c, schema))
            .collect::<Result<Vec<Bound>, String>>()
    };
    Ok(match condition {
        Condition::Compare(name, op, literal) => {
            let (at, column) = column(schema, name)?;
            Bound::Compare(at, *op, constant(column, *op, literal)?)
        }
        Condition::IsNull(name) => Bound::IsNull(column(schema, name)?.0),
        Condition::And(list) => Bound::And(all(list)?),
        Condition::Or(list) => Bound::Or(all(list)?),
        Condition::Not(c) => Bound::Not(Box::new(bind(c, schema)?)),
    })
}

/// A filter for one schema version.
#[derive(Debug)]
pub struct BoundFilter(Bound);

impl BoundFilter {
    /// A filter that carries nothing.
    pub(crate) fn nothing() -> Self {
        BoundFilter(Bound::Or(Vec::new()))
    }

    /// Whether the row whose cells were appended last is carried.
    pub fn carries(&self, columns: &[ColumnBuilder]) -> bool {
        eval(&self.0, columns) == Some(true)
    }
}

fn eval(bound: &Bound, columns: &[ColumnBuilder]) -> Option<bool> {
    match bound {
        Bound::IsNull(at) => Some(columns[*at].last() == CellRef::Null),
        Bound::Not(b) => eval(b, columns).map(|v| !v),
        Bound::And(list) => {
            let mut known = Some(true);
            for b in list {
                match eval(b, columns) {
                    Some(false) => return Some(false),
                    None => known = None,
                    Some(true) => {}
                }
            }
            known
        }
        Bound::Or(list) => {
            let mut known = Some(false);
            for b in list {
                match eval(b, columns) {
                    Some(true) => return Some(true),
                    None => known = None,
                    Some(false) => {}
                }
            }
            known
        }
        Bound::Compare(at, op, constant) => {
            compare(columns[*at].last(), constant).map(|order| op.holds(order))
        }
    }
}

fn compare(cell: CellRef<'_>, constant: &Constant) -> Option<Ordering> {
    Some(match (cell, constant) {
        (CellRef::Boolean(a), Constant::Boolean(b)) => a.cmp(b),
        (CellRef::Integer(a), Constant::Decimal(b, scale)) => {
            scaled(i256::from_i128(a.into()), *scale).cmp(b)
        }
        (CellRef::Decimal(a, column_scale), Constant::Decimal(b, scale)) => {
            let a = scaled(i256::from_i128(a), *scale);
            a.cmp(&scaled(*b, u32::from(column_scale)))
        }
        (CellRef::Integer(a), Constant::Moment(b)) => a.cmp(b),
        // PostgreSQL's order: NaN equals itself and is above everything.
        (CellRef::Float(a), Constant::Float(b)) => a.partial_cmp(b).unwrap_or(Ordering::Greater),
        (CellRef::Text(a), Constant::Text(b, padded)) => {
            let blanks = a.iter().rev().take_while(|c| **c == b' ').count();
            let end = if *padded { a.len() - blanks } else { a.len() };
            a[..end].cmp(b.as_bytes())
        }
        _ => return None,
    })
}

fn scaled(value: i256, digits: u32) -> i256 {
    // 38 + 38 digits fit: 10⁷⁶ is below 2²⁵⁵.
    value.wrapping_mul(i256::from_i128(10).wrapping_pow(digits))
}
