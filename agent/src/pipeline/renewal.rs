//! Tables that come, go or change while the stream runs.
//!
//! The source is asked for its tables when the log or a catalog's mark says that they may
//! have changed, and when a table must be copied again. What it answers describes the
//! source *now*, and the tail may be far behind. So the answer waits until the tail has
//! passed a position that was read after it: a table's schema is never from the tail's
//! future, and a table that is gone has been followed to its end.
//!
//! A table that is copied again first leaves the stream with a commit, and its copy begins
//! only after that commit: whatever happens in between, the next start finds a table
//! that waits to be copied.

use super::Pipeline;
use crate::epoch::OpenEpoch;
use crate::recover;
use crate::requests::Resnapshot;
use crate::settings::OnChange;
use caudal_model::{
    Class, Error, Finding, Kind, Position, Result, Severity, TableName, TableSchema, TableState,
};
use caudal_sources::{DiscoveredTable, Source, Tail};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long to wait before a question that failed is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The source's tables, and a position read after them.
pub(super) struct Discovery {
    pub(super) found: Vec<DiscoveredTable>,
    at: Position,
}

/// The question for the source's tables.
#[derive(Default)]
pub(super) struct Renewal {
    asking: Option<JoinHandle<Result<Discovery>>>,
    waiting: Option<Discovery>,
    /// Something changed after the question was asked.
    again: bool,
    not_before: Option<Instant>,
}

