//! Row images into column builders.
//!
//! A [`TablePlan`] joins a table map of the log with the schema version that the stream
//! carries: for each column of the image, how many bytes it has, what they mean, and which
//! builder takes them. Rows are then decoded in two passes over bytes that are in the
//! cache: the first finds the cells (needed anyway to compare keys), the second appends.
//!
//! Images need not be whole (`binlog_row_image` NOBLOB and MINIMAL): a rows event says which
//! columns its images have. [`Image`] tells a cell that is missing from one that is null.

use super::table_map::types::{DATETIME, JSON, TIME, TIMESTAMP};
use super::table_map::{Collations, MapColumn, Span, TableMap};
use super::values::{Coerced, Value, push_logged, push_patched};
use super::{DecodeError, Decoded, Input};
use crate::mysql::flavor::Flavor;
use crate::mysql::older::push_default;
use crate::mysql::types::{Declared, column_type};
use caudal_model::schema::OlderRows;
use caudal_model::{RowWriter, TableSchema};
use std::collections::HashSet;
use std::sync::Arc;

#[derive(Debug, Clone)]
struct ColumnPlan {
    span: Span,
    /// MySQL's json, of which the log may hold steps.
    document: bool,
    /// The builder, and what the bytes mean; `None` for a column that is left out.
    target: Option<(usize, Value)>,
}

/// How the rows of one table map become rows of one schema version.
#[derive(Debug, Clone)]
pub struct TablePlan {
    columns: Vec<ColumnPlan>,
    /// Positions in the image.
    key: Vec<usize>,
    /// The largest value that is carried, in bytes.
    limit: usize,
}

/// Why a table map does not fit a schema version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// The table was changed: another version may fit.
    Changed(String),
    /// No version can: a setting, or a type that is not supported.
    Unreadable(String),
    /// The table of this charset must be read first.
    Charset(Arc<str>),
}

/// What a plan depends on besides the table map and the schema.
#[derive(Debug, Clone, Copy)]
pub struct PlanOptions<'a> {
    /// Columns that never leave the source.
    pub excluded: &'a [String],
    /// The key is the user's choice, so that the table's primary key does not matter.
    pub own_key: bool,
    /// The server's family.
    pub flavor: Flavor,
    /// What the collation ids mean.
    pub collations: Collations<'a>,
    /// The largest value that is carried, in bytes.
    pub value_bytes: usize,
}

impl TablePlan {
    /// Joins a table map with a schema version.
    pub fn new(
        map: &TableMap,
        schema: &TableSchema,
        options: PlanOptions<'_>,
    ) -> Result<TablePlan, Misfit> {
        if !map.named {
            return Err(Misfit::Unreadable(
                "the log does not name its columns: binlog_row_metadata was not FULL".to_owned(),
            ));
        }
        // A row gives each of its table's columns one cell.
        let mut names = HashSet::with_capacity(map.columns.len());
        if !map.columns.iter().all(|c| names.insert(c.name.as_str())) {
            return Err(Misfit::Unreadable(
                "the log names a column twice".to_owned(),
            ));
        }
        let places: std::collections::HashMap<&str, usize> = schema
            .columns
            .iter()
            .enumerate()
            .map(|(i, c)| (c.name.as_str(), i))
            .collect();
        let mut columns = Vec::with_capacity(map.columns.len());
        let mut found = 0;
        for c in &map.columns {
            let span = c.span().ok_or_else(|| {
                Misfit::Unreadable(format!("log type {} is not supported", c.real_type))
            })?;
            let document = c.real_type == JSON;
            let own = places
                .get(c.name.as_str())
                .and_then(|i| Some((*i, schema.columns.get(*i)?)));
            let Some((i, own)) = own else {
                if options.excluded.contains(&c.name) {
                    columns.push(ColumnPlan {
                        span,
                        document,
                        target: None,
                    });
                    continue;
                }
                return Err(Misfit::Changed(format!("column {} is new", c.name)));
            };
            let value = value_of(c, own, options)?;
            found += 1;
            columns.push(ColumnPlan {
                span,
                document,
                target: Some((i, value)),
            });
        }
        if found != schema.columns.len() {
            return Err(Misfit::Changed("a column is gone".to_owned()));
        }
        let key: Vec<usize> = schema
            .key
            .iter()
            .filter_map(|k| map.columns.iter().position(|c| &c.name == k))
            .collect();
        let logged: Vec<usize> = map
            .primary_key
            .iter()
            .flatten()
            .map(|k| *k as usize)
            .collect();
        if !options.own_key && logged != key {
            return Err(Misfit::Changed("its primary key is another".to_owned()));
        }
        Ok(TablePlan {
            columns,
            key,
            limit: options.value_bytes,
        })
    }

