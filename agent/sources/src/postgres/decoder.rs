//! Changes into rows: everything of the tail that knows no connection.
//!
//! A `Relation` message may announce another shape of a table, or another table under its
//! name. Before the first row that follows it, the table is looked up in the catalogue
//! (the tail does that, while the message waits), compared with the version that the lake
//! has, and what is different becomes an event in front of the row.

use super::catalog::{ColumnType, TableState, TypeKey};
use super::decode::pgoutput::{Message, RowBody};
use super::names::Look;
use super::partitions::{self, Change, Part};
use super::relation::{Looked, Relation};
use super::schema::NEEDS_WHOLE_ROWS;
use super::shape::{Identity, Shapes};
use super::visibility::{Snapshot, XidClock};
use super::{Lsn, Shared, connect, mapping};
use crate::{TailEvent, TrackedTable};
use caudal_model::schema::{ColumnSpec, Evolution};
use caudal_model::{
    ChangeBuffer, Class, Error, Kind, Result, TableName, TableSchema, TransactionMeta,
};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// What a message led to.
pub enum Outcome {
    /// Nothing to tell; it is consumed.
    Done,
    /// It is consumed.
    Event(TailEvent),
    /// The event comes first; the message stays.
    Before(TailEvent),
    /// This must be looked up first; the message stays.
    Unknown(Question),
}

/// What must be looked up.
#[derive(Debug)]
pub struct Question {
    /// The table.
    pub oid: u32,
    /// Types that were not seen yet.
    pub types: Vec<TypeKey>,
}

/// What a look-up gave.
pub struct Answer {
    /// The table that was asked for.
    pub oid: u32,
    /// The table; `None` if it was dropped.
    pub table: Option<TableState>,
    /// The types that were asked for.
    pub types: HashMap<TypeKey, ColumnType>,
    /// Whether the log has stored generated columns.
    pub generated: bool,
}

/// A transaction whose changes are being decoded.
pub struct OpenTransaction {
    /// Its id.
    pub xid: u32,
    /// With its epoch.
    full_xid: u64,
    commit_lsn: Lsn,
    /// Its commit time, microseconds since 1970.
    pub committed_at_us: i64,
    /// The buffer knows of it.
    pub begun: bool,
}

struct Tracked {
    table: TrackedTable,
    mark: Option<Snapshot>,
    /// Its oid, once it is known.
    oid: Option<u32>,
}

/// Changes into rows.
pub struct Decoder {
    shared: Arc<Shared>,
    tracked: HashMap<TableName, Tracked>,
    /// Counts changes of `tracked`; plans made before are stale.
    tracking: u64,
    relations: HashMap<u32, Relation>,
    types: HashMap<TypeKey, ColumnType>,
    /// Whether the log has stored generated columns.
    generated: bool,
    clock: XidClock,
    /// The transaction that is being decoded.
    pub open: Option<OpenTransaction>,
    /// Events that come before anything else.
    pub queued: VecDeque<TailEvent>,
    /// The look, and the `tracking`, for which names were followed last.
    followed: (Option<u64>, u64),
    /// Tables whose names went to others, and the place in the log from where on that is so.
    leaving: Vec<(Lsn, TableName)>,
    /// The look, and the `tracking`, whose partitions were compared last.
    compared: (u64, u64),
    /// Partitions that were not known when a row of theirs came, and where it did.
    met: HashMap<u32, Lsn>,
    /// The table of the last message, if that described one.
    described: Option<u32>,
}

impl Decoder {
    /// A decoder that tracks nothing.
    pub fn new(shared: Arc<Shared>, clock: XidClock) -> Self {
        Decoder {
            shared,
            tracked: HashMap::new(),
            tracking: 1,
            relations: HashMap::new(),
            types: HashMap::new(),
            generated: false,
            clock,
            open: None,
            queued: VecDeque::new(),
            followed: (None, 0),
            leaving: Vec::new(),
            compared: (0, 0),
            met: HashMap::new(),
            described: None,
        }
    }

