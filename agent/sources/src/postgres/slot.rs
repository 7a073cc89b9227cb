//! The publication and the slot: created where the user may, checked before use.
//!
//! A table that joins a publication is carried from the moment on that the server
//! reads the new catalogue, which for a transaction that is already writing to it is
//! in its middle, and servers before 14.18, 15.13, 16.9 and 17.5 may keep an answer that
//! they formed for such a transaction, "not published", for later ones too. So after the
//! change [`publish`] waits until every transaction that then held a write lock on one of
//! the tables is gone; changes the publication once more without changing anything, so
//! that whatever the server kept of it is dropped behind the last of them; and waits
//! for those that hold a write lock then. What any of them wrote is visible to the copy that
//! follows, and what comes later is in the log. Both is done whenever tables are added to
//! the stream, even if they are in the publication already: an earlier try may have ended
//! while it waited. A new slot needs no such wait, because its creation waits for every
//! running transaction itself.

use super::connect::Client;
use super::connect::{self, ident, is_denied, literal, query_error, table_ident};
use super::{Lsn, Shared, catalog};
use crate::SourceProgress;
use caudal_model::{Error, Kind, Position, Result, TableName};
use std::collections::HashSet;
use std::future::Future;
use std::time::{Duration, Instant};

/// How long new tables wait for transactions that were writing to them.
const PATIENCE: Duration = Duration::from_secs(10);

/// The first version that knows slots which survive a failover.
pub(super) const FAILOVER_SLOTS: i32 = 170_000;

/// The server's `NAMEDATALEN` - 1.
const NAME_BYTES: usize = 63;

/// The slot's and the publication's name of a stream.
pub fn default_name(stream: &str) -> String {
    let plain = stream.chars().map(|c| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | '_') => c,
        _ => '_',
    });
    "caudal_".chars().chain(plain).take(NAME_BYTES).collect()
}

/// Checks that the server would take a slot's name.
pub fn validate_name(name: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if name.is_empty() || name.len() > NAME_BYTES || !name.bytes().all(allowed) {
        return Err(Error::fatal(
            Kind::Config,
            format!("[source] slot: `{name}` is not a slot name"),
        )
        .hint("use lower-case letters, digits and underscores, at most 63"));
    }
    Ok(())
}

/// The statement that makes the publication carry tables, and tell the rows of partitions as
/// their root's.
pub fn publication_sql(
    publication: &str,
    exists: bool,
    tables: &[TableName],
    generated: bool,
) -> String {
    let list: Vec<String> = tables
        .iter()
        .map(|t| format!("ONLY {}", table_ident(t)))
        .collect();
    let list = list.join(", ");
    let publication = ident(publication);
    if exists {
        return format!("ALTER PUBLICATION {publication} ADD TABLE {list};");
    }
    let tables = if list.is_empty() {
        String::new()
    } else {
        format!(" FOR TABLE {list}")
    };
    let generated = if generated {
        ", publish_generated_columns = stored"
    } else {
        ""
    };
    format!(
        "CREATE PUBLICATION {publication}{tables} WITH (publish_via_partition_root = true{generated});"
    )
}

/// The statement that has the publication tell the rows of partitions as their root's.
pub fn via_root_sql(publication: &str) -> String {
    format!(
        "ALTER PUBLICATION {} SET (publish_via_partition_root = true);",
        ident(publication)
    )
}

/// The statement that creates the slot; `version` as `server_version_num`.
///
/// From PostgreSQL 17 on a slot can be one that standbys keep a copy of, so that the stream goes
/// on from one that is promoted (manual, "Logical Replication Failover").
pub fn slot_sql(slot: &str, version: i32) -> String {
    let failover = if version >= FAILOVER_SLOTS {
        ", failover => true"
    } else {
        ""
    };
    format!(
        "SELECT lsn::text FROM pg_create_logical_replication_slot({}, 'pgoutput'{failover});",
        literal(slot)
    )
}

