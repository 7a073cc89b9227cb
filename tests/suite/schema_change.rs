//! The source's tables change: the lake follows, whether the agent runs, is stopped, or
//! meets many changes at once that are all newer than its position.

use crate::trial::{Trial, on_every_source};
use caudal_tests::databases::Kind;
use caudal_tests::{Agent, Result, Session, Source};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

on_every_source!(
    columns_change_while_the_agent_runs,
    columns_change_while_it_is_stopped,
    columns_changed_long_before,
    changed_values_are_copied_again,
    changed_keys_are_copied_again,
    columns_change_under_load,
    pause_stops_only_the_table,
);

/// One change of `items`: what PostgreSQL and MySQL are told.
struct Step(&'static str, &'static str);

const STEPS: &[Step] = &[
    Step(
        "alter table items add column d integer",
        "alter table items add column d int",
    ),
    Step(
        "alter table items add column e integer not null default 7",
        "alter table items add column e int not null default 7",
    ),
    Step(
        "alter table items add column f varchar(20) default 'it''s', add column g numeric(10,2) default 1.50",
        "alter table items add column f varchar(20) default 'it''s' first, \
         add column g decimal(10,2) default 1.50 after a",
    ),
    Step(
        "alter table items add column flag boolean default true",
        "alter table items add column flag boolean default true",
    ),
    Step(
        "alter table items add column at timestamp default '2024-02-29 12:34:56.789'",
        "alter table items add column at datetime(3) default '2024-02-29 12:34:56.789'",
    ),
    Step(
        "alter table items drop column c",
        "alter table items drop column c",
    ),
    Step(
        "alter table items rename column a to aa",
        "alter table items rename column a to aa",
    ),
    Step(
        "alter table items alter column aa type bigint",
        "alter table items modify column aa bigint",
    ),
    Step(
        "alter table items alter column b type varchar(50)",
        "alter table items modify column b varchar(50)",
    ),
    Step(
        "begin; alter table items drop column d; alter table items add column d text; commit",
        "alter table items drop column d, add column d varchar(30)",
    ),
    Step(
        "alter table items rename column id to \"Item No\"",
        "alter table items rename column id to `Item No`",
    ),
    Step(
        "alter type mood add value 'ecstatic' before 'sad'",
        "alter table items modify column m enum('sad', 'ok', 'ecstatic')",
    ),
    Step(
        "comment on table items is 'nothing that the lake shows'",
        "alter table items comment 'nothing that the lake shows'",
    ),
];

async fn create(t: &Trial) -> Result<()> {
    if t.kind() == Kind::Postgres {
        t.source
            .exec("create type mood as enum ('sad', 'ok')")
            .await?;
    }
    let mood = if t.kind() == Kind::Postgres {
        "mood"
    } else {
        "enum('sad', 'ok')"
    };
    t.source
        .exec(&format!(
            "create table items (id {{int8}} primary key, a {{int4}}, b varchar(10), c {{text}}, m {mood})"
        ))
        .await?;
    t.source
        .exec("create table other (id {int8} primary key, n {int4})")
        .await?;
    t.source
        .fill("items", 1, 200, |i| {
            format!("({i}, {i}, 'b{i}', 'c', 'ok')")
        })
        .await
}

impl Step {
    fn sql(&self, kind: Kind) -> &'static str {
        match kind {
            Kind::Postgres => self.0,
            _ => self.1,
        }
    }
}

/// Rows of every kind after the `at`-th step.
fn rows_after(kind: Kind, at: usize) -> String {
    let id = match (at >= 10, kind) {
        (false, _) => "id",
        (true, Kind::Postgres) => "\"Item No\"",
        (true, _) => "`Item No`",
    };
    let new = 1000 + at;
    let mood = if at >= 11 { "ecstatic" } else { "sad" };
    format!(
        "insert into items ({id}, b, m) values ({new}, 'new{at}', '{mood}'); \
         update items set b = 'u{at}' where {id} in ({}, {}); \
         delete from items where {id} = {}; \
         insert into other values ({at}, {at})",
        2 * at + 1,
        1000 + at / 2,
        2 * at + 2
    )
}

async fn expect_followed(t: &Trial) -> Result<()> {
    let report = t.expect_equal(&["items", "other"]).await?;
    let items = t.source.table("items");
    // MySQL does not number its columns: one that is dropped and added again under the same
    // name in one statement costs a copy (ADR 0035).
    let copies = u64::from(t.kind() != Kind::Postgres);
    assert_eq!(
        report.count(&items, "t"),
        copies,
        "nothing else needs a new copy"
    );
    Ok(())
}

async fn columns_change_while_the_agent_runs(t: &Trial) -> Result<()> {
    create(t).await?;
    let agent = t.agent()?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    for (at, step) in STEPS.iter().enumerate() {
        t.source.exec(step.sql(t.kind())).await?;
        t.source.exec(&rows_after(t.kind(), at)).await?;
    }
    // Every step has its row in `other`.
    caudal_tests::agent::eventually("all steps are committed", async || {
        Ok((t.committed_rows("other")? >= STEPS.len() as u64).then_some(()))
    })
    .await?;
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    // A statement that is read after the next one was run may cost a copy.
    t.expect_equal(&["items", "other"]).await?;
    Ok(())
}

/// A run of its own for each change, and one for the rows that follow it: what is known
/// of a change must outlive the agent.
async fn columns_change_while_it_is_stopped(t: &Trial) -> Result<()> {
    create(t).await?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    for (at, step) in STEPS.iter().enumerate() {
        t.source.exec(step.sql(t.kind())).await?;
        agent.run_until_caught_up().await?;
        t.source.exec(&rows_after(t.kind(), at)).await?;
        agent.run_until_caught_up().await?;
        t.expect_equal(&["items", "other"]).await?;
    }
    expect_followed(t).await
}

