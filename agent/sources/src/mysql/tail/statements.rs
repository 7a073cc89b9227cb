//! Statements in the log: the ends of transactions, and what they do to the stream's tables.

use super::changes::Change;
use super::transaction::Identity;
use super::{MysqlTail, Step, seconds};
use crate::TailEvent;
use crate::mysql::ddl::{self, Alter, Context, Effect, Quoting, Statement};
use crate::mysql::decode::charset::Charset;
use crate::mysql::decode::events::{
    self, ANSI_QUOTES, Header, NO_BACKSLASH_ESCAPES, Query, STRICT,
};
use crate::mysql::decode::values::Value;
use crate::mysql::gtid::Coordinate;
use crate::mysql::schema::is_helper;
use caudal_model::{ChangeBuffer, Error, Op, Result, TableName, TransactionMeta};
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

impl MysqlTail {
    pub(super) fn query(
        &mut self,
        header: &Header,
        body: &[u8],
        compressed: bool,
        into: &mut ChangeBuffer,
    ) -> Result<Step> {
        let q = events::query(body, compressed)?;
        let sql = match self.text_of(&q) {
            Ok(text) => text,
            Err(charset) => return Ok(Step::Charset(charset)),
        };
        let database = String::from_utf8_lossy(q.database);
        if self.transaction.is_none() {
            // MySQL without any GTID event: a server before 5.7's format, or a replayed file.
            let start = self.coordinate.offset.saturating_sub(header.size.into());
            let at = Coordinate {
                file: self.coordinate.file.clone(),
                offset: start,
            };
            self.begin(Identity::File(at), seconds(header), false, None);
        }
        let context = Context {
            database: &database,
            quoting: Quoting {
                ansi_quotes: q.sql_mode & ANSI_QUOTES != 0,
                no_backslash_escapes: q.sql_mode & NO_BACKSLASH_ESCAPES != 0,
            },
            lower_case: self.lower_case,
        };
        let statement = ddl::parse(&sql, context);
        if self.answer.is_none() {
            let tables = self.touched_by(&statement);
            if !tables.is_empty() {
                return Ok(Step::Ask(tables));
            }
        }
        match &statement {
            Statement::Begin => {
                if let Some(t) = &mut self.transaction {
                    t.begun = true;
                    if sql.get(..2).is_some_and(|s| s.eq_ignore_ascii_case("xa")) && t.xa.is_none()
                    {
                        t.xa = Some(crate::spill::Held::default());
                    }
                }
                return Ok(Step::Next);
            }
            Statement::Commit => return self.commit(header),
            Statement::Rollback | Statement::RollbackTo => {
                self.rolled_back();
                if statement == Statement::Rollback {
                    return self.commit(header);
                }
                return Ok(Step::Next);
            }
            Statement::XaCommit(xid) => return self.xa_end(header, xid, true),
            Statement::XaRollback(xid) => return self.xa_end(header, xid, false),
            Statement::Nothing => return Ok(Step::Next),
            _ => {}
        }
        self.statement(statement, q.sql_mode & STRICT != 0, into);
        self.answer = None;
        if self.transaction.as_ref().is_some_and(|t| !t.begun) {
            return self.commit(header);
        }
        Ok(Step::Next)
    }

    /// A statement's text; the charset whose table is missing for it otherwise.
    fn text_of<'q>(&self, q: &'q Query<'_>) -> Result<Cow<'q, str>, Arc<str>> {
        if q.sql.is_ascii() {
            return Ok(String::from_utf8_lossy(&q.sql));
        }
        let name = self.charsets.get(&q.collation).map(String::as_str);
        let charset = Charset::by_name(name.unwrap_or("utf8mb4"));
        let charset = match self.server.charsets.resolve(Value::Text(charset))? {
            Value::Text(charset) => charset,
            _ => Charset::Utf8,
        };
        let mut text = Vec::with_capacity(q.sql.len());
        Ok(match charset.decode(&q.sql, &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned().into(),
            // Bytes that its author sent in another charset than he said.
            Err(_) => String::from_utf8_lossy(&q.sql),
        })
    }

