//! Definitions that change in the log, and when the stream takes them over.
//!
//! A statement that changes a carried table is not carried out here: the server is asked what
//! the table is now, and where its log ends then. The answer may be of the log's future. It is
//! surely the definition after the statement once the tail has passed that place and no
//! other statement changed the table on the way; or, as far as rows are concerned, when a
//! table map agrees with it (ADR 0033). The statements in between tell what names alone
//! cannot: renames, and what older rows hold in a new column (ADR 0036). In doubt the table is
//! copied again.

use super::MysqlTail;
use crate::mysql::connect::current_place;
use crate::mysql::control::Control;
use crate::mysql::ddl::{Alter, Clause};
use crate::mysql::decode::rows::Misfit;
use crate::mysql::decode::table_map::TableMap;
use crate::mysql::flavor::Flavor;
use crate::mysql::gtid::Place;
use crate::mysql::older::older_rows;
use crate::mysql::schema::{SourceColumn, SourceTable, describe, read_table};
use crate::mysql::types::{Declared, column_type, retains};
use crate::mysql::wire::{WireError, identifier};
use crate::{DiscoveredTable, TailEvent};
use caudal_model::schema::{ColumnSpec, Evolution, OlderRows};
use caudal_model::{Error, LakeType, Result, TableName, TableSchema};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What the server said of tables, and where its log ended afterwards.
pub(super) struct Answer {
    tables: HashMap<TableName, Found>,
    until: Place,
}

/// What the server said of a table.
enum Found {
    Table(Box<SourceTable>),
    Gone,
    /// Somebody holds its definition.
    Locked,
}

/// One ALTER of a table.
#[derive(Debug, Clone, Default)]
pub(super) struct Change {
    pub(super) alter: Alter,
    /// Its session refused values that do not fit.
    pub(super) strict: bool,
}

/// A definition that has not been taken over.
pub(super) struct Pending {
    changes: Vec<Change>,
    /// `None` if it is gone.
    now: Option<SourceTable>,
    until: Place,
}

/// Seconds that a table's definition is waited for while a statement changes it; the stream
/// stands still meanwhile.
const LOCK_SECONDS: u32 = 5;

impl MysqlTail {
    /// Asks what these tables are now.
    pub(super) async fn ask(&self, tables: &[TableName]) -> Result<Answer> {
        let mut c = self.server.control().await?;
        ask_tables(&mut c, tables).await
    }

    /// Notes a statement that changes a table, with the server's answer.
    pub(super) fn changed(&mut self, table: &TableName, change: Change, answer: &Answer) {
        let Some(tracked) = self.tracked.get(table) else {
            return;
        };
        if change.alter.ignore {
            self.recopy(
                table,
                "rows may have been dropped by ALTER IGNORE".to_owned(),
            );
            return;
        }
        // The definition in use was taken over before its time: what this statement changes
        // cannot be told from it.
        let early = tracked.early.as_ref();
        if early.is_some_and(|p| !self.place.covers(p).unwrap_or(false))
            && !change.alter.clauses.is_empty()
        {
            self.recopy(table, "it was changed several times in a row".to_owned());
            return;
        }
        // The same for defaults that stood for cells of rows.
        let assumed = tracked.assumed.as_ref();
        if tracked.used_default
            && assumed.is_some_and(|p| !self.place.covers(p).unwrap_or(false))
            && !change.alter.clauses.is_empty()
        {
            self.recopy(
                table,
                "a default may not have been the one of its time".to_owned(),
            );
            return;
        }
        let mut changes = match self.pending.remove(table) {
            Some(before) => before.changes,
            None => Vec::new(),
        };
        changes.push(change);
        self.expect(table, changes, answer);
    }

    /// Keeps the server's answer until it is certain.
    fn expect(&mut self, table: &TableName, changes: Vec<Change>, answer: &Answer) {
        let now = match answer.tables.get(table) {
            Some(Found::Table(now)) => Some((**now).clone()),
            Some(Found::Gone) | None => None,
            Some(Found::Locked) => {
                let reason = format!("its definition was locked for {LOCK_SECONDS} s");
                self.recopy(table, reason);
                return;
            }
        };
        let until = answer.until.clone();
        let pending = Pending {
            changes,
            now,
            until,
        };
        self.pending.insert(table.clone(), pending);
        self.plans.clear();
    }

    /// Whether statements that have not been taken over name columns of the table.
    pub(super) fn has_changed_columns(&self, table: &TableName) -> bool {
        let pending = self.pending.get(table);
        pending.is_some_and(|p| p.changes.iter().any(|c| !c.alter.clauses.is_empty()))
    }