    /// See [`crate::Tail::track`].
    pub fn track(&mut self, table: TrackedTable) -> Result<()> {
        let mark = table.mark.as_deref().map(str::parse).transpose()?;
        let name = table.schema.table.clone();
        let oid = Identity::held(&table.schema).map(|held| held.oid);
        self.tracking += 1;
        // What was looked up may be older than the version that is tracked now.
        for relation in self.relations.values_mut().filter(|r| r.table == name) {
            relation.now = Looked::NotYet;
        }
        self.leaving.retain(|(_, leaving)| *leaving != name);
        self.tracked.insert(name, Tracked { table, mark, oid });
        Ok(())
    }

    /// See [`crate::Tail::untrack`].
    pub fn untrack(&mut self, table: &TableName) {
        self.tracking += 1;
        self.tracked.remove(table);
    }

    /// See [`crate::Tail::live`].
    pub fn live(&mut self, table: &TableName) {
        if let Some(tracked) = self.tracked.get_mut(table) {
            tracked.table.copying = false;
            self.tracking += 1;
        }
    }

    /// A transaction begins.
    pub fn begin(&mut self, xid: u32, commit_lsn: Lsn, committed_at_us: i64) {
        self.described = None;
        let full_xid = self.clock.extend(xid);
        self.open = Some(OpenTransaction {
            xid,
            full_xid,
            commit_lsn,
            committed_at_us,
            begun: false,
        });
    }

    /// Takes what was looked up.
    pub fn learn(&mut self, answer: Answer) {
        self.types.extend(answer.types);
        self.generated = answer.generated;
        if let Some(relation) = self.relations.get_mut(&answer.oid) {
            relation.now = match answer.table {
                Some(table) => Looked::There(Arc::new(table)),
                None => Looked::Gone,
            };
        }
    }

    /// Between transactions, at `reached`: tables end whose names have gone to others.
    pub fn follow_names(&mut self, reached: Lsn, next_seq: i64) {
        let latest = self.shared.names.latest();
        let seen = (latest.as_ref().map(|look| look.number), self.tracking);
        if let Some(look) = latest.as_ref().filter(|_| self.followed != seen) {
            self.followed = seen;
            for (name, tracked) in &self.tracked {
                let now = look.tables.get(name).copied();
                if now.zip(tracked.oid).is_some_and(|(now, held)| now != held)
                    && !self.leaving.iter().any(|(_, leaving)| leaving == name)
                {
                    self.leaving.push((look.at, name.clone()));
                }
            }
        }
        let due = self.leaving.iter().filter(|(at, _)| reached >= *at);
        for table in due.map(|(_, table)| table.clone()).collect::<Vec<_>>() {
            self.leaving.retain(|(_, leaving)| *leaving != table);
            self.end(table);
        }
        if let Some(look) = latest.filter(|l| self.compared != (l.number, self.tracking)) {
            self.compared = (look.number, self.tracking);
            self.follow_parts(&look, next_seq);
        }
    }

    /// What a look shows of partitions. The tail may be behind it: a copy that is wanted begins
    /// once it is not, and a partition may be known before its rows come.
    fn follow_parts(&mut self, look: &Look, next_seq: i64) {
        let mut gone = Vec::new();
        for (name, tracked) in &mut self.tracked {
            let held = Identity::held(&tracked.table.schema);
            let Some((held, parts)) = held.and_then(|h| Some((h.clone(), h.parts?))) else {
                continue;
            };
            let Some(seen) = look.parts.get(&held.oid) else {
                continue;
            };
            // The look may have been taken before one came of which the log has a row already.
            let later = |p: &Part| {
                let after = self.met.get(&p.oid).is_some_and(|at| *at > look.at);
                p.met && after && !seen.iter().any(|s| s.part.oid == p.oid)
            };
            let (later, parts): (Vec<Part>, Vec<Part>) = parts.iter().partition(later);
            match partitions::compare(&parts.into_iter().collect(), seen) {
                Change::None => {}
                Change::Recopy(reason) => gone.push((name.clone(), reason.to_owned())),
                Change::Grown => {
                    let now = seen.iter().map(|s| s.part).chain(later).collect();
                    let identity = held.with_parts(Some(now));
                    let held = &tracked.table.schema;
                    let schema = Arc::new(next_version(held, &identity, next_seq));
                    tracked.table.schema = schema.clone();
                    self.tracking += 1;
                    self.queued.push_back(TailEvent::Schema(schema));
                }
            }
        }
        for (table, reason) in gone {
            self.untrack(&table);
            self.queued.push_back(TailEvent::Recopy { table, reason });
        }
    }