    /// Columns in a whole image.
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    /// Places of the key's columns in the image.
    pub fn key(&self) -> &[usize] {
        &self.key
    }

    /// The schema's column that stands at a place of the image.
    pub fn column(&self, at: usize) -> Option<usize> {
        self.columns.get(at)?.target.as_ref().map(|(i, _)| *i)
    }
}

/// What the cells of a column mean, where the log still agrees with its declared type.
fn value_of(
    c: &MapColumn,
    own: &caudal_model::Column,
    options: PlanOptions<'_>,
) -> Result<Value, Misfit> {
    let declared = Declared::parse(&own.source_type);
    if !c.agrees(&declared, options.collations) {
        return Err(Misfit::Changed(format!(
            "column {} has another type",
            c.name
        )));
    }
    let unfit = |e| Misfit::Unreadable(format!("column {}: {e}", c.name));
    let (value, _) = column_type(&declared, options.flavor, Some(&own.lake_type)).map_err(unfit)?;
    let value = match c.real_type {
        TIMESTAMP => Value::OldTimestamp,
        DATETIME => Value::OldDateTime,
        TIME => Value::OldTime,
        _ if declared.compressed => Value::Compressed(Box::new(value)),
        _ => value,
    };
    options
        .collations
        .tables
        .resolve(value)
        .map_err(Misfit::Charset)
}

/// Which columns an image has; `None` is all of them.
pub type Present = Option<Arc<[bool]>>;

/// A rows event's own header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsHeader {
    /// The table map's.
    pub table_id: u64,
    /// Columns of the table.
    pub columns: usize,
    /// The columns of the only image, or of that before an update.
    pub before: Present,
    /// The columns of the image after an update.
    pub after: Present,
    /// Where the rows begin in the body.
    pub start: usize,
}

/// Parses the part of a rows event before its rows. `v2`: there is a block of extra
/// data; `update`: two images a row.
pub fn rows_header(body: &[u8], v2: bool, update: bool) -> Decoded<RowsHeader> {
    let mut input = Input(body);
    let table_id = input.uint(6)?;
    input.u16()?;
    if v2 {
        // The length counts itself.
        let extra = usize::from(input.u16()?).checked_sub(2);
        input.take(extra.ok_or(DecodeError::Malformed("a rows event"))?)?;
    }
    let columns = usize::try_from(input.lenenc()?).unwrap_or(usize::MAX);
    let mut present = || -> Decoded<Present> {
        let bits = input.take(columns.div_ceil(8))?;
        let of = |i: usize| bits.get(i / 8).is_some_and(|b| b >> (i % 8) & 1 == 1);
        if (0..columns).all(of) {
            return Ok(None);
        }
        Ok(Some((0..columns).map(of).collect()))
    };
    let before = present()?;
    let after = if update { present()? } else { None };
    Ok(RowsHeader {
        table_id,
        columns,
        before,
        after,
        start: body.len() - input.len(),
    })
}

/// Where a cell of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// The image does not have the column.
    Missing,
    /// Null.
    Null,
    /// From here to there in the event.
    At(u32, u32),
    /// The same of the steps that make a json document out of the one before.
    Steps(u32, u32),
}

/// The cells of one image.
#[derive(Debug, Default)]
pub struct Image {
    cells: Vec<Cell>,
}

impl Image {
    fn cell(&self, at: usize) -> Cell {
        self.cells.get(at).copied().unwrap_or(Cell::Missing)
    }

