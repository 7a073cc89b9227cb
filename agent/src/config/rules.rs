//! Rules that types cannot say: names, patterns, keys that go together, and keys whose
//! feature this version does not have.
//!
//! A key that is accepted works. Where a feature is still missing, its keys are known
//! (so that the file's shape is settled) and every value but the default is refused.

use super::document::Problem;
use super::{Config, SourceKind, Tls, units};
use caudal_model::{LakeType, Selection, TableName};
use std::collections::HashSet;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// The least `commit.memory`: an epoch, staged transactions, files being encoded and
/// parts in flight, each of 16 MiB.
pub const MIN_MEMORY: u64 = 4 * 16 * MIB;

/// The most for `limits.value_bytes`: a column's cells are addressed by 31 bits.
const MAX_VALUE: u64 = 1 << 30;

struct Checker<'c> {
    config: &'c Config,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn refuse(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(self.config.places.problem(key, message));
    }

    fn refuse_if(&mut self, wrong: bool, key: &str, message: impl Into<String>) {
        if wrong {
            self.refuse(key, message);
        }
    }
}

/// Every broken rule.
pub(super) fn problems(config: &Config) -> Vec<Problem> {
    let mut c = Checker {
        config,
        problems: Vec::new(),
    };
    stream(&mut c);
    source(&mut c);
    tables(&mut c);
    sink(&mut c);
    amounts(&mut c);
    snapshot(&mut c);
    http(&mut c);
    unsupported(&mut c);
    c.problems
}

fn is_name(text: &str, max: usize, more: &str) -> bool {
    !text.is_empty()
        && text.len() <= max
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || more.contains(c))
}

fn stream(c: &mut Checker<'_>) {
    let s = &c.config.stream;
    // The slot `caudal_<name>` has to fit PostgreSQL's 63 bytes.
    let good = is_name(&s.name, 50, "-") && !s.name.starts_with(['_', '-']);
    c.refuse_if(
        !good,
        "stream.name",
        format!(
            "`{}` cannot name a stream; use 1 to 50 of a-z, 0-9, `_` and `-`, and begin with a letter or digit",
            s.name
        ),
    );
    c.refuse_if(
        s.state_dir.as_os_str().is_empty(),
        "stream.state_dir",
        "must not be empty",
    );
}

fn source(c: &mut Checker<'_>) {
    let s = &c.config.source;
    let kind = s.kind.label();
    if s.kind == SourceKind::Sqlserver {
        c.refuse(
            "source.kind",
            "\"sqlserver\" is not supported by this version",
        );
        return;
    }
    c.refuse_if(s.host.trim().is_empty(), "source.host", "must not be empty");
    c.refuse_if(s.user.is_empty(), "source.user", "must not be empty");
    c.refuse_if(
        s.connect_timeout < Duration::from_millis(100),
        "source.connect_timeout",
        "must be 100ms or more",
    );
    c.refuse_if(
        c.config.sink.read_timeout < Duration::from_secs(1),
        "sink.read_timeout",
        "must be 1s or more",
    );
    c.refuse_if(
        c.config.stream.stall_after < Duration::from_secs(1),
        "stream.stall_after",
        "must be 1s or more",
    );
    c.refuse_if(
        s.read_timeout < Duration::from_secs(1),
        "source.read_timeout",
        "must be 1s or more",
    );
    if s.kind == SourceKind::Postgres {
        c.refuse_if(
            s.database.as_deref().unwrap_or("").is_empty(),
            "source.database",
            "is required for postgres: database to connect to",
        );
        c.refuse_if(
            s.server_id.is_some(),
            "source.server_id",
            "only mysql and mariadb have it; remove it",
        );
        match &s.slot {
            Some(slot) => c.refuse_if(
                !is_name(slot, 63, ""),
                "source.slot",
                format!(
                    "`{slot}` cannot name a slot; PostgreSQL allows 1 to 63 of a-z, 0-9 and `_`"
                ),
            ),
            None => c.refuse_if(
                c.config.stream.name.contains('-'),
                "stream.name",
                "the slot `caudal_<stream.name>` cannot have a `-` in PostgreSQL; \
                 use `_` here, or set source.slot",
            ),
        }
        let publication = s.publication.as_deref();
        c.refuse_if(
            publication.is_some_and(|p| p.is_empty() || p.len() > 63 || p.contains('\0')),
            "source.publication",
            "PostgreSQL allows 1 to 63 bytes",
        );
    } else {
        for (key, set) in [
            ("source.slot", s.slot.is_some()),
            ("source.publication", s.publication.is_some()),
        ] {
            c.refuse_if(
                set,
                key,
                format!("only postgres has it, not {kind}; remove it"),
            );
        }
    }
    let verifies = matches!(s.tls, Tls::VerifyCa | Tls::VerifyFull);
    c.refuse_if(
        s.ca_file.is_some() && !verifies,
        "source.ca_file",
        "is only used with tls = \"verify-ca\" or \"verify-full\"",
    );
    match (&s.cert_file, &s.key_file) {
        (Some(_), None) => c.refuse("source.cert_file", "needs source.key_file too"),
        (None, Some(_)) => c.refuse("source.key_file", "needs source.cert_file too"),
        (Some(_), Some(_)) => c.refuse_if(
            s.tls == Tls::Disable,
            "source.cert_file",
            "is not used with tls = \"disable\"",
        ),
        (None, None) => {}
    }
}