impl Renewal {
    /// Whether nothing is asked or waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.asking.is_none() && self.waiting.is_none() && !self.again
    }

    /// Asks, now or after the question that is under way.
    pub(super) fn want(&mut self) {
        self.again = true;
    }

    /// The answer to a question that is under way; never ready without one.
    pub(super) async fn answer(&mut self) -> Result<Discovery> {
        let Some(asking) = &mut self.asking else {
            return std::future::pending().await;
        };
        let answer = asking.await;
        self.asking = None;
        answer.unwrap_or_else(|e| Err(Error::bug("a discovery's task died").caused_by(e)))
    }

    /// Forgets what was asked for; it is asked for again.
    fn ask_anew(&mut self) {
        if let Some(asking) = self.asking.take() {
            asking.abort();
        }
        self.waiting = None;
        self.again = true;
    }

    /// Takes an answer; a question that failed for the moment is asked again.
    pub(super) fn settle(&mut self, answer: Result<Discovery>) -> Result<()> {
        match answer {
            Ok(discovery) => self.waiting = Some(discovery),
            Err(error) if error.class() == Class::Retryable => {
                tracing::warn!(%error, "the source's tables cannot be read now; they are asked for again");
                self.not_before = Some(Instant::now() + ASK_AGAIN);
                self.again = true;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Sends the question that is wanted, if none is under way or waits.
    pub(super) fn ask(&mut self, source: &Arc<dyn Source>, held: HashSet<TableName>) {
        let early = self.not_before.is_some_and(|t| Instant::now() < t);
        if !self.again || early || self.asking.is_some() || self.waiting.is_some() {
            return;
        }
        self.again = false;
        self.not_before = None;
        self.asking = Some(tokio::spawn(discover(source.clone(), held)));
    }

    /// The answer whose position a tail at `boundary` has passed.
    fn take(&mut self, source: &dyn Source, boundary: &Position) -> Result<Option<Discovery>> {
        let Some(waiting) = &self.waiting else {
            return Ok(None);
        };
        let passed = source.covers(boundary, &waiting.at)?;
        Ok(if passed { self.waiting.take() } else { None })
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        if let Some(asking) = &self.asking {
            asking.abort();
        }
    }
}

/// The selected tables; those that are not `held` are first made part of the log.
pub(super) async fn discover(
    source: Arc<dyn Source>,
    held: HashSet<TableName>,
) -> Result<Discovery> {
    let mut found = source.discover().await?;
    let new = |t: &&mut DiscoveredTable| !held.contains(&t.table) && problem(t).is_none();
    let names: Vec<TableName> = found
        .iter_mut()
        .filter(new)
        .map(|t| t.table.clone())
        .collect();
    if !names.is_empty()
        && let Err(error) = source.add_tables(&names).await
    {
        if error.class() == Class::Retryable {
            return Err(error);
        }
        // A table that cannot be carried is no reason to stop the others.
        for t in found.iter_mut().filter(new) {
            let mut finding = Finding::new(Severity::Error, "add_table", error.to_string());
            if let Some(hint) = error.hint_text() {
                finding = finding.mend(hint);
            }
            t.problems.push(finding);
        }
    }
    let at = source.current_position().await?;
    Ok(Discovery { found, at })
}

/// The first reason why a table cannot be carried.
pub(super) fn problem(t: &DiscoveredTable) -> Option<&Finding> {
    t.problems.iter().find(|p| p.severity == Severity::Error)
}

impl Pipeline<'_> {
    /// Tables that the stream holds or is copying: the log carries them already.
    pub(super) fn held(&self) -> HashSet<TableName> {
        let held = self.state.tables.iter().filter(|p| {
            p.base_position.is_some() || matches!(p.state, TableState::Live | TableState::Errored)
        });
        let held = held.filter(|p| !self.ending.contains(&p.table));
        held.map(|p| p.table.clone()).collect()
    }

    /// Between transactions: asks for the source's tables if somebody wants to know, and
    /// follows an answer that the tail has reached.
    pub(super) fn renew(&mut self, epoch: &mut OpenEpoch, tail: &mut dyn Tail) -> Result<()> {
        if self.renewal.again {
            let held = self.held();
            self.renewal.ask(&self.parts.source, held);
        }
        // A table that is ending must have left the stream before its new copy begins.
        if !self.ending.is_empty() {
            return Ok(());
        }
        let source = self.parts.source.clone();
        let Some(discovery) = self.renewal.take(&*source, &epoch.boundary.position)? else {
            return Ok(());
        };
        self.end_absent(&discovery.found, epoch, tail);
        if !self.ending.is_empty() {
            return Ok(());
        }
        let copies = self.begin_copies(discovery.found, epoch, tail)?;
        self.spawn_workers(copies);
        Ok(())
    }

    /// Ends the tables that the source does not have any more.
    fn end_absent(
        &mut self,
        found: &[DiscoveredTable],
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) {
        let there: HashSet<&TableName> = found.iter().map(|t| &t.table).collect();
        let absent: Vec<TableName> = self
            .state
            .tables
            .iter()
            .filter(|p| !p.ended && !there.contains(&p.table))
            .map(|p| p.table.clone())
            .collect();
        self.carried = found.iter().map(|t| t.table.clone()).collect();
        for table in absent {
            self.end_table(&table, epoch, tail);
        }
    }

    /// The table leaves the stream: dropped, renamed, or not selected any more.
    pub(super) fn end_table(
        &mut self,
        table: &TableName,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) {
        tracing::warn!(%table, "is not selected any more, or was dropped: it ends here");
        self.carried.remove(table);
        self.leave(table, false, epoch, tail);
        // What is there in its place, under its name, must first be made part of the log.
        self.renewal.ask_anew();
    }

    /// The table is copied again under the schema that it has now.
    pub(super) fn recopy(
        &mut self,
        table: &TableName,
        reason: &str,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) {
        if self.parts.settings.on_change == OnChange::Pause {
            self.pause(table, reason, epoch, tail);
            return;
        }
        tracing::warn!(%table, reason, "the table is copied again");
        self.leave(table, true, epoch, tail);
        self.renewal.want();
    }

    /// `schema_change.policy = "pause"`: the table stops, the stream goes on.
    pub(super) fn pause(
        &mut self,
        table: &TableName,
        reason: &str,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) {
        let at = &epoch.boundary.position;
        let error = Error::data(table, format!("its schema changed: {reason} (after {at})"))
            .hint(format!(
                "schema_change.policy is \"pause\"; run `caudal resnapshot {table}` to copy it as it is now"
            ));
        self.fail_table(table, &error, epoch, tail);
    }

    fn leave(
        &mut self,
        table: &TableName,
        again: bool,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) {
        tail.untrack(table);
        self.forget_copy(table);
        self.ending.insert(table.clone());
        epoch.end_table(table, again);
    }

    /// Nothing of the table's copy is wanted any more.
    pub(super) fn forget_copy(&mut self, table: &TableName) {
        if let Some(copy) = self.active.remove(table) {
            copy.cancel();
        }
        self.drifted.remove(table);
        self.awaiting_live.remove(table);
        self.copies.remove(table);
        self.partial.retain(|(t, _)| t != table);
        self.live.remove(table);
        self.exact_requests.retain(|r| r.copy.table != *table);
    }

    /// These tables' end is committed.
    pub(super) fn ended(&mut self, tables: impl Iterator<Item = TableName>) {
        for table in tables {
            self.ending.remove(&table);
            self.failed.remove(&table);
            if !self.carried.contains(&table) {
                self.parts.board.remove_table(&table);
            }
            self.granted(std::iter::once(&table));
        }
    }

    /// A commit holds what was asked for of these tables.
    pub(super) fn granted<'t>(&mut self, tables: impl Iterator<Item = &'t TableName>) {
        for table in tables {
            for asked in self.granting.values_mut() {
                asked.remove(table);
            }
        }
        if let Some(requests) = &self.parts.requests {
            self.granting.retain(|path, left| {
                if left.is_empty() {
                    requests.granted(path);
                }
                !left.is_empty()
            });
        }
    }

    /// Somebody asked for new copies.
    pub(super) fn grant(
        &mut self,
        path: PathBuf,
        request: Resnapshot,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) {
        if self.granting.contains_key(&path) {
            return;
        }
        let known: HashMap<TableName, bool> = self
            .state
            .tables
            .iter()
            .map(|p| (p.table.clone(), p.ended))
            .collect();
        let mut asked = HashSet::new();
        for table in request.tables {
            if known.get(&table) != Some(&false) {
                tracing::warn!(%table, "was asked to be copied again, but is not part of the stream");
                continue;
            }
            match &request.only {
                None => {
                    tracing::info!(%table, "was asked to be copied again");
                    self.leave(&table, true, epoch, tail);
                    self.renewal.want();
                }
                Some(condition) => {
                    if let Err(why) = self.may_reread(&table, condition) {
                        tracing::warn!(%table, "was asked to be read again in part, but it {why}");
                        continue;
                    }
                    tracing::info!(%table, condition, "was asked to be read again in part");
                    self.partial.push((table.clone(), condition.clone()));
                }
            }
            asked.insert(table);
        }
        self.granting.insert(path, asked);
        // A request that names nothing is granted at once.
        self.granted(std::iter::empty());
    }

    /// Whether some rows of the table can be read again: it is whole, and has a key.
    fn may_reread(&self, table: &TableName, condition: &str) -> Result<(), String> {
        let state = self.state.tables.iter().find(|p| p.table == *table);
        let begun = self.copies.contains_key(table)
            || self.active.contains_key(table)
            || self.partial.iter().any(|(t, _)| t == table);
        if begun || self.failed.contains(table) || self.ending.contains(table) {
            return Err("is being copied, or has failed".to_owned());
        }
        let schema = self.schemas.get(table).ok_or("has not been copied yet")?;
        let state = state.map(|p| p.state);
        recover::may_reread(state, schema, condition, self.parts.settings.filter_syntax)
    }

    /// A new version of a table that goes on.
    pub(super) fn new_version(
        &mut self,
        schema: Arc<TableSchema>,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) {
        let table = schema.table.clone();
        let version = schema.version;
        // A version may differ in what the source knows the table by alone.
        let held = self.schemas.get(&table);
        let same = held.is_some_and(|h| (&h.columns, &h.key) == (&schema.columns, &schema.key));
        if self.parts.settings.on_change == OnChange::Pause && !same {
            self.pause(
                &table,
                &format!("version {version} would begin here"),
                epoch,
                tail,
            );
            return;
        }
        if let Err(reason) = self.parts.rules.check(&schema) {
            let error = Error::data(&table, reason).hint(format!(
                "mend this table's override, then run `caudal resnapshot {table}`"
            ));
            self.fail_table(&table, &error, epoch, tail);
            return;
        }
        tracing::info!(%table, version, "new schema version");
        self.note_column_ids(&schema);
        self.schemas.insert(table.clone(), schema.clone());
        if let Some(copy) = self.active.get(&table) {
            copy.go_on(schema.clone());
            self.drifted.remove(&table);
        }
        epoch.add_schema(schema);
    }

    pub(super) fn note_column_ids(&mut self, schema: &TableSchema) {
        let next = schema.columns.iter().map(|c| c.id + 1).max().unwrap_or(1);
        let ids = self
            .next_column_ids
            .entry(schema.table.clone())
            .or_insert(next);
        *ids = next.max(*ids);
    }

    /// Copies that met a table of another shape: once the tail has passed what changed it,
    /// either it has told of a version that fits, or only a new copy helps.
    pub(super) fn look_at_drifted(
        &mut self,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) -> Result<()> {
        let mut over = Vec::new();
        for (table, (_, at)) in &self.drifted {
            if self.parts.source.covers(&epoch.boundary.position, at)? {
                over.push(table.clone());
            }
        }
        for table in over {
            if let Some((reason, _)) = self.drifted.remove(&table) {
                self.recopy(&table, &reason, epoch, tail);
            }
        }
        Ok(())
    }

    /// A table that turned up and cannot be carried.
    pub(super) fn refuse(
        &mut self,
        t: &DiscoveredTable,
        finding: &Finding,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) {
        let subject = finding.subject.clone().unwrap_or_default();
        let error = Error::new(
            Class::Data,
            Kind::Data,
            format!("{subject}: {}", finding.reason),
        );
        let mend = finding.mend.clone().unwrap_or_default();
        let mend = mend.trim_end_matches(';');
        let error = error.hint(format!("{mend}; then run `caudal resnapshot {}`", t.table));
        self.fail_table(&t.table, &error, epoch, tail);
    }
}
