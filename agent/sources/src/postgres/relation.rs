//! Rows of the log into rows of the lake, table by table.
//!
//! A [`RowPlan`] is made once for a table's `Relation` message and schema version,
//! and says for each cell of the wire where it goes; the rows then need no look-up.

use super::catalog::{ColumnType, TableState, TypeKey};
use super::decode::pgoutput::{Cell, Old, RelationBody, RowBody, Tuple};
use super::decode::text;
use super::decode::value::{Codec, ValueError};
use super::mapping;
use super::visibility::Snapshot;
use crate::TableOptions;
use caudal_model::schema::ColumnSpec;
use caudal_model::{
    ChangeBuffer, Error, Kind, Op, Result, RowWriter, Slot, TableName, TableSchema,
};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// One column as the log describes it.
#[derive(Debug, Clone)]
pub struct WireColumn {
    /// Part of the replica identity.
    pub identity: bool,
    /// Its name.
    pub name: String,
    /// Its type.
    pub type_key: TypeKey,
}

/// A table as the log described it last.
#[derive(Debug)]
pub struct Relation {
    /// Its name then.
    pub table: TableName,
    /// `d`, `n`, `f` or `i`.
    pub identity: u8,
    /// Its columns, in the order of cells.
    pub columns: Vec<WireColumn>,
    /// The tail's `tracking` for which `plan` was made; 0: not yet.
    pub planned: u64,
    /// How its rows are written; `None` if the tail does not carry the table.
    pub plan: Option<RowPlan>,
    /// The table in the catalogue, looked up after this message came.
    pub now: Looked,
    /// The partition whose message came behind this one: the rows that follow are its.
    pub part: Option<PartRelation>,
}

/// A partition as the log describes it, behind the root as whose its rows come.
#[derive(Debug)]
pub struct PartRelation {
    /// Its oid.
    pub oid: u32,
    /// Its name.
    pub table: TableName,
    /// Its own replica identity, which says what the log has of old rows.
    pub identity: u8,
    /// The columns of that identity.
    identified: Vec<String>,
}

impl PartRelation {
    /// Whether the log carries these columns of its old rows; without any, all of them.
    pub fn identifies(&self, key: &[String]) -> bool {
        let covered = !key.is_empty() && key.iter().all(|k| self.identified.contains(k));
        self.identity == b'f' || covered
    }
}

/// What a look-up of a table gave.
#[derive(Debug, Clone, Default)]
pub enum Looked {
    /// It has not been looked up.
    #[default]
    NotYet,
    /// It exists.
    There(Arc<TableState>),
    /// It was dropped since.
    Gone,
}

impl Relation {
    /// A relation from its message.
    pub fn new(body: &RelationBody<'_>) -> Result<Self> {
        let schema = if body.schema.is_empty() {
            "pg_catalog"
        } else {
            body.schema
        };
        let columns: Vec<WireColumn> = body
            .columns()?
            .into_iter()
            .map(|c| WireColumn {
                identity: c.identity,
                name: c.name.to_owned(),
                type_key: (c.type_oid, c.type_mod),
            })
            .collect();
        // A row gives each of its table's columns one cell.
        let mut names = HashSet::with_capacity(columns.len());
        if !columns.iter().all(|c| names.insert(c.name.as_str())) {
            return Err(Error::fatal(
                Kind::Corrupt,
                "replication stream: a table with two columns of one name",
            )
            .hint("please report this with the server's version; another try starts at the last commit"));
        }
        Ok(Relation {
            table: TableName::new(schema, body.name),
            identity: body.identity,
            columns,
            planned: 0,
            plan: None,
            now: Looked::NotYet,
            part: None,
        })
    }

    /// This message came behind that of `oid`'s root.
    pub fn as_part(&self, oid: u32) -> PartRelation {
        let identified = self.columns.iter().filter(|c| c.identity);
        PartRelation {
            oid,
            table: self.table.clone(),
            identity: self.identity,
            identified: identified.map(|c| c.name.clone()).collect(),
        }
    }

