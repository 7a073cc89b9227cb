//! The config file: its sections, their defaults, and what becomes of them.
//!
//! The types below are the only description of the file: `caudal schema`, the search
//! for unknown keys, the defaults and the texts of errors all follow from them. Loading
//! goes file → tree with places ([`document`]) → environment → shape ([`shape`]) →
//! types → rules between keys ([`rules`]), and each step reports every mistake that it
//! finds, with its place.

mod document;
mod rules;
mod sections;
mod shape;
pub mod units;
mod window;

#[cfg(test)]
mod tests;

use caudal_model::{Error, Kind, Result, Rules, Selection, TableName, TableRules};
use caudal_sinks::StoreOptions;
use caudal_sources::{SourceOptions, TableOptions, TlsMode, TlsOptions, filter};
use document::{Document, Problem};
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

pub use document::Places;
pub use sections::*;
pub use window::{Window, Windows};

/// The config file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "caudal config")]
pub struct Config {
    /// The stream.
    pub stream: StreamSection,
    /// The source database.
    pub source: SourceSection,
    /// The tables that the stream carries.
    pub tables: TablesSection,
    /// The initial copy.
    #[serde(default)]
    pub snapshot: SnapshotSection,
    /// When a commit closes, and how much memory it may take.
    #[serde(default)]
    pub commit: CommitSection,
    /// Where the lake is.
    pub sink: SinkSection,
    /// Folding changes into each table's `current`.
    #[serde(default)]
    pub merge: MergeSection,
    /// What to do when a table's columns change.
    #[serde(default)]
    pub schema_change: SchemaChangeSection,
    /// The agent's own server.
    #[serde(default)]
    pub http: HttpSection,
    /// The history that a stream can be rewound to.
    #[serde(default)]
    pub checkpoints: CheckpointsSection,
    /// Bounds on what the source may send.
    #[serde(default)]
    pub limits: LimitsSection,
    #[serde(skip)]
    places: Places,
}

/// The JSON Schema of the config file.
pub fn json_schema() -> serde_json::Value {
    shape::schema().clone()
}

