//! Whether the publication still tells what the stream follows.
//!
//! The log is silent about a table that was taken out of the publication, about operations that
//! it leaves out, and from PostgreSQL 18 on about a publication that is gone. So it is looked at
//! with the catalogue, and what is missing ends its table, or the stream, before more is taken for
//! complete. A publication that was dropped and made again while nobody looked is another by its
//! oid, which is part of the server's identity.

use super::connect::{Client, ident, literal, query_error, table_ident};
use super::shape::Identity;
use super::{Shared, slot};
use caudal_model::{Error, Kind, Result, TableName, TableSchema};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    /// By the oid that the stream's rows came from.
    followed: HashMap<TableName, u32>,
    lost: Vec<TableName>,
    /// Why nothing can be relied on.
    broken: Option<&'static str>,
}

/// What the tail follows, and what it cannot follow any more.
#[derive(Debug, Default)]
pub struct Membership(Mutex<State>);

impl Membership {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tail begins, which follows these tables.
    pub fn begin<'t>(&self, tables: impl Iterator<Item = &'t TableSchema>) {
        *self.state() = State::default();
        tables.for_each(|t| self.follow(t));
    }

    /// One more table is followed, which the publication has.
    pub fn follow(&self, schema: &TableSchema) {
        if let Some(held) = Identity::held(schema) {
            let mut state = self.state();
            state.followed.insert(schema.table.clone(), held.oid);
        }
    }

    /// A table is not followed any more.
    pub fn leave(&self, table: &TableName) {
        let mut state = self.state();
        state.followed.remove(table);
        state.lost.retain(|t| t != table);
    }

    /// The next table whose changes are missing from the log.
    ///
    /// Errors: [`Kind::PositionLost`] if that is so of all of them.
    pub fn lost(&self, shared: &Shared) -> Result<Option<(TableName, Error)>> {
        let mut state = self.state();
        if let Some(why) = state.broken {
            return Err(broken(shared, why));
        }
        let Some(table) = state.lost.pop() else {
            return Ok(None);
        };
        state.followed.remove(&table);
        let name = shared.publication();
        let text = format!("it was taken out of the publication {name}: the log lacks its changes");
        let error = Error::data(&table, text).hint(format!(
            "ALTER PUBLICATION {} ADD TABLE ONLY {}; then run `caudal resnapshot {table}`",
            ident(&name),
            table_ident(&table)
        ));
        Ok(Some((table, error)))
    }
}

/// The error of a stream whose publication does not tell everything.
pub(super) fn broken(shared: &Shared, why: &str) -> Error {
    let name = shared.publication();
    Error::fatal(
        Kind::PositionLost,
        format!("the publication {name} {why}; the changes since then are lost"),
    )
    .hint(format!(
        "SELECT pg_drop_replication_slot({}); then copy every table again: `caudal resnapshot '*.*'`, which makes the \
         publication if the user may, and `caudal run`",
        literal(&shared.slot())
    ))
}

/// Compares the publication with what is followed.
pub(super) async fn look(shared: &Shared, client: &Client) -> Result<()> {
    // Asked for first: what is followed later was published later.
    let followed = shared.membership.state().followed.clone();
    if followed.is_empty() {
        return Ok(());
    }
    let name = shared.publication();
    let held = slot::published(client, &name).await?;
    let told = client
        .query_opt(
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication WHERE pubname = $1",
            &[&name],
        )
        .await
        .map_err(query_error)?;
    let broken = match (&held, told) {
        (Some(_), Some(told)) if told.get(0) => None,
        (Some(_), Some(_)) => Some("leaves out some kinds of changes (publish)"),
        _ => Some("was dropped"),
    };
    if broken.is_some() {
        shared.membership.state().broken = broken;
    }
    let told = |t: &TableName| held.as_ref().is_none_or(|h| h.tables.contains(t));
    let missing: Vec<(TableName, u32)> = followed.into_iter().filter(|(t, _)| !told(t)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // Asked after the publication: one that is gone, renamed or another by now is told of elsewhere.
    let (names, oids): (Vec<String>, Vec<u32>) = missing
        .iter()
        .map(|(t, oid)| (table_ident(t), *oid))
        .unzip();
    let there = client
        .query(
            "SELECT i FROM unnest($1::text[], $2::oid[]) WITH ORDINALITY t(name, oid, i)
              WHERE to_regclass(name)::oid = oid",
            &[&names, &oids],
        )
        .await
        .map_err(query_error)?;
    let mut state = shared.membership.state();
    for row in there {
        let place = usize::try_from(row.get::<_, i64>(0)).unwrap_or(0);
        let table = place.checked_sub(1).and_then(|at| missing.get(at));
        if let Some((table, oid)) = table
            && state.followed.get(table) == Some(oid)
            && !state.lost.contains(table)
        {
            state.lost.push(table.clone());
        }
    }
    Ok(())
}
