//! What a user has done to rows on their way: columns hashed, rows left out.
//!
//! The rules are applied where a row is finished, in the one place that rows of
//! snapshots and of the log have in common, so that both get the same.

use crate::filter::BoundFilter;
use crate::schema::TableSchema;
use crate::{ColumnBuilder, Filter, TableName};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt;

/// The rules of one table.
#[derive(Debug, Clone, Default)]
pub struct TableRules {
    /// Columns whose text is replaced by its hash; their lake type is text.
    pub hash_columns: Vec<String>,
    /// The rows that are carried.
    pub filter: Option<Filter>,
}

/// The rules of a stream.
#[derive(Default)]
pub struct Rules {
    salt: Vec<u8>,
    tables: HashMap<TableName, TableRules>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("tables", &self.tables)
            .finish_non_exhaustive()
    }
}

impl Rules {
    /// Rules with the salt of `hash_columns`.
    pub fn new(salt: impl Into<Vec<u8>>, tables: HashMap<TableName, TableRules>) -> Self {
        Rules {
            salt: salt.into(),
            tables,
        }
    }

    /// Whether the table's rules can be applied to this version of it.
    ///
    /// Errors: why not, naming the column.
    pub fn check(&self, schema: &TableSchema) -> Result<(), String> {
        self.bind(schema).map(|_| ())
    }

    /// The rules for one schema version; `None` where it has none.
    pub(crate) fn bind(&self, schema: &TableSchema) -> Result<Option<BoundRules>, String> {
        let Some(rules) = self.tables.get(&schema.table) else {
            return Ok(None);
        };
        let hashed = rules.hash_columns.iter();
        let hashed = hashed
            .filter_map(|name| schema.columns.iter().position(|c| &c.name == name))
            .collect();
        let filter = rules.filter.as_ref();
        Ok(Some(BoundRules {
            hashed,
            filter: filter.map(|f| f.bind(schema)).transpose()?,
            key: schema.key_indices(),
            salted: Sha256::new_with_prefix(&self.salt),
        }))
    }
}

/// Rules for one schema version.
pub(crate) struct BoundRules {
    hashed: Vec<usize>,
    pub(crate) filter: Option<BoundFilter>,
    pub(crate) key: Vec<usize>,
    /// The hash's state after the salt.
    salted: Sha256,
}

impl fmt::Debug for BoundRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundRules")
            .field("hashed", &self.hashed)
            .finish_non_exhaustive()
    }
}

impl BoundRules {
    /// Rules that keep no row.
    pub(crate) fn nothing() -> Self {
        BoundRules {
            hashed: Vec::new(),
            filter: Some(BoundFilter::nothing()),
            key: Vec::new(),
            salted: Sha256::new(),
        }
    }

