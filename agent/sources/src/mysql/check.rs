//! The prerequisites of a MySQL or MariaDB source, each with what mends it.

use super::connect::{Server, current_place, has_gtids};
use super::control::{Ask, Control};
use super::flavor::{Flavor, Version};
use super::schema::{describe, selected_tables};
use super::wire::{WireError, identifier};
use crate::TlsMode;
use caudal_model::{Finding, Result, Severity, TableName};
use std::collections::{HashMap, HashSet};

const DAY: u64 = 86_400;

/// Every prerequisite.
pub async fn check(server: &Server) -> Result<Vec<Finding>> {
    let mut c = server.control().await?;
    let mut out = settings(&mut c, server).await?;
    out.push(version(&c));
    out.push(tls(&c, server));
    let options = &server.options;
    let tables = selected_tables(&mut c, options).await?;
    if tables.is_empty() {
        out.push(
            Finding::new(
                Severity::Error,
                "tables",
                "no table matches [tables] include",
            )
            .mend("[tables]\ninclude = [\"<database>.*\"]"),
        );
    }
    let partial_rows = out
        .iter()
        .any(|f| f.check == "binlog_row_image" && f.severity == Severity::Info);
    let mut keyless = false;
    let mut dated = Vec::new();
    for t in &tables {
        let described = describe(t, options, server.flavor);
        let own = options.tables.get(&t.table);
        let filtered = own.is_some_and(|o| o.filter_needs_whole_rows(&described.key));
        let keys: HashSet<&String> = described.key.iter().collect();
        let own_key = keys != t.primary_key.iter().collect();
        let computed = !t.virtual_columns(server.flavor).is_empty();
        if partial_rows && (filtered || own_key || computed) {
            let reason = if filtered {
                "the filter looks at columns that the log leaves out"
            } else if computed {
                "the log leaves out virtual columns, changed or not"
            } else {
                "the log names changed rows by the primary key alone"
            };
            out.push(
                Finding::new(Severity::Error, "binlog_row_image", reason)
                    .subject(&t.table)
                    .mend("SET GLOBAL binlog_row_image = FULL;"),
            );
        }
        out.extend(described.problems);
        if described.key.is_empty() {
            keyless = true;
            out.push(
                Finding::new(
                    Severity::Info,
                    "key",
                    "the table has no primary key: it is copied in one read, and an update \
                     becomes a delete and an insert of the whole row",
                )
                .subject(&t.table)
                .mend(
                    "add a primary key, or name a unique not-null key in [[tables.override]] key",
                ),
            );
        }
        for c in described.columns {
            let base = c
                .source_type
                .split(['(', ' '])
                .next()
                .unwrap_or_default()
                .to_owned();
            if matches!(base.as_str(), "date" | "datetime" | "timestamp") {
                dated.push(format!("{}.{}", t.table, c.name));
            }
        }
    }
    if !dated.is_empty() {
        let reason = format!(
            "zero and partial dates become null, counted as zero_date: {} date columns",
            dated.len()
        );
        out.push(Finding::new(Severity::Info, "coercion", reason));
    }
    let names: Vec<TableName> = tables.into_iter().map(|t| t.table).collect();
    out.extend(cascades(&mut c, &names).await?);
    out.extend(grants(&mut c, server, keyless).await?);
    let replicas = options.replica.is_some() || !options.watch_replicas.is_empty();
    if let (true, Ok(now)) = (replicas, current_place(&mut c).await) {
        out.extend(super::replica::findings(server, &now).await);
    }
    Ok(out)
}

/// Foreign keys by which the engine changes rows without a word in the log: all of MariaDB, and
/// of MySQL before 9.6, which has them in the log unless `innodb_native_foreign_keys` is on.
async fn cascades(c: &mut Control, carried: &[TableName]) -> Result<Vec<Finding>> {
    let native = c
        .query("SHOW GLOBAL VARIABLES LIKE 'innodb_native_foreign_keys'")
        .await?;
    if native.first().is_some_and(|r| r.text(1) == "OFF") {
        return Ok(Vec::new());
    }
    let mut out = Vec::new();
    for table in carried {
        // information_schema hides constraints from who may only read.
        let (schema, name) = (identifier(&table.schema), identifier(&table.name));
        let sql = format!("SHOW CREATE TABLE {schema}.{name}");
        let text = c.query(&sql).await?.first().map(|r| r.text(1));
        for key in text.unwrap_or_default().lines().filter_map(cascading) {
            let reason = format!(
                "the log does not have what foreign key {key} changes: the lake keeps those rows \
                 as they were"
            );
            out.push(
                Finding::new(Severity::Warning, "foreign_key", reason)
                    .subject(table)
                    .mend(format!(
                        "make it RESTRICT and let the application change these rows, or compare \
                         with `caudal verify {table}` and mend with `caudal resnapshot {table}`"
                    )),
            );
        }
    }
    Ok(out)
}

