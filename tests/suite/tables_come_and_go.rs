//! Tables are created, dropped, renamed and truncated while the stream runs.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::agent::Running;
use caudal_tests::databases::Kind;

on_every_source!(
    an_included_table_is_copied_alone,
    created_tables_are_copied,
    dropped_tables_end,
    renamed_tables_are_copied_under_their_new_name,
    truncates_empty_every_table_that_they_name,
    an_online_migration_leaves_the_table_right,
);

async fn create(t: &Trial, table: &str, rows: i64) -> Result<()> {
    t.source
        .exec(&format!(
            "create table {table} (id {{int8}} primary key, name {{text}})"
        ))
        .await?;
    t.source
        .fill(table, 1, rows, |i| format!("({i}, '{table}{i}')"))
        .await
}

async fn wait_for_live(t: &Trial, running: &mut Running, table: &str) -> Result<()> {
    let name = t.source.table(table);
    running
        .wait_for_status(&format!("{table} is live"), |s| {
            s.tables
                .iter()
                .any(|t| t.table == name && t.state == "live")
        })
        .await?;
    Ok(())
}

async fn wait_for_absence(t: &Trial, running: &mut Running, table: &str) -> Result<()> {
    let name = t.source.table(table);
    running
        .wait_for_status(&format!("{table} is gone"), |s| {
            s.tables.iter().all(|t| t.table != name)
        })
        .await?;
    Ok(())
}

/// `tables.include` grew between two runs: nothing but the new table is read.
async fn an_included_table_is_copied_alone(t: &Trial) -> Result<()> {
    create(t, "first", 300).await?;
    create(t, "second", 500).await?;
    let mut agent = t.agent()?;
    let (first, second) = (t.source.table("first"), t.source.table("second"));
    agent.config.set("tables.include", vec![first.clone()]);
    agent.run_until_caught_up().await?;
    t.source
        .exec("update first set name = 'x' where id < 20; update second set name = 'x'")
        .await?;
    agent
        .config
        .set("tables.include", vec![first.clone(), second.clone()]);
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["first", "second"]).await?;
    assert_eq!(
        (report.count(&first, "r"), report.count(&first, "t")),
        (300, 0)
    );
    assert_eq!(
        (report.count(&second, "r"), report.count(&second, "t")),
        (500, 0)
    );
    Ok(())
}

async fn created_tables_are_copied(t: &Trial) -> Result<()> {
    create(t, "first", 300).await?;
    let agent = t.agent()?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    create(t, "second", 500).await?;
    t.source
        .exec("insert into second values (9000, 'x'); update second set name = 'y' where id < 20")
        .await?;
    wait_for_live(t, &mut running, "second").await?;
    t.source
        .exec("delete from second where id between 10 and 30; insert into first values (9000, 'z')")
        .await?;
    let like = match t.kind() {
        Kind::Postgres => "create table third (like second including all)",
        _ => "create table third like second",
    };
    t.source.exec(like).await?;
    t.source
        .exec("insert into third select * from second")
        .await?;
    wait_for_live(t, &mut running, "third").await?;
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["first", "second", "third"]).await?;
    assert_eq!(report.count(&t.source.table("first"), "r"), 300);
    assert_eq!(report.count(&t.source.table("first"), "t"), 0);
    Ok(())
}

async fn dropped_tables_end(t: &Trial) -> Result<()> {
    create(t, "stays", 100).await?;
    create(t, "goes", 100).await?;
    let agent = t.agent()?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    t.source
        .exec("update goes set name = 'last words' where id = 1; drop table goes")
        .await?;
    wait_for_absence(t, &mut running, "goes").await?;
    t.source.exec("insert into stays values (500, 'x')").await?;
    // The same name again is another table.
    t.source
        .exec("create table goes (other {int8} primary key, d {decimal})")
        .await?;
    t.source
        .exec("insert into goes values (1, 1.5), (2, 2.5)")
        .await?;
    wait_for_live(t, &mut running, "goes").await?;
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["stays", "goes"]).await?;
    assert_eq!(report.count(&t.source.table("stays"), "r"), 100);
    // Exchanged for another of its name, and dropped, while nobody looks; nobody writes either.
    t.source
        .exec("drop table goes; create table goes (other {int8} primary key, d {decimal})")
        .await?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["goes"]).await?;
    t.source.exec("drop table goes").await?;
    agent.run_until_caught_up().await?;
    let status = agent.status().await?;
    let names: Vec<&str> = status.tables.iter().map(|s| s.table.as_str()).collect();
    assert_eq!(names, [t.source.table("stays")]);
    t.expect_equal(&["stays"]).await?;
    Ok(())
}

