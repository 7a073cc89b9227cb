//! `caudal tables`: what the stream would carry.

use super::code;
use super::output::{Output, align};
use crate::config::Config;
use crate::snapshot::{ChunkSize, SizeLimits};
use crate::text::{bytes, grouped};
use caudal_model::{Finding, LakeType, Result, Severity, TableName};
use caudal_sources::DiscoveredTable;
use serde::Serialize;

#[derive(Debug, Serialize)]
struct Document<'a> {
    stream: &'a str,
    tables: Vec<Table<'a>>,
}

#[derive(Debug, Serialize)]
struct Table<'a> {
    table: &'a TableName,
    estimated_rows: u64,
    estimated_bytes: u64,
    key: &'a [String],
    chunks: u64,
    columns: Vec<Column<'a>>,
    problems: &'a [Finding],
}

#[derive(Debug, Serialize)]
struct Column<'a> {
    name: &'a str,
    source_type: &'a str,
    lake_type: &'a LakeType,
}

/// The chunks that a copy would take: one without a key, which is read in one go (INV-6).
fn chunks(table: &DiscoveredTable, limits: SizeLimits) -> u64 {
    if table.key.is_empty() {
        1
    } else {
        let size = ChunkSize::first(limits, table.estimated_rows, table.estimated_bytes);
        table.estimated_rows.div_ceil(size.rows()).max(1)
    }
}

fn is_refused(table: &DiscoveredTable) -> bool {
    table.problems.iter().any(|p| p.severity == Severity::Error)
}

pub(super) async fn execute(config: &Config, output: &Output) -> Result<u8> {
    let tables = crate::start::source(config)?.discover().await?;
    if output.is_json() {
        output.json(&document(config, &tables))?;
    } else {
        output.text(&render(config, output, &tables))?;
    }
    Ok(if tables.iter().any(is_refused) {
        code::FINDINGS
    } else {
        code::DONE
    })
}

fn document<'a>(config: &'a Config, tables: &'a [DiscoveredTable]) -> Document<'a> {
    let limits = crate::start::chunk_sizes(config);
    let table = |t: &'a DiscoveredTable| Table {
        table: &t.table,
        estimated_rows: t.estimated_rows,
        estimated_bytes: t.estimated_bytes,
        key: &t.key,
        chunks: chunks(t, limits),
        columns: t
            .columns
            .iter()
            .map(|c| Column {
                name: &c.name,
                source_type: &c.source_type,
                lake_type: &c.lake_type,
            })
            .collect(),
        problems: &t.problems,
    };
    Document {
        stream: &config.stream.name,
        tables: tables.iter().map(table).collect(),
    }
}

fn render(config: &Config, output: &Output, tables: &[DiscoveredTable]) -> String {
    if tables.is_empty() {
        return "no table matches tables.include and tables.exclude\n".to_owned();
    }
    let limits = crate::start::chunk_sizes(config);
    let rows: Vec<Vec<String>> = tables
        .iter()
        .map(|t| {
            vec![
                t.table.to_string(),
                grouped(t.estimated_rows),
                bytes(t.estimated_bytes),
                grouped(chunks(t, limits)),
                if t.key.is_empty() {
                    "none".to_owned()
                } else {
                    t.key.join(", ")
                },
            ]
        })
        .collect();
    let mut text = align(&["table", "~rows", "~size", "chunks", "key"], &rows);
    for t in tables {
        text.push_str(&format!("\n{}\n", output.strong(&t.table.to_string())));
        let columns: Vec<Vec<String>> = t
            .columns
            .iter()
            .map(|c| {
                vec![
                    format!("  {}", c.name),
                    c.source_type.clone(),
                    c.lake_type.to_string(),
                ]
            })
            .collect();
        text.push_str(&align(&["  column", "source type", "lake type"], &columns));
        for p in &t.problems {
            text.push_str(&super::check::render_finding(output, p));
        }
    }
    text
}