/// [`crate::Source::prepare`].
pub(super) async fn prepare(shared: &Shared, tables: &[TableName]) -> Result<Position> {
    let client = shared.control().await?;
    publish(&client, shared, tables).await?;
    if let Some(slot) = find(&client, &shared.slot()).await? {
        slot.usable(shared)?;
        return slot.confirmed.map(Lsn::position).ok_or_else(|| {
            Error::retryable(Kind::Source, "the slot is being created by another session")
        });
    }
    create(shared).await
}

async fn create(shared: &Shared) -> Result<Position> {
    // A connection of its own: this waits for running transactions, without a limit.
    let client = connect::connect(shared).await?;
    client
        .batch_execute("SET lock_timeout = 0")
        .await
        .map_err(query_error)?;
    let name = shared.slot();
    let sql = slot_sql(&name, catalog::server_version(&client).await?);
    let create = async { client.query_one_at_leisure(&sql, &[]).await };
    tokio::pin!(create);
    let started = Instant::now();
    let row = loop {
        match tokio::time::timeout(Duration::from_secs(10), &mut create).await {
            Ok(row) => break row,
            Err(_) => {
                tracing::warn!(
                    waited_seconds = started.elapsed().as_secs(),
                    "creating the slot waits for transactions that were running before it"
                );
                // The answer may take hours; whether the server is there does not.
                connect::connect(shared).await?;
            }
        }
    };
    let row = row.map_err(|e| {
        let code = e.code().map(|c| c.code().to_owned()).unwrap_or_default();
        let error = query_error(e);
        match code.as_str() {
            "42501" | "55000" | "53400" => {
                Error::fatal(Kind::Prerequisite, format!("cannot create the slot {name}"))
                    .caused_by(error)
                    .hint(format!(
                        "run `caudal check`, or as a superuser: ALTER ROLE {} REPLICATION; {}",
                        ident(&shared.options.user),
                        sql
                    ))
            }
            // Another agent of the stream was faster; which of the two goes on, the lake decides.
            "42710" => {
                Error::retryable(Kind::Source, format!("the slot {name} was made meanwhile"))
                    .caused_by(error)
            }
            _ => error.context(format!("creating the slot {name}")),
        }
    })?;
    let text: String = row.get(0);
    let position = Position::new(text);
    Lsn::of(&position)?;
    Ok(position)
}

/// A publication as the server describes it.
pub(super) struct Publication {
    /// What it carries: of a partitioned table the root, or the partitions, or both.
    pub tables: HashSet<TableName>,
    /// Rows of partitions come as their root's.
    pub via_root: bool,
    /// The user may change it.
    pub alterable: bool,
    /// It names no tables, and carries those that come by itself.
    whole: bool,
}

impl Publication {
    /// Whether a table's rows are in the log under its own name.
    pub fn carries(&self, table: &TableName, partitioned: bool) -> bool {
        self.tables.contains(table) && (self.via_root || !partitioned)
    }
}

/// A publication, if it exists.
pub(super) async fn published(client: &Client, publication: &str) -> Result<Option<Publication>> {
    let row = client
        .query_opt(
            "SELECT pubviaroot, pg_has_role(pubowner, 'USAGE'), puballtables
               FROM pg_publication WHERE pubname = $1",
            &[&publication],
        )
        .await
        .map_err(query_error)?;
    let Some(row) = row else { return Ok(None) };
    // The view has partitions in place of a root that is published as such.
    let rows = client
        .query(
            "SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = $1
             UNION
             SELECT n.nspname::text, c.relname::text
               FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
               JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE p.pubname = $1",
            &[&publication],
        )
        .await
        .map_err(query_error)?;
    Ok(Some(Publication {
        tables: rows
            .iter()
            .map(|r| TableName::new(r.get::<_, String>(0), r.get::<_, String>(1)))
            .collect(),
        via_root: row.get(0),
        alterable: row.get(1),
        whole: row.get(2),
    }))
}

