//! Every prerequisite at once, each with the SQL that mends it.
//!
//! Nothing is changed here, and nothing but a failed connection is an error: what is
//! missing is a finding.

use super::connect::Client;
use super::connect::{ident, query_error, table_ident};
use super::replication::ReplicationConnection;
use super::schema::{self, Catalog, CatalogTable};
use super::slot::Publication;
use super::{Shared, catalog, slot};
use caudal_model::{Class, Finding, Result, Severity, TableName};

const OLDEST: i32 = 140_000;

/// [`crate::Source::check`].
pub(super) async fn check(shared: &Shared) -> Result<Vec<Finding>> {
    let client = shared.control().await?;
    let mut found = Vec::new();
    let version = catalog::server_version(&client).await?;
    found.push(version_finding(version));
    if version < OLDEST {
        return Ok(found);
    }
    let server = Server::read(&client, shared).await?;
    found.extend(server.findings(shared));
    found.push(replication_finding(shared).await?);
    let Catalog { tables, left_out } = schema::catalog_tables(&client, shared).await?;
    found.extend(slot_findings(&client, shared, &server, version).await?);
    found.extend(publication_findings(&client, shared, &server, &tables, version).await?);
    found.extend(table_findings(&client, shared, &tables).await?);
    found.extend(left_out.iter().filter_map(|t| {
        Some(info("table_kind", format!("left out: {}", t.unlogged()?)).subject(&t.table))
    }));
    Ok(found)
}

fn ok(check: &'static str, reason: impl Into<String>) -> Finding {
    Finding::new(Severity::Ok, check, reason)
}
fn error(check: &'static str, reason: impl Into<String>) -> Finding {
    Finding::new(Severity::Error, check, reason)
}
fn warning(check: &'static str, reason: impl Into<String>) -> Finding {
    Finding::new(Severity::Warning, check, reason)
}
fn info(check: &'static str, reason: impl Into<String>) -> Finding {
    Finding::new(Severity::Info, check, reason)
}

fn version_finding(version: i32) -> Finding {
    let text = format!("PostgreSQL {}.{}", version / 10_000, version % 10_000);
    if version < OLDEST {
        error(
            "server_version",
            format!("{text}; caudal needs 14 or later"),
        )
        .mend("upgrade the server")
    } else {
        ok("server_version", text)
    }
}

/// Settings and rights that concern the whole server.
struct Server {
    in_recovery: bool,
    wal_level: String,
    may_replicate: bool,
    superuser: bool,
    slots: (i64, i64),
    senders: (i64, i64),
    keep_size: String,
    encoding: String,
    standbys: bool,
    sees_waits: bool,
    may_create: bool,
}

impl Server {
    async fn read(client: &Client, shared: &Shared) -> Result<Self> {
        let row = client
            .query_one(
                "SELECT pg_is_in_recovery(), current_setting('wal_level'),
                        r.rolsuper OR r.rolreplication OR EXISTS (
                            SELECT FROM pg_roles m WHERE m.rolname = 'rds_replication'
                                AND pg_has_role(m.oid, 'USAGE')),
                        r.rolsuper,
                        (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> $1),
                        current_setting('max_replication_slots')::int8,
                        (SELECT count(*) FROM pg_stat_replication WHERE application_name <> $2),
                        current_setting('max_wal_senders')::int8,
                        current_setting('max_slot_wal_keep_size'),
                        current_setting('server_encoding'),
                        current_setting('synchronous_standby_names') <> '',
                        pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
                        has_database_privilege(current_database(), 'CREATE')
                   FROM pg_roles r WHERE r.rolname = current_user",
                &[&shared.slot(), &format!("caudal {}", shared.options.stream)],
            )
            .await
            .map_err(query_error)?;
        Ok(Server {
            in_recovery: row.get(0),
            wal_level: row.get(1),
            may_replicate: row.get(2),
            superuser: row.get(3),
            slots: (row.get(4), row.get(5)),
            senders: (row.get(6), row.get(7)),
            keep_size: row.get(8),
            encoding: row.get(9),
            standbys: row.get(10),
            sees_waits: row.get(11),
            may_create: row.get(12),
        })
    }