    /// Compares what is tracked with what the server has, when the log is opened: a statement
    /// may stand before its beginning, or in no log at all.
    pub(super) fn compare(&mut self, found: Vec<SourceTable>, until: &Place) {
        for now in found {
            let Some(tracked) = self.tracked.get_mut(&now.table) else {
                continue;
            };
            let described = describe(&now, &self.server.options, self.server.flavor);
            tracked.remember(&now, &described, until, self.server.flavor);
            if described.problems.is_empty() && !same(&tracked.schema, &described) {
                let pending = Pending {
                    changes: Vec::new(),
                    now: Some(now.clone()),
                    until: until.clone(),
                };
                self.pending.insert(now.table, pending);
            }
        }
    }

    /// Takes over the definitions that are certain by now.
    pub(super) fn settle(&mut self, since_seq: i64) {
        let certain: Vec<TableName> = self
            .pending
            .iter()
            .filter(|(_, p)| self.place.covers(&p.until).unwrap_or(false))
            .map(|(t, _)| t.clone())
            .collect();
        for table in certain {
            if let Some(pending) = self.pending.remove(&table) {
                self.take_over(&table, pending, None, since_seq);
            }
        }
    }

    /// Takes over the definition that a table map must agree with.
    pub(super) async fn describe(&mut self, map: &TableMap, since_seq: i64) -> Result<()> {
        let table = TableName::new(map.database.clone(), map.table.clone());
        if !self.pending.contains_key(&table) {
            let answer = self.ask(std::slice::from_ref(&table)).await?;
            self.expect(&table, Vec::new(), &answer);
        }
        if let Some(pending) = self.pending.remove(&table)
            && let Some(pending) = self.first_seen(map, &table, pending)
        {
            self.take_over(&table, pending, Some(map), since_seq);
        }
        Ok(())
    }

    /// Of a table whose rows come for the first time only the defaults are needed, if its
    /// definition fits. Returns what else must be taken over.
    fn first_seen(
        &mut self,
        map: &TableMap,
        table: &TableName,
        pending: Pending,
    ) -> Option<Pending> {
        let tracked = self.tracked.get_mut(table)?;
        let first = tracked.assumed.is_none() && pending.changes.is_empty();
        let (true, Some(now)) = (first, &pending.now) else {
            return Some(pending);
        };
        let described = describe(now, &self.server.options, self.server.flavor);
        tracked.remember(now, &described, &pending.until, self.server.flavor);
        let schema = tracked.schema.clone();
        if !self.fits(map, table, &schema) {
            return Some(pending);
        }
        if !same(&schema, &described) {
            self.pending.insert(table.clone(), pending);
        }
        None
    }

    /// Whether rows of this map can be read with a schema version.
    fn fits(&self, map: &TableMap, table: &TableName, schema: &TableSchema) -> bool {
        // What no version can read is told when its rows come.
        !matches!(self.join(map, table, schema), Err(Misfit::Changed(_)))
    }

    fn take_over(
        &mut self,
        table: &TableName,
        pending: Pending,
        map: Option<&TableMap>,
        since_seq: i64,
    ) {
        let Some(tracked) = self.tracked.get(table) else {
            return;
        };
        let Some(now) = pending.now else {
            // It is gone by now; what came in between can be read no more.
            self.ended(table);
            self.events.push_back(TailEvent::Catalog);
            return;
        };
        let flavor = self.server.flavor;
        let mut described = describe(&now, &self.server.options, flavor);
        if let Some(p) = described.problems.first() {
            let error = Error::data(table, p.reason.clone());
            let error = match &p.mend {
                Some(mend) => error.hint(mend.clone()),
                None => error,
            };
            self.fail(table, error);
            return;
        }
        let certain = map.is_none();
        let columns = std::mem::take(&mut described.columns);
        let names = Names::follow(&tracked.schema, &pending.changes);
        let evolution = match names.specs(&tracked.schema, &now, columns, certain, flavor) {
            Ok(specs) => {
                let text = shown_as_text(&specs, flavor);
                described.columns = specs;
                tracked.schema.evolve(
                    since_seq,
                    &described.columns,
                    &described.key,
                    tracked.next_column_id,
                    |old, new| retains(old, new, text.contains(new)),
                )
            }
            Err(reason) => Evolution::Recopy(reason),
        };
        let schema = match evolution {
            Evolution::Same => tracked.schema.clone(),
            Evolution::Next(schema) => Arc::new(schema),
            Evolution::Recopy(reason) => {
                self.recopy(table, reason);
                return;
            }
        };
        let altered = !pending.changes.is_empty() || !Arc::ptr_eq(&tracked.schema, &schema);
        if let Some(tracked) = self.tracked.get_mut(table) {
            tracked.remember(&now, &described, &pending.until, flavor);
        }
        if let Some(map) = map
            && !self.fits(map, table, &schema)
        {
            let reason = "its rows in the log are of a definition that the server no longer has";
            self.recopy(table, reason.to_owned());
            return;
        }
        let next = schema.columns.iter().map(|c| c.id + 1).max().unwrap_or(1);
        if let Some(tracked) = self.tracked.get_mut(table) {
            tracked.next_column_id = tracked.next_column_id.max(next);
            tracked.early = (map.is_some() && altered).then_some(pending.until);
            if !Arc::ptr_eq(&tracked.schema, &schema) {
                tracked.schema = schema.clone();
                self.plans.clear();
                self.events.push_back(TailEvent::Schema(schema));
            }
        }
    }
}