    /// A table's name went to another table.
    fn end(&mut self, table: TableName) {
        if self.tracked.contains_key(&table) {
            self.untrack(&table);
            self.queued.push_back(TailEvent::Ended { table });
            self.queued.push_back(TailEvent::Catalog);
        }
    }

    /// One message inside a transaction.
    pub fn change(&mut self, message: &Message<'_>, into: &mut ChangeBuffer) -> Result<Outcome> {
        // Types may be described in between.
        if matches!(message, Message::Other) {
            return Ok(Outcome::Done);
        }
        let described = self.described.take();
        match message {
            Message::Relation { relation, .. } => {
                let new = Relation::new(relation)?;
                // The server describes a root in front of the partition whose row follows.
                let root = described.and_then(|oid| self.relations.get_mut(&oid));
                if let Some(root) = root.filter(|_| !self.tracked.contains_key(&new.table)) {
                    root.part = Some(new.as_part(relation.oid));
                }
                self.described = Some(relation.oid);
                self.relations.insert(relation.oid, new);
                Ok(Outcome::Done)
            }
            Message::Row { relation, row, .. } => self.row(*relation, row, into),
            Message::Truncate { relations, .. } => self.truncate(relations, into),
            _ => Err(Error::fatal(
                Kind::Corrupt,
                "replication stream: a message out of order",
            )),
        }
    }

    #[inline]
    fn row(&mut self, oid: u32, row: &RowBody<'_>, into: &mut ChangeBuffer) -> Result<Outcome> {
        if let Some(outcome) = self.ready(oid, into)? {
            return Ok(outcome);
        }
        let Some(open) = &mut self.open else {
            return Err(outside());
        };
        let Some(relation) = self.relations.get_mut(&oid) else {
            return Ok(Outcome::Done);
        };
        let Some(plan) = &mut relation.plan else {
            return Ok(Outcome::Done);
        };
        if plan.hidden.as_ref().is_some_and(|s| s.sees(open.full_xid)) {
            return Ok(Outcome::Done);
        }
        open.begin(into);
        let at = open.commit_lsn;
        match plan.write(into, row) {
            Ok(()) => Ok(Outcome::Done),
            Err(e) => {
                let (table, error) = (relation.table.clone(), relation.row_error(e, at));
                self.untrack(&table);
                Ok(Outcome::Event(TailEvent::TableFailed { table, error }))
            }
        }
    }

    fn truncate(&mut self, relations: &[u8], into: &mut ChangeBuffer) -> Result<Outcome> {
        let (oids, _) = relations.as_chunks::<4>();
        let oids = oids.iter().map(|b| u32::from_be_bytes(*b));
        // All before the first row, so that the message can be handled again from its start.
        for oid in oids.clone() {
            if let Some(outcome) = self.ready(oid, into)? {
                return Ok(outcome);
            }
        }
        let Some(open) = &mut self.open else {
            return Err(outside());
        };
        for oid in oids {
            let Some(relation) = self.relations.get_mut(&oid) else {
                continue;
            };
            let Some(plan) = &mut relation.plan else {
                continue;
            };
            if !plan.hidden.as_ref().is_some_and(|s| s.sees(open.full_xid)) {
                open.begin(into);
                plan.truncate(into);
            }
        }
        Ok(Outcome::Done)
    }

    /// Sees to it that the table's plan is up to date. `None`: it is.
    #[inline]
    fn ready(&mut self, oid: u32, into: &ChangeBuffer) -> Result<Option<Outcome>> {
        let Some(relation) = self.relations.get(&oid) else {
            return Err(Error::fatal(
                Kind::Corrupt,
                "replication stream: a row of an unknown table",
            ));
        };
        if relation.planned == self.tracking {
            Ok(None)
        } else {
            self.plan(oid, into)
        }
    }

