//! An interrupted copy goes on where it stopped: the source's own counters say that the
//! rows of finished chunks are not read again, with the state directory and without it.

use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::eventually;
use caudal_tests::databases::Kind;
use caudal_tests::{Result, Session};

on_every_source!(finished_chunks_are_not_read_again);

const ROWS: u64 = 60_000;
const CHUNK: u64 = 500;
const WORKERS: u64 = 2;

/// Rows of `items` that the server has read for anybody.
async fn rows_read(superuser: &mut Session, t: &Trial) -> Result<u64> {
    let sql = match t.kind() {
        Kind::Postgres => {
            "select idx_tup_fetch + seq_tup_read from pg_stat_user_tables where relname = 'items'"
                .to_owned()
        }
        Kind::Mysql | Kind::Mariadb => format!(
            "select count_fetch from performance_schema.table_io_waits_summary_by_table
              where object_schema = '{}' and object_name = 'items'",
            t.source.schema()
        ),
    };
    let text = superuser.scalar(&sql).await?;
    Ok(text.parse()?)
}

/// Counters are written when their session ends; the agent's may outlive it for a moment.
async fn sessions_gone(superuser: &mut Session, t: &Trial) -> Result<()> {
    if t.kind() != Kind::Postgres {
        return Ok(());
    }
    let sql = "select count(*) from pg_stat_activity
                where query like 'COPY (SELECT%' or query like 'SELECT format(%'";
    while superuser.scalar(sql).await? != "0" {
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn finished_chunks_are_not_read_again(t: &Trial) -> Result<()> {
    // MariaDB counts only if it is told to.
    let private = match t.kind() {
        Kind::Mariadb => Some(t.on_private_server(&["--performance-schema=ON"]).await?),
        _ => None,
    };
    let t = private.as_ref().unwrap_or(t);
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, ROWS as i64, |i| format!("({i}, 'name of {i}')"))
        .await?;
    let mut superuser = t.source.superuser().await?;
    if t.kind() == Kind::Postgres {
        // Bounds are then found in the index alone, and only chunks count.
        superuser.exec("vacuum analyze items").await?;
    }
    let mut agent = t.agent()?;
    agent
        .config
        .set("snapshot.chunk_rows", CHUNK as i64)
        .set("snapshot.workers", WORKERS as i64)
        .set("snapshot.max_source_rows_per_second", 15_000)
        .set("commit.max_delay", "200ms");
    for round in 1..=2_u64 {
        let running = agent.spawn()?;
        eventually("a third of the rows is committed", || async {
            Ok((t.committed_rows("items")? >= round * ROWS / 3).then_some(()))
        })
        .await?;
        running.kill9().await?;
        if round == 2 {
            std::fs::remove_dir_all(agent.state_dir())?;
        }
    }
    sessions_gone(&mut superuser, t).await?;
    let committed = t.committed_rows("items")?;
    assert!(
        committed < ROWS,
        "the copy was over before it was interrupted"
    );
    let before = rows_read(&mut superuser, t).await?;
    agent.config.unset("snapshot.max_source_rows_per_second");
    agent.run_until_caught_up().await?;
    sessions_gone(&mut superuser, t).await?;
    let read = rows_read(&mut superuser, t).await? - before;
    // MySQL and MariaDB count what is read to find a chunk's bound too.
    let times = if t.kind() == Kind::Postgres { 1 } else { 2 };
    let most = times * (ROWS - committed) + WORKERS * CHUNK;
    assert!(
        read <= most,
        "{read} rows were read for the last {}",
        ROWS - committed
    );
    t.expect_equal(&["items"]).await?;
    Ok(())
}
