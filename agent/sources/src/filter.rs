//! `filter` of a table's override: SQL text into a [`Filter`].
//!
//! `sqlparser` reads the text; what a reader of the log cannot decide exactly as the server
//! does (functions, arithmetic, columns against columns, LIKE, an order of text) is
//! refused here or, where it depends on a column's type, when the filter meets its table.

use caudal_model::Filter;
use caudal_model::filter::{Comparison, Condition, Literal};
use sqlparser::ast::{BinaryOperator, Expr, Ident, UnaryOperator, Value};
use sqlparser::dialect::{Dialect, MySqlDialect, PostgreSqlDialect};
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

/// Whose SQL a filter is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterSyntax {
    /// Double quotes around names; names without quotes are folded to lower case.
    Standard,
    /// Backticks around names, double quotes around text.
    MySql,
}

/// Longest filter, in bytes: what is longer belongs into a view.
const MAX_TEXT: usize = 16 << 10;

/// Parses a condition.
///
/// Errors: what is not allowed, and what is.
pub fn parse(text: &str, syntax: FilterSyntax) -> Result<Filter, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("is longer than {MAX_TEXT} bytes"));
    }
    let dialect: &dyn Dialect = match syntax {
        FilterSyntax::Standard => &PostgreSqlDialect {},
        FilterSyntax::MySql => &MySqlDialect {},
    };
    let mut parser = Parser::new(dialect)
        .try_with_sql(text)
        .map_err(|e| format!("is not a condition: {e}"))?;
    let parsed = parser
        .parse_expr()
        .map_err(|e| format!("is not a condition: {e}"))?;
    let rest = parser.peek_token().token;
    if rest != Token::EOF {
        return Err(format!("is not one condition: `{rest}` follows it"));
    }
    Ok(Filter {
        text: text.to_owned(),
        condition: condition(&parsed, syntax)?,
    })
}

fn condition(e: &Expr, syntax: FilterSyntax) -> Result<Condition, String> {
    let not = |negated: bool, c: Condition| {
        if negated {
            Condition::Not(Box::new(c))
        } else {
            c
        }
    };
    match e {
        Expr::Nested(inner) => condition(inner, syntax),
        Expr::BinaryOp { left, op, right } => match op {
            BinaryOperator::And => Ok(Condition::And(vec![
                condition(left, syntax)?,
                condition(right, syntax)?,
            ])),
            BinaryOperator::Or => Ok(Condition::Or(vec![
                condition(left, syntax)?,
                condition(right, syntax)?,
            ])),
            _ => {
                let op = comparison(op).ok_or_else(|| refused(e))?;
                if let Some(name) = column(left, syntax) {
                    return Ok(Condition::Compare(name, op, literal(right)?));
                }
                let name = column(right, syntax).ok_or_else(|| refused(e))?;
                Ok(Condition::Compare(name, mirrored(op), literal(left)?))
            }
        },
        Expr::UnaryOp {
            op: UnaryOperator::Not,
            expr,
        } => Ok(not(true, condition(expr, syntax)?)),
        Expr::IsNull(inner) => named(inner, syntax, e).map(Condition::IsNull),
        Expr::IsNotNull(inner) => Ok(not(true, Condition::IsNull(named(inner, syntax, e)?))),
        Expr::InList {
            expr,
            list,
            negated,
        } => {
            let name = named(expr, syntax, e)?;
            let one = |item| {
                Ok(Condition::Compare(
                    name.clone(),
                    Comparison::Equal,
                    literal(item)?,
                ))
            };
            let any: Result<Vec<Condition>, String> = list.iter().map(one).collect();
            Ok(not(*negated, Condition::Or(any?)))
        }
        Expr::Between {
            expr,
            negated,
            low,
            high,
        } => {
            let name = named(expr, syntax, e)?;
            let both = Condition::And(vec![
                Condition::Compare(name.clone(), Comparison::GreaterOrEqual, literal(low)?),
                Condition::Compare(name, Comparison::LessOrEqual, literal(high)?),
            ]);
            Ok(not(*negated, both))
        }
        // `WHERE active`
        Expr::Identifier(_) => {
            let name = named(e, syntax, e)?;
            Ok(Condition::Compare(
                name,
                Comparison::Equal,
                Literal::Boolean(true),
            ))
        }
        _ => Err(refused(e)),
    }
}

fn refused(e: &Expr) -> String {
    format!(
        "`{e}` cannot be decided from the log; a filter compares columns with constants by =, <>, \
         <, <=, >, >=, IN, BETWEEN, IS [NOT] NULL, joined by AND, OR, NOT"
    )
}

