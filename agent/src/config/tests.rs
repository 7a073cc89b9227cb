use super::*;
use caudal_model::LakeType;
use secrecy::ExposeSecret;
use std::time::Duration;

/// The documented example, as a user would copy it.
const EXAMPLE: &str = r#"
[stream]
name      = "shop"                    # names the lake prefix, the slot, the metrics' label
state_dir = "/var/lib/caudal/shop"    # RocksDB

[source]
kind     = "postgres"                 # postgres | mysql | mariadb | sqlserver
host     = "127.0.0.1"
port     = 5432
database = "shop"
user     = "caudal"
password = "env:SHOP_PASSWORD"
tls      = "prefer"                   # disable | prefer | require | verify-ca | verify-full
# ca_file, cert_file, key_file; server_id (mysql); slot, publication (postgres)

[tables]
include = ["public.*"]                # schema.table patterns; mysql: database.table
exclude = ["public.audit_*"]

[[tables.override]]                   # any number
table    = "public.customers"
exclude_columns = ["ssn"]
hash_columns    = ["email"]           # salted SHA-256, hex
as      = { amount = "string" }       # another lake type for one column
filter  = "region = 'eu'"             # snapshot WHERE
key     = ["customer_no"]             # for a table without a primary key

[snapshot]
mode = "initial"                      # initial | never | only
workers = 4
chunk_rows = 100_000
max_source_rows_per_second = 0        # 0 = no limit
order = "smallest"                    # smallest | largest | name | listed (as tables.include)
window = "22:00-06:00 +02:00"         # or a list; UTC without an offset; always if absent
max_replica_lag = "30s"               # copies wait while a replica is further behind; 0s = off
max_open_transactions = 200           # copies wait while more are open; 0 = off
max_retained_log = "50GiB"            # copies wait while the source keeps more; 0B = off
warn_retained_log = "10GiB"           # a warning, all the time; 0B = off
replica = "replica1:5432"             # copies are read here, the log from source.host

[commit]                              # a commit closes at whichever comes first
max_delay = "10s"
max_bytes = "128MiB"
memory    = "512MiB"

[sink]
url         = "s3://lake/raw"         # or file:///path
endpoint    = "http://127.0.0.1:9000" # S3-compatible servers
partition   = "day"                   # day | hour
compression = "zstd"                  # zstd | snappy | none
retain_changes = "30d"

[merge]
every = "0s"                          # 0s = only when `caudal merge` is called
deletes = "drop"                      # drop | flag (adds _deleted)
catalog = "none"                      # none | glue | rest

[schema_change]
policy = "evolve"                     # evolve | pause

[http]
listen = "127.0.0.1:9464"
"#;

/// The least that a config needs.
const SMALL: &str = r#"[stream]
name = "shop"
state_dir = "/tmp/shop"
[source]
kind = "postgres"
host = "db"
database = "shop"
user = "caudal"
[tables]
include = ["public.*"]
[sink]
url = "file:///lake"
"#;

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, "caudal.toml", [])
}

fn with_environment(text: &str, variables: &[(&str, &str)]) -> Result<Config> {
    let owned = variables
        .iter()
        .map(|(k, v)| (format!("CAUDAL__{k}"), (*v).to_owned()));
    Config::parse(text, "caudal.toml", owned)
}

