//! Statements in the log: the ends of transactions, and what they do to the stream's tables.

use super::transaction::Identity;
use super::{MysqlTail, Step, seconds};
use crate::mysql::ddl::{self, Statement};
use crate::mysql::decode::events::{self, Header};
use crate::mysql::gtid::Coordinate;
use crate::mysql::schema::drifted;
use caudal_model::{ChangeBuffer, Error, Op, Result, TableName, TransactionMeta};

impl MysqlTail {
    pub(super) fn query(
        &mut self,
        header: &Header,
        body: &[u8],
        compressed: bool,
        into: &mut ChangeBuffer,
    ) -> Result<Step> {
        let q = events::query(body, compressed)?;
        let (sql, database) = (
            String::from_utf8_lossy(&q.sql),
            String::from_utf8_lossy(q.database),
        );
        if self.transaction.is_none() {
            // MySQL without any GTID event: a server before 5.7's format, or a replayed file.
            let start = self.coordinate.offset.saturating_sub(header.size.into());
            let at = Coordinate {
                file: self.coordinate.file.clone(),
                offset: start,
            };
            self.begin(Identity::File(at), seconds(header), false, None);
        }
        let statement = ddl::parse(&sql, &database);
        match &statement {
            Statement::Begin => {
                if let Some(t) = &mut self.transaction {
                    t.begun = true;
                    if sql.get(..2).is_some_and(|s| s.eq_ignore_ascii_case("xa")) && t.xa.is_none()
                    {
                        t.xa = Some(Vec::new());
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
        self.statement(statement, into);
        if self.transaction.as_ref().is_some_and(|t| !t.begun) {
            return self.commit(header);
        }
        Ok(Step::Next)
    }

    pub(super) fn statement(&mut self, statement: Statement, into: &mut ChangeBuffer) {
        let covered = |tail: &Self, table: &TableName| {
            let mark = tail.tracked.get(table).and_then(|t| t.mark.as_ref());
            let identity = tail.transaction.as_ref().map(|t| &t.identity);
            matches!((mark, identity), (Some(m), Some(i)) if i.covered_by(m))
        };
        match statement {
            Statement::Truncate(table) => {
                if covered(self, &table) {
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
            Statement::Replaced { tables, what } => {
                for t in tables {
                    if self.tracked.contains_key(&t) && !covered(self, &t) {
                        self.fail(&t, drifted(&t, what));
                    }
                }
            }
            Statement::DropDatabase(name) => {
                let gone: Vec<_> = self
                    .tracked
                    .keys()
                    .filter(|t| t.schema == name)
                    .cloned()
                    .collect();
                for t in gone {
                    self.fail(&t, drifted(&t, "its database was dropped"));
                }
            }
            Statement::Rows(tables) => {
                for t in tables {
                    if self.tracked.contains_key(&t) && !covered(self, &t) {
                        let error = Error::data(&t, "rows were changed by a statement in the log")
                            .hint(format!(
                                "SET GLOBAL binlog_format = ROW, reconnect its sessions, then run \
                                 `caudal resnapshot {t}`"
                            ));
                        self.fail(&t, error);
                    }
                }
            }
            // A table map that no longer fits shows what the statement changed.
            _ => {}
        }
    }
}