/// The catalog shows the last shape only, and the log all of them. A new copy is allowed
/// where nobody can tell any more, a wrong row never.
async fn columns_changed_long_before(t: &Trial) -> Result<()> {
    create(t).await?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    for (at, step) in STEPS.iter().enumerate() {
        t.source.exec(step.sql(t.kind())).await?;
        t.source.exec(&rows_after(t.kind(), at)).await?;
    }
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items", "other"]).await?;
    Ok(())
}

/// What the server did to rows without a word in the log.
async fn changed_values_are_copied_again(t: &Trial) -> Result<()> {
    create(t).await?;
    let agent = t.agent()?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    let changes: &[&str] = match t.kind() {
        Kind::Postgres => &[
            "update items set b = id::text where true",
            "alter table items alter column b type integer using b::integer * 2",
            "alter table items add column r double precision default random()",
            "alter table items add column s serial",
        ],
        _ => &[
            "update items set b = id",
            "alter table items modify column b int",
            "alter table items add column r bigint default (id * 2)",
            "alter table items add column s int not null auto_increment unique",
        ],
    };
    for (at, change) in changes.iter().enumerate() {
        t.source.exec(change).await?;
        let id = 5000 + at;
        t.source
            .exec(&format!(
                "insert into items (id, b) values ({id}, {id}); insert into other values ({at}, 0)"
            ))
            .await?;
    }
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items", "other"]).await?;
    let items = t.source.table("items");
    assert!(report.count(&items, "t") >= 1, "{report:?}");
    assert_eq!(report.count(&t.source.table("other"), "t"), 0);
    Ok(())
}

async fn changed_keys_are_copied_again(t: &Trial) -> Result<()> {
    create(t).await?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    let (other_key, no_key): (&[&str], &[&str]) = match t.kind() {
        Kind::Postgres => (
            &[
                "alter table items drop constraint items_pkey, alter column a set not null",
                "alter table items add primary key (a, id)",
            ],
            &[
                "alter table items drop constraint items_pkey",
                "alter table items replica identity full",
            ],
        ),
        _ => (
            &[
                "alter table items drop primary key, modify column a int not null, add primary key (a, id)",
            ],
            &["alter table items drop primary key"],
        ),
    };
    for sql in other_key {
        t.source.exec(sql).await?;
    }
    t.source
        .exec("update items set b = 'k' where id < 50; update items set a = a + 1000 where id < 20")
        .await?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items"]).await?;
    for sql in no_key {
        t.source.exec(sql).await?;
    }
    t.source
        .exec("insert into items select * from items where id < 10; update items set b = 'n' where id < 5")
        .await?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items"]).await?;
    assert_eq!(report.count(&t.source.table("items"), "t"), 2);
    Ok(())
}

async fn write(mut session: Session, stop: Arc<AtomicBool>, number: u64) {
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        next += 1;
        let new = 10_000 * (number + 1) + next;
        let old = next % 190 + 1;
        for sql in [
            format!("insert into items (id, b, m) values ({new}, 'n', 'ok')"),
            format!(
                "update items set b = 'x{next}', m = 'sad' where id in ({old}, {})",
                new - 3
            ),
            format!("delete from items where id = {}", new - 7),
        ] {
            // A deadlock with DDL may hit either side.
            let _ = session.exec(&sql).await;
        }
    }
}

/// Columns come and go, with defaults and without, while three sessions write and the
/// table may still be being copied.
async fn columns_change_under_load(t: &Trial) -> Result<()> {
    create(t).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for n in 0..3 {
        let session = t.source.session().await?;
        writers.push(tokio::spawn(write(session, stop.clone(), n)));
    }
    let agent = t.agent()?;
    let running = agent.spawn()?;
    for _ in 0..3 {
        for step in &STEPS[..5] {
            exec_until_done(&t.source, step.sql(t.kind())).await;
        }
        for column in ["d", "e", "f", "g", "flag", "at"] {
            let drop = format!("alter table items drop column {column}");
            exec_until_done(&t.source, &drop).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await?;
    }
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items"]).await?;
    Ok(())
}

/// DDL loses deadlocks with the writers now and then.
async fn exec_until_done(source: &Source, sql: &str) {
    for _ in 0..20 {
        if source.exec(sql).await.is_ok() {
            return;
        }
    }
    panic!("{sql} failed 20 times");
}

async fn pause_stops_only_the_table(t: &Trial) -> Result<()> {
    create(t).await?;
    let mut config = t.config();
    config.set("schema_change.policy", "pause");
    let agent: Agent = t.agent_with("agent", config)?;
    agent.run_until_caught_up().await?;
    t.source.exec(STEPS[0].sql(t.kind())).await?;
    t.source
        .exec("insert into items (id, b) values (700, 'x'); insert into other values (1, 1)")
        .await?;
    agent.run(&["run", "--until-caught-up"]).await?.expect(5)?;
    t.expect_equal(&["other"]).await?;
    let items = t.source.table("items");
    let status = agent.status().await?;
    let error = status
        .tables
        .iter()
        .find(|s| s.table == items)
        .and_then(|s| s.error.clone());
    let error = error.unwrap_or_default();
    assert!(
        error.contains("pause") && error.contains("resnapshot"),
        "{error}"
    );
    agent.run(&["resnapshot", &items]).await?.expect(0)?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items", "other"]).await?;
    Ok(())
}