fn mistakes(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// The small config with a line replaced by another.
fn changed(from: &str, to: &str) -> String {
    assert!(SMALL.contains(from), "{from}");
    SMALL.replacen(from, to, 1)
}

#[test]
fn the_example_is_understood() {
    let salted = EXAMPLE.replace("[tables]", "[tables]\nhash_salt = \"pepper\"");
    let c = parse(&salted).unwrap();
    let options = c.table_options().unwrap();
    let (_, customers) = options.iter().next().unwrap();
    assert_eq!(customers.lake_type("amount"), Some(&LakeType::Utf8));
    assert_eq!(customers.lake_type("email"), Some(&LakeType::Utf8));
    assert!(customers.filter_needs_whole_rows(&["customer_no".into()]));
    c.rules().unwrap();
    assert_eq!(c.stream.name, "shop");
    assert_eq!(c.source.kind, SourceKind::Postgres);
    assert_eq!(c.snapshot.order, SnapshotOrder::Smallest);
    assert_eq!(c.snapshot.max_replica_lag, Duration::from_secs(30));
    assert_eq!(c.snapshot.max_retained_log, 50 << 30);
    let noon = "2026-11-21T12:00:00Z".parse().unwrap();
    let opens = "2026-11-21T20:00:00Z".parse().unwrap();
    assert_eq!(c.snapshot.window.closed_until(noon), Some(opens));
    assert_eq!(c.commit.max_delay, Duration::from_secs(10));
    assert_eq!(
        (c.commit.max_bytes, c.commit.memory),
        (128 << 20, 512 << 20)
    );
    assert_eq!(
        c.tables.overrides[0].key.as_deref(),
        Some(&["customer_no".to_owned()][..])
    );
    assert!(c.store_options().path_style);
    assert!(c.is_set("http.listen") && !c.is_set("source.slot"));
    assert_eq!(
        mistakes(EXAMPLE),
        "caudal.toml:23:19: tables.override[0].hash_columns: needs tables.hash_salt, a secret: \
         hash_salt = \"env:NAME\""
    );
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let small = parse(SMALL).unwrap();
    assert_eq!(small.source.tls, Tls::Prefer);
    assert_eq!(small.source_port(), 5432);
    assert_eq!(small.http_listen(), Some("127.0.0.1:9464"));
    assert_eq!(
        (small.snapshot.workers, small.snapshot.chunk_rows),
        (4, None)
    );
    assert!(!small.store_options().path_style);
    let options = small.source_options().unwrap();
    assert_eq!(options.password.expose_secret(), "");
    assert!(
        options
            .selection
            .matches(&TableName::new("public", "orders"))
    );
    let mysql =
        changed("kind = \"postgres\"", "kind = \"mysql\"").replace("database = \"shop\"\n", "");
    assert_eq!(parse(&mysql).unwrap().source_port(), 3306);
    let off = format!("{SMALL}[http]\nlisten = \"off\"\n");
    assert_eq!(parse(&off).unwrap().http_listen(), None);
}

#[test]
fn mistakes_name_place_key_and_what_is_allowed() {
    let cases: &[(&str, &str, &str)] = &[
        (
            "host = \"db\"",
            "hots = \"db\"",
            "caudal.toml:6:1: source.hots: unknown key; did you mean `source.host`?\n\
             caudal.toml:4:1: source.host: is required: Host name or address of the server",
        ),
        (
            "host = \"db\"",
            "host = \"db\"\nlisten = \"x\"",
            "caudal.toml:7:1: source.listen: unknown key here; did you mean `http.listen`?",
        ),
        (
            "[sink]",
            "[comit]\n[sink]",
            "caudal.toml:11:2: comit: unknown key; did you mean `commit`?",
        ),
        (
            "host = \"db\"",
            "host = \"db\"\nport = 99999",
            "caudal.toml:7:8: source.port: expected a whole number from 1 to 65535, found 99999",
        ),
        (
            "host = \"db\"",
            "host = \"db\"\nport = \"5432\"",
            "caudal.toml:7:8: source.port: expected a whole number from 1 to 65535, found a string",
        ),
        (
            "kind = \"postgres\"",
            "kind = \"postgresql\"",
            "caudal.toml:5:8: source.kind: `postgresql` is not allowed; expected one of \
             \"postgres\", \"mysql\", \"mariadb\", \"sqlserver\"; did you mean \"postgres\"?",
        ),
        (
            "kind = \"postgres\"",
            "kind = \"sqlserver\"",
            "caudal.toml:5:8: source.kind: \"sqlserver\" is not supported by this version",
        ),
        (
            "[sink]",
            "[snapshot]\nwindow = \"22-6\"\n[sink]",
            "caudal.toml:12:10: snapshot.window: `22-6` is not a window; write it like \
             \"22:00-06:00\" or \"22:00-06:00 +02:00\"",
        ),
        (
            "[sink]",
            "[snapshot]\nwindow = 22\n[sink]",
            "caudal.toml:12:10: snapshot.window: expected hours of the day, such as \
             \"22:00-06:00\" or \"22:00-06:00 +02:00\", or a list of such, found a whole number",
        ),
        (
            "[sink]",
            "[snapshot]\norder = \"smalest\"\n[sink]",
            "caudal.toml:12:9: snapshot.order: `smalest` is not allowed; expected one of \
             \"smallest\", \"largest\", \"name\", \"listed\"; did you mean \"smallest\"?",
        ),
        (
            "[sink]",
            "[snapshot]\nmax_replica_lag = \"5ms\"\nmax_retained_log = \"1B\"\n\
             replica = \"a:b:c\"\nwatch_replicas = [\"r\"]\n[sink]",
            "caudal.toml:14:11: snapshot.replica: `a:b:c` is not a host or host:port, such as \
             \"replica1:3306\"\n\
             caudal.toml:15:18: snapshot.watch_replicas: only mysql and mariadb need it: \
             PostgreSQL knows its replicas itself; remove it\n\
             caudal.toml:12:19: snapshot.max_replica_lag: must be 1s or more, or 0s for no limit\n\
             caudal.toml:13:20: snapshot.max_retained_log: must be 1MiB or more, or 0B for none",
        ),
        (
            "[sink]",
            "[commit]\nmax_delay = 10\n[sink]",
            "caudal.toml:12:13: commit.max_delay: expected a duration with its unit, such as \
             \"10s\", \"15m\" or \"30d\", found a whole number",
        ),
        (
            "[sink]",
            "[commit]\nmax_bytes = \"128\"\n[sink]",
            "caudal.toml:12:13: commit.max_bytes: `128` has no unit; write it like \"128MiB\" or \
             \"1GB\" (units: B, KB, KiB, MB, MiB, GB, GiB, TB, TiB)",
        ),
        (
            "[sink]",
            "[commit]\nmemory = \"32MiB\"\n[sink]",
            "caudal.toml:12:10: commit.memory: must be 64MiB or more",
        ),
        (
            "include = [\"public.*\"]",
            "include = [\"public.*\", \"orders\"]",
            "caudal.toml:10:24: tables.include[1]: `orders` is not `schema.table` \
             (MySQL: `database.table`)",
        ),
        (
            "include = [\"public.*\"]",
            "include = \"public.*\"",
            "caudal.toml:10:11: tables.include: expected a list of strings, found a string",
        ),
        (
            "user = \"caudal\"",
            "user = \"caudal\"\nslot = \"Shop-1\"",
            "caudal.toml:9:8: source.slot: `Shop-1` cannot name a slot; PostgreSQL allows 1 to 63 \
             of a-z, 0-9 and `_`",
        ),
        (
            "user = \"caudal\"",
            "user = \"caudal\"\nserver_id = 7",
            "caudal.toml:9:13: source.server_id: only mysql and mariadb have it; remove it",
        ),
        (
            "name = \"shop\"",
            "name = \"a/b\"",
            "caudal.toml:2:8: stream.name: `a/b` cannot name a stream; use 1 to 50 of a-z, 0-9, \
             `_` and `-`, and begin with a letter or digit",
        ),
        (
            "database = \"shop\"\n",
            "",
            "caudal.toml:4:1: source.database: is required for postgres: database to connect to",
        ),
        (
            "url = \"file:///lake\"",
            "url = \"/lake\"",
            "caudal.toml:12:7: sink.url: must be s3://bucket/prefix or file:///path",
        ),
        (
            "url = \"file:///lake\"",
            "url = \"file:///lake\"\nregion = \"eu\"",
            "caudal.toml:13:10: sink.region: only s3:// has it; remove it",
        ),
        (
            "[sink]",
            "[merge]\nevery = \"1h\"\n[sink]",
            "caudal.toml:12:9: merge.every: not supported by this version; the only value is the \
             default, \"0s\"",
        ),
        (
            "[sink]",
            "[limits]\nvalue_bytes = \"2GiB\"\n[sink]",
            "caudal.toml:12:15: limits.value_bytes: must be from 1KiB to 1GiB",
        ),
        (
            "[sink]",
            "[[tables.override]]\ntable = \"public.o\"\nfilter = \"lower(a) = 'x'\"\n[sink]",
            "caudal.toml:13:10: tables.override[0].filter: `lower(a) = 'x'` cannot be decided from \
             the log; a filter compares columns with constants by =, <>, <, <=, >, >=, IN, BETWEEN, \
             IS [NOT] NULL, joined by AND, OR, NOT",
        ),
        (
            "[sink]",
            "[[tables.override]]\ntable = \"public.o\"\nas = { a = \"strin\" }\n[sink]",
            "caudal.toml:13:6: tables.override[0].as: column `a`: `strin` is not a lake type; allowed \
             are boolean, int8, int16, int32, int64, float32, float64, decimal(p,s) with s ≤ p ≤ 38, \
             string, binary, date, time, timestamp, timestamptz, list<T>, map<string,string>",
        ),
        (
            "[sink]",
            "[http]\nlisten = \"9464\"\n[sink]",
            "caudal.toml:12:10: http.listen: `9464` is not an address and port, such as \
             \"127.0.0.1:9464\", or \"off\"",
        ),
        (
            "user = \"caudal\"",
            "user = \"caudal\"\nca_file = \"/ca.pem\"",
            "caudal.toml:9:11: source.ca_file: is only used with tls = \"verify-ca\" or \
             \"verify-full\"",
        ),
        (
            "[sink]",
            "[[tables.override]]\ntable = \"public.*\"\n[sink]",
            "caudal.toml:12:9: tables.override[0].table: `public.*` is a pattern; an override \
             names one table",
        ),
        (
            "[sink]",
            "[[tables.override]]\ntable = \"x.y\"\ncolumns = []\n[sink]",
            "caudal.toml:13:1: tables.override[0].columns: unknown key; the keys here are \
             `hash_columns`, `as`, `filter`, `key`, `table`, `exclude_columns`",
        ),
    ];
    let mut wrong = String::new();
    for (from, to, expected) in cases {
        let e = parse(&changed(from, to)).unwrap_err();
        assert_eq!(e.kind(), Kind::Config);
        if e.to_string() != *expected {
            wrong.push_str(&format!("{to}\n  gives    {e}\n  and not  {expected}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn missing_sections_and_syntax_errors_have_a_place() {
    assert_eq!(
        mistakes("[stream]\nname = \"shop\"\nstate_dir = \"/x\"\n"),
        "caudal.toml: source: is required: The source database\n\
         caudal.toml: tables: is required: The tables that the stream carries\n\
         caudal.toml: sink: is required: Where the lake is"
    );
    let e = mistakes("[stream]\nname = \"shop\nstate_dir = 1\n");
    assert!(e.starts_with("caudal.toml:2:13: not TOML: "), "{e}");
    let e = mistakes("[stream]\nname = \"a\"\nname = \"b\"\n");
    assert!(e.starts_with("caudal.toml:3:1: not TOML: "), "{e}");
    let e = Config::load(Path::new("/does/not/exist.toml")).unwrap_err();
    assert_eq!(
        e.to_string(),
        "the config file /does/not/exist.toml does not exist"
    );
}

#[test]
fn the_environment_overrides_the_file() {
    let c = with_environment(
        SMALL,
        &[
            ("SOURCE__HOST", "other"),
            ("SOURCE__PORT", "6543"),
            ("SOURCE__PASSWORD", "12345"),
            ("COMMIT__MAX_DELAY", "2s"),
            ("TABLES__INCLUDE", "['a.b', 'c.d']"),
            ("SNAPSHOT__WINDOW", "00:00-12:00, 12:00-24:00"),
            ("SINK__URL", "s3://lake"),
            ("SINK__PATH_STYLE", "true"),
        ],
    )
    .unwrap();
    assert_eq!(
        (c.source.host.as_str(), c.source.port),
        ("other", Some(6543))
    );
    assert_eq!(
        c.source_options().unwrap().password.expose_secret(),
        "12345"
    );
    assert_eq!(c.commit.max_delay, Duration::from_secs(2));
    assert_eq!(c.tables.include, ["a.b", "c.d"]);
    assert_eq!(c.snapshot.window.closed_until(chrono::Utc::now()), None);
    assert_eq!(c.sink.path_style, Some(true));
    let e = with_environment(
        SMALL,
        &[
            ("SOURCE__HOTS", "x"),
            ("SOURCE__PORT", "many"),
            ("COMMIT__MAX_DELAY", "2"),
        ],
    );
    assert_eq!(
        e.unwrap_err().to_string(),
        "environment variable CAUDAL__SOURCE__PORT: source.port: expected a whole number from 1 \
         to 65535, written as in TOML\n\
         environment variable CAUDAL__SOURCE__HOTS: source.hots: unknown key; did you mean \
         `source.host`?"
    );
    let e = with_environment(SMALL, &[("COMMIT__MAX_DELAY", "2")])
        .unwrap_err()
        .to_string();
    assert!(
        e.starts_with("environment variable CAUDAL__COMMIT__MAX_DELAY: commit.max_delay: `2`"),
        "{e}"
    );
}

#[test]
fn secrets_are_never_printed() {
    let with = |line: &str| changed("user = \"caudal\"", &format!("user = \"caudal\"\n{line}"));
    let c = parse(&with("password = \"hunter2\"")).unwrap();
    let printed = format!(
        "{c:?} {} {:?}",
        serde_json::to_string(&c).unwrap(),
        c.source_options()
    );
    assert!(!printed.contains("hunter2"), "{printed}");
    for line in [
        "password = [\"hunter2\"]",
        "password = \"hunter2",
        "password = hunter2",
        "password = { x = \"hunter2\" }",
        "pasword = \"hunter2\"",
        "password = \"hunter2\"\npassword = \"hunter2\"",
        "hash_salt = \"hunter2\"",
    ] {
        let e = parse(&with(line)).unwrap_err();
        assert!(!format!("{e} {e:?}").contains("hunter2"), "{e}");
    }
    assert_eq!(
        mistakes(&with("password = 12345")),
        "caudal.toml:9:12: source.password: expected a string: the secret, `env:NAME` or `file:/path`"
    );
    let c = parse(&with("password = \"env:CAUDAL_TEST_NEVER_SET\"")).unwrap();
    assert_eq!(
        c.source_options().unwrap_err().to_string(),
        "caudal.toml:9:12: source.password: the environment variable CAUDAL_TEST_NEVER_SET is not set"
    );
}

/// The schema's defaults and the types' are the same thing twice: they must agree, and
/// every key must say what it is.
#[test]
fn the_json_schema_describes_every_key() {
    let schema = json_schema();
    assert_eq!(schema["title"], "caudal config");
    assert_eq!(
        schema["properties"]["commit"]["properties"]["max_delay"]["default"],
        "10s"
    );
    assert_eq!(
        schema["properties"]["source"]["properties"]["connect_timeout"]["default"],
        "10s"
    );
    assert_eq!(
        schema["properties"]["sink"]["properties"]["retain_changes"]["default"],
        "30d"
    );
    fn described(schema: &serde_json::Value, path: &str) {
        for (key, below) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            assert!(
                below["description"].is_string(),
                "{path} has no description"
            );
            assert!(below["$ref"].is_null(), "{path} is a reference");
            described(below, &path);
            described(&below["items"], &path);
        }
        if schema["properties"].is_object() {
            assert_eq!(schema["additionalProperties"], false, "{path}");
        }
    }
    described(&schema, "");
    let document = Document::parse(EXAMPLE, "example").unwrap();
    assert_eq!(shape::problems(&document), []);
}
