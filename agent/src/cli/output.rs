//! What commands print on stdout: one JSON document, or aligned text.

use crate::logging::colours;
use caudal_model::{Error, Result, Severity};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write};

/// Where and how a command answers.
#[derive(Debug)]
pub(super) struct Output {
    json: bool,
    colours: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Output {
            json,
            colours: !json && colours(&std::io::stdout()),
        }
    }

    /// Whether the answer is a JSON document.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the document.
    pub(super) fn json<T: Serialize>(&self, document: &T) -> Result<()> {
        let text = serde_json::to_string_pretty(document)
            .map_err(|e| Error::bug("the answer does not serialize").caused_by(e))?;
        self.text(&format!("{text}\n"))
    }

    /// Prints text.
    pub(super) fn text(&self, text: &str) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        match stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
        {
            // `caudal tables | head` has read enough.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            Err(e) => {
                let kind = caudal_model::Kind::State;
                Err(Error::fatal(kind, "cannot write to standard output").caused_by(e))
            }
            Ok(()) => Ok(()),
        }
    }

    fn paint(&self, text: &str, colour: &str) -> String {
        if self.colours {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A severity in its colour, padded to the widest.
    pub(super) fn severity(&self, severity: Severity) -> String {
        let (label, colour) = match severity {
            Severity::Ok => ("ok", "32"),
            Severity::Info => ("info", "36"),
            Severity::Warning => ("warning", "33"),
            Severity::Error => ("error", "31"),
        };
        self.paint(&format!("{label:<7}"), colour)
    }

    /// Text that stands out.
    pub(super) fn strong(&self, text: &str) -> String {
        self.paint(text, "1")
    }

    /// Text in the colour of trouble.
    pub(super) fn alarm(&self, text: &str) -> String {
        self.paint(text, "31")
    }
}

/// Aligns cells in columns, two spaces apart; numbers go to the right.
pub(super) fn align(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows
            .iter()
            .filter_map(|r| r.get(i))
            .map(|c| c.chars().count());
        cells
            .chain(header.get(i).map(|h| h.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let is_number = |c: &str| c.starts_with(|c: char| c.is_ascii_digit());
    let mut numeric = vec![!rows.is_empty(); header.len()];
    for row in rows {
        for (cell, numeric) in row.iter().zip(&mut numeric) {
            *numeric &= is_number(cell);
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (i, cell) in cells.enumerate() {
            let w = width(i);
            // Writing to a string cannot fail.
            let _ = match numeric.get(i) {
                Some(true) => write!(out, "{cell:>w$}  "),
                _ => write!(out, "{cell:<w$}  "),
            };
        }
        text.push_str(out.trim_end());
        text.push('\n');
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_go_right() {
        let rows = [
            vec!["a".into(), "1,000".into()],
            vec!["longer".into(), "7".into()],
        ];
        assert_eq!(
            align(&["table", "rows"], &rows),
            "table    rows\na       1,000\nlonger      7\n"
        );
        assert_eq!(align(&["table"], &[]), "table\n");
    }
}