    /// The types that are not known yet.
    pub fn unknown_types(&self, types: &HashMap<TypeKey, ColumnType>) -> Vec<TypeKey> {
        self.columns
            .iter()
            .map(|c| c.type_key)
            .filter(|k| !types.contains_key(k))
            .collect()
    }

    /// The columns that the lake gets, and how each column of the message is read.
    pub fn describe(
        &self,
        types: &HashMap<TypeKey, ColumnType>,
        options: Option<&TableOptions>,
    ) -> Result<(Vec<ColumnSpec>, Vec<Option<Codec>>)> {
        let mut specs = Vec::with_capacity(self.columns.len());
        let mut codecs = Vec::with_capacity(self.columns.len());
        for c in &self.columns {
            if options.is_some_and(|o| o.exclude_columns.contains(&c.name)) {
                codecs.push(None);
                continue;
            }
            let described = types
                .get(&c.type_key)
                .ok_or_else(|| Error::bug("a type was not looked up"))?;
            let (spec, mapped) = mapping::describe(&c.name, described, options).map_err(|why| {
                let text = format!("column {} ({}): {why}", c.name, described.name);
                Error::data(&self.table, text).hint(format!(
                    "add {} to exclude_columns of this table, then run `caudal resnapshot {}`",
                    c.name, self.table
                ))
            })?;
            specs.push(spec);
            codecs.push(Some(mapped.codec));
        }
        Ok((specs, codecs))
    }

    /// Makes the plan for a schema version that has exactly the columns of
    /// [`Self::describe`], whose codecs these are.
    pub fn make_plan(
        &mut self,
        schema: &Arc<TableSchema>,
        codecs: &[Option<Codec>],
        hidden: Option<Snapshot>,
        copying: bool,
        value_bytes: usize,
    ) {
        let mut targets = Vec::with_capacity(self.columns.len());
        let mut covered = 0;
        for (c, codec) in self.columns.iter().zip(codecs) {
            let index = schema.columns.iter().position(|s| s.name == c.name);
            let is_key = schema.key.contains(&c.name);
            covered += usize::from(is_key && c.identity);
            targets.push(match (index, codec) {
                (Some(index), Some(codec)) => Some(Target {
                    index,
                    codec: *codec,
                    is_key,
                }),
                _ => None,
            });
        }
        self.plan = Some(RowPlan {
            schema: schema.clone(),
            targets,
            identified: self.identity == b'f' || (schema.has_key() && covered == schema.key.len()),
            // The flag is the root's, the row is as the partition's own identity made it.
            partial: schema.has_key()
                && matches!(&self.now, Looked::There(now) if now.parts.is_some()),
            slot: None,
            hidden,
            copying,
            value_bytes,
        });
    }
}

#[derive(Debug, Clone, Copy)]
struct Target {
    /// The lake's column.
    index: usize,
    codec: Codec,
    is_key: bool,
}

/// How a table's rows are written.
#[derive(Debug)]
pub struct RowPlan {
    schema: Arc<TableSchema>,
    targets: Vec<Option<Target>>,
    /// Old rows say which row they were.
    identified: bool,
    /// An old row may hold no more than the key, although the log says that it is whole.
    partial: bool,
    slot: Option<Slot>,
    /// INV-6: transactions that an exact read saw.
    pub hidden: Option<Snapshot>,
    /// The lake may not hold the row that a key change removes.
    copying: bool,
    /// The most bytes of one value.
    value_bytes: usize,
}

/// Why a row cannot be written: the column on the wire and the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowError {
    /// A cell.
    Cell(usize, ValueError),
    /// The tuple has another number of cells than its table.
    Shape,
    /// The log does not say which row was changed.
    Unidentified,
    /// A table without a key did not get the whole old row.
    NoOldRow,
    /// A row got another key while its table was copied, and a cell stored out of line
    /// was not sent: neither the copy nor the log may ever hold it.
    Unfilled(usize),
}