async fn renamed_tables_are_copied_under_their_new_name(t: &Trial) -> Result<()> {
    let mut config = t.config();
    config.set(
        "tables.exclude",
        vec![format!("{}.hidden*", t.source.schema())],
    );
    create(t, "one", 100).await?;
    create(t, "hidden", 100).await?;
    let agent = t.agent_with("agent", config)?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    t.source.exec("alter table one rename to two").await?;
    t.source
        .exec("insert into two values (500, 'after')")
        .await?;
    wait_for_live(t, &mut running, "two").await?;
    wait_for_absence(t, &mut running, "one").await?;
    // Into the selection, and out of it.
    t.source.exec("alter table hidden rename to shown").await?;
    t.source
        .exec("update shown set name = 'seen' where id = 1")
        .await?;
    wait_for_live(t, &mut running, "shown").await?;
    t.source
        .exec("alter table two rename to hidden_two")
        .await?;
    wait_for_absence(t, &mut running, "two").await?;
    // Two names change places.
    create(t, "left_one", 10).await?;
    create(t, "right_one", 20).await?;
    wait_for_live(t, &mut running, "right_one").await?;
    wait_for_live(t, &mut running, "left_one").await?;
    let swap = match t.kind() {
        Kind::Postgres => {
            "begin; alter table left_one rename to spare; alter table right_one rename to left_one; \
             alter table spare rename to right_one; commit"
        }
        _ => "rename table left_one to spare, right_one to left_one, spare to right_one",
    };
    t.source.exec(swap).await?;
    t.source
        .exec("insert into left_one values (900, 'l'); insert into right_one values (901, 'r')")
        .await?;
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["shown", "left_one", "right_one"]).await?;
    Ok(())
}

async fn truncates_empty_every_table_that_they_name(t: &Trial) -> Result<()> {
    create(t, "a", 50).await?;
    create(t, "b", 50).await?;
    create(t, "kept", 50).await?;
    if t.kind() == Kind::Postgres {
        t.source
            .exec("create table child (id bigint primary key, parent bigint references a)")
            .await?;
        t.source
            .exec("insert into child select id, id from a")
            .await?;
    }
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    let statements: &[&str] = match t.kind() {
        Kind::Postgres => &[
            "begin; insert into a values (700, 'gone'); truncate a, b cascade; \
             insert into a values (701, 'stays'); commit",
            "begin; truncate kept; rollback",
        ],
        _ => &[
            "truncate table a",
            "truncate b",
            "insert into a values (701, 'stays')",
        ],
    };
    for sql in statements {
        t.source.exec(sql).await?;
    }
    agent.run_until_caught_up().await?;
    let mut tables = vec!["a", "b", "kept"];
    if t.kind() == Kind::Postgres {
        tables.push("child");
    }
    let report = t.expect_equal(&tables).await?;
    assert_eq!(report.count(&t.source.table("a"), "t"), 1);
    assert_eq!(report.count(&t.source.table("kept"), "t"), 0);
    Ok(())
}

/// As gh-ost and pt-online-schema-change leave it: a helper table is filled beside the
/// old one and takes its name in one statement.
async fn an_online_migration_leaves_the_table_right(t: &Trial) -> Result<()> {
    let schema = t.source.schema().to_owned();
    let postgres = t.kind() == Kind::Postgres;
    let mut config = t.config();
    // Helper tables come and go beside the table that is named.
    config.set(
        "tables.include",
        vec![format!("{schema}.items"), format!("{schema}.other")],
    );
    create(t, "items", 2_000).await?;
    create(t, "other", 10).await?;
    let agent = t.agent_with("agent", config)?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    let tools = [("_items_gho", "_items_del"), ("_items_new", "_items_old")];
    for (round, (shadow, old)) in tools.into_iter().enumerate() {
        t.source
            .exec(&format!(
                "create table {shadow} {}; \
                 alter table {shadow} add column extra{round} int default 3, {} varchar(200)",
                if postgres {
                    "(like items including all)"
                } else {
                    "like items"
                },
                if postgres {
                    "alter name type"
                } else {
                    "modify name"
                },
            ))
            .await?;
        t.source
            .exec(&format!(
                "insert into items (id, name) values ({}, 'meanwhile'); delete from items where id = {}",
                90_000 + round,
                round + 5
            ))
            .await?;
        let columns: String = t
            .source
            .scalar(&format!(
                "select {} from information_schema.columns \
                 where table_schema = '{schema}' and table_name = 'items'",
                if postgres {
                    "string_agg(column_name, ',' order by ordinal_position)"
                } else {
                    "group_concat(column_name order by ordinal_position)"
                }
            ))
            .await?;
        t.source
            .exec(&format!(
                "insert into {shadow} ({columns}) select {columns} from items; {}; drop table {old}; \
                 insert into items (id, name) values ({}, 'after')",
                if postgres {
                    format!(
                        "begin; alter table items rename to {old}; \
                         alter table {shadow} rename to items; commit"
                    )
                } else {
                    format!("rename table items to {old}, {shadow} to items")
                },
                95_000 + round
            ))
            .await?;
    }
    wait_for_live(t, &mut running, "items").await?;
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items", "other"]).await?;
    let mut names: Vec<&String> = report.tables.keys().collect();
    names.sort();
    assert_eq!(names, [&t.source.table("items"), &t.source.table("other")]);
    assert_eq!(report.count(&t.source.table("other"), "r"), 10);
    Ok(())
}
