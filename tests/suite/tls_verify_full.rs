//! `tls = "verify-full"` connects to the server that the certificate names, and to no other.

use crate::trial::{Trial, on_every_source};
use caudal_tests::{Result, Source};

on_every_source!(checks_authority_and_name);

async fn checks_authority_and_name(t: &Trial) -> Result<()> {
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, 100, |i| format!("({i}, 'a')"))
        .await?;
    let mut agent = t.agent()?;
    agent.config.set("source.tls", "verify-full");
    agent.config.set(
        "source.ca_file",
        t.source.address().ca_file.display().to_string(),
    );
    for host in ["127.0.0.1", "localhost"] {
        agent.config.set("source.host", host);
        t.source
            .exec("insert into items (id) select max(id) + 1 from items")
            .await?;
        agent.run_until_caught_up().await?;
        t.expect_equal(&["items"]).await?;
    }

    // An authority that did not sign this server's certificate.
    let other = Source::private(t.source.version(), &[], "other").await?;
    agent.config.set(
        "source.ca_file",
        other.address().ca_file.display().to_string(),
    );
    let outcome = agent
        .run(&["run", "--until-caught-up", "--deadline", "5s"])
        .await?;
    assert!(matches!(outcome.code, Some(1 | 6)), "{outcome:?}");
    assert!(
        outcome.stderr.to_lowercase().contains("certificate"),
        "{}",
        outcome.stderr
    );
    Ok(())
}