/// Partitions among the tables whose rows come as those of a root that is not among them, with
/// the root: whoever made the publication added it.
pub(super) async fn shadowed(
    client: &Client,
    held: &Publication,
    tables: &[TableName],
) -> Result<Vec<(TableName, TableName)>> {
    let names: Vec<String> = tables.iter().map(table_ident).collect();
    let rows = client
        .query(
            "SELECT i, n.nspname::text, c.relname::text
               FROM unnest($1::text[]) WITH ORDINALITY AS t(name, i),
                    pg_partition_ancestors(to_regclass(t.name)) a
               JOIN pg_class c ON c.oid = a.relid JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE a.relid <> to_regclass(t.name)",
            &[&names],
        )
        .await
        .map_err(query_error)?;
    let pair = |row: &tokio_postgres::Row| {
        let place = usize::try_from(row.get::<_, i64>(0)).ok()?.checked_sub(1)?;
        let root = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        let part = tables.get(place)?;
        (held.carries(&root, true) && !tables.contains(&root)).then(|| (part.clone(), root))
    };
    Ok(rows.iter().filter_map(pair).collect())
}

/// What is wrong with such a partition, and what mends it.
pub(super) fn shadow_text(name: &str, part: &TableName, root: &TableName) -> (String, String) {
    let (p, part_name, root_name) = (ident(name), table_ident(part), table_ident(root));
    (
        format!("{name} reports changes of {part} as those of {root}, which is not selected"),
        format!(
            "include {root} instead, or: ALTER PUBLICATION {p} DROP TABLE {root_name}; ALTER PUBLICATION {p} ADD TABLE {part_name};"
        ),
    )
}

/// Makes the publication carry at least these tables.
async fn publish(client: &Client, shared: &Shared, tables: &[TableName]) -> Result<()> {
    let name = shared.publication();
    let mut held = published(client, &name).await?;
    let mut sql = String::new();
    if let Some(held) = &mut held {
        if !held.via_root && any_partitioned(client, tables).await? {
            sql += &via_root_sql(&name);
            held.via_root = true;
        }
        if let Some((part, root)) = shadowed(client, held, tables).await?.first() {
            let (reason, mend) = shadow_text(&name, part, root);
            return Err(Error::fatal(Kind::Prerequisite, reason).hint(mend));
        }
    }
    let missing: Vec<TableName> = tables
        .iter()
        .filter(|t| !held.as_ref().is_some_and(|h| h.tables.contains(t)))
        .cloned()
        .collect();
    if held.is_none() || !missing.is_empty() {
        let generated = held.is_none() && any_generated(client, tables).await?;
        sql += &publication_sql(&name, held.is_some(), &missing, generated);
    }
    if !sql.is_empty() {
        client.batch_execute(&sql).await.map_err(|e| {
            let error = query_error(e);
            if is_denied(&error) {
                let what = if held.is_some() { "change" } else { "create" };
                Error::fatal(
                    Kind::Prerequisite,
                    format!("the user may not {what} the publication {name}"),
                )
                .caused_by(error)
                .hint(format!("as the owner of the tables, or a superuser: {sql}"))
            } else {
                error.context(format!("preparing the publication {name}"))
            }
        })?;
    }
    await_writers(client, tables).await?;
    if touch(client, &name).await? {
        await_writers(client, tables).await?;
    }
    Ok(())
}

/// Has the server forget what it keeps of the publication; `false` if the user may not.
async fn touch(client: &Client, publication: &str) -> Result<bool> {
    let held = published(client, publication).await?;
    let Some(held) = held.filter(|h| h.alterable && !h.whole) else {
        return Ok(false);
    };
    let sql = format!(
        "ALTER PUBLICATION {} SET (publish_via_partition_root = {})",
        ident(publication),
        held.via_root
    );
    client.batch_execute(&sql).await.map_err(query_error)?;
    Ok(true)
}

async fn any_partitioned(client: &Client, tables: &[TableName]) -> Result<bool> {
    let names: Vec<String> = tables.iter().map(table_ident).collect();
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_class
              WHERE oid = ANY(SELECT to_regclass(n)::oid FROM unnest($1::text[]) n) AND relkind = 'p')",
            &[&names],
        )
        .await
        .map_err(query_error)?;
    Ok(row.get(0))
}