impl From<Error> for RowError {
    fn from(_: Error) -> Self {
        RowError::Shape
    }
}

impl RowPlan {
    /// The table's place in this buffer.
    #[inline]
    fn slot(&mut self, into: &mut ChangeBuffer) -> Slot {
        match self.slot {
            Some(slot) if into.is_slot_of(slot, &self.schema) => slot,
            _ => *self.slot.insert(into.slot(&self.schema)),
        }
    }

    /// Writes what one message says.
    pub fn write(&mut self, into: &mut ChangeBuffer, row: &RowBody<'_>) -> Result<(), RowError> {
        let slot = self.slot(into);
        match row {
            RowBody::Insert(new) => self.append(into.row(slot, Op::Insert), new, None),
            RowBody::Delete(old) => self.delete(into, slot, old),
            RowBody::Update { old, new } => {
                if !self.identified {
                    return Err(RowError::Unidentified);
                }
                if !self.schema.has_key() {
                    let old = old.as_ref().filter(|o| o.whole).ok_or(RowError::NoOldRow)?;
                    self.delete(into, slot, old)?;
                    return self.append(into.row(slot, Op::Insert), new, Some(old));
                }
                let moved = match old {
                    Some(old) => self.key_differs(&old.tuple, new)?,
                    None => false,
                };
                if moved && let Some(old) = old {
                    if self.copying
                        && let Some(wire) = self.unfilled(old, new)?
                    {
                        return Err(RowError::Unfilled(wire));
                    }
                    self.delete(into, slot, old)?;
                    return self.append(into.row(slot, Op::Insert), new, Some(old));
                }
                self.append(into.row(slot, Op::Update), new, old.as_ref())
            }
        }
    }

    /// Writes a truncate.
    pub fn truncate(&mut self, into: &mut ChangeBuffer) {
        let slot = self.slot(into);
        into.row(slot, Op::Truncate).finish();
    }

    #[inline]
    fn is_whole(&self, old: &Old<'_>) -> bool {
        old.whole && !self.partial
    }

    fn delete(&self, into: &mut ChangeBuffer, slot: Slot, old: &Old<'_>) -> Result<(), RowError> {
        if !self.identified {
            return Err(RowError::Unidentified);
        }
        if !self.schema.has_key() && !old.whole {
            return Err(RowError::NoOldRow);
        }
        self.append(into.row(slot, Op::Delete), &old.tuple, None)
    }

    /// Cells stored out of line that did not change come from the old row where the
    /// server sent it, and are named in `_unchanged` otherwise.
    #[inline]
    fn append(
        &self,
        mut row: RowWriter<'_>,
        tuple: &Tuple<'_>,
        old: Option<&Old<'_>>,
    ) -> Result<(), RowError> {
        if usize::from(tuple.columns) != self.targets.len() {
            return Err(RowError::Shape);
        }
        let mut cells = tuple.cells();
        let mut old_cells = old.map(|o| o.tuple.cells());
        for (wire, target) in self.targets.iter().enumerate() {
            let cell = cells.next_cell()?.ok_or(RowError::Shape)?;
            let before = match &mut old_cells {
                Some(cells) => cells.next_cell()?,
                None => None,
            };
            let Some(target) = target else { continue };
            let cell = match (cell, before) {
                (Cell::Unchanged, Some(Cell::Text(value))) => Cell::Text(value),
                (Cell::Unchanged, Some(Cell::Null)) if old.is_some_and(|o| self.is_whole(o)) => {
                    Cell::Null
                }
                (cell, _) => cell,
            };
            match cell {
                Cell::Text(value) => {
                    if value.len() > self.value_bytes {
                        self.fits(wire, target.codec, value.len())?;
                    }
                    text::append(target.codec, row.column(target.index), value)
                        .map_err(|e| RowError::Cell(wire, e))?;
                    if target.codec.is_variable() {
                        row.count(value.len());
                    }
                }
                Cell::Null => row.column(target.index).push_null(),
                Cell::Unchanged => row.unchanged(target.index),
                Cell::Large(len) => return Err(self.too_large(wire, target.codec, len)),
            }
        }
        row.finish();
        Ok(())
    }

