//! The user that `docs/getting-started.md` creates is enough for the whole job, and its password
//! may change under a running agent.

use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::eventually;
use caudal_tests::databases::Kind;
use caudal_tests::{Agent, Result, bail};

on_every_source!(are_enough, and_a_password_may_change);

const PAGE: &str = include_str!("../../docs/getting-started.md");
const PASSWORD: &str = "choose one";

/// The statements of the page's section for this source, with the trial's names.
fn statements(t: &Trial, user: &str) -> Result<Vec<String>> {
    let heading = match t.kind() {
        Kind::Postgres => "### PostgreSQL",
        Kind::Mysql => "### MySQL",
        Kind::Mariadb => "### MariaDB",
    };
    let block = PAGE
        .split_once(heading)
        .and_then(|(_, rest)| rest.split_once("```sql\n"))
        .and_then(|(_, rest)| rest.split_once("```"));
    let Some((block, _)) = block else {
        bail!("the page has no statements under {heading}");
    };
    let sql: Vec<&str> = block
        .lines()
        .map(|l| l.split_once("--").map_or(l, |(before, _)| before))
        .collect();
    let sql = sql
        .join("\n")
        .replace("caudal_shop", &format!("{user}_publication"))
        .replace("caudal", user)
        .replace(
            "DATABASE shop",
            &format!("DATABASE {}", t.source.database()),
        )
        .replace("shop.*", &format!("{}.*", t.source.database()))
        .replace("public.orders", "public.orders, public.events");
    let all = sql.split(';').map(str::trim).filter(|s| !s.is_empty());
    Ok(all.map(str::to_owned).collect())
}

/// An agent that logs in as such a user, whose name is returned.
async fn agent(t: &Trial) -> Result<(Agent, String)> {
    t.source
        .exec(
            "create table customers (id {int8} primary key, name {text});
             create table orders (id {int8} primary key, customer {int8});
             create table events (at {int8}, what {text})",
        )
        .await?;
    // Every test is a process of its own.
    let user = format!("least_{}", std::process::id());
    let mut root = t.source.superuser().await?;
    for sql in statements(t, &user)? {
        root.exec(&sql).await?;
    }
    let mut agent = t.agent()?;
    let secret = t.dir().join("password");
    std::fs::write(&secret, PASSWORD)?;
    agent
        .config
        .set("source.user", user.as_str())
        .set("source.password", format!("file:{}", secret.display()))
        .set("commit.max_delay", "100ms");
    if t.kind() == Kind::Postgres {
        agent
            .config
            .set("source.publication", format!("{user}_publication"));
    }
    Ok((agent, user))
}

async fn forget(t: &Trial, user: &str) -> Result<()> {
    let mut root = t.source.superuser().await?;
    match t.kind() {
        Kind::Postgres => {
            root.exec(&format!("drop owned by {user}; drop role {user}"))
                .await
        }
        _ => root.exec(&format!("drop user '{user}'@'%'")).await,
    }
}

async fn write(t: &Trial, from: i64) -> Result<()> {
    for (table, value) in [("customers", "'a'"), ("orders", "7"), ("events", "'b'")] {
        t.source
            .fill(table, from, 50, |i| format!("({i}, {value})"))
            .await?;
    }
    let next = from + 1;
    t.source
        .exec(&format!(
            "update customers set name = 'c' where id = {next}; delete from orders where id = {next};
             update events set what = 'd' where at = {next}"
        ))
        .await
}

async fn are_enough(t: &Trial) -> Result<()> {
    let (agent, user) = agent(t).await?;
    let tables = ["customers", "orders", "events"];
    write(t, 1).await?;
    agent.run(&["check"]).await?.expect(0)?;
    agent.run_until_caught_up().await?;
    write(t, 1_000).await?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&tables).await?;
    agent
        .run(&["resnapshot", &t.source.table("events")])
        .await?
        .expect(0)?;
    agent.run(&["tables"]).await?.expect(0)?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&tables).await?;
    forget(t, &user).await
}

async fn and_a_password_may_change(t: &Trial) -> Result<()> {
    let (agent, user) = agent(t).await?;
    write(t, 1).await?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    let mut root = t.source.superuser().await?;
    let change = match t.kind() {
        Kind::Postgres => format!("alter role {user} password 'another one'"),
        _ => format!("alter user '{user}'@'%' identified by 'another one'"),
    };
    root.exec(&change).await?;
    // Open connections outlive the change; new ones meet it.
    match t.kind() {
        Kind::Postgres => {
            let end = format!(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{user}'"
            );
            root.exec(&end).await?;
        }
        _ => {
            let ids = format!(
                "select coalesce(group_concat(id), '') from information_schema.processlist where user = '{user}'"
            );
            for id in root
                .scalar(&ids)
                .await?
                .split(',')
                .filter(|i| !i.is_empty())
            {
                // It may have ended by itself.
                let _ = root.exec(&format!("kill {id}")).await;
            }
        }
    }
    eventually("the old password is refused", async || {
        Ok(running.log().contains("trying again").then_some(()))
    })
    .await?;
    std::fs::write(t.dir().join("password"), "another one")?;
    write(t, 1_000).await?;
    eventually("the agent goes on with the new one", async || {
        Ok((t.committed_rows("customers")? >= 101).then_some(()))
    })
    .await?;
    let outcome = running.sigterm().await?.expect(0)?;
    assert!(
        !outcome.stderr.contains("another one") && !outcome.stderr.contains(PASSWORD),
        "{}",
        outcome.stderr
    );
    agent.run_until_caught_up().await?;
    t.expect_equal(&["customers", "orders", "events"]).await?;
    forget(t, &user).await
}
