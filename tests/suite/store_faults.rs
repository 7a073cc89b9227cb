//! A store that does not answer, refuses for a while, or takes other credentials than it did:
//! the agent waits for it and goes on, nothing lost and nothing twice.

use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::{Agent, eventually};
use caudal_tests::proxy::{Direction, Proxy, Traffic};
use caudal_tests::s3::{ACCESS_KEY, Fault, SECRET_KEY};
use caudal_tests::{Result, S3Server};
use std::path::Path;

on_every_source!(refuses_for_a_while, credentials_are_rotated, half_open);

async fn prepared(t: &Trial) -> Result<(S3Server, Agent)> {
    let s3 = S3Server::start(&["lake"])?;
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, 500, |i| format!("({i}, 'a')"))
        .await?;
    let mut agent = t.agent()?;
    s3.configure(&mut agent.config, "lake", "raw");
    agent.config.set("commit.max_delay", "100ms");
    Ok((s3, agent))
}

async fn equal(t: &Trial, s3: &S3Server, agent: &Agent) -> Result<()> {
    agent.run_until_caught_up().await?;
    let lake = t.dir().join("dump");
    s3.dump("lake", "raw", &lake)?;
    let report = t.expect_equal_in(&lake, &["items"]).await?;
    assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
    assert_eq!(s3.open_uploads(), 0, "multipart uploads were left open");
    Ok(())
}

/// What a store may say to an agent whose requests it took a moment ago.
async fn refuses_for_a_while(t: &Trial) -> Result<()> {
    let (s3, agent) = prepared(t).await?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    for (round, fault) in [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Refused(400, "ExpiredToken"),
        Fault::Refused(403, "RequestTimeTooSkewed"),
        Fault::Refused(403, "SignatureDoesNotMatch"),
    ]
    .into_iter()
    .enumerate()
    {
        let injected = {
            let mut faults = s3.faults();
            faults.every = Some(fault);
            faults.injected
        };
        let first = 10_000 * (round as i64 + 1);
        t.source
            .fill("items", first, 100, |i| format!("({i}, 'b')"))
            .await?;
        eventually("requests were refused", async || {
            let (code, _) = running.get("/readyz").await?;
            Ok((s3.faults().injected > injected + 1 && code == 503).then_some(()))
        })
        .await?;
        let epoch = running.status().await?.epoch;
        s3.faults().clear();
        running
            .wait_for_status("commits go on", |s| s.state == "running" && s.epoch > epoch)
            .await?;
    }
    running.sigterm().await?.expect(0)?;
    equal(t, &s3, &agent).await
}

fn write_credentials(file: &Path, access: &str, secret: &str) -> Result<()> {
    let text =
        format!("[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n");
    let unfinished = file.with_extension("new");
    std::fs::write(&unfinished, text)?;
    std::fs::rename(&unfinished, file)?;
    Ok(())
}

/// The server takes new credentials at once; the file that the agent reads has them later.
async fn credentials_are_rotated(t: &Trial) -> Result<()> {
    let (s3, mut agent) = prepared(t).await?;
    let file = t.dir().join("credentials");
    write_credentials(&file, ACCESS_KEY, SECRET_KEY)?;
    agent
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env("AWS_SHARED_CREDENTIALS_FILE", &file.display().to_string());
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    s3.rotate("AKIDANOTHER", "another-secret-key");
    t.source
        .fill("items", 10_000, 100, |i| format!("({i}, 'b')"))
        .await?;
    eventually("the old credentials were refused", async || {
        Ok((running.get("/readyz").await?.0 == 503).then_some(()))
    })
    .await?;
    write_credentials(&file, "AKIDANOTHER", "another-secret-key")?;
    let epoch = running.status().await?.epoch;
    running
        .wait_for_status("commits go on", |s| s.state == "running" && s.epoch > epoch)
        .await?;
    let printed = running.log();
    running.sigterm().await?.expect(0)?;
    for secret in [SECRET_KEY, "another-secret-key"] {
        assert!(!printed.contains(secret), "a secret was logged");
    }
    equal(t, &s3, &agent).await
}

/// Requests that are neither refused nor answered.
async fn half_open(t: &Trial) -> Result<()> {
    let (s3, mut agent) = prepared(t).await?;
    agent.config.set("sink.read_timeout", "2s");
    let proxy = Proxy::before_store(&mut agent.config)?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    for (round, direction) in [Direction::Up, Direction::Down].into_iter().enumerate() {
        let epoch = running.status().await?.epoch;
        let came = proxy.accepted();
        proxy.set_one(direction, Traffic::Stall);
        let first = 10_000 * (round as i64 + 1);
        t.source
            .fill("items", first, 100, |i| format!("({i}, 'b')"))
            .await?;
        eventually("it tries on new connections", async || {
            Ok((proxy.accepted() > came + 1).then_some(()))
        })
        .await?;
        proxy.mend();
        running
            .wait_for_status("commits go on", |s| s.state == "running" && s.epoch > epoch)
            .await?;
    }
    running.sigterm().await?.expect(0)?;
    equal(t, &s3, &agent).await
}