impl Config {
    /// Reads the file and the environment (`CAUDAL__SECTION__KEY`).
    ///
    /// Errors: [`Kind::Config`], one line a mistake: file, line, column, key, and what is
    /// allowed there.
    pub fn load(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            let name = path.display();
            match e.kind() {
                std::io::ErrorKind::NotFound => Error::fatal(
                    Kind::Config,
                    format!("the config file {name} does not exist"),
                )
                .hint("name it with --config or CAUDAL_CONFIG"),
                _ => Error::fatal(
                    Kind::Config,
                    format!("the config file {name} cannot be read"),
                )
                .caused_by(e),
            }
        })?;
        let environment = std::env::vars_os().filter_map(|(k, v)| {
            let k = k
                .into_string()
                .ok()
                .filter(|k| k.starts_with(document::ENV_PREFIX))?;
            Some((k, v.to_string_lossy().into_owned()))
        });
        Self::parse(&text, &path.display().to_string(), environment)
    }

    /// Parses the file's text; `name` is what errors call it, `environment` holds the
    /// variables that override it.
    pub fn parse(
        text: &str,
        name: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config> {
        let mut document = Document::parse(text, name).map_err(|p| report(&[p]))?;
        let mut problems = shape::override_from(&mut document, environment);
        for problem in shape::problems(&document) {
            // A variable that did not parse is in the tree without its value.
            if !problems.iter().any(|p| p.key() == problem.key()) {
                problems.push(problem);
            }
        }
        if !problems.is_empty() {
            return Err(report(&problems));
        }
        let mut config: Config = serde_path_to_error::deserialize(&document.root).map_err(|e| {
            let path = e.path().to_string();
            report(&[document.places.problem(&path, e.into_inner().to_string())])
        })?;
        config.places = document.places;
        let problems = rules::problems(&config);
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(report(&problems))
        }
    }

    /// An error about a key of this file, for mistakes that only running shows.
    pub fn error_at(&self, key: &str, message: impl Into<String>) -> Error {
        report(&[self.places.problem(key, message)])
    }

    /// Whether the file or the environment sets this key.
    pub fn is_set(&self, key: &str) -> bool {
        self.places.is_set(key)
    }

    /// The port, or the kind's own.
    pub fn source_port(&self) -> u16 {
        self.source.port.unwrap_or(match self.source.kind {
            SourceKind::Postgres => 5432,
            SourceKind::Mysql | SourceKind::Mariadb => 3306,
            SourceKind::Sqlserver => 1433,
        })
    }

    /// Where the server listens; `None` when it is off.
    pub fn http_listen(&self) -> Option<&str> {
        (self.http.listen != "off").then_some(self.http.listen.as_str())
    }

    /// How the store is reached.
    pub fn store_options(&self) -> StoreOptions {
        let s = &self.sink;
        StoreOptions {
            endpoint: s.endpoint.clone(),
            region: s.region.clone(),
            path_style: s.path_style.unwrap_or(s.endpoint.is_some()),
            sse_kms_key_id: s.sse_kms_key_id.clone(),
            read_timeout: Some(s.read_timeout),
        }
    }

    /// Everything that the source needs, with its secrets fetched.
    pub fn source_options(&self) -> Result<SourceOptions> {
        let s = &self.source;
        let password = match &s.password {
            Some(p) => p
                .resolve()
                .map_err(|e| self.error_at("source.password", e))?,
            None => String::new().into(),
        };
        let selection = Selection::new(&self.tables.include, &self.tables.exclude)
            .map_err(|e| self.error_at("tables.include", e))?;
        Ok(SourceOptions {
            stream: self.stream.name.clone(),
            host: s.host.clone(),
            port: self.source_port(),
            database: s.database.clone(),
            user: s.user.clone(),
            password,
            tls: TlsOptions {
                mode: match s.tls {
                    Tls::Disable => TlsMode::Disable,
                    Tls::Prefer => TlsMode::Prefer,
                    Tls::Require => TlsMode::Require,
                    Tls::VerifyCa => TlsMode::VerifyCa,
                    Tls::VerifyFull => TlsMode::VerifyFull,
                },
                ca_file: s.ca_file.clone(),
                cert_file: s.cert_file.clone(),
                key_file: s.key_file.clone(),
            },
            server_id: s.server_id,
            slot: s.slot.clone(),
            publication: s.publication.clone(),
            selection,
            tables: self.table_options()?,
            replica: self.snapshot.replica.clone(),
            watch_replicas: self.snapshot.watch_replicas.clone(),
            spill_dir: self.stream.state_dir.join("spill"),
            // A quarter: the open epoch, the files being encoded and the parts in flight
            // need the rest (INV-9).
            staging_bytes: usize::try_from(self.commit.memory / 4).unwrap_or(usize::MAX),
            spill_bytes: self.limits.spill_bytes,
            value_bytes: usize::try_from(self.limits.value_bytes).unwrap_or(usize::MAX),
            connect_timeout: s.connect_timeout,
            read_timeout: s.read_timeout,
        })
    }

    /// What the overrides say, by table.
    pub fn table_options(&self) -> Result<HashMap<TableName, TableOptions>> {
        let mut tables = HashMap::new();
        for (i, o) in self.tables.overrides.iter().enumerate() {
            let table: TableName = o
                .table
                .parse()
                .map_err(|e: String| self.error_at(&format!("tables.override[{i}].table"), e))?;
            let key = |k: &str| format!("tables.override[{i}].{k}");
            let mut lake_types = BTreeMap::new();
            for (column, lake_type) in &o.lake_types {
                let parsed = lake_type
                    .parse()
                    .map_err(|e: String| self.error_at(&key("as"), e))?;
                lake_types.insert(column.clone(), parsed);
            }
            let filter = o.filter.as_deref();
            let filter = filter.map(|f| filter::parse(f, self.source.kind.filter_syntax()));
            let options = TableOptions {
                exclude_columns: o.exclude_columns.clone(),
                hash_columns: o.hash_columns.clone(),
                lake_types,
                filter: filter
                    .transpose()
                    .map_err(|e| self.error_at(&key("filter"), e))?,
                key: o.key.clone(),
            };
            tables.insert(table, options);
        }
        Ok(tables)
    }

    /// What is done to rows on their way, with the salt fetched.
    pub fn rules(&self) -> Result<Rules> {
        let tables = self.table_options()?.into_iter().map(|(table, o)| {
            let rules = TableRules {
                hash_columns: o.hash_columns,
                filter: o.filter,
            };
            (table, rules)
        });
        Ok(Rules::new(self.salt()?.expose_secret(), tables.collect()))
    }

    /// Tells apart configurations that treat tables or their rows otherwise, in hex.
    pub fn tables_digest(&self) -> Result<String> {
        let tables = serde_json::to_vec(&self.tables)
            .map_err(|e| Error::bug("the tables cannot be written as JSON").caused_by(e))?;
        let digest = Sha256::new()
            .chain_update(tables)
            .chain_update(self.salt()?.expose_secret());
        Ok(hex::encode(digest.finalize()))
    }

    fn salt(&self) -> Result<SecretString> {
        let salt = match &self.tables.hash_salt {
            Some(s) => s
                .resolve()
                .map_err(|e| self.error_at("tables.hash_salt", e))?,
            None => String::new().into(),
        };
        if self.tables.hash_salt.is_some() && salt.expose_secret().is_empty() {
            return Err(self.error_at("tables.hash_salt", "must not be empty"));
        }
        Ok(salt)
    }
}

fn report(problems: &[Problem]) -> Error {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    Error::fatal(Kind::Config, lines.join("\n"))
}
