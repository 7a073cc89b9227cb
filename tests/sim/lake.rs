//! Reads the simulated lake back, and folds it; knows the format, not the product's code.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use caudal_model::TableName;
use caudal_sources::scripted::{Row, State};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a lake says.
pub struct Lake {
    /// The head's number.
    pub epoch: u64,
    /// How far the head reaches.
    pub position: u64,
    /// Every table's rows, sorted.
    pub state: State,
    /// Tables that the log says are live.
    pub live: BTreeSet<TableName>,
    /// Files that no commit names.
    pub unreferenced: Vec<String>,
}

struct Event {
    epoch: u64,
    seq: i64,
    op: String,
    id: Option<i64>,
    value: Option<i64>,
    big: Option<i64>,
    unchanged: bool,
}

/// Checks the log and its files, and folds them. Panics with what is wrong.
pub fn read(objects: &BTreeMap<String, Bytes>, keyed: &BTreeMap<TableName, bool>) -> Option<Lake> {
    let entries: Vec<(u64, Value)> = objects
        .iter()
        .filter_map(|(k, v)| {
            let epoch = k.strip_prefix("sim/_log/")?.strip_suffix(".json")?;
            Some((epoch.parse().unwrap(), serde_json::from_slice(v).unwrap()))
        })
        .collect();
    let mut events: BTreeMap<TableName, Vec<Event>> = BTreeMap::new();
    let mut named = BTreeSet::new();
    let mut live = BTreeSet::new();
    let mut seqs: HashMap<i64, (u64, bool)> = HashMap::new();
    let mut files: BTreeMap<String, u64> = BTreeMap::new();
    let mut before: Option<Value> = None;
    let mut generation = 0;
    for (at, (epoch, e)) in entries.iter().enumerate() {
        if std::env::var_os("CAUDAL_SIM_TRACE").is_some() {
            println!("{e}");
        }
        assert_eq!(*epoch, at as u64 + 1, "INV-2: an epoch is missing");
        assert_eq!(e["epoch"], *epoch);
        let g = e["generation"].as_u64().unwrap();
        assert!(g >= generation, "generation fell in {epoch}");
        assert!(
            g > generation || (e["kind"] != "fence" && e["kind"] != "rewind"),
            "INV-8: a fence or a rewind must raise the generation"
        );
        generation = g;
        if let Some(b) = &before {
            assert_eq!(
                &e["after"], b,
                "INV-2: commit {epoch} does not follow its predecessor"
            );
        }
        let (after, through) = (seq(&e["after"]), seq(&e["through"]));
        before = Some(e["through"].clone());
        if let Some(to) = e["rewind_to"].as_u64() {
            assert!(through <= after, "a rewind forward in {epoch}");
            let target = &entries[to as usize - 1].1;
            assert_eq!(e["through"], target["through"], "rewind {epoch}");
            rewind(*epoch, e, to, &mut files);
            events
                .values_mut()
                .for_each(|t| t.retain(|r| r.epoch <= to));
            seqs.retain(|_, (of, _)| *of <= to);
            let then = e["state"].as_array().unwrap().iter();
            live = then.filter(|t| t["state"] == "live").map(name).collect();
            continue;
        }
        assert!(after <= through);
        for t in e["tables"].as_array().unwrap() {
            let table = name(t);
            let snapshot = &t["snapshot"];
            if snapshot["live"] == true {
                live.insert(table.clone());
            }
            if t["ended"] == true {
                live.remove(&table);
            }
            let base = snapshot["base_seq"].as_i64();
            for f in t["files"].as_array().unwrap() {
                let path = f["path"].as_str().unwrap();
                assert!(
                    named.insert(format!("sim/{path}")),
                    "{path} is committed twice"
                );
                files.insert(path.to_owned(), *epoch);
                let bytes = objects
                    .get(&format!("sim/{path}"))
                    .unwrap_or_else(|| panic!("INV-3: {path} of commit {epoch} does not exist"));
                assert_eq!(f["bytes"], bytes.len());
                let (first, last) = (
                    f["first_seq"].as_i64().unwrap(),
                    f["last_seq"].as_i64().unwrap(),
                );
                let of_copy = base == Some(first) && first == last;
                assert!(
                    of_copy || (first > after && last <= through),
                    "seq range of {path}"
                );
                let rows = rows(bytes, *epoch);
                assert_eq!(f["rows"], rows.len());
                for r in &rows {
                    assert!((first..=last).contains(&r.seq));
                    let shared = r.op == "r" || r.op == "t";
                    if let Some((other, was_shared)) = seqs.insert(r.seq, (*epoch, shared)) {
                        assert!(
                            shared && was_shared,
                            "INV-7: _seq {} in {other} and {epoch}",
                            r.seq
                        );
                    }
                }
                events.entry(table.clone()).or_default().extend(rows);
            }
        }
    }
    let (epoch, head) = entries.last()?;
    let mut state: State = live.iter().map(|t| (t.clone(), Vec::new())).collect();
    for (table, events) in events {
        // Until the copy is complete, the log may speak of rows that are yet to come.
        if !live.contains(&table) {
            continue;
        }
        let rows = fold(events, keyed[&table]);
        state.insert(table, rows);
    }
    let unreferenced = objects
        .keys()
        .filter(|k| k.ends_with(".parquet") && !named.contains(*k))
        .cloned()
        .collect();
    let position = head["through"]["position"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    Some(Lake {
        epoch: *epoch,
        position,
        state,
        live,
        unreferenced,
    })
}

fn name(table: &Value) -> TableName {
    table["table"].as_str().unwrap().parse().unwrap()
}

/// Takes the files of dropped commits away: just those, and all of them, must be named.
fn rewind(epoch: u64, e: &Value, to: u64, files: &mut BTreeMap<String, u64>) {
    let tables = e["tables"].as_array().unwrap().iter();
    let removed = tables.flat_map(|t| t["removed"].as_array().into_iter().flatten());
    let removed: BTreeSet<String> = removed.map(|p| p.as_str().unwrap().to_owned()).collect();
    let dropped = files.iter().filter(|(_, at)| **at > to);
    let dropped: BTreeSet<String> = dropped.map(|(path, _)| path.clone()).collect();
    assert_eq!(removed, dropped, "files of rewind {epoch} to {to}");
    files.retain(|path, _| !removed.contains(path));
}

fn seq(point: &Value) -> i64 {
    point["seq"].as_i64().unwrap()
}

fn rows(bytes: &Bytes, epoch: u64) -> Vec<Event> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone())
        .unwrap()
        .build()
        .unwrap();
    let mut out = Vec::new();
    for batch in reader {
        let batch: RecordBatch = batch.unwrap();
        let number = |name: &str| {
            batch
                .column_by_name(name)
                .unwrap()
                .as_primitive::<Int64Type>()
        };
        let (id, value, big) = (number("id"), number("value"), number("big"));
        let seqs = number("_seq");
        let ops = batch.column_by_name("_op").unwrap();
        let ops = ops.as_string::<i32>();
        let unchanged = batch.column_by_name("_unchanged").unwrap();
        let cell = |c: &arrow::array::Int64Array, i: usize| (!c.is_null(i)).then(|| c.value(i));
        for i in 0..batch.num_rows() {
            out.push(Event {
                epoch,
                seq: seqs.value(i),
                op: ops.value(i).to_owned(),
                id: cell(id, i),
                value: cell(value, i),
                big: cell(big, i),
                unchanged: !unchanged.is_null(i),
            });
        }
    }
    out
}