fn tables(c: &mut Checker<'_>) {
    let t = &c.config.tables;
    c.refuse_if(
        t.include.is_empty(),
        "tables.include",
        "needs at least one pattern",
    );
    for (key, patterns) in [("include", &t.include), ("exclude", &t.exclude)] {
        for (i, p) in patterns.iter().enumerate() {
            if let Err(e) = Selection::new(std::slice::from_ref(p), &[]) {
                c.refuse(&format!("tables.{key}[{i}]"), e);
            }
        }
    }
    let mut seen = HashSet::new();
    for (i, o) in t.overrides.iter().enumerate() {
        let key = |k: &str| format!("tables.override[{i}].{k}");
        match o.table.parse::<TableName>() {
            Err(e) => c.refuse(&key("table"), e),
            Ok(name) if o.table.contains(['*', '?']) => c.refuse(
                &key("table"),
                format!("`{name}` is a pattern; an override names one table"),
            ),
            Ok(name) => {
                let carried =
                    Selection::new(&t.include, &t.exclude).is_ok_and(|s| !s.matches(&name));
                c.refuse_if(
                    carried,
                    &key("table"),
                    format!("`{name}` is not among the tables of tables.include and exclude"),
                );
                let again = !seen.insert(name.clone());
                c.refuse_if(
                    again,
                    &key("table"),
                    format!("`{name}` has an override already"),
                );
            }
        }
        c.refuse_if(
            o.key.as_ref().is_some_and(Vec::is_empty),
            &key("key"),
            "needs at least one column; remove it to use the primary key",
        );
        let dropped = o
            .key
            .iter()
            .flatten()
            .find(|k| o.exclude_columns.contains(k));
        if let Some(column) = dropped {
            c.refuse(
                &key("key"),
                format!("column `{column}` is excluded and cannot be a key"),
            );
        }
        columns(c, i);
    }
}

/// What one override says of its columns.
fn columns(c: &mut Checker<'_>, i: usize) {
    let tables = &c.config.tables;
    let o = &tables.overrides[i];
    let key = |k: &str| format!("tables.override[{i}].{k}");
    c.refuse_if(
        !o.hash_columns.is_empty() && tables.hash_salt.is_none(),
        &key("hash_columns"),
        "needs tables.hash_salt, a secret: hash_salt = \"env:NAME\"",
    );
    for column in &o.hash_columns {
        c.refuse_if(
            o.exclude_columns.contains(column),
            &key("hash_columns"),
            format!("column `{column}` is excluded already"),
        );
        c.refuse_if(
            o.lake_types.contains_key(column),
            &key("as"),
            format!("column `{column}` is hashed, which makes it a string"),
        );
        c.refuse_if(
            o.key.as_ref().is_some_and(|k| k.contains(column)),
            &key("key"),
            format!("column `{column}` is hashed and cannot be a key"),
        );
    }
    for (column, lake_type) in &o.lake_types {
        if let Err(e) = lake_type.parse::<LakeType>() {
            c.refuse(&key("as"), format!("column `{column}`: {e}"));
        }
        c.refuse_if(
            o.exclude_columns.contains(column),
            &key("as"),
            format!("column `{column}` is excluded already"),
        );
    }
    let Some(text) = &o.filter else { return };
    match caudal_sources::filter::parse(text, c.config.source.kind.filter_syntax()) {
        Err(e) => c.refuse(&key("filter"), e),
        Ok(filter) => {
            let hidden = filter
                .columns()
                .into_iter()
                .find(|n| o.exclude_columns.contains(n) || o.hash_columns.contains(n));
            if let Some(column) = hidden {
                c.refuse(
                    &key("filter"),
                    format!("column `{column}` is excluded or hashed, so no row can be told by it"),
                );
            }
        }
    }
}

fn sink(c: &mut Checker<'_>) {
    let s = &c.config.sink;
    let url = s.url.as_str();
    let is_s3 = if let Some(rest) = url.strip_prefix("s3://") {
        let bucket = rest.split('/').next().unwrap_or("");
        c.refuse_if(
            bucket.is_empty(),
            "sink.url",
            "names no bucket; write s3://bucket/prefix",
        );
        true
    } else if let Some(path) = url.strip_prefix("file://") {
        c.refuse_if(
            !path.starts_with('/'),
            "sink.url",
            "needs an absolute path; write file:///path",
        );
        false
    } else {
        c.refuse("sink.url", "must be s3://bucket/prefix or file:///path");
        return;
    };
    if url.contains(['?', '#', '@']) || url.split('/').any(|part| matches!(part, "." | "..")) {
        c.refuse(
            "sink.url",
            "must not hold `?`, `#`, `@`, `.` or `..` as a part of its path",
        );
    }
    if let Some(endpoint) = &s.endpoint {
        let host = endpoint
            .strip_prefix("http://")
            .or_else(|| endpoint.strip_prefix("https://"));
        c.refuse_if(
            host.is_none_or(str::is_empty),
            "sink.endpoint",
            "must be a URL, such as \"http://127.0.0.1:9000\"",
        );
        c.refuse_if(
            endpoint.contains('@'),
            "sink.endpoint",
            "must not hold credentials; they come from the environment, as for every AWS program",
        );
    }
    if !is_s3 {
        for (key, set) in [
            ("sink.endpoint", s.endpoint.is_some()),
            ("sink.region", s.region.is_some()),
            ("sink.path_style", s.path_style.is_some()),
            ("sink.sse_kms_key_id", s.sse_kms_key_id.is_some()),
        ] {
            c.refuse_if(set, key, "only s3:// has it; remove it");
        }
    }
}