    /// Whether an exact read of the table saw the open transaction (INV-6).
    fn covered(&self, table: &TableName) -> bool {
        let mark = self.tracked.get(table).and_then(|t| t.mark.as_ref());
        let identity = self.transaction.as_ref().map(|t| &t.identity);
        matches!((mark, identity), (Some(m), Some(i)) if i.covered_by(m))
    }

    /// The carried tables whose definition a statement may change.
    fn touched_by(&self, statement: &Statement) -> Vec<TableName> {
        let mut tables: Vec<TableName> = match statement {
            Statement::Other(named) => named.clone(),
            Statement::Tables(effects) => effects
                .iter()
                .filter_map(|e| match e {
                    Effect::Altered(t, _) => Some(t.clone()),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        tables.retain(|t| self.tracked.contains_key(t) && !self.covered(t));
        tables.sort();
        tables.dedup();
        tables
    }

    pub(super) fn statement(
        &mut self,
        statement: Statement,
        strict: bool,
        into: &mut ChangeBuffer,
    ) {
        match statement {
            Statement::Truncate(table) => self.truncate(table, into),
            Statement::Tables(effects) => {
                let mut catalog = false;
                for effect in effects {
                    catalog |= self.effect(effect, strict);
                }
                if catalog {
                    self.events.push_back(TailEvent::Catalog);
                }
            }
            Statement::Rows(tables) => {
                for t in tables {
                    if self.tracked.contains_key(&t) && !self.covered(&t) {
                        let error = Error::data(&t, "rows were changed by a statement in the log")
                            .hint(format!(
                                "SET GLOBAL binlog_format = ROW, reconnect its sessions, then run \
                                 `caudal resnapshot {t}`"
                            ));
                        self.fail(&t, error);
                    }
                }
            }
            Statement::Other(tables) => {
                let mut seen = HashSet::new();
                for t in tables {
                    if seen.insert(t.clone()) {
                        self.alter(&t, Alter::default(), strict);
                    }
                }
            }
            _ => {}
        }
    }

    fn truncate(&mut self, table: TableName, into: &mut ChangeBuffer) {
        if self.covered(&table) {
            return;
        }
        let Some(tracked) = self.tracked.get(&table) else {
            return;
        };
        let Some(t) = &mut self.transaction else {
            return;
        };
        into.begin(TransactionMeta {
            committed_at_us: t.committed_at_us,
            position: t.identity.text().into(),
        });
        t.touched.push(table);
        let slot = into.slot(&tracked.schema);
        into.row(slot, Op::Truncate).finish();
    }

    fn alter(&mut self, table: &TableName, alter: Alter, strict: bool) {
        if !self.tracked.contains_key(table) || self.covered(table) {
            return;
        }
        if let Some(answer) = self.answer.take() {
            self.changed(table, Change { alter, strict }, &answer);
            self.answer = Some(answer);
        }
    }

    /// Carries out what happened to a table; true if one may have come.
    fn effect(&mut self, effect: Effect, strict: bool) -> bool {
        let end = |tail: &mut Self, table: &TableName| {
            if tail.tracked.contains_key(table) && !tail.covered(table) {
                tail.ended(table);
            }
        };
        match effect {
            Effect::Dropped(table) => end(self, &table),
            Effect::Renamed(from, to) => {
                end(self, &from);
                return self.may_come(&to);
            }
            Effect::Created(table) => {
                return !self.tracked.contains_key(&table) && self.may_come(&table);
            }
            Effect::Replaced(table) => {
                end(self, &table);
                return self.may_come(&table);
            }
            Effect::Altered(table, alter) => self.alter(&table, alter, strict),
            Effect::Rewritten(table, what) => {
                if self.tracked.contains_key(&table) && !self.covered(&table) {
                    self.recopy(&table, what.to_owned());
                }
            }
            Effect::DatabaseDropped(name) => {
                let gone: Vec<_> = self
                    .tracked
                    .keys()
                    .filter(|t| t.schema == name)
                    .cloned()
                    .collect();
                gone.iter().for_each(|t| end(self, t));
            }
        }
        false
    }

    fn may_come(&self, table: &TableName) -> bool {
        let selection = &self.server.options.selection;
        let helper = || is_helper(table, |t| self.tracked.contains_key(t));
        selection.matches(table) && (selection.names(table) || !helper())
    }
}
