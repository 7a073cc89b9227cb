//! What tells that an entry's file is as it was written: its own SHA-256, and its predecessor's.
//!
//! Why it suffices: an entry's digest covers every byte before the field that holds it, and
//! what is left is compared byte by byte. A field whose name is damaged is one that nobody
//! knows; so an entry of this program's version must also be what its content is written
//! as, and the next entry holds the digest once more.

use crate::entry::{Kind, LogEntry};
use bytes::Bytes;
use caudal_model::{Error, Result};
use sha2::{Digest, Sha256};

/// An entry as the one after `head`, and its bytes.
pub(super) fn seal(mut entry: LogEntry, head: Option<&LogEntry>) -> Result<(LogEntry, Bytes)> {
    entry.last_rewind = match entry.kind {
        Kind::Rewind => entry.epoch,
        _ => head.map_or(0, |h| h.last_rewind),
    };
    entry.previous = head.and_then(|h| h.sha256.clone());
    entry.sha256 = None;
    let mut bytes = to_json(&entry)?;
    bytes.pop();
    let digest = sha256(&bytes);
    bytes.extend_from_slice(field(&digest).as_bytes());
    entry.sha256 = Some(digest);
    Ok((entry, bytes.into()))
}

/// Whether two entries say the same, sealed or not.
pub(super) fn is_same(a: &LogEntry, b: &LogEntry) -> bool {
    let content = |e: &LogEntry| LogEntry {
        last_rewind: 0,
        previous: None,
        sha256: None,
        ..e.clone()
    };
    a.epoch == b.epoch && a.writer == b.writer && content(a) == content(b)
}

/// What is wrong with an entry's bytes. One without a digest was written by an earlier version.
pub(super) fn verify(entry: &LogEntry, bytes: &[u8]) -> Result<(), String> {
    let Some(digest) = &entry.sha256 else {
        return Ok(());
    };
    match bytes.strip_suffix(field(digest).as_bytes()) {
        Some(covered) if sha256(covered) == *digest => Ok(()),
        _ => Err("is not as it was written: its sha256 is another one".to_owned()),
    }
}

/// Whether an entry's bytes are what this program writes for its content.
pub(super) fn is_canonical(entry: &LogEntry, bytes: &[u8]) -> bool {
    to_json(entry).is_ok_and(|json| json == bytes)
}

fn to_json(entry: &LogEntry) -> Result<Vec<u8>> {
    serde_json::to_vec(entry)
        .map_err(|e| Error::bug("a log entry cannot be written as JSON").caused_by(e))
}

/// The end of an entry's file.
fn field(digest: &str) -> String {
    format!(",\"sha256\":\"{digest}\"}}")
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