fn amounts(c: &mut Checker<'_>) {
    let commit = &c.config.commit;
    let value = c.config.limits.value_bytes;
    c.refuse_if(
        !(1024..=MAX_VALUE).contains(&value),
        "limits.value_bytes",
        format!("must be from 1KiB to {}", units::print_size(MAX_VALUE)),
    );
    let checkpoints = &c.config.checkpoints;
    c.refuse_if(
        checkpoints.keep < checkpoints.replay_window,
        "checkpoints.keep",
        "must not be shorter than checkpoints.replay_window",
    );
    c.refuse_if(
        commit.memory < MIN_MEMORY,
        "commit.memory",
        format!("must be {} or more", units::print_size(MIN_MEMORY)),
    );
    c.refuse_if(
        c.config.snapshot.chunk_time < Duration::from_millis(10),
        "snapshot.chunk_time",
        "must be 10ms or more",
    );
    c.refuse_if(
        c.config.sink.target_file_size < MIB,
        "sink.target_file_size",
        "must be 1MiB or more",
    );
    c.refuse_if(
        commit.max_bytes < MIB,
        "commit.max_bytes",
        "must be 1MiB or more",
    );
    c.refuse_if(
        !(Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&commit.max_delay),
        "commit.max_delay",
        "must be from 100ms to 1d",
    );
}

/// `host` or `host:port`; an IPv6 address stands in brackets.
fn is_address(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, rest.strip_prefix(':').or(Some(""))),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let good = |p: &str| p.parse::<u16>().is_ok_and(|p| p > 0);
    !host.is_empty() && !host.contains(char::is_whitespace) && port.is_none_or(good)
}

fn snapshot(c: &mut Checker<'_>) {
    let s = &c.config.snapshot;
    let refused = |address: &str| {
        format!("`{address}` is not a host or host:port, such as \"replica1:3306\"")
    };
    if let Some(replica) = &s.replica {
        c.refuse_if(!is_address(replica), "snapshot.replica", refused(replica));
    }
    for (i, replica) in s.watch_replicas.iter().enumerate() {
        c.refuse_if(
            !is_address(replica),
            &format!("snapshot.watch_replicas[{i}]"),
            refused(replica),
        );
    }
    c.refuse_if(
        c.config.source.kind == SourceKind::Postgres && !s.watch_replicas.is_empty(),
        "snapshot.watch_replicas",
        "only mysql and mariadb need it: PostgreSQL knows its replicas itself; remove it",
    );
    let lag = s.max_replica_lag;
    c.refuse_if(
        !lag.is_zero() && lag < Duration::from_secs(1),
        "snapshot.max_replica_lag",
        "must be 1s or more, or 0s for no limit",
    );
    for (key, size) in [
        ("snapshot.max_retained_log", s.max_retained_log),
        ("snapshot.warn_retained_log", s.warn_retained_log),
    ] {
        c.refuse_if(
            (1..MIB).contains(&size),
            key,
            "must be 1MiB or more, or 0B for none",
        );
    }
}

fn http(c: &mut Checker<'_>) {
    let Some(listen) = c.config.http_listen() else {
        return;
    };
    let port = listen.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    c.refuse_if(
        port.is_none_or(|(_, port)| port.parse::<u16>().is_err()),
        "http.listen",
        format!("`{listen}` is not an address and port, such as \"127.0.0.1:9464\", or \"off\""),
    );
}

/// Keys of features that are still to come. When one arrives, its line goes.
fn unsupported(c: &mut Checker<'_>) {
    let f = c.config;
    let changed = [
        (
            "sink.retain_changes",
            f.sink.retain_changes != super::sections::thirty_days(),
        ),
        ("merge.every", f.merge.every != Duration::ZERO),
        ("merge.deletes", f.merge.deletes != Default::default()),
        ("merge.catalog", f.merge.catalog != Default::default()),
    ];
    for (key, changed) in changed {
        if !changed {
            continue;
        }
        let section_key = key.split_once('.').unwrap_or(("", key));
        let default = super::shape::default_of(section_key.0, section_key.1);
        let allowed = default.map_or_else(
            || "remove it".to_owned(),
            |d| format!("the only value is the default, {d}"),
        );
        c.refuse(key, format!("not supported by this version; {allowed}"));
    }
}
