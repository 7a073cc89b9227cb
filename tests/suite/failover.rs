//! INV-10: the source fails over to a replica. The stream goes on where nothing was lost, and
//! refuses to (exit 3) where the server has another past, with a way back that works.

use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::eventually;
use caudal_tests::databases::{Kind, Version};
use caudal_tests::replica::Replica;
use caudal_tests::{Agent, Result, Source};

on_every_source!(
    goes_on_from_a_promoted_replica,
    a_replica_that_lacks_transactions_is_refused,
    a_replica_with_a_past_of_its_own_is_refused,
    another_server_is_refused,
);

/// A trial on a server of its own, with a table of 100 rows.
async fn primary(t: &Trial) -> Result<Trial> {
    let t = t.on_private_server(&[]).await?;
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, 100, |i| format!("({i}, 'a')"))
        .await?;
    Ok(t)
}

async fn count(source: &Source) -> Result<String> {
    source
        .superuser()
        .await?
        .scalar(&format!("select count(*) from {}", source.table("items")))
        .await
}

/// Waits until the replica has what the primary has.
async fn in_step(primary: &Source, replica: &Replica) -> Result<()> {
    let query = format!("select count(*) from {}", primary.table("items"));
    replica.expect(&query, &count(primary).await?).await
}

/// The same agent, pointed at another server.
fn moved(agent: &mut Agent, to: &Source) {
    let address = to.address();
    agent
        .config
        .set("source.host", address.host.as_str())
        .set("source.port", i64::from(address.port));
}

/// Whether a slot of this server survives a failover.
fn keeps_slots(t: &Trial) -> bool {
    t.source.version() != Version::Postgres15
}

/// Waits until a PostgreSQL standby has a copy of the slot that it can go on from, for which
/// the slot must come past where the standby began.
async fn slot_is_copied(t: &Trial, replica: &Replica) -> Result<()> {
    if t.kind() != Kind::Postgres || !keeps_slots(t) {
        return Ok(());
    }
    t.source
        .exec("create table pulse (id {int8} generated always as identity primary key, n {int4})")
        .await?;
    eventually("the standby has a copy of the slot", async || {
        t.source.exec("insert into pulse (n) values (1)").await?;
        let mut root = t.source.superuser().await?;
        root.exec("select pg_log_standby_snapshot()").await?;
        let copies = "select count(*) from pg_replication_slots where synced and not temporary";
        let mut standby = replica.source.superuser().await?;
        Ok((standby.scalar(copies).await? == "1").then_some(()))
    })
    .await
}

/// The way back that every refusal names.
async fn copied_again(agent: &Agent, t: &Trial) -> Result<()> {
    agent.run(&["resnapshot", "*.*"]).await?.expect(0)?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items"]).await?;
    t.source
        .fill("items", 9_000, 10, |i| format!("({i}, 'later')"))
        .await?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items"]).await?;
    Ok(())
}

async fn goes_on_from_a_promoted_replica(t: &Trial) -> Result<()> {
    let t = &primary(t).await?;
    let mut replica = Replica::of(&t.source, &[]).await?;
    let mut agent = t.agent()?;
    agent.run_until_caught_up().await?;
    t.source
        .fill("items", 1_000, 50, |i| format!("({i}, 'unread')"))
        .await?;
    in_step(&t.source, &replica).await?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    slot_is_copied(t, &replica).await?;
    t.source.server().kill9()?;
    replica.promote().await?;
    let promoted = &t.with_source(replica.source);
    promoted
        .source
        .fill("items", 2_000, 50, |i| format!("({i}, 'promoted')"))
        .await?;
    running.sigterm().await?;
    moved(&mut agent, &promoted.source);
    if !keeps_slots(promoted) {
        let outcome = agent.run(&["run", "--until-caught-up"]).await?.expect(3)?;
        assert!(outcome.stderr.contains("slot"), "{}", outcome.stderr);
        return copied_again(&agent, promoted).await;
    }
    agent.run_until_caught_up().await?;
    let report = promoted.expect_equal(&["items"]).await?;
    let table = promoted.source.table("items");
    assert_eq!(
        (report.count(&table, "r"), report.count(&table, "t")),
        (100, 0)
    );
    assert_eq!(report.count(&table, "c"), 100);
    Ok(())
}

