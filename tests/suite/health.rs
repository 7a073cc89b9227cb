//! `/readyz` tells the truth at every moment: it fails while the source or the store cannot
//! be reached or the log stands still, says why, and comes back with them.

use crate::load::{self, Load};
use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::{Running, eventually};
use caudal_tests::proxy::Proxy;
use caudal_tests::{Result, S3Server};
use serde::Deserialize;

on_every_source!(tells_the_truth_at_every_moment);

#[derive(Debug, Deserialize)]
struct Readiness {
    ready: bool,
    reasons: Vec<Reason>,
}

#[derive(Debug, Deserialize)]
struct Reason {
    reason: String,
    message: String,
}

async fn readiness(running: &Running) -> Result<Readiness> {
    let (code, body) = running.get("/readyz").await?;
    let readiness: Readiness = serde_json::from_str(&body)?;
    assert_eq!(code == 200, readiness.ready, "{code} {body}");
    assert_eq!(readiness.ready, readiness.reasons.is_empty(), "{body}");
    Ok(readiness)
}

/// Waits until it is ready, or is not.
async fn becomes(running: &Running, ready: bool, when: &str) -> Result<Readiness> {
    eventually(&format!("ready is {ready}: {when}"), async || {
        let now = readiness(running).await?;
        Ok((now.ready == ready).then_some(now))
    })
    .await
}

/// Looks at it all the time until `condition`: it must stay as it is.
async fn stays(
    running: &Running,
    ready: bool,
    when: &str,
    condition: impl AsyncFn() -> Result<bool>,
) -> Result<()> {
    eventually(when, async || {
        let now = readiness(running).await?;
        assert_eq!(now.ready, ready, "{when}: {now:?}");
        Ok(condition().await?.then_some(()))
    })
    .await
}

async fn tells_the_truth_at_every_moment(t: &Trial) -> Result<()> {
    let s3 = S3Server::start(&["lake"])?;
    load::prepare(&t.source, 500).await?;
    let mut agent = t.agent()?;
    s3.configure(&mut agent.config, "lake", "raw");
    agent
        .config
        .set("source.connect_timeout", "3s")
        .set("source.read_timeout", "8s")
        .set("stream.stall_after", "3s");
    let source = Proxy::before_source(&mut agent.config)?;
    let store = Proxy::before_store(&mut agent.config)?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    becomes(&running, true, "every table is live").await?;
    let load = Load::start(&t.source, 1, 21).await?;
    let more = |n: u64| {
        let wanted = load.done() + n;
        let load = &load;
        async move || Ok(load.done() > wanted)
    };
    stays(&running, true, "under load", more(100)).await?;

    // The source is gone.
    let came = source.accepted();
    source.part();
    let why = becomes(&running, false, "without a source").await?;
    assert!(
        ["retrying", "source"].contains(&&*why.reasons[0].reason),
        "{why:?}"
    );
    stays(&running, false, "without a source", async || {
        Ok(source.accepted() > came + 3)
    })
    .await?;
    source.mend();
    becomes(&running, true, "the source is back").await?;
    stays(&running, true, "with the source", more(100)).await?;

    // The store is gone.
    let came = store.accepted();
    store.part();
    let why = becomes(&running, false, "without a store").await?;
    assert!(
        ["retrying", "store", "commit"].contains(&&*why.reasons[0].reason),
        "{why:?}"
    );
    assert!(!why.reasons[0].message.is_empty());
    stays(&running, false, "without a store", async || {
        Ok(store.accepted() > came + 8)
    })
    .await?;
    store.mend();
    becomes(&running, true, "the store is back").await?;

    // What is open passes nothing any more: noticed before the connections are given up.
    source.strand();
    let why = becomes(&running, false, "half open").await?;
    assert!(
        ["source", "log", "retrying"].contains(&&*why.reasons[0].reason),
        "{why:?}"
    );
    becomes(&running, true, "with new connections").await?;

    let (_, metrics) = running.get("/metrics").await?;
    assert!(
        metrics
            .lines()
            .any(|l| l.starts_with("caudal_ready{") && l.ends_with(" 1")),
        "{metrics}"
    );
    load.stop().await?;
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let lake = t.dir().join("dump");
    s3.dump("lake", "raw", &lake)?;
    let report = t.expect_equal_in(&lake, &load::TABLES).await?;
    assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
    Ok(())
}