    /// Replaces the last row's texts by lower-case hex of SHA-256(salt, text). Nulls stay.
    pub(crate) fn hash(&self, columns: &mut [ColumnBuilder]) {
        for at in &self.hashed {
            if let ColumnBuilder::Utf8(cells) = &mut columns[*at] {
                cells.replace_last(|text| {
                    let digest = self.salted.clone().chain_update(text).finalize();
                    let mut hex = Vec::with_capacity(64);
                    for byte in digest {
                        for nibble in [byte >> 4, byte & 15] {
                            hex.push(b"0123456789abcdef"[usize::from(nibble)]);
                        }
                    }
                    hex
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{Comparison::*, Condition, Literal};
    use crate::schema::ColumnSpec;
    use crate::{ChangeBuffer, LakeType, Op, TransactionMeta};
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::Int32Type;
    use std::sync::Arc;

    fn compare(column: &str, op: crate::filter::Comparison, literal: Literal) -> Condition {
        Condition::Compare(column.into(), op, literal)
    }

    fn schema() -> Arc<TableSchema> {
        let spec = |n: &str, t: LakeType| ColumnSpec::new(n, t.to_string(), t);
        Arc::new(TableSchema::first(
            TableName::new("s", "t"),
            1,
            vec![
                spec("id", LakeType::Int32),
                spec("region", LakeType::Utf8),
                spec("email", LakeType::Utf8),
                spec(
                    "amount",
                    LakeType::Decimal {
                        precision: 10,
                        scale: 2,
                    },
                ),
            ],
            vec!["id".into()],
        ))
    }

    fn rules(condition: Condition) -> Rules {
        let filter = Filter {
            text: String::new(),
            condition,
        };
        let table = TableRules {
            hash_columns: vec!["email".into()],
            filter: Some(filter),
        };
        Rules::new("salt", HashMap::from([(TableName::new("s", "t"), table)]))
    }

    fn row(b: &mut ChangeBuffer, op: Op, id: i32, region: Option<&str>, amount: i128) {
        let slot = b.slot(&schema());
        let mut r = b.row(slot, op);
        if let ColumnBuilder::Int32(c) = r.column(0) {
            c.push(id)
        }
        if let (ColumnBuilder::Utf8(c), Some(region)) = (r.column(1), region) {
            c.push(region.as_bytes())
        }
        if let ColumnBuilder::Utf8(c) = r.column(2) {
            c.push(b"a@b")
        }
        if let ColumnBuilder::Decimal(c, ..) = r.column(3) {
            c.push(amount)
        }
        r.finish();
    }

    #[test]
    fn rows_outside_the_filter_take_no_number_and_leave_as_a_delete() {
        let eu = compare("region", Equal, Literal::Text("eu".into()));
        let mut b = ChangeBuffer::new(1, 1 << 20).with_rules(Arc::new(rules(eu)));
        b.begin(TransactionMeta {
            committed_at_us: 0,
            position: "p".into(),
        });
        row(&mut b, Op::Insert, 1, Some("eu"), 0);
        row(&mut b, Op::Insert, 2, Some("us"), 0);
        row(&mut b, Op::Insert, 3, None, 0);
        row(&mut b, Op::Update, 1, Some("us"), 0);
        row(&mut b, Op::Delete, 9, None, 0);
        assert_eq!(b.next_seq(), 4);
        let rows = b.take().unwrap().remove(0).rows;
        let ids = rows.column(0).as_primitive::<Int32Type>().values().to_vec();
        assert_eq!(ids, [1, 1, 9]);
        let ops = rows.column(4).as_any_dictionary().keys();
        assert_eq!(
            ops.as_primitive::<arrow::datatypes::Int8Type>()
                .values()
                .to_vec(),
            [1, 3, 3]
        );
        // What left the filter leaves no more than its key.
        assert!(rows.column(1).is_null(1) && rows.column(2).is_null(1));
        // printf 'salta@b' | sha256sum
        assert_eq!(
            rows.column(2).as_string::<i32>().value(0),
            "11e9132f813610b7d6694eeaab04e88b87fdafbc83843f2963ed386737850f98"
        );
    }

    #[test]
    fn comparisons_are_exact() {
        let number = |n: &str| Literal::Number(n.into());
        let carried = |condition: Condition, amount| {
            let mut b = ChangeBuffer::new(1, 1 << 20).with_rules(Arc::new(rules(condition)));
            b.begin(TransactionMeta {
                committed_at_us: 0,
                position: "p".into(),
            });
            row(&mut b, Op::Snapshot, 1, None, amount);
            b.next_seq() > 1
        };
        assert!(carried(compare("amount", Less, number("1.001")), 100));
        assert!(!carried(compare("amount", Equal, number("1.001")), 100));
        assert!(carried(compare("amount", Equal, number("1")), 100));
        assert!(carried(
            compare("amount", Greater, number("-1e0".trim_end_matches("e0"))),
            0
        ));
        // Unknown is neither true nor false.
        let unknown = compare("region", Equal, Literal::Text("eu".into()));
        assert!(
            !carried(unknown.clone(), 1) && !carried(Condition::Not(Box::new(unknown.clone())), 1)
        );
        let or = Condition::Or(vec![unknown, Condition::IsNull("region".into())]);
        assert!(carried(or, 1));
    }

    #[test]
    fn only_blanks_pad_a_char() {
        let padded = TableSchema::first(
            TableName::new("s", "t"),
            1,
            vec![ColumnSpec::new("region", "character(4)", LakeType::Utf8)],
            Vec::new(),
        );
        let eu = compare("region", Equal, Literal::Text("eu ".into()));
        let filter = Filter {
            text: String::new(),
            condition: eu,
        };
        let bound = filter.bind(&padded).unwrap();
        let carried = |text: &str| {
            let mut column = ColumnBuilder::new(&LakeType::Utf8);
            if let ColumnBuilder::Utf8(c) = &mut column {
                c.push(text.as_bytes());
            }
            bound.carries(&[column])
        };
        assert!(carried("eu  ") && carried("eu"));
        assert!(!carried("eu \t") && !carried("eu\n"));
    }

    #[test]
    fn a_filter_that_cannot_be_decided_exactly_is_refused() {
        let refused = |c| rules(c).check(&schema()).unwrap_err();
        assert!(refused(compare("region", Less, Literal::Text("x".into()))).contains("collation"));
        assert!(refused(compare("gone", Less, Literal::Number("1".into()))).contains("`gone`"));
        assert!(refused(compare("id", Less, Literal::Text("1".into()))).contains("another type"));
    }
}