/// The name and the rules of a foreign key that changes rows, in a line of SHOW CREATE TABLE.
fn cascading(line: &str) -> Option<String> {
    let rest = line.trim_start().strip_prefix("CONSTRAINT ")?;
    let (name, rest) = rest.split_once(" FOREIGN KEY (")?;
    let rules = rest.get(rest.find(" ON ")?..)?.trim_end_matches(',').trim();
    let changes = ["CASCADE", "SET NULL", "SET DEFAULT"];
    let changes = changes.iter().any(|c| rules.contains(c));
    changes.then(|| format!("{name} ({rules})"))
}

async fn variables(c: &mut Control) -> Result<HashMap<String, String>> {
    let rows = c
        .query(
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('log_bin', 'binlog_format', \
             'binlog_row_image', 'binlog_row_metadata', 'binlog_row_value_options', 'gtid_mode', \
             'enforce_gtid_consistency', 'binlog_expire_logs_seconds', 'expire_logs_days', \
             'server_id', 'lower_case_table_names', 'binlog_order_commits', 'gtid_strict_mode')",
        )
        .await?;
    Ok(rows
        .iter()
        .map(|r| (r.text(0).to_ascii_lowercase(), r.text(1)))
        .collect())
}

/// The server's settings; an error among them keeps `run` from starting.
pub async fn settings(c: &mut Control, server: &Server) -> Result<Vec<Finding>> {
    let v = variables(c).await?;
    let is = |name: &str, wanted: &str| {
        v.get(name)
            .is_some_and(|value| value.eq_ignore_ascii_case(wanted))
    };
    let flavor = c.flavor;
    let set = |name: &str, value: &str| match flavor {
        Flavor::MySql => format!("SET PERSIST {name} = {value};"),
        Flavor::MariaDb => {
            format!(
                "SET GLOBAL {name} = {value}; -- and {name}={value} in the server's configuration"
            )
        }
    };
    let mut out = Vec::new();
    if !is("log_bin", "ON") {
        out.push(
            Finding::new(
                Severity::Error,
                "log_bin",
                "the source writes no binary log",
            )
            .mend("[mysqld]\nlog_bin = binlog   # then restart the server"),
        );
        return Ok(out);
    }
    out.push(Finding::new(
        Severity::Ok,
        "log_bin",
        "the binary log is on",
    ));
    for (name, wanted, why) in [
        (
            "binlog_format",
            "ROW",
            "changes are logged as statements, which cannot be decoded",
        ),
        (
            "binlog_row_metadata",
            "FULL",
            "the log does not name columns, nor say signs and labels",
        ),
    ] {
        // A removed variable: ROW is the only format left.
        let holds = is(name, wanted) || (name == "binlog_format" && !v.contains_key(name));
        out.push(if holds {
            Finding::new(Severity::Ok, name, format!("{name} is {wanted}"))
        } else {
            let now = v.get(name).map_or("missing", String::as_str);
            Finding::new(Severity::Error, name, format!("{name} is {now}: {why}"))
                .mend(set(name, wanted))
        });
    }
    out.extend(images(&v, &set));
    out.push(retention(&v, &set));
    if v.get("server_id").and_then(|id| id.parse().ok()) == Some(server.server_id()) {
        out.push(
            Finding::new(
                Severity::Error,
                "server_id",
                format!(
                    "source.server_id {} is the server's own",
                    server.server_id()
                ),
            )
            .mend("[source]\nserver_id = <a number that no server or replica uses>"),
        );
    }
    if let Some(n) = v.get("lower_case_table_names").filter(|n| *n != "0") {
        let reason = format!("lower_case_table_names is {n}: names are compared without case");
        out.push(Finding::new(
            Severity::Info,
            "lower_case_table_names",
            reason,
        ));
    }
    if c.flavor == Flavor::MySql {
        out.push(if has_gtids(c).await? {
            Finding::new(Severity::Ok, "gtid_mode", "gtid_mode is ON")
        } else {
            Finding::new(
                Severity::Warning,
                "gtid_mode",
                "without GTIDs the stream follows file positions, and cannot follow a failover",
            )
            .mend(
                "SET PERSIST enforce_gtid_consistency = ON; SET PERSIST gtid_mode = OFF_PERMISSIVE; \
                 SET PERSIST gtid_mode = ON_PERMISSIVE; SET PERSIST gtid_mode = ON;",
            )
        });
        if is("binlog_order_commits", "OFF") {
            out.push(
                Finding::new(
                    Severity::Warning,
                    "binlog_order_commits",
                    "transactions may become visible in another order than they are logged",
                )
                .mend(set("binlog_order_commits", "ON")),
            );
        }
    }
    Ok(out)
}