async fn any_generated(client: &Client, tables: &[TableName]) -> Result<bool> {
    if catalog::server_version(client).await? < 180_000 {
        return Ok(false);
    }
    let names: Vec<String> = tables.iter().map(table_ident).collect();
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_attribute
              WHERE attrelid = ANY(SELECT to_regclass(n)::oid FROM unnest($1::text[]) n)
                AND attgenerated = 's' AND NOT attisdropped)",
            &[&names],
        )
        .await
        .map_err(query_error)?;
    Ok(row.get(0))
}

/// Waits for the transactions that hold a write lock on one of the tables now.
///
/// Errors: a retryable one that names a transaction which does not end.
async fn await_writers(client: &Client, tables: &[TableName]) -> Result<()> {
    let names: Vec<String> = tables.iter().map(table_ident).collect();
    let mut waiting: Option<Vec<String>> = None;
    let started = Instant::now();
    loop {
        let rows = client
            .query(
                "WITH named AS (SELECT to_regclass(n) AS relid FROM unnest($1::text[]) n),
                      written AS (SELECT relid FROM named
                                   UNION SELECT t.relid FROM named, pg_partition_tree(named.relid) t)
                 SELECT DISTINCT virtualtransaction, pid, relation::regclass::text FROM pg_locks
                  WHERE locktype = 'relation' AND granted
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                    AND relation = ANY(SELECT relid FROM written)
                    AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')",
                &[&names],
            )
            .await
            .map_err(query_error)?;
        let now: Vec<String> = rows.iter().map(|r| r.get(0)).collect();
        match &mut waiting {
            None => waiting = Some(now),
            Some(first) => first.retain(|w| now.contains(w)),
        }
        let waiting = waiting.as_deref().unwrap_or_default();
        let held_up = rows.iter().find(|r| waiting.contains(&r.get(0)));
        let Some(by) = held_up else { return Ok(()) };
        if started.elapsed() >= PATIENCE {
            let (pid, table): (Option<i32>, String) = (by.get(1), by.get(2));
            let (who, mend) = match pid {
                Some(pid) => (
                    format!("of process {pid}"),
                    format!("end it, or SELECT pg_terminate_backend({pid});"),
                ),
                None => (
                    "that is prepared".to_owned(),
                    "COMMIT PREPARED or ROLLBACK PREPARED it (pg_prepared_xacts)".to_owned(),
                ),
            };
            let text = format!(
                "{table} waits for a transaction {who}, which was writing to it when it joined the stream"
            );
            return Err(Error::retryable(Kind::Source, text).hint(mend));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// [`crate::Source::add_tables`].
pub(super) async fn add_tables(shared: &Shared, tables: &[TableName]) -> Result<()> {
    let client = shared.control().await?;
    publish(&client, shared, tables).await
}

/// A slot as the server describes it.
#[derive(Debug)]
pub(super) struct SlotState {
    name: String,
    plugin: Option<String>,
    database: Option<String>,
    /// `lost` once the server has dropped the log that the slot needs.
    wal_status: Option<String>,
    invalidated: Option<String>,
    confirmed: Option<Lsn>,
    /// Standbys keep a copy of it; `None` where the server knows no such slots.
    pub failover: Option<bool>,
}

/// The slot, if it exists.
pub(super) async fn find(client: &Client, name: &str) -> Result<Option<SlotState>> {
    // Newer servers have more columns; JSON asks for them without naming them.
    let row = client
        .query_opt(
            "SELECT plugin::text, database::text, wal_status, confirmed_flush_lsn::text,
                    to_jsonb(s) ->> 'invalidation_reason', to_jsonb(s) ->> 'conflicting',
                    (to_jsonb(s) ->> 'failover')::bool
               FROM pg_replication_slots s WHERE slot_name = $1",
            &[&name],
        )
        .await
        .map_err(query_error)?;
    let Some(row) = row else { return Ok(None) };
    let confirmed = row.get::<_, Option<String>>(3).and_then(|t| t.parse().ok());
    let conflicting = row.get::<_, Option<String>>(5).is_some_and(|c| c == "true");
    Ok(Some(SlotState {
        name: name.to_owned(),
        plugin: row.get(0),
        database: row.get(1),
        wal_status: row.get(2),
        invalidated: row
            .get::<_, Option<String>>(4)
            .or_else(|| conflicting.then(|| "conflict with recovery".to_owned())),
        confirmed,
        failover: row.get(6),
    }))
}

const COPY_AGAIN: &str = "copy every table again: `caudal resnapshot '*.*'`, then `caudal run`";

impl SlotState {
    /// Checks that this is a slot of the right kind that still has its log.
    pub(super) fn usable(&self, shared: &Shared) -> Result<()> {
        let name = &self.name;
        if self.plugin.as_deref() != Some("pgoutput")
            || self.database.as_deref() != Some(shared.database())
        {
            return Err(Error::fatal(
                Kind::Prerequisite,
                format!("the slot {name} exists, but not for pgoutput in this database"),
            )
            .hint("name another slot in [source] slot, or drop this one"));
        }
        if self.wal_status.as_deref() == Some("lost") || self.invalidated.is_some() {
            let why = self
                .invalidated
                .as_deref()
                .unwrap_or("the server removed the log it needs");
            return Err(Error::fatal(
                Kind::PositionLost,
                format!("the slot {name} was invalidated ({why}); the changes since its position are lost"),
            )
            .hint(format!("SELECT pg_drop_replication_slot({}); {COPY_AGAIN}", literal(name))));
        }
        Ok(())
    }
}

/// Checks that the slot can replay everything after `from`, and returns what it has confirmed.
pub(super) async fn require(client: &Client, shared: &Shared, from: Lsn) -> Result<Lsn> {
    let name = shared.slot();
    let lost = |text: String| Error::fatal(Kind::PositionLost, text).hint(COPY_AGAIN);
    let Some(slot) = find(client, &name).await? else {
        return Err(lost(format!(
            "the slot {name} does not exist (dropped, or the server was failed over to or restored); the changes since {from} are lost"
        )));
    };
    slot.usable(shared)?;
    if let Some(confirmed) = slot.confirmed.filter(|c| *c > from) {
        let bytes = confirmed.0 - from.0;
        return Err(lost(format!(
            "the slot {name} has moved on to {confirmed}; the changes from {from} on ({bytes} bytes of log) are lost"
        )));
    }
    let (insert, _) = log_ends(client).await?;
    if from > insert {
        return Err(lost(format!(
            "the server's log ends at {insert}, before the stream's position {from}: it is another server, or was restored from a backup"
        )));
    }
    Ok(slot.confirmed.unwrap_or(from))
}

/// Where the log ends: inserted, and flushed.
pub(super) async fn log_ends(client: &Client) -> Result<(Lsn, Lsn)> {
    let row = client
        .query_one(
            "SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text,
                    current_setting('wal_block_size')::int8,
                    pg_size_bytes(current_setting('wal_segment_size'))",
            &[],
        )
        .await
        .map_err(query_error)?;
    let lsn = |i: usize| Lsn::of(&Position::new(row.get::<_, String>(i)));
    let size = |i: usize| u64::try_from(row.get::<_, i64>(i)).unwrap_or(0);
    Ok((lsn(0)?.end_of_last_record(size(2), size(3)), lsn(1)?))
}

/// [`crate::Source::current_position`].
///
/// The insert position covers every commit that anybody can see. The server sends
/// only flushed log, and may leave the rest (an asynchronous commit, or changes of an
/// open transaction) unflushed for as long as nothing else happens. A transaction
/// that does nothing but take an id then brings a commit record behind it, which the
/// server's log writer flushes within its delay (wal_writer_delay, 200 ms).
pub(super) async fn current_position(shared: &Shared) -> Result<Position> {
    let client = shared.control().await?;
    let (insert, flushed) = log_ends(&client).await?;
    if flushed < insert {
        let nudge = "BEGIN READ WRITE; SELECT pg_current_xact_id(); COMMIT";
        if let Err(e) = client.batch_execute(nudge).await {
            tracing::debug!(error = %e, "the log's end cannot be flushed");
            client
                .batch_execute("ROLLBACK")
                .await
                .map_err(query_error)?;
        }
    }
    Ok(insert.position())
}

/// [`crate::Source::progress`].
pub(super) async fn progress(shared: &Shared, reached: &Position) -> Result<SourceProgress> {
    let reached = Lsn::of(reached)?;
    let client = shared.control().await?;
    let (insert, _) = log_ends(&client).await?;
    let retained = client
        .query_opt(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)::int8
               FROM pg_replication_slots WHERE slot_name = $1",
            &[&shared.slot()],
        )
        .await
        .map_err(query_error)?
        .and_then(|r| r.get::<_, Option<i64>>(0));
    Ok(SourceProgress {
        position: insert.position(),
        lag_bytes: Some(insert.0.saturating_sub(reached.0)),
        retained_bytes: retained.and_then(|b| u64::try_from(b).ok()),
    })
}

/// Tries for some seconds while another connection holds the slot: after a broken
/// connection the server needs a moment to notice.
pub(super) async fn retry_while_active<T, F, A>(shared: &Shared, attempt: A) -> Result<T>
where
    F: Future<Output = Result<T, (String, Error)>>,
    A: Fn() -> F,
{
    let started = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err((code, e)) if code == "55006" => {
                if started.elapsed() > Duration::from_secs(3) {
                    return Err(e.context("another connection reads the slot").hint(
                        "is another agent of this stream running? otherwise the server will notice soon that the old connection is gone",
                    ));
                }
                let older_too = started.elapsed() > Duration::from_secs(1);
                end_walsender(shared, older_too).await?;
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            Err((_, e)) => return Err(e.context("starting replication")),
        }
    }
}

/// Ends the server's process that reads the slot, which the server itself would notice to be
/// without a reader only after `wal_sender_timeout`: one of this agent, over a connection that
/// was given up; and, where it has not ended by itself, one that is older than this agent. Its
/// agent was fenced before the log was opened here, but may be paused or cut off. One that
/// came later is left alone: it may have fenced this one.
async fn end_walsender(shared: &Shared, older_too: bool) -> Result<()> {
    let own = shared.walsender.load(std::sync::atomic::Ordering::Relaxed);
    let began = shared.began.get().filter(|_| older_too);
    let ended = shared
        .control()
        .await?
        .query(
            "SELECT a.pid, pg_terminate_backend(a.pid)
               FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
              WHERE s.slot_name = $1 AND (a.pid = $2 OR a.backend_start < $3::text::timestamptz)",
            &[&shared.slot(), &own, &began],
        )
        .await
        .map_err(query_error)?;
    for row in ended {
        let process: i32 = row.get(0);
        tracing::warn!(
            process,
            "ended the server's process that held the slot for an earlier connection"
        );
    }
    Ok(())
}

/// The server's time when this agent first asked.
pub(super) async fn note_beginning(shared: &Shared, client: &Client) -> Result<()> {
    if shared.began.get().is_none() {
        let row = client
            .query_one("SELECT clock_timestamp()::text", &[])
            .await;
        let now: String = row.map_err(query_error)?.get(0);
        // Whoever was first is right.
        let _ = shared.began.set(now);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_statements() {
        assert_eq!(default_name("Shop-1"), "caudal_shop_1");
        assert_eq!(default_name(&"x".repeat(90)).len(), 63);
        assert!(validate_name("caudal_shop").is_ok() && validate_name("Shop").is_err());
        let tables = [
            TableName::new("public", "a"),
            TableName::new("s", "We\"ird"),
        ];
        assert_eq!(
            publication_sql("p", false, &tables, true),
            "CREATE PUBLICATION \"p\" FOR TABLE ONLY \"public\".\"a\", ONLY \"s\".\"We\"\"ird\" \
             WITH (publish_via_partition_root = true, publish_generated_columns = stored);"
        );
        assert_eq!(
            publication_sql("p", true, &tables[..1], false),
            "ALTER PUBLICATION \"p\" ADD TABLE ONLY \"public\".\"a\";"
        );
    }
}
