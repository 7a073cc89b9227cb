//! A table's filter in PostgreSQL's words, for the WHERE of a copy.
//!
//! The buffer decides every row anyway; this spares the server the rows that it would leave
//! out, and so it must never leave out one that the buffer would keep. Text is compared as
//! the log has it, through the type's output function, byte by byte.

use super::connect::{ident, literal};
use super::mapping::{CopyForm, copy_expression};
use caudal_model::filter::FilterDialect;
use caudal_model::schema::Column;
use caudal_model::{Error, Filter, Result, TableSchema};

struct Dialect<'a>(&'a TableSchema);

impl FilterDialect for Dialect<'_> {
    fn identifier(&self, name: &str) -> String {
        let column = self.0.columns.iter().find(|c| c.name == name);
        match column.map(|c| c.source_type.as_str()) {
            // It compares with money alone.
            Some("money") => format!("{}::numeric", ident(name)),
            _ => ident(name),
        }
    }

    fn text(&self, value: &str) -> String {
        literal(value)
    }

    fn exact_text(&self, column: &Column) -> String {
        // The cast of char(n) drops the padding, which is no part of the value here.
        let cast = ["character", "bpchar", "text"];
        let text = if cast.iter().any(|t| column.source_type.starts_with(t)) {
            format!("{}::text", ident(&column.name))
        } else {
            copy_expression(&column.name, CopyForm::Output)
        };
        format!("({text}) COLLATE \"C\"")
    }
}

/// The condition of a table's filter.
///
/// Errors: a data error if the filter does not fit the table's columns.
pub fn condition(filter: &Filter, schema: &TableSchema) -> Result<String> {
    filter.sql(schema, &Dialect(schema)).map_err(|why| {
        Error::data(&schema.table, why).hint(format!(
            "correct the filter of this table's override, then run `caudal resnapshot {}`",
            schema.table
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{FilterSyntax, parse};
    use caudal_model::schema::ColumnSpec;
    use caudal_model::{LakeType, TableName};

    #[test]
    fn conditions_compare_what_the_log_has() {
        let money = LakeType::Decimal {
            precision: 19,
            scale: 2,
        };
        let specs = vec![
            ColumnSpec::new("a\"b", "integer", LakeType::Int32),
            ColumnSpec::new("c", "character(5)", LakeType::Utf8),
            ColumnSpec::new("ip", "inet", LakeType::Utf8),
            ColumnSpec::new("m", "money", money),
        ];
        let schema = TableSchema::first(TableName::new("s", "t"), 1, specs, vec![]);
        let sql = |text| {
            let filter = parse(text, FilterSyntax::Standard).unwrap();
            condition(&filter, &schema).unwrap()
        };
        assert_eq!(sql("\"a\"\"b\" > 1"), "(\"a\"\"b\" > 1)");
        assert_eq!(
            sql("c = 'it''s '"),
            "((\"c\"::text) COLLATE \"C\" = 'it''s')"
        );
        assert_eq!(
            sql("ip <> '::1'"),
            "((CASE WHEN num_nulls(\"ip\") = 0 THEN format('%s', \"ip\") END) COLLATE \"C\" <> '::1')"
        );
        assert_eq!(sql("m >= 1.50"), "(\"m\"::numeric >= 1.50)");
        let unknown = parse("gone = 1", FilterSyntax::Standard).unwrap();
        assert!(condition(&unknown, &schema).is_err());
    }
}
