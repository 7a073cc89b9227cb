//! `[[tables.override]]`: what it does to rows, it does to those of the copy and of the log alike.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::databases::Kind;

on_every_source!(
    rows_are_hashed_filtered_and_retyped,
    what_the_log_cannot_tell_is_refused,
);

async fn rows_are_hashed_filtered_and_retyped(t: &Trial) -> Result<()> {
    t.source
        .exec(
            "create table people (id {int8} primary key, email varchar(80), region varchar(10), \
             amount {decimal}, secret {text}, changed {timestamp})",
        )
        .await?;
    let hash = match t.kind() {
        Kind::Postgres => {
            t.source
                .exec("alter table people replica identity full")
                .await?;
            "encode(sha256(convert_to('pepper' || email, 'UTF8')), 'hex')"
        }
        _ => "sha2(concat('pepper', email), 256)",
    };
    let text = match t.kind() {
        Kind::Postgres => "amount::text",
        _ => "cast(amount as char)",
    };
    let exact = match t.kind() {
        Kind::Postgres => "region",
        _ => "cast(region as binary)",
    };
    t.source
        .exec(&format!(
            "create view expected as select id, {hash} as email, region, {text} as amount, changed \
             from people where {exact} = 'eu' and (amount < 100 or amount is null)"
        ))
        .await?;
    let rows = "(1, 'a@x', 'eu', 1.5, 's', '2026-01-01 00:00:00'), (2, 'b@x', 'us', 1, 's', null), \
                (3, null, 'eu', 99.9999, 's', null), (4, 'd@x', 'eu', 100, 's', null), \
                (5, 'ü@x', 'eu', null, 's', null), (6, 'f@x', null, 1, 's', null), \
                (7, 'g@x', 'EU', 1, 's', null)";
    t.source
        .exec(&format!("insert into people values {rows}"))
        .await?;
    let mut config = t.config();
    config.set("tables.hash_salt", "env:CAUDAL_TEST_SALT");
    config.override_table(&format!(
        "table = '{}'\nexclude_columns = ['secret']\nhash_columns = ['email']\n\
         as = {{ amount = 'string' }}\nfilter = \"region = 'eu' and (amount < 100 or amount is null)\"",
        t.source.table("people")
    ))?;
    // A column that is text in the lake is not compared by its value.
    let mut agent = t.agent_with("refused", config.clone())?;
    agent.env("CAUDAL_TEST_SALT", "pepper");
    let refused = agent.run(&["check"]).await?.expect(1)?;
    assert!(refused.stdout.contains("amount"), "{}", refused.stdout);

    let mut config = t.config();
    config.set("tables.hash_salt", "env:CAUDAL_TEST_SALT");
    config.override_table(&format!(
        "table = '{}'\nexclude_columns = ['secret']\nhash_columns = ['email']\n\
         as = {{ changed = 'string' }}\nfilter = \"region = 'eu' and (amount < 100 or amount is null)\"",
        t.source.table("people")
    ))?;
    t.source.exec("drop view expected").await?;
    let changed = match t.kind() {
        Kind::Postgres => "changed::text",
        _ => "cast(changed as char)",
    };
    t.source
        .exec(&format!(
            "create view expected as select id, {hash} as email, region, amount, {changed} as changed \
             from people where {exact} = 'eu' and (amount < 100 or amount is null)"
        ))
        .await?;
    let mut agent = t.agent_with("agent", config)?;
    agent.env("CAUDAL_TEST_SALT", "pepper");
    agent.run_until_caught_up().await?;
    let report = t.expect_equal_to(&[("people", "expected")]).await?;
    assert_eq!(report.count(&t.source.table("people"), "r"), 3);
    for sql in [
        "insert into people values (11, 'k@x', 'eu', 5, 's', '2026-05-05 05:05:05.123')",
        "insert into people values (12, 'l@x', 'us', 5, 's', null)",
        // Out of the filter, into it, and about within it.
        "update people set region = 'us' where id = 1",
        "update people set region = 'eu' where id = 2",
        "update people set amount = 3, email = 'new@x' where id = 3",
        "update people set amount = 300 where id = 5",
        "update people set id = 40, amount = 50 where id = 4",
        "update people set id = 70 where id = 7",
        "delete from people where id in (11, 6)",
    ] {
        t.source.exec(sql).await?;
    }
    agent.run_until_caught_up().await?;
    t.expect_equal_to(&[("people", "expected")]).await?;
    Ok(())
}

async fn what_the_log_cannot_tell_is_refused(t: &Trial) -> Result<()> {
    t.source
        .exec("create table people (id {int8} primary key, name varchar(20), n {int4})")
        .await?;
    let people = t.source.table("people");
    for (index, (text, named)) in [
        ("exclude_columns = ['nobody']", "nobody"),
        ("filter = \"nobody = 1\"", "nobody"),
        ("filter = \"n = 'text'\"", "another type"),
        ("filter = \"name < 'm'\"", "collation"),
        ("as = { n = 'date' }", "n"),
        ("key = ['nobody']", "nobody"),
        ("hash_columns = ['id']", "id"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = t.config();
        config.set("tables.hash_salt", "pepper");
        config.override_table(&format!("table = '{people}'\n{text}"))?;
        let agent = t.agent_with(&format!("agent{index}"), config)?;
        let outcome = agent.run(&["check"]).await?;
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(
            said.contains(named) && said.contains("people"),
            "{text}: {said}"
        );
        let outcome = agent.run(&["run", "--until-caught-up"]).await?;
        assert_eq!(outcome.code, Some(1), "{text}: {}", outcome.stderr);
    }
    Ok(())
}
