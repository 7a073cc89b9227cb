//! Entry points for fuzzers: whatever the bytes are, nothing here may panic.

use super::rows::{Image, Missing, PlanOptions, TablePlan};
use super::table_map::{Collations, TableMap};
use super::values::Coerced;
use super::{events, json, rows, table_map};
use crate::mysql::Flavor;
use crate::mysql::charsets::Charsets;
use crate::mysql::ddl::{Context, Quoting};
use crate::mysql::gtid::GtidSet;
use crate::mysql::types::{Declared, column_type, max_character_bytes, source_type};
use caudal_model::schema::ColumnSpec;
use caudal_model::{ChangeBuffer, LakeType, Op, TableName, TableSchema, TransactionMeta};
use std::collections::HashMap;
use std::sync::Arc;

/// Decodes an event's body as every kind of event in turn.
pub fn any_event(event: &[u8]) {
    let _ = events::verify(event);
    let _ = events::checksummed(event);
    let Ok((header, body)) = events::header(event) else {
        return;
    };
    let _ = events::rotate(body);
    let _ = events::gtid(body);
    let _ = events::gtid_tagged(body);
    let _ = events::maria_gtid(&header, body);
    let _ = events::payload(body);
    let _ = events::inflate_column(body);
    let _ = events::inflated_len(body);
    let _ = events::beginning(event, 7);
    let _ = events::xa_prepare(body);
    let _ = GtidSet::decode(body);
    let _ = json::write(body, &mut Vec::new());
    let (document, diff) = body.split_at(body.len() / 2);
    let _ = super::json_diff::write(document, diff, &mut Vec::new());
    for compressed in [false, true] {
        if let Ok(q) = events::query(body, compressed) {
            let sql = String::from_utf8_lossy(&q.sql);
            let database = String::from_utf8_lossy(q.database);
            let context = Context {
                database: &database,
                quoting: Quoting {
                    ansi_quotes: q.sql_mode & events::ANSI_QUOTES != 0,
                    no_backslash_escapes: q.sql_mode & events::NO_BACKSLASH_ESCAPES != 0,
                },
                lower_case: q.sql_mode & 1 == 1,
            };
            crate::mysql::ddl::parse(&sql, context);
        }
    }
}

/// The charset of a collation, by the ids that both servers give their usual ones.
fn charset_of(collation: u64) -> &'static str {
    match collation {
        8 => "latin1",
        33 => "utf8mb3",
        35 => "ucs2",
        54 => "utf16",
        60 => "utf32",
        63 => "binary",
        _ => "utf8mb4",
    }
}

/// The type that a table map's column would have, as far as the log tells.
fn type_of(c: &table_map::MapColumn) -> String {
    let unsigned = if c.unsigned { " unsigned" } else { "" };
    let [hi, lo] = c.meta.to_be_bytes();
    let meta = u32::from(c.meta);
    let charset = charset_of(c.collation);
    let binary = charset == "binary";
    let size = meta / max_character_bytes(charset);
    let packed = "/*M!100301 COMPRESSED*/";
    let labels = || {
        let quoted = |l: &Vec<u8>| {
            let mut text = Vec::new();
            let charset =
                super::charset::Charset::by_name(if binary { "utf8mb4" } else { charset });
            let _ = charset.decode(l, &mut text);
            format!("'{}'", String::from_utf8_lossy(&text).replace('\'', "''"))
        };
        c.labels.iter().map(quoted).collect::<Vec<_>>().join(",")
    };
    let text = |name: String| source_type(&name, (!binary).then_some(charset));
    match c.real_type {
        1 => format!("tinyint{unsigned}"),
        2 => format!("smallint{unsigned}"),
        3 => format!("int{unsigned}"),
        8 => format!("bigint{unsigned}"),
        9 => format!("mediumint{unsigned}"),
        4 => "float".to_owned(),
        5 => "double".to_owned(),
        10 | 14 => "date".to_owned(),
        12 => "datetime".to_owned(),
        18 => format!("datetime({meta})"),
        7 => "timestamp".to_owned(),
        17 => format!("timestamp({meta})"),
        11 => "time".to_owned(),
        19 => format!("time({meta})"),
        13 => "year".to_owned(),
        16 => format!("bit({})", 8 * u32::from(hi) + u32::from(lo)),
        242 => "vector(4)".to_owned(),
        245 => "json".to_owned(),
        246 => format!("decimal({hi},{lo}){unsigned}"),
        247 => text(format!("enum({})", labels())),
        248 => text(format!("set({})", labels())),
        255 => "geometry".to_owned(),
        254 if binary => format!("binary({meta})"),
        254 => text(format!("char({size})")),
        15 if binary => format!("varbinary({meta})"),
        15 => text(format!("varchar({size})")),
        141 if binary => format!("varbinary({}) {packed}", meta.saturating_sub(1)),
        141 => text(format!("varchar({}) {packed}", size.saturating_sub(1))),
        _ => {
            let size =
                ["tiny", "", "medium", "long"].get(usize::from(c.meta) - usize::from(c.meta > 0));
            let kind = if binary { "blob" } else { "text" };
            let packed = if c.real_type == 140 { packed } else { "" };
            text(format!("{}{kind} {packed}", size.unwrap_or(&"")))
        }
    }
}