    /// Whether the image has every column of the key.
    pub fn has_key(&self, plan: &TablePlan) -> bool {
        plan.key.iter().all(|k| self.cell(*k) != Cell::Missing)
    }

    /// Takes the cells of `other` for those that are missing here.
    pub fn fill(&mut self, other: &Image) {
        for (own, other) in self.cells.iter_mut().zip(&other.cells) {
            if *own == Cell::Missing {
                *own = *other;
            }
        }
    }

    /// Whether a cell is missing.
    pub fn has_gaps(&self) -> bool {
        self.cells.contains(&Cell::Missing)
    }
}

/// The schema's column of the first value beyond the limit, and the value's bytes, in the
/// first row of an event of which perhaps only the beginning is there.
pub fn too_large(plan: &TablePlan, body: &[u8], h: &RowsHeader) -> Option<(usize, u64)> {
    let mut input = Input(body.get(h.start..)?);
    for present in [&h.before, &h.after] {
        let has = |i: usize| present.as_ref().is_none_or(|p| p.get(i) == Some(&true));
        let count = (0..plan.columns.len()).filter(|i| has(*i)).count();
        let nulls = input.take(count.div_ceil(8)).ok()?;
        let there = plan.columns.iter().enumerate().filter(|(i, _)| has(*i));
        for (bit, (_, c)) in there.enumerate() {
            if nulls.get(bit / 8).is_some_and(|b| b >> (bit % 8) & 1 == 1) {
                continue;
            }
            let len = match c.span {
                Span::Fixed(n) => n as u64,
                Span::Prefixed(n) => input.uint(n.into()).ok()?,
            };
            if len > plan.limit as u64 {
                return c.target.as_ref().map(|(i, _)| (*i, len));
            }
            input.take(usize::try_from(len).ok()?).ok()?;
        }
    }
    None
}

/// Finds the cells of the image after a partial update (PARTIAL_UPDATE_ROWS): which json
/// columns have steps in place of a document stands before it.
pub fn partial_image(
    plan: &TablePlan,
    event: &[u8],
    at: usize,
    present: &Present,
    image: &mut Image,
) -> Decoded<usize> {
    let mut input = Input(event.get(at..).unwrap_or_default());
    let options = input.lenenc()?;
    if options & !1 != 0 {
        return Err(DecodeError::Malformed("an unknown option of a rows event"));
    }
    if options == 0 {
        return self::image(plan, event, event.len() - input.len(), present, image);
    }
    // One bit for each json column of the table, in the image or not.
    let documents = plan.columns.iter().filter(|c| c.document).count();
    let bits = input.take(documents.div_ceil(8))?;
    let end = self::image(plan, event, event.len() - input.len(), present, image)?;
    let documents = plan.columns.iter().zip(&mut image.cells);
    for (i, (_, cell)) in documents.filter(|(c, _)| c.document).enumerate() {
        let partial = bits.get(i / 8).is_some_and(|b| b >> (i % 8) & 1 == 1);
        if let (true, Cell::At(a, b)) = (partial, *cell) {
            *cell = Cell::Steps(a, b);
        }
    }
    Ok(end)
}

/// Finds the cells of the image that begins at `at`, and returns where it ends.
pub fn image(
    plan: &TablePlan,
    event: &[u8],
    at: usize,
    present: &Present,
    image: &mut Image,
) -> Decoded<usize> {
    let mut input = Input(event.get(at..).unwrap_or_default());
    let has = |i: usize| match present {
        None => true,
        Some(bits) => bits.get(i).copied().unwrap_or(false),
    };
    let count = match present {
        None => plan.columns.len(),
        Some(bits) => bits.iter().filter(|b| **b).count(),
    };
    // One bit for each column that the image has.
    let nulls = input.take(count.div_ceil(8))?;
    image.cells.clear();
    let mut bit = 0;
    for (i, c) in plan.columns.iter().enumerate() {
        if !has(i) {
            image.cells.push(Cell::Missing);
            continue;
        }
        let null = nulls.get(bit / 8).is_some_and(|b| b >> (bit % 8) & 1 == 1);
        bit += 1;
        if null {
            image.cells.push(Cell::Null);
            continue;
        }
        let len = match c.span {
            Span::Fixed(n) => n,
            Span::Prefixed(n) => input.uint(n.into())? as usize,
        };
        let start = event.len() - input.len();
        input.take(len)?;
        // An event is below 4 GiB: its header's size has 32 bits.
        image
            .cells
            .push(Cell::At(start as u32, (start + len) as u32));
    }
    Ok(event.len() - input.len())
}

