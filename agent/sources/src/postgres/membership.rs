//! Whether the publication still tells what the stream follows.
//!
//! The log is silent about a table that was taken out of the publication, about operations that
//! it leaves out, and from PostgreSQL 18 on about a publication that is gone. So it is looked at
//! with the catalogue, and what is missing ends its table, or the stream, before more is taken for
//! complete. A publication that was dropped and made again while nobody looked is another by its
//! oid, which is part of the server's identity.

use super::connect::{Client, ident, literal, query_error, table_ident};
use super::{Shared, slot};
use caudal_model::{Error, Kind, Result, TableName};
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    followed: HashSet<TableName>,
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
    pub fn begin(&self, tables: impl Iterator<Item = TableName>) {
        *self.state() = State {
            followed: tables.collect(),
            ..State::default()
        };
    }

    /// One more table is followed, which the publication has.
    pub fn follow(&self, table: &TableName) {
        self.state().followed.insert(table.clone());
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
    let mut state = shared.membership.state();
    match (held, told) {
        (Some(held), Some(told)) => {
            if !told.get::<_, bool>(0) {
                state.broken = Some("leaves out some kinds of changes (publish)");
            }
            let missing = followed.iter().filter(|t| !held.tables.contains(t));
            let missing: Vec<TableName> = missing
                .filter(|t| state.followed.contains(*t) && !state.lost.contains(t))
                .cloned()
                .collect();
            state.lost.extend(missing);
        }
        _ => state.broken = Some("was dropped"),
    }
    Ok(())
}
