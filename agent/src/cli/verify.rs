//! `caudal verify --log`: whether the lake is as it was written.

use super::output::Output;
use super::{FilesExtent, VerifyArguments, code};
use crate::config::Config;
use crate::text::{bytes, grouped};
use caudal_model::{Error, Kind, Result, TableName};
use caudal_sinks::{Extent, Verified, Wrong};
use serde::Serialize;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a log without a terminal is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize)]
struct Document<'a> {
    stream: &'a str,
    ok: bool,
    commits: u64,
    commits_without_checksum: u64,
    files: u64,
    bytes: u64,
    dropped_files: u64,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Finding {
    /// Relative to `<sink.url>/<stream.name>/`.
    path: String,
    epoch: u64,
    table: Option<TableName>,
    what: String,
    mend: String,
}

pub(super) async fn execute(
    config: &Config,
    arguments: &VerifyArguments,
    output: &Output,
) -> Result<u8> {
    if !arguments.log {
        return Err(Error::fatal(
            Kind::Config,
            "this version verifies the log and the files that it names",
        )
        .hint("caudal verify --log"));
    }
    let store = crate::start::store(config).await?;
    let log = crate::start::log(config, &store);
    let extent = match arguments.files {
        FilesExtent::None => Extent::None,
        FilesExtent::Exist => Extent::Exist,
        FilesExtent::Hash => Extent::Hash,
    };
    let mut findings = Vec::new();
    let mut told = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let mut seen = |v: &Verified| {
        let due = if terminal {
            TELL_EVERY / 10
        } else {
            TELL_EVERY
        };
        if told.elapsed() >= due {
            told = Instant::now();
            let so_far = bytes(v.bytes);
            tracing::info!(
                commits = v.commits,
                files = v.files,
                bytes = so_far,
                "verified"
            );
        }
    };
    let mut wrong = |w: Wrong| {
        // They are told as they come: a walk over a large lake is long.
        tracing::warn!(path = w.path, epoch = w.epoch, "{}", w.what);
        findings.push(finding(w));
    };
    let verified = log.verify(extent, &mut wrong, &mut seen).await?;
    let document = Document {
        stream: &config.stream.name,
        ok: findings.is_empty(),
        commits: verified.commits,
        commits_without_checksum: verified.without_checksum,
        files: verified.files,
        bytes: verified.bytes,
        dropped_files: verified.dropped_files,
        findings,
    };
    if output.is_json() {
        output.json(&document)?;
    } else {
        output.text(&render(output, &document))?;
    }
    Ok(if document.ok {
        code::DONE
    } else {
        code::FINDINGS
    })
}

fn finding(w: Wrong) -> Finding {
    let before = w.epoch.saturating_sub(1);
    let mend = match (&w.table, w.path.starts_with("_log/")) {
        (_, true) => {
            "restore this file from the bucket's versions or a backup; `run` stops where it \
                      has to read it"
                .to_owned()
        }
        (Some(table), false) => format!(
            "restore this file from the bucket's versions or a backup; else `caudal checkpoints rewind \
             {before}` if the source still has its log from there, or `caudal resnapshot {table}`"
        ),
        (None, false) => "restore this file from the bucket's versions or a backup".to_owned(),
    };
    Finding {
        path: w.path,
        epoch: w.epoch,
        table: w.table,
        what: w.what,
        mend,
    }
}

fn render(output: &Output, d: &Document<'_>) -> String {
    let mut text = String::new();
    for f in &d.findings {
        text.push_str(&format!(
            "{} {}\n          commit {}; {}\n",
            output.alarm(&f.path),
            f.what,
            f.epoch,
            f.mend
        ));
    }
    text.push_str(&format!(
        "{} commits, {} files, {}: ",
        grouped(d.commits),
        grouped(d.files),
        bytes(d.bytes)
    ));
    text.push_str(&match d.findings.len() {
        0 => "all as they were written\n".to_owned(),
        n => output.alarm(&format!("{n} findings\n")),
    });
    if d.commits_without_checksum > 0 {
        text.push_str(&format!(
            "{} commits were written by a version without checksums\n",
            grouped(d.commits_without_checksum)
        ));
    }
    text
}