    /// Ends the tables that a message shows to be others: one that has lost its name to this
    /// one, and one whose name this one has.
    fn settle_names(&mut self, oid: u32) -> bool {
        let Some(relation) = self.relations.get(&oid) else {
            return false;
        };
        let other = |(name, t): (&TableName, &Tracked)| {
            let another = t
                .oid
                .is_some_and(|held| (held == oid) != (*name == relation.table));
            another.then(|| name.clone())
        };
        let ending: Vec<TableName> = self.tracked.iter().filter_map(other).collect();
        for table in &ending {
            self.end(table.clone());
        }
        !ending.is_empty()
    }

    fn plan(&mut self, oid: u32, into: &ChangeBuffer) -> Result<Option<Outcome>> {
        if self.settle_names(oid)
            && let Some(event) = self.queued.pop_front()
        {
            return Ok(Some(Outcome::Before(event)));
        }
        let Some(relation) = self.relations.get_mut(&oid) else {
            return Ok(None);
        };
        let name = relation.table.clone();
        let Some(tracked) = self.tracked.get_mut(&name) else {
            relation.plan = None;
            relation.planned = self.tracking;
            return Ok(None);
        };
        tracked.oid = Some(oid);
        let types = relation.unknown_types(&self.types);
        if !types.is_empty() || matches!(relation.now, Looked::NotYet) {
            return Ok(Some(Outcome::Unknown(Question { oid, types })));
        }
        let options = self.shared.options.tables.get(&name);
        let held = tracked.table.schema.clone();
        let gone = relation.columns.iter().find(|c| {
            let carried = !options.is_some_and(|o| o.exclude_columns.contains(&c.name));
            carried
                && self
                    .types
                    .get(&c.type_key)
                    .is_some_and(|t| t.mapped.is_err())
        });
        if let Some(column) = gone {
            let reason = format!(
                "column {} had a type that does not exist any more",
                column.name
            );
            self.untrack(&name);
            let table = name;
            return Ok(Some(Outcome::Before(TailEvent::Recopy { table, reason })));
        }
        let reading = Reading {
            shared: &self.shared,
            types: &self.types,
            generated: self.generated,
            oid,
            held: &held,
        };
        let verdict = relation
            .describe(&self.types, options)
            .and_then(|(specs, codecs)| {
                let verdict = reading.verdict(relation, specs, into.next_seq(), tracked)?;
                Ok((verdict, codecs))
            });
        let next = match verdict {
            Ok((Evolution::Same, codecs)) => (held, codecs, false),
            Ok((Evolution::Next(next), codecs)) => (Arc::new(next), codecs, true),
            Ok((Evolution::Recopy(reason), _)) => {
                self.untrack(&name);
                let event = TailEvent::Recopy {
                    table: name,
                    reason,
                };
                return Ok(Some(Outcome::Before(event)));
            }
            Err(error) if error.class() == Class::Data => {
                self.untrack(&name);
                let event = TailEvent::TableFailed { table: name, error };
                return Ok(Some(Outcome::Before(event)));
            }
            Err(error) => return Err(error),
        };
        let (schema, codecs, is_new) = next;
        relation.make_plan(
            &schema,
            &codecs,
            tracked.mark.clone(),
            tracked.table.copying,
            self.shared.options.value_bytes,
        );
        relation.planned = self.tracking;
        if !is_new {
            return Ok(None);
        }
        if let (Some(part), Some(open)) = (&relation.part, &self.open) {
            self.met.entry(part.oid).or_insert(open.commit_lsn);
        }
        let highest = schema.columns.iter().map(|c| c.id).max().unwrap_or(0);
        tracked.table.next_column_id = tracked.table.next_column_id.max(highest + 1);
        tracked.table.schema = schema.clone();
        Ok(Some(Outcome::Before(TailEvent::Schema(schema))))
    }
}