fn bytes_of(event: &[u8], cell: Cell) -> Option<&[u8]> {
    match cell {
        Cell::At(a, b) | Cell::Steps(a, b) => event.get(a as usize..b as usize),
        _ => None,
    }
}

/// Whether two images of one row have the same key.
///
/// The bytes are compared: each lake value has one form in a table's images, so equal
/// bytes are equal values and the reverse.
pub fn same_key(plan: &TablePlan, event: &[u8], a: &Image, b: &Image) -> bool {
    plan.key
        .iter()
        .all(|k| bytes_of(event, a.cell(*k)) == bytes_of(event, b.cell(*k)))
}

/// Why a row could not be appended, and by which column of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellError {
    /// The schema's column, if one is to blame.
    pub column: Option<usize>,
    /// What is wrong.
    pub error: DecodeError,
}

impl From<DecodeError> for CellError {
    fn from(error: DecodeError) -> Self {
        CellError {
            column: None,
            error,
        }
    }
}

const NO_DOCUMENT: DecodeError =
    DecodeError::Value("the log holds a partial update of json without the document before it");

/// What stands in place of a cell that the image does not have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Missing<'a> {
    /// Null: only the key is asked for.
    Null,
    /// Nothing: the column did not change.
    Unchanged,
    /// The default of the schema's column.
    Defaults(&'a [OlderRows]),
}

/// Appends the image's cells to a row.
pub fn append(
    plan: &TablePlan,
    event: &[u8],
    image: &Image,
    before: Option<&Image>,
    missing: Missing<'_>,
    row: &mut RowWriter<'_>,
    coerced: &mut Coerced,
) -> Result<(), CellError> {
    for (at, (c, cell)) in plan.columns.iter().zip(&image.cells).enumerate() {
        let Some((i, value)) = &c.target else {
            continue;
        };
        let fail = |error| CellError {
            column: Some(*i),
            error,
        };
        match bytes_of(event, *cell) {
            Some(steps) if matches!(cell, Cell::Steps(..)) => {
                let document = before.and_then(|b| bytes_of(event, b.cell(at)));
                let document = document.ok_or(fail(NO_DOCUMENT))?;
                let bytes = document.len() + steps.len();
                if bytes > plan.limit {
                    return Err(fail(DecodeError::TooLarge(bytes as u64)));
                }
                let counted = push_patched(document, steps, row.column(*i)).map_err(fail)?;
                row.count(counted);
            }
            Some(bytes) => {
                if bytes.len() > plan.limit {
                    return Err(fail(DecodeError::TooLarge(bytes.len() as u64)));
                }
                let counted = push_logged(value, bytes, row.column(*i), coerced).map_err(fail)?;
                row.count(counted);
            }
            None if *cell == Cell::Missing => match missing {
                Missing::Null => row.column(*i).push_null(),
                Missing::Unchanged => row.unchanged(*i),
                Missing::Defaults(defaults) => {
                    let default = defaults.get(*i).unwrap_or(&OlderRows::Unknown);
                    push_default(default, row.column(*i)).map_err(fail)?;
                }
            },
            None => row.column(*i).push_null(),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rows_header_says_whether_the_image_is_whole() {
        let body = [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0b111, 0b101];
        let h = rows_header(&body, true, true).unwrap();
        assert_eq!((h.table_id, h.columns, h.start), (1, 3, 13));
        assert_eq!(
            (h.before, h.after),
            (None, Some([true, false, true].into()))
        );
        assert_eq!(rows_header(&body, true, false).unwrap().before, None);
        assert!(rows_header(&body[..9], true, false).is_err());
        assert!(rows_header(&[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3], true, false).is_err());
    }
}
