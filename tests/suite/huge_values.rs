//! A value of 100 MB passes, by the copy and by the log; one past `limits.value_bytes`
//! stops its table and nothing else.

use crate::trial::{Trial, on_every_source};
use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use caudal_tests::Result;
use caudal_tests::databases::Kind;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::BTreeMap;

on_every_source!(
    a_hundred_megabytes_pass,
    a_value_past_the_limit_stops_its_table
);

const HUGE: usize = 100 << 20;

/// A server that accepts such a value at all.
async fn server(t: &Trial) -> Result<Trial> {
    match t.kind() {
        Kind::Postgres => t.on_private_server(&[]).await,
        _ => {
            t.on_private_server(&["--max-allowed-packet=1073741824"])
                .await
        }
    }
}

/// An expression for `bytes` bytes of text.
fn text(bytes: usize) -> String {
    format!("repeat('0123456789abcdef', {})", bytes / 16)
}

async fn a_hundred_megabytes_pass(t: &Trial) -> Result<()> {
    let t = &server(t).await?;
    t.source
        .exec("create table huge (id {int8} primary key, body {text})")
        .await?;
    let insert = |id: i64| format!("insert into huge values ({id}, {})", text(HUGE));
    t.source.exec(&insert(1)).await?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    t.source.exec(&insert(2)).await?;
    t.source.exec("update huge set id = 3 where id = 1").await?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    caudal_tests::agent::eventually("the rows are committed", async || {
        Ok((t.committed_rows("huge")? >= 4).then_some(()))
    })
    .await?;
    let peak = running.peak_memory()?;
    running.sigterm().await?.expect(0)?;
    // The value itself, its column and its encoded page, and what else an agent holds.
    assert!(peak < 1536 << 20, "{} MiB", peak >> 20);
    let mut seen: BTreeMap<(i64, String), usize> = BTreeMap::new();
    let wanted = "0123456789abcdef".repeat(HUGE / 16);
    for entry in t.log_entries()? {
        for file in entry["tables"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|t| t["files"].as_array().into_iter().flatten().cloned())
        {
            let path = t
                .lake()
                .join(&t.stream)
                .join(file["path"].as_str().unwrap_or_default());
            let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path)?)?;
            for batch in reader.build()? {
                let batch = batch?;
                let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
                let (ids, bodies) = (column("id"), column("body"));
                let ops = arrow::compute::cast(&column("_op"), &arrow::datatypes::DataType::Utf8)?;
                for row in 0..batch.num_rows() {
                    let key = (
                        ids.as_primitive::<Int64Type>().value(row),
                        ops.as_string::<i32>().value(row).to_owned(),
                    );
                    let held = !bodies.is_null(row);
                    if held {
                        assert!(bodies.as_string::<i32>().value(row) == wanted, "{key:?}");
                    }
                    seen.insert(key, usize::from(held));
                }
            }
        }
    }
    assert_eq!(seen.get(&(1, "r".into())), Some(&1));
    assert_eq!(seen.get(&(2, "c".into())), Some(&1));
    // Unchanged, and stored out of line: the log need not send it again.
    assert!(seen.contains_key(&(1, "d".into())) && seen.contains_key(&(3, "c".into())));
    Ok(())
}

async fn a_value_past_the_limit_stops_its_table(t: &Trial) -> Result<()> {
    let t = &server(t).await?;
    t.source
        .exec(
            "create table huge (id {int8} primary key, body {text});
             create table copied (id {int8} primary key, body {text});
             create table small (id {int8} primary key, body {text})",
        )
        .await?;
    let four = text(4 << 20);
    t.source
        .exec(&format!("insert into copied values (1, {four})"))
        .await?;
    let mut config = t.config();
    config.set("limits.value_bytes", "1MiB");
    let agent = t.agent_with("agent", config)?;
    agent.run(&["run", "--until-caught-up"]).await?.expect(5)?;
    t.source
        .exec(&format!(
            "insert into small values (1, 'a'); insert into huge values (1, {four}); \
             insert into small values (2, 'b')"
        ))
        .await?;
    agent.run(&["run", "--until-caught-up"]).await?.expect(5)?;
    t.expect_equal(&["small"]).await?;
    for table in ["huge", "copied"] {
        let name = t.source.table(table);
        let status = agent.status().await?;
        let error = status.tables.iter().find(|s| s.table == name);
        let error = error.and_then(|s| s.error.clone()).unwrap_or_default();
        assert!(
            error.contains("body") && error.contains("limits.value_bytes"),
            "{table}: {error}"
        );
    }
    // With room for it, both come back.
    let mut config = t.config();
    config.set("limits.value_bytes", "64MiB");
    let agent = t.agent_with("agent", config)?;
    for table in ["huge", "copied"] {
        let name = t.source.table(table);
        agent.run(&["resnapshot", &name]).await?.expect(0)?;
    }
    agent.run_until_caught_up().await?;
    t.expect_equal(&["small", "huge", "copied"]).await?;
    Ok(())
}
