//! Whether one entry may follow another. Pure: used before writing and after reading.

use super::FORMAT;
use crate::entry::{Kind as EntryKind, LogEntry};

/// What is wrong with an entry by itself.
pub(super) fn sound(entry: &LogEntry) -> Result<(), String> {
    if entry.format != FORMAT {
        return Err(format!(
            "has format {}, and this program knows {FORMAT}",
            entry.format
        ));
    }
    if entry.epoch == 0 || entry.generation == 0 {
        return Err("has epoch or generation 0".to_owned());
    }
    match entry.kind {
        EntryKind::Append if entry.through.seq < entry.after.seq => {
            return Err(format!(
                "goes back from _seq {} to {}",
                entry.after.seq, entry.through.seq
            ));
        }
        EntryKind::Rewind if entry.through.seq > entry.after.seq => {
            return Err("is a rewind that goes forward".to_owned());
        }
        EntryKind::Rewind
            if entry.state.is_none() || entry.rewind_to.is_none_or(|to| to >= entry.epoch) =>
        {
            return Err("is a rewind that does not say to what".to_owned());
        }
        EntryKind::Merge | EntryKind::Fence if entry.through != entry.after => {
            return Err("moves the position, which its kind may not (INV-2)".to_owned());
        }
        _ => {}
    }
    if entry.kind != EntryKind::Append {
        return Ok(());
    }
    for file in entry.tables.iter().flat_map(|t| &t.files) {
        if file.first_seq > file.last_seq || file.last_seq > entry.through.seq {
            return Err(format!(
                "names {} with _seq {} to {}, past its own {} (INV-7)",
                file.path, file.first_seq, file.last_seq, entry.through.seq
            ));
        }
    }
    Ok(())
}

/// What is wrong with `entry` as the one after `head`.
pub(super) fn follows(head: Option<&LogEntry>, entry: &LogEntry) -> Result<(), String> {
    sound(entry)?;
    let Some(head) = head else { return Ok(()) };
    if entry.epoch != head.epoch + 1 {
        return Err(format!("is not the one after {} (INV-2)", head.epoch));
    }
    if entry.after != head.through {
        return Err(format!(
            "begins at {} with _seq {}, and commit {} ends at {} with _seq {} (INV-2)",
            entry.after.position,
            entry.after.seq,
            head.epoch,
            head.through.position,
            head.through.seq
        ));
    }
    let raised = match entry.kind {
        EntryKind::Fence | EntryKind::Rewind => entry.generation > head.generation,
        _ => entry.generation == head.generation,
    };
    if !raised {
        return Err(format!(
            "has generation {} after generation {}",
            entry.generation, head.generation
        ));
    }
    Ok(())
}

/// What is wrong with the seals of two entries that follow one another.
pub(super) fn chained(head: &LogEntry, entry: &LogEntry) -> Result<(), String> {
    // An entry that an earlier version wrote has none.
    if entry.previous.is_some() && entry.previous != head.sha256 {
        return Err(format!(
            "was written after another commit {} than the one that is there",
            head.epoch
        ));
    }
    Ok(())
}
