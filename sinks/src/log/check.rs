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
        EntryKind::Merge | EntryKind::Fence if entry.through != entry.after => {
            return Err("moves the position, which its kind may not (INV-2)".to_owned());
        }
        _ => {}
    }
    // A rewind goes back behind files that it names.
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
        EntryKind::Fence => entry.generation > head.generation,
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
