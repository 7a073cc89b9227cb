//! Where transactions begin and end, and those that wait for their XA COMMIT.

use super::{MysqlTail, Step, seconds};
use crate::TailEvent;
use crate::mysql::connect::Reached;
use crate::mysql::decode::DecodeError;
use crate::mysql::decode::events::{self, HEADER, Header, kind};
use crate::mysql::gtid::{Coordinate, MariaGtid, Origin, Place, uuid_text};
use crate::spill::Held;
use caudal_model::{Error, Result, TableName};

/// Transactions without rows of interest that pass before a heartbeat is due.
const QUIET_TRANSACTIONS: u32 = 1000;

/// Who committed the transaction that is open.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    Gtid(Origin, u64),
    Maria(MariaGtid),
    File(Coordinate),
}

impl Identity {
    pub(super) fn covered_by(&self, mark: &Place) -> bool {
        match (self, mark) {
            (Identity::Gtid(origin, gno), Place::Gtids(set)) => set.contains(origin, *gno),
            (Identity::Maria(g), Place::Domains(list)) => list.contains(*g),
            (Identity::File(start), Place::File(end)) => start.order() < end.order(),
            _ => false,
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Identity::Gtid((uuid, tag), gno) if tag.is_empty() => {
                format!("{}:{gno}", uuid_text(uuid))
            }
            Identity::Gtid((uuid, tag), gno) => format!("{}:{tag}:{gno}", uuid_text(uuid)),
            Identity::Maria(g) => g.to_string(),
            Identity::File(c) => c.to_string(),
        }
    }
}

pub(super) struct Transaction {
    pub(super) identity: Identity,
    pub(super) committed_at_us: i64,
    /// BEGIN came, or is implied: the end is a commit, not the first statement.
    pub(super) begun: bool,
    /// Rows of tracked tables were appended, or would have been.
    pub(super) touched: Vec<TableName>,
    /// Since the last call the buffer knows this transaction.
    pub(super) announced: bool,
    /// Events that wait for their XA COMMIT: the xid is known at the end only.
    pub(super) xa: Option<Held>,
}

/// A prepared XA transaction.
pub(super) struct Prepared {
    pub(super) identity: Identity,
    pub(super) events: Held,
}

impl MysqlTail {
    pub(super) fn begin_gtid(&mut self, header: &Header, g: events::MysqlGtid) -> Result<Step> {
        let identity = if g.gno == 0 || !self.holes {
            let start = self.coordinate.offset.saturating_sub(header.size.into());
            Identity::File(Coordinate {
                file: self.coordinate.file.clone(),
                offset: start,
            })
        } else {
            Identity::Gtid(g.origin, g.gno)
        };
        let at = if g.committed_at_us > 0 {
            g.committed_at_us as i64
        } else {
            seconds(header)
        };
        self.begin(identity, at, false, None);
        Ok(Step::Next)
    }

    pub(super) fn begin(
        &mut self,
        identity: Identity,
        committed_at_us: i64,
        begun: bool,
        xa: Option<Held>,
    ) {
        self.transaction = Some(Transaction {
            identity,
            committed_at_us,
            begun,
            touched: Vec::new(),
            announced: false,
            xa,
        });
    }

    /// Rows that stand in the log although their transaction was rolled back: some of its
    /// statements could not be (a table without transactions), and which ones is not logged.
    pub(super) fn rolled_back(&mut self) {
        let touched = self
            .transaction
            .as_mut()
            .map(|t| std::mem::take(&mut t.touched));
        for table in touched.unwrap_or_default() {
            let error = Error::data(
                &table,
                "a transaction that was rolled back stands in the log",
            )
            .hint(format!("run `caudal resnapshot {table}`"));
            self.fail(&table, error);
        }
    }

