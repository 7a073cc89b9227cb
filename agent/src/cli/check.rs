//! `caudal check`: every prerequisite at once.
//!
//! Each part is asked on its own, so that an unreachable source does not hide what is
//! wrong with the sink. The sink's probes lie under `<stream>/_check/`, which no commit
//! names, and are deleted again.

use super::code;
use super::output::Output;
use crate::config::Config;
use bytes::Bytes;
use caudal_model::{Error, Finding, Kind, Result, Severity};
use caudal_sinks::{Layout, PutOutcome, Store};
use serde::Serialize;
use std::path::Path;

#[derive(Debug, Serialize)]
struct Document<'a> {
    stream: &'a str,
    ok: bool,
    findings: &'a [Finding],
}

pub(super) async fn execute(config: &Config, output: &Output) -> Result<u8> {
    let mut findings = source(config).await?;
    findings.extend(sink(config).await?);
    findings.push(state_dir(&config.stream.state_dir));
    let ok = findings.iter().all(|f| f.severity < Severity::Error);
    if output.is_json() {
        output.json(&Document {
            stream: &config.stream.name,
            ok,
            findings: &findings,
        })?;
    } else {
        output.text(&render(output, &findings))?;
    }
    Ok(if ok { code::DONE } else { code::FINDINGS })
}

/// What the source says of itself and of the tables. Only a wrong config is an error.
async fn source(config: &Config) -> Result<Vec<Finding>> {
    let source = crate::start::source(config)?;
    let mut findings = match source.check().await {
        Ok(found) => found,
        Err(e) => return finding_of("source_connect", e).map(|f| vec![f]),
    };
    match source.discover().await {
        Ok(tables) => {
            if tables.is_empty() {
                let reason = "no table matches tables.include and tables.exclude";
                findings.push(
                    Finding::new(Severity::Error, "tables", reason)
                        .mend("change the patterns, or grant the user access to the tables"),
                );
            } else {
                let reason = format!("{} tables are selected", tables.len());
                findings.push(Finding::new(Severity::Ok, "tables", reason));
            }
            for table in tables {
                let name = table.table.to_string();
                for mut problem in table.problems {
                    problem.subject.get_or_insert_with(|| name.clone());
                    // The source's own check may have looked at the tables too.
                    if !findings.contains(&problem) {
                        findings.push(problem);
                    }
                }
            }
        }
        Err(e) => findings.push(finding_of("tables", e)?),
    }
    Ok(findings)
}

/// An error as a finding, unless the config itself or caudal is wrong.
fn finding_of(check: &'static str, error: Error) -> Result<Finding> {
    if matches!(error.kind(), Kind::Config | Kind::Bug) {
        return Err(error);
    }
    let finding = Finding::new(Severity::Error, check, error.to_string());
    Ok(match error.hint_text() {
        Some(hint) => finding.mend(hint),
        None => finding,
    })
}

async fn sink(config: &Config) -> Result<Vec<Finding>> {
    let store = match crate::start::store(config).await {
        Ok(store) => store,
        Err(e) => return finding_of("sink_connect", e).map(|f| vec![f]),
    };
    probe(store.as_ref(), &config.stream.name).await
}

/// Writes, writes again, reads, lists and deletes one object.
async fn probe(store: &dyn Store, stream: &str) -> Result<Vec<Finding>> {
    let layout = Layout::new(stream);
    let folder = layout.key("_check/");
    let now = chrono::Utc::now().format("%Y%m%dT%H%M%S%6fZ");
    let key = format!("{folder}{now}-{}", std::process::id());
    let mut findings = Vec::new();
    let first = Bytes::from_static(b"caudal check, first");
    match store.put_if_absent(&key, first.clone()).await {
        Ok(PutOutcome::Created) => {
            let reason = format!("{} can be written", store.url());
            findings.push(Finding::new(Severity::Ok, "sink_write", reason));
        }
        Ok(PutOutcome::Exists) => {
            return Ok(vec![Finding::new(
                Severity::Error,
                "sink_conditional_put",
                "the store says that an object exists which was never written",
            )]);
        }
        Err(e) => return finding_of("sink_write", e).map(|f| vec![f]),
    }
    findings.push(conditional_put(store, &key, &first).await?);
    match store.list(&folder, None, 1000).await {
        Ok(found) if found.iter().any(|o| o.key == key) => {
            findings.push(Finding::new(
                Severity::Ok,
                "sink_list",
                "objects can be listed",
            ));
        }
        Ok(_) => findings.push(Finding::new(
            Severity::Error,
            "sink_list",
            "an object that was just written is not listed",
        )),
        Err(e) => findings.push(finding_of("sink_list", e)?),
    }
    let deleted = store.delete(std::slice::from_ref(&key)).await;
    findings.push(match deleted {
        Ok(()) => Finding::new(Severity::Ok, "sink_delete", "objects can be deleted"),
        Err(e) => finding_of("sink_delete", e)?,
    });
    Ok(findings)
}