fn comparison(op: &BinaryOperator) -> Option<Comparison> {
    Some(match op {
        BinaryOperator::Eq => Comparison::Equal,
        BinaryOperator::NotEq => Comparison::NotEqual,
        BinaryOperator::Lt => Comparison::Less,
        BinaryOperator::LtEq => Comparison::LessOrEqual,
        BinaryOperator::Gt => Comparison::Greater,
        BinaryOperator::GtEq => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

/// The same comparison with its sides exchanged.
fn mirrored(op: Comparison) -> Comparison {
    match op {
        Comparison::Less => Comparison::Greater,
        Comparison::LessOrEqual => Comparison::GreaterOrEqual,
        Comparison::Greater => Comparison::Less,
        Comparison::GreaterOrEqual => Comparison::LessOrEqual,
        same => same,
    }
}

fn named(e: &Expr, syntax: FilterSyntax, whole: &Expr) -> Result<String, String> {
    column(e, syntax).ok_or_else(|| refused(whole))
}

fn column(e: &Expr, syntax: FilterSyntax) -> Option<String> {
    let Expr::Identifier(Ident {
        value, quote_style, ..
    }) = e
    else {
        return None;
    };
    Some(match (syntax, quote_style) {
        // An unquoted name is folded by the server.
        (FilterSyntax::Standard, None) => value.to_lowercase(),
        (FilterSyntax::Standard, Some(_)) | (FilterSyntax::MySql, None | Some('`')) => {
            value.clone()
        }
        (FilterSyntax::MySql, Some(_)) => return None,
    })
}

fn literal(e: &Expr) -> Result<Literal, String> {
    match e {
        Expr::Nested(inner) => literal(inner),
        Expr::UnaryOp {
            op: op @ (UnaryOperator::Minus | UnaryOperator::Plus),
            expr,
        } => match literal(expr)? {
            Literal::Number(n) if matches!(op, UnaryOperator::Minus) => {
                Ok(Literal::Number(format!("-{n}")))
            }
            Literal::Number(n) => Ok(Literal::Number(n)),
            _ => Err(refused(e)),
        },
        // DATE '…' and TIMESTAMP '…'
        Expr::TypedString(typed) => match &typed.value.value {
            Value::SingleQuotedString(s) => Ok(Literal::Text(s.clone())),
            _ => Err(refused(e)),
        },
        Expr::Value(v) => match &v.value {
            Value::Number(n, _) => Ok(Literal::Number(n.clone())),
            Value::SingleQuotedString(s) | Value::DoubleQuotedString(s) => {
                Ok(Literal::Text(s.clone()))
            }
            Value::Boolean(b) => Ok(Literal::Boolean(*b)),
            _ => Err(refused(e)),
        },
        _ => Err(refused(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_as_each_server_reads_them() {
        let parsed = |text, syntax| parse(text, syntax).unwrap().condition;
        let text = |s: &str| Literal::Text(s.into());
        let compare = |c: &str, op, l| Condition::Compare(c.into(), op, l);
        use Comparison::*;
        assert_eq!(
            parsed("Region = 'it''s'", FilterSyntax::Standard),
            compare("region", Equal, text("it's"))
        );
        assert_eq!(
            parsed("\"Region\" = 'eu'", FilterSyntax::Standard),
            compare("Region", Equal, text("eu"))
        );
        assert_eq!(
            parsed("`a b` = \"eu\"", FilterSyntax::MySql),
            compare("a b", Equal, text("eu"))
        );
        assert_eq!(
            parsed("-1.5 < x", FilterSyntax::MySql),
            compare("x", Greater, Literal::Number("-1.5".into()))
        );
        assert_eq!(
            parsed(
                "x NOT IN (1, 2) AND (y IS NULL OR z)",
                FilterSyntax::Standard
            ),
            Condition::And(vec![
                Condition::Not(Box::new(Condition::Or(vec![
                    compare("x", Equal, Literal::Number("1".into())),
                    compare("x", Equal, Literal::Number("2".into())),
                ]))),
                Condition::Or(vec![
                    Condition::IsNull("y".into()),
                    compare("z", Equal, Literal::Boolean(true)),
                ]),
            ])
        );
        assert_eq!(
            parsed("d >= DATE '2024-01-01'", FilterSyntax::Standard),
            compare("d", GreaterOrEqual, text("2024-01-01"))
        );
    }

    #[test]
    fn what_the_log_cannot_decide_is_refused() {
        for bad in [
            "lower(a) = 'x'",
            "a = b",
            "a + 1 = 2",
            "a LIKE 'x%'",
            "a = 1; DROP TABLE t",
            "a = 1 b",
            "",
            "a = NULL",
            "EXISTS (SELECT 1)",
        ] {
            assert!(parse(bad, FilterSyntax::Standard).is_err(), "{bad}");
        }
    }
}