    fn findings(&self, shared: &Shared) -> Vec<Finding> {
        let user = ident(&shared.options.user);
        let mut found = Vec::new();
        if self.in_recovery {
            found.push(
                error(
                    "primary",
                    "the server is a standby; caudal reads the primary",
                )
                .mend("set [source] host to the primary"),
            );
        }
        found.push(if self.wal_level == "logical" {
            ok("wal_level", "logical")
        } else {
            error(
                "wal_level",
                format!(
                    "{}; the log must be written for logical decoding",
                    self.wal_level
                ),
            )
            .mend("ALTER SYSTEM SET wal_level = logical; -- then restart the server")
        });
        found.push(if self.may_replicate {
            ok("replication_role", "the user may read the log")
        } else {
            error("replication_role", "the user may not read the log")
                .mend(format!("ALTER ROLE {user} REPLICATION;"))
        });
        found.push(headroom("max_replication_slots", self.slots, "slots"));
        found.push(headroom("max_wal_senders", self.senders, "log senders"));
        found.push(if self.keep_size == "-1" {
            info(
                "max_slot_wal_keep_size",
                "unlimited: while caudal is down the server keeps its log, until its disk is full",
            )
            .mend("ALTER SYSTEM SET max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf(); -- or what the disk allows")
        } else {
            info(
                "max_slot_wal_keep_size",
                format!("{}: a backlog above it invalidates the slot, and every table must be copied again", self.keep_size),
            )
        });
        if self.encoding == "SQL_ASCII" {
            found.push(warning(
                "server_encoding",
                "SQL_ASCII: the server checks no encoding; a text that is not UTF-8 stops its table",
            ));
        }
        if self.standbys && !self.sees_waits {
            found.push(
                warning(
                    "synchronous_standbys",
                    "the user cannot see which commits wait for a standby; a copy may wait for long transactions",
                )
                .mend(format!("GRANT pg_monitor TO {user};")),
            );
        }
        found
    }
}

fn headroom(setting: &'static str, (used, limit): (i64, i64), what: &str) -> Finding {
    if used < limit {
        return ok(
            setting,
            format!("{used} of {limit} {what} are in use by others"),
        );
    }
    error(setting, format!("all {limit} {what} are in use by others")).mend(format!(
        "ALTER SYSTEM SET {setting} = {}; -- then restart the server",
        limit.saturating_add(10)
    ))
}

/// Logs in as the tail does: `pg_hba.conf` may treat the two kinds of login differently.
async fn replication_finding(shared: &Shared) -> Result<Finding> {
    match ReplicationConnection::open(shared).await {
        Ok(_) => Ok(ok(
            "replication_connection",
            "a replication connection can be opened",
        )),
        Err(e) if e.class() == Class::Fatal => {
            let finding = error("replication_connection", e.to_string());
            let mend = format!(
                "in pg_hba.conf, for caudal's address: host {} {} <address>/32 scram-sha-256",
                shared.database(),
                shared.options.user
            );
            Ok(finding.mend(mend))
        }
        Err(e) => Err(e),
    }
}

async fn slot_findings(
    client: &Client,
    shared: &Shared,
    server: &Server,
    version: i32,
) -> Result<Vec<Finding>> {
    let name = shared.slot();
    Ok(vec![match slot::find(client, &name).await? {
        Some(state) => match state.usable(shared) {
            Ok(()) if state.failover == Some(false) => {
                info("slot", format!("{name} exists; standbys keep no copy of it, so that a failover loses it"))
                    .mend(format!(
                        "on a replication connection (psql \"replication=database …\"), while caudal is stopped: ALTER_REPLICATION_SLOT {} (FAILOVER true);",
                        ident(&name)
                    ))
            }
            Ok(()) => ok("slot", format!("{name} exists")),
            Err(e) => error("slot", e.to_string()).mend(e.hint_text().unwrap_or_default()),
        },
        None if server.may_replicate => ok("slot", format!("`run` will create {name}")),
        None => error(
            "slot",
            format!("{name} does not exist, and the user may not create it"),
        )
        .mend(slot::slot_sql(&name, version)),
    }])
}