impl super::Tracked {
    /// Keeps what rows need to know besides the columns, as the server had it when its log
    /// ended at `until`: the defaults, which stand for cells that an insert's image does not have.
    fn remember(&mut self, now: &SourceTable, d: &DiscoveredTable, until: &Place, flavor: Flavor) {
        self.assumed = Some(until.clone());
        let of = |spec: &ColumnSpec| {
            let c = now.columns.iter().find(|c| c.name == spec.name)?;
            Some((spec.name.clone(), older_rows(c, spec, flavor)))
        };
        self.defaults = d.columns.iter().filter_map(of).collect();
        self.no_primary_key = now.primary_key.is_empty();
        self.virtual_columns = now.virtual_columns(flavor);
    }
}

async fn ask_tables(c: &mut Control, tables: &[TableName]) -> Result<Answer> {
    use crate::mysql::control::Ask;
    c.query(&format!("SET SESSION lock_wait_timeout = {LOCK_SECONDS}"))
        .await?;
    let mut found = HashMap::new();
    for table in tables {
        // A statement stands in the log before its work is done. It holds the table until
        // then, and this waits for it.
        let name = format!("{}.{}", identifier(&table.schema), identifier(&table.name));
        match c.query(&format!("SELECT 1 FROM {name} LIMIT 0")).await {
            Ok(_) => {}
            // It does not exist (any more).
            Err(WireError::Server {
                code: 1146 | 1049, ..
            }) => {
                found.insert(table.clone(), Found::Gone);
                continue;
            }
            Err(WireError::Server { code: 1205, .. }) => {
                found.insert(table.clone(), Found::Locked);
                continue;
            }
            Err(e) => return Err(Error::from(e).context(format!("reading what {table} is now"))),
        }
        let now = read_table(c, table).await?;
        let now = now.map_or(Found::Gone, |t| Found::Table(Box::new(t)));
        found.insert(table.clone(), now);
    }
    Ok(Answer {
        tables: found,
        until: current_place(c).await?,
    })
}

/// Whether a version is what the server has.
fn same(schema: &TableSchema, now: &DiscoveredTable) -> bool {
    schema.key == now.key
        && schema.columns.len() == now.columns.len()
        && schema.columns.iter().zip(&now.columns).all(|(a, b)| {
            a.name == b.name && a.source_type == b.source_type && a.lake_type == b.lake_type
        })
}

/// The types of columns whose text the lake holds although it could hold their values.
fn shown_as_text(specs: &[ColumnSpec], flavor: Flavor) -> HashSet<String> {
    let as_text = |s: &&ColumnSpec| {
        s.lake_type == LakeType::Utf8
            && column_type(&Declared::parse(&s.source_type), flavor, None)
                .is_ok_and(|(_, natural)| natural != LakeType::Utf8)
    };
    specs
        .iter()
        .filter(as_text)
        .map(|s| s.source_type.clone())
        .collect()
}

/// What statements did to the names of columns.
#[derive(Debug, Default)]
struct Names {
    /// Each held column and its name now; `None` if it was dropped.
    held: Vec<(String, Option<String>)>,
    /// Added columns; the constant that is written, and whether nothing touched it since.
    added: HashMap<String, (Option<String>, bool)>,
    /// Columns that got a definition.
    modified: Vec<(String, bool)>,
}

fn alike(a: &str, b: &str) -> bool {
    // Column names are compared without case.
    a == b || a.to_lowercase() == b.to_lowercase()
}

impl Names {
    fn follow(schema: &TableSchema, changes: &[Change]) -> Names {
        let held = schema.columns.iter();
        let mut names = Names {
            held: held
                .map(|c| (c.name.clone(), Some(c.name.clone())))
                .collect(),
            ..Names::default()
        };
        for change in changes {
            names.apply(change);
        }
        names
    }