    #[cold]
    fn fits(&self, wire: usize, codec: Codec, len: usize) -> Result<(), RowError> {
        if codec.value_bytes(len) > self.value_bytes {
            return Err(self.too_large(wire, codec, len));
        }
        Ok(())
    }

    fn too_large(&self, wire: usize, codec: Codec, len: usize) -> RowError {
        let (bytes, limit) = (codec.value_bytes(len), self.value_bytes);
        RowError::Cell(wire, ValueError::Large { bytes, limit })
    }

    /// The first carried cell that neither tuple has.
    fn unfilled(&self, old: &Old<'_>, new: &Tuple<'_>) -> Result<Option<usize>, RowError> {
        let (mut before, mut after) = (old.tuple.cells(), new.cells());
        for (wire, target) in self.targets.iter().enumerate() {
            let (b, a) = (before.next_cell()?, after.next_cell()?);
            let held = self.is_whole(old) || matches!(b, Some(Cell::Text(_)));
            if target.is_some() && a == Some(Cell::Unchanged) && !held {
                return Ok(Some(wire));
            }
        }
        Ok(None)
    }

    fn key_differs(&self, old: &Tuple<'_>, new: &Tuple<'_>) -> Result<bool, RowError> {
        let (mut before, mut after) = (old.cells(), new.cells());
        for target in &self.targets {
            let (b, a) = (before.next_cell()?, after.next_cell()?);
            let (Some(b), Some(a)) = (b, a) else {
                return Err(RowError::Shape);
            };
            if target.is_some_and(|t| t.is_key) && a != Cell::Unchanged && a != b {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Relation {
    /// The data error of a row that cannot be written.
    pub fn row_error(&self, error: RowError, at: super::Lsn) -> Error {
        let table = &self.table;
        let again = format!("then run `caudal resnapshot {table}`");
        match error {
            RowError::Cell(wire, e) => {
                let column = self.columns.get(wire).map_or("?", |c| c.name.as_str());
                let hint = if matches!(e, ValueError::Large { .. }) {
                    format!(
                        "raise limits.value_bytes or add {column} to exclude_columns of this table, {again}"
                    )
                } else if e.text_helps() {
                    format!("set as = {{ {column} = \"string\" }} for this table, {again}")
                } else {
                    format!(
                        "add {column} to exclude_columns of this table or mend the value, {again}"
                    )
                };
                Error::data(table, format!("column {column} {e} (at {at})")).hint(hint)
            }
            RowError::Unfilled(wire) => {
                let column = self.columns.get(wire).map_or("?", |c| c.name.as_str());
                Error::data(
                    table,
                    format!("a row got another key while the table was copied, and the log does not carry its column {column} (at {at})"),
                )
                .hint(format!(
                    "ALTER TABLE {} REPLICA IDENTITY FULL for as long as the copy runs; {again}",
                    super::connect::table_ident(table)
                ))
            }
            RowError::Shape => Error::data(
                table,
                format!("a row of another shape than its table (at {at})"),
            )
            .hint(format!("run `caudal resnapshot {table}`")),
            RowError::Unidentified => Error::data(
                table,
                format!("the log does not carry the key of a changed row (at {at})"),
            )
            .hint(format!(
                "ALTER TABLE {} REPLICA IDENTITY FULL; {again}",
                super::connect::table_ident(table)
            )),
            RowError::NoOldRow => Error::data(
                table,
                format!(
                    "the table has no key, and the log does not carry the whole old row (at {at})"
                ),
            )
            .hint(format!(
                "ALTER TABLE {} REPLICA IDENTITY FULL; {again}",
                super::connect::table_ident(table)
            )),
        }
    }
}
