//! A wrong config is exit 2 with the file, the place, the key and what is allowed.

use caudal_tests::{Agent, Result};
use std::process::Command;

const GOOD: &str = "[stream]\nname = \"shop\"\nstate_dir = \"/nonexistent/state\"\n\n[source]\n\
    kind = \"postgres\"\nhost = \"127.0.0.1\"\nport = 1\ndatabase = \"shop\"\nuser = \"u\"\n\
    password = \"env:CAUDAL_TEST_PASSWORD\"\n\n[tables]\ninclude = [\"public.*\"]\n\n\
    [sink]\nurl = \"file:///nonexistent/lake\"\n";

/// Runs `caudal tables` with a config and expects exit 2; gives the log's text.
fn refused(toml: &str) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("shop.toml");
    std::fs::write(&file, toml)?;
    let output = Command::new(caudal_tests::agent::binary()?)
        .args(["run", "--config"])
        .arg(&file)
        .env("CAUDAL_TEST_PASSWORD", "cdcpw")
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{toml}\n{text}");
    assert!(text.contains("shop.toml"), "the file is not named: {text}");
    assert!(!text.contains("cdcpw"), "a secret: {text}");
    Ok(text)
}

#[test]
fn an_unknown_key_gets_the_nearest_one() -> Result<()> {
    let text = refused(&GOOD.replace("state_dir", "statedir"))?;
    assert!(
        text.contains("statedir") && text.contains("state_dir"),
        "{text}"
    );
    assert!(text.contains('3'), "the line is not named: {text}");
    Ok(())
}

#[test]
fn a_wrong_value_gets_what_is_allowed() -> Result<()> {
    let text = refused(&GOOD.replace("\"postgres\"", "\"oracle\""))?;
    assert!(text.contains("kind") && text.contains("mariadb"), "{text}");
    let text = refused(&format!("{GOOD}\n[commit]\nmax_delay = \"soon\"\n"))?;
    assert!(text.contains("max_delay"), "{text}");
    Ok(())
}

#[test]
fn a_missing_key_is_named() -> Result<()> {
    let text = refused(&GOOD.replace("host = \"127.0.0.1\"\n", ""))?;
    assert!(text.contains("host"), "{text}");
    Ok(())
}

#[test]
fn broken_toml_and_missing_files_are_told() -> Result<()> {
    let text = refused(&GOOD.replace("[source]", "[source"))?;
    assert!(text.contains('5'), "the line is not named: {text}");
    let missing = Command::new(caudal_tests::agent::binary()?)
        .args(["run", "--config", "/nonexistent/caudal.toml"])
        .output()?;
    assert_eq!(missing.status.code(), Some(2));
    Ok(())
}

#[test]
fn an_absent_secret_is_named_without_its_value() -> Result<()> {
    let text = refused(&GOOD.replace("env:CAUDAL_TEST_PASSWORD", "env:CAUDAL_TEST_ABSENT"))?;
    assert!(text.contains("CAUDAL_TEST_ABSENT"), "{text}");
    Ok(())
}

#[test]
fn the_environment_overrides_the_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path().join("agent"), Default::default())?;
    for (key, value) in [
        ("stream.name", "shop"),
        ("stream.state_dir", "/nonexistent/state"),
        ("source.kind", "postgres"),
        ("source.host", "127.0.0.1"),
        ("source.database", "shop"),
        ("source.user", "u"),
        ("source.password", "env:CAUDAL_TEST_PASSWORD"),
        ("sink.url", "file:///nonexistent/lake"),
    ] {
        agent.config.set(key, value);
    }
    agent.config.set("tables.include", vec!["public.*"]);
    agent.env("CAUDAL__SOURCE__KIND", "oracle");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime
        .block_on(async { agent.run(&["run"]).await })?
        .expect(2)?;
    assert!(
        outcome.stderr.contains("CAUDAL__SOURCE__KIND"),
        "{}",
        outcome.stderr
    );
    Ok(())
}