/// Applies changes by `_seq`; at an equal one the truncation comes first.
fn fold(mut events: Vec<Event>, keyed: bool) -> Vec<Row> {
    events.sort_by_key(|e| (e.seq, e.op != "t"));
    // Changes beside a copy that was given up may concern rows that the lake never got;
    // the next copy's truncation ends them.
    if let Some(last) = events.iter().rposition(|e| e.op == "t") {
        events.drain(..last);
    }
    let mut rows: Vec<Row> = Vec::new();
    let mut by_key: BTreeMap<i64, Row> = BTreeMap::new();
    let mut removed: Option<Row> = None;
    for e in events {
        if e.op == "t" {
            rows.clear();
            by_key.clear();
            continue;
        }
        let id = e.id.expect("every change of this source names its id");
        let fill = |from: Option<&Row>| Row {
            id,
            value: e.value.expect("a value"),
            // A row that a later delete removes may have nothing to be filled from yet.
            big: if e.unchanged {
                from.map_or(i64::MIN, |r| r.big)
            } else {
                e.big.expect("a big")
            },
        };
        match (e.op.as_str(), keyed) {
            ("r" | "c", true) => {
                let row = fill(removed.as_ref());
                by_key.insert(id, row);
                removed = None;
            }
            ("u", true) => {
                let row = fill(by_key.get(&id));
                by_key.insert(id, row);
            }
            ("d", true) => removed = by_key.remove(&id),
            ("r" | "c", false) => rows.push(fill(None)),
            ("d", false) => {
                let row = fill(None);
                let at = rows
                    .iter()
                    .position(|r| *r == row)
                    .expect("a deleted row that never was");
                rows.swap_remove(at);
            }
            (op, _) => panic!("operation {op} of a table with key = {keyed}"),
        }
    }
    rows.extend(by_key.into_values());
    rows.sort_unstable();
    rows
}