/// A schema that a table map fits, as far as its types can be carried.
fn schema_of(map: &TableMap, flavor: Flavor) -> Arc<TableSchema> {
    let specs = map.columns.iter().map(|c| {
        let text = type_of(c);
        let lake = column_type(&Declared::parse(&text), flavor, None);
        ColumnSpec::new(c.name.clone(), text, lake.map_or(LakeType::Utf8, |t| t.1))
    });
    let key = map.primary_key.iter().flatten().filter_map(|k| {
        map.columns
            .get(usize::try_from(*k).ok()?)
            .map(|c| c.name.clone())
    });
    let table = TableName::new(map.database.clone(), map.table.clone());
    Arc::new(TableSchema::first(table, 1, specs.collect(), key.collect()))
}

/// Decodes a rows event's body with the table map of another body; returns the rows.
pub fn any_rows(map: &[u8], body: &[u8], v2: bool, op: Op) -> usize {
    // MariaDB's events have no extra data.
    let flavor = if v2 { Flavor::MySql } else { Flavor::MariaDb };
    let Ok(map) = table_map::table_map(map, flavor) else {
        return 0;
    };
    let charset = |c: &table_map::MapColumn| (c.collation, charset_of(c.collation).to_owned());
    let names: HashMap<u64, String> = map.columns.iter().map(charset).collect();
    let tables = Charsets::default();
    let options = PlanOptions {
        excluded: &[],
        own_key: true,
        flavor,
        collations: Collations {
            names: &names,
            tables: &tables,
        },
        value_bytes: usize::MAX,
    };
    let schema = schema_of(&map, flavor);
    let Ok(plan) = TablePlan::new(&map, &schema, options) else {
        return 0;
    };
    let Ok(h) = rows::rows_header(body, v2, op == Op::Update) else {
        return 0;
    };
    let _ = rows::too_large(&plan, body, &h);
    let mut into = ChangeBuffer::new(1, usize::MAX);
    into.begin(TransactionMeta {
        committed_at_us: 0,
        position: "".into(),
    });
    let slot = into.slot(&schema);
    let (mut image, mut coerced, mut at, mut count) =
        (Image::default(), Coerced::default(), h.start, 0);
    while at < body.len() {
        let Ok(end) = rows::image(&plan, body, at, &h.before, &mut image) else {
            break;
        };
        let mut partial = Image::default();
        if rows::partial_image(&plan, body, at, &h.after, &mut partial).is_ok() {
            let mut row = into.row(slot, op);
            let missing = Missing::Unchanged;
            let before = Some(&image);
            let _ = rows::append(
                &plan,
                body,
                &partial,
                before,
                missing,
                &mut row,
                &mut coerced,
            );
        }
        let _ = rows::same_key(&plan, body, &image, &image);
        let mut row = into.row(slot, op);
        let appended = rows::append(
            &plan,
            body,
            &image,
            Some(&image),
            Missing::Unchanged,
            &mut row,
            &mut coerced,
        );
        if end <= at || appended.is_err() {
            break;
        }
        row.finish();
        count += 1;
        at = end;
    }
    let _ = into.take();
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mysql::decode::events::HEADER;
    use proptest::prelude::*;

    /// Events of MySQL 9.7 and MariaDB 11.8, as the servers wrote them: server, kind, hex.
    fn captured() -> Vec<(String, String, Vec<u8>)> {
        let line = |l: &str| {
            let mut f = l.split(' ').map(str::to_owned);
            let (server, kind) = (f.next()?, f.next()?);
            Some((server, kind, hex::decode(f.next()?).ok()?))
        };
        include_str!("captured.txt")
            .lines()
            .filter_map(line)
            .collect()
    }

    fn body(event: &[u8]) -> &[u8] {
        &events::verify(event).expect("a checksum")[HEADER..]
    }

    fn of(server: &str, kind: &str) -> Vec<u8> {
        let found = captured()
            .into_iter()
            .find(|(s, k, _)| s == server && k == kind);
        found.unwrap_or_else(|| panic!("{server} {kind}")).2
    }

    #[test]
    fn every_captured_event_decodes() {
        assert!(captured().len() > 30);
        for (server, kind, event) in captured() {
            if kind == "format_description" {
                assert_eq!(events::checksummed(&event), Ok(true), "{server}");
            }
            // The description of a file that is being written differs from its checksum by a flag.
            assert!(
                events::verify(&event).is_ok() || kind == "format_description",
                "{server} {kind}"
            );
            any_event(&event);
        }
    }

    #[test]
    fn captured_gtids_and_statements() {
        let my = |kind: &str| of("mysql-9.7", kind);
        let gtid = events::gtid(body(&my("gtid"))).unwrap();
        assert!(gtid.gno > 0 && gtid.committed_at_us > 1_700_000_000_000_000);
        let tagged = events::gtid_tagged(body(&my("gtid_tagged"))).unwrap();
        assert_eq!(
            (tagged.origin.0, tagged.origin.1.as_str()),
            (gtid.origin.0, "shop")
        );
        assert!(tagged.committed_at_us > 1_700_000_000_000_000);
        let previous = my("previous_gtids");
        let set = GtidSet::decode(body(&previous)).unwrap();
        assert!(set.contains(&gtid.origin, gtid.gno - 1) && !set.contains(&gtid.origin, gtid.gno));
        assert_eq!(set.encode(), body(&previous));
        assert_eq!(
            events::xa_prepare(body(&my("xa_prepare"))),
            Ok(("X'61',X'',1".to_owned(), false))
        );
        assert!(
            events::payload(body(&my("transaction_payload")))
                .unwrap()
                .zstd
        );

        let event = of("mariadb-11.8", "maria_gtid");
        let (header, body_with_sum) = events::header(&event).unwrap();
        let g = events::maria_gtid(&header, body_with_sum).unwrap();
        assert!(g.gtid.domain == 0 && g.gtid.server == 1 && g.gtid.seq > 0 && !g.standalone());
        let packed = of("mariadb-11.8", "maria_query_compressed");
        let q = events::query(body(&packed), true).unwrap();
        assert_eq!(
            (&*q.sql, q.database),
            (&b"truncate table t"[..], &b"cap"[..])
        );
    }

    #[test]
    fn captured_rows_are_whole() {
        for (server, v2, kinds) in [
            (
                "mysql-9.7",
                true,
                ["write_rows", "update_rows", "delete_rows"],
            ),
            (
                "mariadb-11.8",
                false,
                ["write_rows_v1", "update_rows_v1", "delete_rows_v1"],
            ),
        ] {
            let map = of(server, "table_map");
            for (kind, op, n) in [
                (kinds[0], Op::Insert, 1),
                (kinds[1], Op::Update, 2),
                (kinds[2], Op::Delete, 1),
            ] {
                assert_eq!(
                    any_rows(body(&map), body(&of(server, kind)), v2, op),
                    n,
                    "{server} {kind}"
                );
            }
        }
    }

    #[test]
    fn captured_compressed_rows_unpack() {
        let map = of("mariadb-11.8", "table_map");
        for (packed, op, n) in [
            ("maria_write_rows_compressed", Op::Insert, 1),
            ("maria_update_rows_compressed", Op::Update, 2),
            ("maria_delete_rows_compressed", Op::Delete, 1),
        ] {
            let event = of("mariadb-11.8", packed);
            let event = body(&event);
            let h = rows::rows_header(event, false, op == Op::Update).unwrap();
            let mut whole = event[..h.start].to_vec();
            events::inflate(&event[h.start..], &mut whole).unwrap();
            assert_eq!(any_rows(body(&map), &whole, false, op), n, "{packed}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(
            which in 0usize..1000,
            second in 0usize..1000,
            changes in proptest::collection::vec((0usize..400, any::<u8>()), 0..6),
            cut in 0usize..400,
            noise in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            any_event(&noise);
            let all = captured();
            let mut event = all[which % all.len()].2.clone();
            for (at, b) in changes {
                let n = event.len();
                event[at % n] = b;
            }
            event.truncate(event.len().saturating_sub(cut % 60));
            any_event(&event);
            let rest = |e: &[u8]| e.get(HEADER..).unwrap_or_default().to_vec();
            let other = rest(&all[second % all.len()].2);
            for op in [Op::Insert, Op::Update] {
                for v2 in [false, true] {
                    any_rows(&rest(&event), &other, v2, op);
                    for server in ["mysql-9.7", "mariadb-11.8"] {
                        let map = of(server, "table_map");
                        any_rows(body(&map), &rest(&event), v2, op);
                    }
                }
            }
        }
    }
}