/// What the log holds of a row.
fn images(v: &HashMap<String, String>, set: &dyn Fn(&str, &str) -> String) -> Vec<Finding> {
    let name = "binlog_row_image";
    let image = v.get(name).map_or("FULL", String::as_str);
    let full = image.eq_ignore_ascii_case("FULL");
    let mut out = vec![if full {
        Finding::new(Severity::Ok, name, "binlog_row_image is FULL")
    } else {
        let reason = format!(
            "binlog_row_image is {image}: columns that an update did not change are named in \
             _unchanged, and a new row's other columns get the defaults of their time"
        );
        Finding::new(Severity::Info, name, reason)
    }];
    let options = v.get("binlog_row_value_options");
    if options.is_some_and(|o| o.contains("PARTIAL_JSON")) {
        let name = "binlog_row_value_options";
        out.push(if full {
            let reason = "partial updates of json are applied to the document before them";
            Finding::new(Severity::Info, name, reason)
        } else {
            let reason = "partial updates of json need the document before them, which only \
                          binlog_row_image FULL logs";
            Finding::new(Severity::Error, name, reason).mend(set(name, "''"))
        });
    }
    out
}

fn retention(v: &HashMap<String, String>, set: &dyn Fn(&str, &str) -> String) -> Finding {
    let number = |name: &str| {
        v.get(name)
            .and_then(|s| s.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    let seconds = match number("binlog_expire_logs_seconds") as u64 {
        0 => (number("expire_logs_days") * DAY as f64) as u64,
        s => s,
    };
    if seconds == 0 || seconds >= DAY {
        return Finding::new(
            Severity::Ok,
            "binlog_expire_logs_seconds",
            "the log is kept a day or more",
        );
    }
    Finding::new(
        Severity::Warning,
        "binlog_expire_logs_seconds",
        format!("the log is kept {seconds} s: a longer stop of the agent loses its position"),
    )
    .mend(set("binlog_expire_logs_seconds", "604800"))
}

fn version(c: &Control) -> Finding {
    let oldest = match c.flavor {
        Flavor::MySql => Version(8, 0, 0),
        Flavor::MariaDb => Version(10, 6, 0),
    };
    let name = c.flavor.name();
    if c.version < oldest {
        let reason = format!("{name} {} is older than {oldest}", c.version);
        return Finding::new(Severity::Error, "version", reason).mend("upgrade the server");
    }
    Finding::new(Severity::Ok, "version", format!("{name} {}", c.version))
}

fn tls(c: &Control, server: &Server) -> Finding {
    if c.encrypted() {
        let verified = matches!(
            server.options.tls.mode,
            TlsMode::VerifyCa | TlsMode::VerifyFull
        );
        let reason = if verified {
            "the connection is encrypted and the server verified"
        } else {
            "the connection is encrypted; the server is not verified"
        };
        return Finding::new(Severity::Ok, "tls", reason);
    }
    Finding::new(Severity::Warning, "tls", "the connection is not encrypted")
        .mend("[source]\ntls = \"verify-full\"")
}

/// The privileges that are missing. Found by asking, where asking has no effect; grants
/// through roles and levels are the server's to resolve.
async fn grants(c: &mut Control, server: &Server, keyless: bool) -> Result<Vec<Finding>> {
    let user = c.value("SELECT CURRENT_USER()").await?.unwrap_or_default();
    let (name, host) = user.rsplit_once('@').unwrap_or((&user, "%"));
    let account = format!("'{name}'@'{host}'");
    let mut text = String::new();
    for row in c.query("SHOW GRANTS").await? {
        text.push_str(&row.text(0).to_ascii_uppercase());
        text.push('\n');
    }
    let global: Vec<&str> = text.lines().filter(|l| l.contains(" ON *.* ")).collect();
    let has = |p: &str| {
        global
            .iter()
            .any(|l| l.contains(p) || l.contains("ALL PRIVILEGES"))
    };
    let client = match c.flavor {
        Flavor::MySql => "REPLICATION CLIENT",
        Flavor::MariaDb => "BINLOG MONITOR",
    };
    // What a role grants does not show in the account's own list.
    let roles = text.lines().any(|l| !l.contains(" ON "));
    let missing = if roles {
        Severity::Warning
    } else {
        Severity::Error
    };
    let replica = has("REPLICATION SLAVE") || has("REPLICATION REPLICA");
    let mut out = Vec::new();
    let mut need = |ok: bool, privilege: &str, check: &'static str, why: &str| {
        out.push(if ok {
            Finding::new(Severity::Ok, check, format!("{account} has {privilege}"))
        } else {
            Finding::new(
                missing,
                check,
                format!("{account} lacks {privilege}: {why}"),
            )
            .mend(format!("GRANT {privilege} ON *.* TO {account};"))
        });
    };
    need(
        replica,
        "REPLICATION SLAVE",
        "grant_replication",
        "it cannot read the log",
    );
    // An unprivileged account is refused by the statement itself.
    let status = match c.query("SHOW BINARY LOGS").await {
        Ok(_) => true,
        Err(WireError::Server { .. }) => false,
        Err(e) => return Err(e.into()),
    };
    need(
        status,
        client,
        "grant_status",
        "it cannot ask where the log ends",
    );
    let file_positions = c.flavor == Flavor::MySql && !has_gtids(c).await?;
    if (keyless && server.flavor == Flavor::MySql) || file_positions {
        need(
            text.contains("LOCK TABLES") || has("ALL PRIVILEGES"),
            "LOCK TABLES",
            "grant_lock",
            "tables without a key are locked for a moment when their copy begins",
        );
    }
    Ok(out)
}