/// The version that differs in what the table is known by alone.
fn next_version(held: &TableSchema, identity: &Identity, since_seq: i64) -> TableSchema {
    TableSchema {
        version: held.version + 1,
        since_seq,
        source_id: Some(identity.to_string()),
        ..held.clone()
    }
}

/// What a table's new message is compared with.
struct Reading<'a> {
    shared: &'a Shared,
    types: &'a HashMap<TypeKey, ColumnType>,
    generated: bool,
    oid: u32,
    held: &'a TableSchema,
}

impl Reading<'_> {
    /// What the message means for the table that the lake has.
    ///
    /// Errors: a data error where rows cannot be told from here on and no copy helps.
    fn verdict(
        &self,
        relation: &Relation,
        mut specs: Vec<ColumnSpec>,
        next_seq: i64,
        tracked: &Tracked,
    ) -> Result<Evolution> {
        let table = &relation.table;
        let options = self.shared.options.tables.get(table);
        let whole = options.is_some_and(|o| o.filter_needs_whole_rows(&self.held.key));
        if whole && relation.identity != b'f' {
            return Err(Error::data(table, NEEDS_WHOLE_ROWS).hint(format!(
                "ALTER TABLE {} REPLICA IDENTITY FULL; then run `caudal resnapshot {table}`",
                connect::table_ident(table)
            )));
        }
        let Looked::There(now) = &relation.now else {
            return Ok(self.gone(&specs));
        };
        let part = relation.part.as_ref().filter(|_| now.parts.is_some());
        if let Some(part) =
            part.filter(|p| !p.identifies(&self.held.key) || (whole && p.identity != b'f'))
        {
            let text = format!(
                "the log does not carry the old rows of its partition {}",
                part.table
            );
            return Err(Error::data(table, text).hint(format!(
                "ALTER TABLE {} REPLICA IDENTITY FULL; then run `caudal resnapshot {table}`",
                connect::table_ident(&part.table)
            )));
        }
        let identity = Identity::held(self.held).filter(|h| h.oid == self.oid);
        let held_parts = identity.as_ref().and_then(|h| h.parts.as_ref());
        let of_parts = held_parts.map(|held| now.of_parts(held));
        let now = match &of_parts {
            Some(Some(state)) => state,
            _ => &**now,
        };
        let shapes = Shapes {
            held: self.held,
            now,
            options,
            types: self.types,
            generated: self.generated,
        };
        let Some(numbers) = shapes.numbers(&relation.columns) else {
            let reason = "its columns changed, and the log does not tell which of them are others";
            return Ok(Evolution::Recopy(reason.to_owned()));
        };
        let mut numbered = HashMap::new();
        for (column, number) in relation.columns.iter().zip(&numbers) {
            numbered.insert(column.name.as_str(), (*number, column.type_key));
        }
        for spec in &mut specs {
            let Some((number, type_key)) = numbered.get(spec.name.as_str()).copied() else {
                continue;
            };
            let names = &self.shared.names;
            let unwritten = match &of_parts {
                Some(state) => state.is_some(),
                None => {
                    names.unwritten(self.oid, now.file, number)
                        || identity
                            .as_ref()
                            .is_some_and(|h| h.unwritten(number, now.file))
                }
            };
            let older = shapes.older_rows(number, type_key, &spec.lake_type, unwritten);
            (spec.source_id, spec.older_rows) = (Some(number), older);
        }
        let live: Vec<_> = now.columns.iter().filter(|c| !c.dropped).cloned().collect();
        self.shared.names.saw(self.oid, now.file, &live);
        let key = match options.and_then(|o| o.key.clone()) {
            Some(named) => named,
            None => match self.key(relation, &numbers, now)? {
                Some(key) => key,
                None => return Ok(Evolution::Recopy("its primary key changed".to_owned())),
            },
        };
        let next_id = tracked.table.next_column_id;
        let evolution = self
            .held
            .evolve(next_seq, &specs, &key, next_id, mapping::retains);
        let part = part.map(|p| p.oid);
        Ok(self.identified(evolution, next_seq, &numbers, now, part))
    }

    /// The same with the identity that the table has now. A column that is left out is no
    /// new one when it appears, so that its number makes a version too.
    fn identified(
        &self,
        evolution: Evolution,
        next_seq: i64,
        numbers: &[i32],
        now: &TableState,
        part: Option<u32>,
    ) -> Evolution {
        let held = Identity::held(self.held);
        let most = numbers.iter().max().copied().unwrap_or(0);
        let before = held.as_ref().map_or(0, |h| h.greatest);
        let greatest = most.max(before);
        let parts = held.and_then(|h| h.parts);
        let met = part.filter(|oid| parts.as_ref().is_some_and(|p| p.get(*oid).is_none()));
        let grown = met.is_some();
        let now = Identity {
            oid: self.oid,
            greatest,
            // A column that came since may have had the rows written anew.
            file: now
                .file
                .filter(|_| now.columns.iter().all(|c| c.number <= greatest)),
            parts: match (parts, met) {
                (Some(parts), Some(oid)) => Some(parts.with(oid)),
                (parts, _) => parts,
            },
        };
        match evolution {
            Evolution::Next(next) => Evolution::Next(TableSchema {
                source_id: Some(now.to_string()),
                ..next
            }),
            Evolution::Same if grown || (before > 0 && before < now.greatest) => {
                Evolution::Next(next_version(self.held, &now, next_seq))
            }
            other => other,
        }
    }

    /// A table that was dropped since: what the lake has of it can go on as long as its
    /// columns seem to be the same.
    fn gone(&self, specs: &[ColumnSpec]) -> Evolution {
        let columns = &self.held.columns;
        let same = specs.len() == columns.len()
            && specs.iter().zip(columns).all(|(s, c)| {
                (&s.name, &s.source_type, &s.lake_type) == (&c.name, &c.source_type, &c.lake_type)
            });
        if same {
            return Evolution::Same;
        }
        Evolution::Recopy("its columns changed, and it was dropped since".to_owned())
    }

    /// The key in the message's names; `None` if it is another one, which only the
    /// catalogue shows. The message itself shows a primary key only while that is the
    /// replica identity.
    fn key(
        &self,
        relation: &Relation,
        numbers: &[i32],
        now: &TableState,
    ) -> Result<Option<Vec<String>>> {
        let table = &relation.table;
        let held: Vec<Option<i32>> = self
            .held
            .key
            .iter()
            .map(|k| {
                let column = self.held.columns.iter().find(|c| &c.name == k)?;
                let named = || now.columns.iter().find(|c| c.name == column.name);
                column.source_id.or_else(|| named().map(|c| c.number))
            })
            .collect();
        let columns = relation.columns.iter().zip(numbers);
        let shown: Vec<Option<i32>> = if relation.identity == b'd' {
            let shown = columns.clone().filter(|(c, _)| c.identity);
            shown.map(|(_, number)| Some(*number)).collect()
        } else {
            now.primary.iter().map(|number| Some(*number)).collect()
        };
        if relation.identity == b'd' && shown.is_empty() && !held.is_empty() {
            let text =
                "its primary key was dropped, and the log does not tell its rows apart any more";
            return Err(Error::data(table, text).hint(format!(
                "add a primary key, or ALTER TABLE {} REPLICA IDENTITY FULL; then run `caudal resnapshot {table}`",
                connect::table_ident(table)
            )));
        }
        let same = shown.len() == held.len() && shown.iter().all(|n| held.contains(n));
        let key = if same { &held } else { &shown };
        let name = |number: &Option<i32>| {
            let column = columns.clone().find(|(_, n)| Some(**n) == *number);
            column.map(|(c, _)| c.name.clone())
        };
        Ok(key.iter().map(name).collect())
    }
}

impl OpenTransaction {
    #[inline]
    fn begin(&mut self, into: &mut ChangeBuffer) {
        if !self.begun {
            self.begun = true;
            into.begin(TransactionMeta {
                committed_at_us: self.committed_at_us,
                position: self.commit_lsn.to_string().into(),
            });
        }
    }
}

fn outside() -> Error {
    Error::fatal(
        Kind::Corrupt,
        "replication stream: a change outside a transaction",
    )
}