async fn a_replica_that_lacks_transactions_is_refused(t: &Trial) -> Result<()> {
    let t = &primary(t).await?;
    let mut replica = Replica::of(&t.source, &[]).await?;
    let mut agent = t.agent()?;
    agent.run_until_caught_up().await?;
    in_step(&t.source, &replica).await?;
    if t.kind() == Kind::Postgres && !keeps_slots(t) {
        return Ok(());
    }
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    slot_is_copied(t, &replica).await?;
    running.sigterm().await?.expect(0)?;
    replica.cut_off().await?;
    t.source
        .fill("items", 1_000, 50, |i| format!("({i}, 'lost')"))
        .await?;
    agent.run_until_caught_up().await?;
    let reached = agent.status().await?.epoch;
    t.source.server().kill9()?;
    replica.promote().await?;
    // As many again, so that the numbers of its log alone pass the position.
    let promoted = &t.with_source(replica.source);
    promoted
        .source
        .fill("items", 2_000, 500, |i| format!("({i}, 'promoted')"))
        .await?;
    moved(&mut agent, &promoted.source);
    let outcome = agent.run(&["run", "--until-caught-up"]).await?.expect(3)?;
    assert!(outcome.stderr.contains("resnapshot"), "{}", outcome.stderr);
    assert_eq!(agent.status().await?.epoch, reached, "nothing was written");
    copied_again(&agent, promoted).await
}

async fn a_replica_with_a_past_of_its_own_is_refused(t: &Trial) -> Result<()> {
    if t.kind() == Kind::Postgres {
        // A standby takes no writes.
        return Ok(());
    }
    let t = &primary(t).await?;
    // Strictness would stop the replication at what this test makes.
    let lax: &[&str] = match t.kind() {
        Kind::Mariadb => &["--gtid-strict-mode=OFF"],
        _ => &[],
    };
    let mut replica = Replica::of(&t.source, lax).await?;
    let mut agent = t.agent()?;
    agent.run_until_caught_up().await?;
    in_step(&t.source, &replica).await?;
    let errant = format!(
        "update {} set name = 'errant' where id = 7",
        t.source.table("items")
    );
    replica.root().exec(&errant).await?;
    t.source
        .exec("update items set name = 'right' where id = 7")
        .await?;
    let query = format!("select name from {} where id = 7", t.source.table("items"));
    replica.expect(&query, "right").await?;
    agent.run_until_caught_up().await?;
    t.source.server().kill9()?;
    replica.promote().await?;
    let promoted = &t.with_source(replica.source);
    promoted
        .source
        .fill("items", 2_000, 50, |i| format!("({i}, 'promoted')"))
        .await?;
    moved(&mut agent, &promoted.source);
    let outcome = agent.run(&["run", "--until-caught-up"]).await?.expect(3)?;
    assert!(outcome.stderr.contains("errant"), "{}", outcome.stderr);
    copied_again(&agent, promoted).await
}

async fn another_server_is_refused(t: &Trial) -> Result<()> {
    let t = &primary(t).await?;
    let mut agent = t.agent()?;
    agent.run_until_caught_up().await?;
    // Two servers of MariaDB with one id are one server to its own replicas, too.
    let own: &[&str] = match t.kind() {
        Kind::Postgres => &[],
        _ => &["--server-id=9"],
    };
    let (version, database) = (t.source.version(), t.source.database().to_owned());
    let settings: Vec<String> = own.iter().map(|s| (*s).to_owned()).collect();
    let server =
        tokio::task::spawn_blocking(move || caudal_tests::Server::start(version, &settings))
            .await??;
    let other = Source::named(std::sync::Arc::new(server), database).await?;
    other
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    for from in [1, 1_000, 2_000] {
        other
            .fill("items", from, 500, |i| format!("({i}, 'other')"))
            .await?;
    }
    moved(&mut agent, &other);
    let outcome = agent.run(&["run", "--until-caught-up"]).await?.expect(3)?;
    assert!(outcome.stderr.contains("resnapshot"), "{}", outcome.stderr);
    let t = &t.with_source(other);
    copied_again(&agent, t).await
}