    pub(super) fn xa_prepare(&mut self, header: &Header, body: &[u8]) -> Result<Step> {
        let (xid, one_phase) = events::xa_prepare(body)?;
        let Some(mut t) = self.transaction.take() else {
            return Ok(Step::Next);
        };
        let events = t.xa.take().unwrap_or_default();
        if one_phase {
            self.staged = self.staged.saturating_sub(events.in_memory());
            self.replay = Some(events.read()?);
            self.transaction = Some(t);
            return self.finish_replay(header);
        }
        if events.is_empty() {
            // Nothing waits: its commit may be reported like any other.
            self.transaction = Some(t);
            return self.commit(header);
        }
        self.prepared.insert(
            xid,
            Prepared {
                identity: t.identity,
                events,
            },
        );
        Ok(Step::Next)
    }

    pub(super) fn xa_end(&mut self, header: &Header, xid: &str, commit: bool) -> Result<Step> {
        if let Some(p) = self.prepared.remove(xid) {
            self.staged = self.staged.saturating_sub(p.events.in_memory());
            // Both GTIDs count as executed from the end of this transaction on.
            self.advance(&p.identity);
            if commit {
                self.replay = Some(p.events.read()?);
                return self.finish_replay(header);
            }
        }
        self.commit(header)
    }

    /// Ends the replayed events with a commit of their own.
    pub(super) fn finish_replay(&mut self, header: &Header) -> Result<Step> {
        if let Some(t) = &mut self.transaction {
            t.begun = true;
            t.xa = None;
        }
        let mut end = header.timestamp.to_le_bytes().to_vec();
        end.push(kind::XID);
        end.extend_from_slice(&[0; HEADER - 5]);
        self.replay_end = Some(end);
        self.replayed = true;
        // The prepared events may be of a server's earlier life, which numbered its tables
        // differently; they bring their own maps.
        self.maps.clear();
        self.plans.clear();
        Ok(Step::Next)
    }

    pub(super) fn advance(&mut self, identity: &Identity) {
        match (&mut self.place, identity) {
            (Place::Gtids(set), Identity::Gtid(origin, gno)) => set.add(origin, *gno),
            (Place::Domains(list), Identity::Maria(g)) => list.add(*g),
            (Place::File(at), _) => at.clone_from(&self.coordinate),
            _ => {}
        }
    }

    pub(super) fn commit(&mut self, _header: &Header) -> Result<Step> {
        let Some(t) = self.transaction.take() else {
            return Err(DecodeError::Malformed("a commit outside a transaction").into());
        };
        self.advance(&t.identity);
        if self.replayed {
            self.replayed = false;
            self.maps.clear();
            self.plans.clear();
        }
        self.stands(Some(t.committed_at_us));
        // See the header: without holes a waiting XA transaction holds commits back.
        if !self.holes && !self.prepared.is_empty() {
            self.held |= !t.touched.is_empty();
            return Ok(Step::Next);
        }
        let held = std::mem::take(&mut self.held);
        if t.touched.is_empty() && !held && self.events.is_empty() {
            self.quiet += 1;
            if self.quiet < QUIET_TRANSACTIONS {
                return Ok(Step::Next);
            }
            return Ok(Step::Emit(self.heartbeat()));
        }
        self.quiet = 0;
        Ok(Step::Emit(TailEvent::Commit {
            position: self.place.position(),
            committed_at_us: t.committed_at_us,
            log_bytes: std::mem::take(&mut self.log_bytes),
        }))
    }

    /// Tells those who ask how far behind the tail is.
    pub(super) fn stands(&mut self, committed_at_us: Option<i64>) {
        let Ok(mut reached) = self.server.reached.lock() else {
            return;
        };
        match &mut *reached {
            Some(r) => {
                r.at.clone_from(&self.coordinate);
                r.committed_at_us = committed_at_us;
            }
            none => {
                *none = Some(Reached {
                    at: self.coordinate.clone(),
                    committed_at_us,
                });
            }
        }
    }

    pub(super) fn heartbeat(&mut self) -> TailEvent {
        self.quiet = 0;
        TailEvent::Heartbeat {
            position: self.place.position(),
        }
    }
}