    fn apply(&mut self, change: &Change) {
        // The names of one statement are those from before it.
        let before: Vec<Option<String>> = self.held.iter().map(|(_, now)| now.clone()).collect();
        for clause in &change.alter.clauses {
            match clause {
                Clause::Rename(from, to) => {
                    for (was, (_, now)) in before.iter().zip(&mut self.held) {
                        if was.as_ref().is_some_and(|w| alike(w, from)) {
                            *now = Some(to.clone());
                        }
                    }
                    if let Some(added) = self.added.remove(&from.to_lowercase()) {
                        self.added.insert(to.to_lowercase(), added);
                    }
                }
                Clause::Drop(column) => {
                    for (was, (_, now)) in before.iter().zip(&mut self.held) {
                        if was.as_ref().is_some_and(|w| alike(w, column)) {
                            *now = None;
                        }
                    }
                    self.added.remove(&column.to_lowercase());
                }
                Clause::Add { column, default } => {
                    // ADD COLUMN IF NOT EXISTS of one that does.
                    let there = |(_, now): &(String, Option<String>)| {
                        now.as_ref().is_some_and(|n| alike(n, column))
                    };
                    if !self.held.iter().any(there) {
                        let added = (default.clone(), true);
                        self.added.insert(column.to_lowercase(), added);
                    }
                }
                Clause::Modify { column, not_null } => {
                    self.touch(column);
                    self.modified
                        .push((column.clone(), *not_null && !change.strict));
                }
                Clause::Default(column) => self.touch(column),
            }
        }
    }

    fn touch(&mut self, column: &str) {
        if let Some(added) = self.added.get_mut(&column.to_lowercase()) {
            added.1 = false;
        }
    }

    /// The columns as the held version's continue; otherwise why they cannot.
    fn specs(
        &self,
        held: &TableSchema,
        now: &SourceTable,
        columns: Vec<ColumnSpec>,
        certain: bool,
        flavor: Flavor,
    ) -> Result<Vec<ColumnSpec>, String> {
        let source = |name: &str| now.columns.iter().find(|c| alike(&c.name, name));
        for (column, loose) in &self.modified {
            if source(column).is_some_and(SourceColumn::generated) {
                return Err(format!("column {column} is computed anew"));
            }
            let key = held.key.iter().any(|k| alike(k, column));
            if *loose && !key {
                return Err(format!("nulls of column {column} may have been replaced"));
            }
        }
        // A column that went without a word, while another came, may be the same.
        let silent = |(_, name): &&(String, Option<String>)| {
            name.as_ref()
                .is_some_and(|n| !columns.iter().any(|c| alike(&c.name, n)))
        };
        let vanished = self.held.iter().find(silent).map(|(name, _)| name.clone());
        let mut out = Vec::with_capacity(columns.len());
        for mut spec in columns {
            let continued = self
                .held
                .iter()
                .find(|(_, name)| name.as_ref().is_some_and(|n| alike(n, &spec.name)));
            let added = self.added.get(&spec.name.to_lowercase());
            let again = held.columns.iter().any(|c| alike(&c.name, &spec.name));
            match (continued, added) {
                (Some((before, _)), _) => {
                    if *before != spec.name {
                        spec.renamed_from = Some(before.clone());
                    }
                }
                (None, _) if again => {
                    return Err(format!("column {} was dropped and added again", spec.name));
                }
                (None, Some((default, untouched))) => {
                    let c = source(&spec.name);
                    let known = c.filter(|c| *untouched && (certain || written(c, default)));
                    spec.older_rows =
                        known.map_or(OlderRows::Unknown, |c| older_rows(c, &spec, flavor));
                }
                (None, None) => {
                    if let Some(gone) = &vanished {
                        return Err(format!(
                            "column {gone} is gone and column {} has come",
                            spec.name
                        ));
                    }
                    spec.older_rows = OlderRows::Unknown;
                }
            }
            out.push(spec);
        }
        Ok(out)
    }
}

/// Whether the default that the server has is the one that the statement gave.
fn written(c: &SourceColumn, default: &Option<String>) -> bool {
    let plain = |t: &str| t.trim_matches('\'').replace("''", "'");
    let none = |t: &str| t.eq_ignore_ascii_case("NULL");
    match (&c.default, default) {
        (None, None) => true,
        (None, Some(written)) | (Some(written), None) => none(written),
        (Some(has), Some(written)) => {
            let (has, written) = (plain(has), plain(written));
            let number = |t: &str| t.parse::<f64>().ok();
            has == written || (number(&has).is_some() && number(&has) == number(&written))
        }
    }
}