async fn publication_findings(
    client: &Client,
    shared: &Shared,
    server: &Server,
    tables: &[CatalogTable],
    version: i32,
) -> Result<Vec<Finding>> {
    let name = shared.publication();
    let held = slot::published(client, &name).await?;
    let missing: Vec<&CatalogTable> = tables
        .iter()
        .filter(|t| t.unlogged().is_none())
        .filter(|t| !held.as_ref().is_some_and(|h| h.tables.contains(&t.table)))
        .collect();
    let mut found = Vec::new();
    if let Some(held) = &held {
        found.extend(publication_options(client, &name, version).await?);
        found.extend(roots(client, &name, held, tables).await?);
        if missing.is_empty() {
            found.push(ok(
                "publication",
                format!("{name} carries every selected table"),
            ));
            return Ok(found);
        }
    }
    let oids: Vec<u32> = missing.iter().map(|t| t.oid).collect();
    let row = client
        .query_one(
            "SELECT coalesce(bool_and(pg_has_role(c.relowner, 'USAGE')), true),
                    coalesce((SELECT pg_has_role(pubowner, 'USAGE') FROM pg_publication WHERE pubname = $2), true)
               FROM pg_class c WHERE c.oid = ANY($1::oid[])",
            &[&oids, &name],
        )
        .await
        .map_err(query_error)?;
    let (owns, alters): (bool, bool) = (row.get(0), row.get(1));
    let may = server.superuser
        || (owns
            && if held.is_some() {
                alters
            } else {
                server.may_create
            });
    let names: Vec<TableName> = missing.iter().map(|t| t.table.clone()).collect();
    let generated = held.is_none()
        && version >= 180_000
        && missing
            .iter()
            .any(|t| t.columns.iter().any(|c| c.generated == "s"));
    let sql = slot::publication_sql(&name, held.is_some(), &names, generated);
    let what = if held.is_some() {
        "add tables to"
    } else {
        "create"
    };
    found.push(if may {
        ok("publication", format!("`run` will {what} {name}"))
    } else {
        error(
            "publication",
            format!(
                "{name} lacks {} tables, and the user may not {what} it",
                missing.len()
            ),
        )
        .mend(sql)
    });
    Ok(found)
}

/// A publication that somebody else made may leave changes out.
async fn publication_options(client: &Client, name: &str, version: i32) -> Result<Vec<Finding>> {
    let row = client
        .query_one(
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate
               FROM pg_publication WHERE pubname = $1",
            &[&name],
        )
        .await
        .map_err(query_error)?;
    let mut found = Vec::new();
    if !row.get::<_, bool>(0) {
        found.push(
            error(
                "publication_operations",
                format!("{name} leaves out some kinds of changes"),
            )
            .mend(format!(
                "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');",
                ident(name)
            )),
        );
    }
    if version >= 150_000 {
        let rows = client
            .query(
                "SELECT n.nspname::text, c.relname::text FROM pg_publication_rel r
                   JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid
                   JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE p.pubname = $1 AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)",
                &[&name],
            )
            .await
            .map_err(query_error)?;
        for row in rows {
            let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            let sql = table_ident(&table);
            found.push(
                error("publication_filter", format!("{name} carries only some rows or columns of the table"))
                    .subject(&table)
                    .mend(format!(
                        "ALTER PUBLICATION {p} DROP TABLE {sql}; ALTER PUBLICATION {p} ADD TABLE ONLY {sql};",
                        p = ident(name)
                    )),
            );
        }
    }
    Ok(found)
}