/// Whether a second PUT of the same key is refused, twice, and leaves the object alone:
/// the commit log rests on it (INV-1).
async fn conditional_put(store: &dyn Store, key: &str, first: &Bytes) -> Result<Finding> {
    const CHECK: &str = "sink_conditional_put";
    let unsafe_store = |reason: &str| {
        Finding::new(Severity::Error, CHECK, reason)
            .mend("use a store that honours `If-None-Match: *` on PUT")
    };
    for second in ["caudal check, second", "caudal check, third"] {
        match store.put_if_absent(key, Bytes::from(second)).await {
            Ok(PutOutcome::Exists) => {}
            Ok(PutOutcome::Created) => {
                return Ok(unsafe_store(
                    "the store overwrites an object that must not be replaced",
                ));
            }
            Err(e) => return finding_of(CHECK, e),
        }
    }
    match store.get(key).await {
        Ok(Some(bytes)) if bytes == *first => Ok(Finding::new(
            Severity::Ok,
            CHECK,
            "a second write of the same object is refused",
        )),
        Ok(_) => Ok(unsafe_store(
            "a refused write changed the object, or it cannot be read back",
        )),
        Err(e) => finding_of(CHECK, e),
    }
}

/// Whether an agent could keep its state there. A directory that does not exist is left to
/// `run` to make; its nearest parent is tried.
fn state_dir(dir: &Path) -> Finding {
    let check = "state_dir";
    let name = dir.display();
    if caudal_checkpoints::is_held(dir) {
        return Finding::new(Severity::Ok, check, format!("an agent runs on {name}"));
    }
    let dir = if dir.is_relative() {
        Path::new(".").join(dir)
    } else {
        dir.to_owned()
    };
    let nearest = dir
        .ancestors()
        .find(|p| p.is_dir())
        .unwrap_or(Path::new("/"));
    let probe = nearest.join(format!(".caudal-check-{}", std::process::id()));
    let tried = std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe));
    match tried {
        Ok(()) if nearest == dir => {
            Finding::new(Severity::Ok, check, format!("{name} can be written"))
        }
        Ok(()) => Finding::new(Severity::Ok, check, format!("{name} can be made")),
        Err(e) => {
            let reason = format!("{name} cannot be written: {e}");
            let mend = format!("sudo install -d -m 700 -o \"$USER\" {name}");
            Finding::new(Severity::Error, check, reason).mend(mend)
        }
    }
}

/// One finding for people: severity, what it is about, why, and what mends it.
pub(super) fn render_finding(output: &Output, finding: &Finding) -> String {
    let subject = finding
        .subject
        .as_ref()
        .map(|s| format!(" {s}"))
        .unwrap_or_default();
    let mut text = format!(
        "{} {}{subject}: {}\n",
        output.severity(finding.severity),
        output.strong(finding.check),
        finding.reason
    );
    for line in finding.mend.iter().flat_map(|m| m.lines()) {
        text.push_str(&format!("          {line}\n"));
    }
    text
}

fn render(output: &Output, findings: &[Finding]) -> String {
    let mut text: String = findings.iter().map(|f| render_finding(output, f)).collect();
    let count = |s| findings.iter().filter(|f| f.severity == s).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    text.push_str(&match (errors, warnings) {
        (0, 0) => "\nready to run\n".to_owned(),
        (0, n) => format!("\nready to run, with {n} warnings\n"),
        (n, _) => output.alarm(&format!("\n{n} to mend before `caudal run`\n")),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use caudal_sinks::MemoryStore;

    #[tokio::test]
    async fn a_good_store_passes_and_is_left_clean() {
        let store = MemoryStore::new();
        let findings = probe(&store, "shop").await.unwrap();
        let checks: Vec<_> = findings.iter().map(|f| (f.check, f.severity)).collect();
        let expected = [
            "sink_write",
            "sink_conditional_put",
            "sink_list",
            "sink_delete",
        ];
        assert_eq!(checks, expected.map(|c| (c, Severity::Ok)));
        assert_eq!(store.list("", None, 10).await.unwrap(), []);
    }

    #[test]
    fn the_state_dir_is_tried_and_left_as_it_was() {
        let dir = std::env::temp_dir().join(format!("caudal-check-{}/a/b", std::process::id()));
        assert_eq!(state_dir(&dir).severity, Severity::Ok);
        assert!(!dir.exists());
        let f = state_dir(Path::new("/proc/none/such"));
        assert_eq!(f.severity, Severity::Error);
        assert!(f.mend.is_some());
    }

    #[test]
    fn findings_are_printed_with_their_mend() {
        let finding = Finding::new(Severity::Error, "wal_level", "it is replica")
            .subject("server")
            .mend("ALTER SYSTEM SET wal_level = logical;\n-- then restart");
        assert_eq!(
            render(&Output::new(true), &[finding]),
            "error   wal_level server: it is replica\n          ALTER SYSTEM SET wal_level = logical;\n\
             \x20         -- then restart\n\n1 to mend before `caudal run`\n"
        );
    }
}