/// Whether a publication that is there tells the rows of partitions under the name that the
/// stream has them under.
async fn roots(
    client: &Client,
    name: &str,
    held: &Publication,
    tables: &[CatalogTable],
) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let partitioned = tables.iter().filter(|t| t.kind == "p");
    for t in partitioned.filter(|_| !held.via_root && !held.alterable) {
        let reason = format!("{name} reports changes of the table as those of its partitions");
        let finding = error("publication_root", reason).subject(&t.table);
        found.push(finding.mend(slot::via_root_sql(name)));
    }
    let names: Vec<TableName> = tables.iter().map(|t| t.table.clone()).collect();
    for (part, root) in slot::shadowed(client, held, &names).await? {
        let (reason, mend) = slot::shadow_text(name, &part, &root);
        found.push(error("publication_root", reason).subject(&part).mend(mend));
    }
    Ok(found)
}

async fn table_findings(
    client: &Client,
    shared: &Shared,
    tables: &[CatalogTable],
) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    if tables.is_empty() {
        found.push(
            error("tables", "no table is selected")
                .mend("in the config: [tables] include = [\"schema.table\"], patterns allowed"),
        );
    }
    let generated = catalog::carries_generated(client, &shared.publication()).await?;
    for d in schema::discover(shared).await? {
        if d.problems.is_empty() {
            let key = if d.key.is_empty() {
                "no key".into()
            } else {
                format!("key ({})", d.key.join(", "))
            };
            found
                .push(ok("table", format!("{} columns, {key}", d.columns.len())).subject(&d.table));
        }
        found.extend(d.problems);
    }
    for t in tables {
        found.extend(family(t));
        let options = shared.options.tables.get(&t.table);
        for c in t.columns.iter().filter(|c| !c.generated.is_empty()) {
            if !schema::carried(c, options, generated) {
                found.push(
                    info("generated_column", "left out: the log does not carry it")
                        .subject(format!("{}.{}", t.table, c.name)),
                );
            }
        }
    }
    found.extend(row_security(client, shared, tables).await?);
    Ok(found)
}

/// What a user should know of a table whose rows are not all its own.
fn family(t: &CatalogTable) -> Option<Finding> {
    if t.inherits {
        let reason = "inherits: the rows of parent and child tables are carried each under their own table's name, not with the parent's";
        return Some(info("table_kind", reason).subject(&t.table));
    }
    if t.kind != "p" {
        return None;
    }
    let reason = format!(
        "partitioned: {} partitions are carried as this table; it is copied again when one of them is detached, dropped, \
         attached with rows, or truncated or rewritten by itself, for the log does not tell of that",
        t.parts.len()
    );
    Some(info("table_kind", reason).subject(&t.table))
}

async fn row_security(
    client: &Client,
    shared: &Shared,
    tables: &[CatalogTable],
) -> Result<Vec<Finding>> {
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    let rows = client
        .query(
            "SELECT c.oid FROM pg_class c
              WHERE c.oid = ANY($1::oid[]) AND c.relrowsecurity
                AND NOT (SELECT rolbypassrls OR rolsuper FROM pg_roles WHERE rolname = current_user)
                AND (c.relforcerowsecurity OR NOT pg_has_role(c.relowner, 'USAGE'))",
            &[&oids],
        )
        .await
        .map_err(query_error)?;
    let hidden: Vec<u32> = rows.iter().map(|r| r.get(0)).collect();
    Ok(tables
        .iter()
        .filter(|t| hidden.contains(&t.oid))
        .map(|t| {
            error(
                "row_security",
                "row security may hide rows from a copy, while the log has them",
            )
            .subject(&t.table)
            .mend(format!(
                "ALTER ROLE {} BYPASSRLS;",
                ident(&shared.options.user)
            ))
        })
        .collect())
}
