//! What the bytes of a charset mean, asked of the server itself.
//!
//! A code is converted by the server to its own charset and to utf8mb4; where exactly one
//! character comes out that is not the mark of a failure, it is the code's meaning. Asked
//! once a charset and a server, and only for those that carried columns have.

use super::control::Ask;
use super::decode::charset::{Charset, Table};
use super::decode::values::Value;
use caudal_model::{Error, Kind, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// The tables that have been read.
#[derive(Debug, Default)]
pub struct Charsets(Mutex<HashMap<Arc<str>, Arc<Table>>>);

/// Codes that are asked for at once; a result has at most 4096 columns.
const BATCH: usize = 1024;

impl Charsets {
    /// The value with its charset's table, or the name of the charset that must be read first.
    pub fn resolve(&self, value: Value) -> Result<Value, Arc<str>> {
        Ok(match value {
            Value::Text(Charset::Named(name)) => {
                let known = self.0.lock().ok().and_then(|t| t.get(&name).cloned());
                Value::Text(Charset::Table(known.ok_or(name)?))
            }
            Value::Compressed(inner) => Value::Compressed(Box::new(self.resolve(*inner)?)),
            other => other,
        })
    }

    /// The charset, if it needs no table or its table has been read.
    pub fn get(&self, name: &str) -> Option<Charset> {
        match self.resolve(Value::Text(Charset::by_name(name))) {
            Ok(Value::Text(charset)) => Some(charset),
            _ => None,
        }
    }

    /// Asks for a charset's table.
    pub async fn load(&self, c: &mut dyn Ask, name: &str) -> Result<()> {
        // The name becomes part of a statement.
        if !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            let text = "the source has a charset with an odd name";
            return Err(Error::fatal(Kind::Source, text));
        }
        let singles = ask(c, name, (0..=255).map(|b| vec![b]).collect()).await?;
        let mut known = [false; 256];
        for (code, _) in &singles {
            if let Some(k) = code.first().and_then(|b| known.get_mut(usize::from(*b))) {
                *k = true;
            }
        }
        let leads: Vec<u8> = (0x80..=0xff).filter(|b| !known[usize::from(*b)]).collect();
        let mut codes = singles;
        if multi_byte(name) {
            let pairs = leads
                .iter()
                .flat_map(|a| (0x30..=0xff).map(|b| vec![*a, b]));
            codes.extend(ask(c, name, pairs.collect()).await?);
        }
        if matches!(name, "ujis" | "eucjpms") {
            let of = |a: u8| (0xa1..=0xfe).map(move |b| vec![0x8f, a, b]);
            codes.extend(ask(c, name, (0xa1..=0xfe).flat_map(of).collect()).await?);
        }
        let linear = name == "gb18030";
        if linear {
            let of = |i: u32| {
                let digit = |at: u32, low: u32| (low + at) as u8;
                vec![
                    digit(i / 12_600, 0x81),
                    digit(i / 1260 % 10, 0x30),
                    digit(i / 10 % 126, 0x81),
                    digit(i % 10, 0x30),
                ]
            };
            // 0x81308130 to 0x8439fe39 hold the rest of the basic plane.
            codes.extend(ask(c, name, (0..4 * 12_600).map(of).collect()).await?);
        }
        let table = Arc::new(Table::new(codes, linear));
        if let Ok(mut tables) = self.0.lock() {
            tables.insert(name.into(), table);
        }
        Ok(())
    }
}

fn multi_byte(name: &str) -> bool {
    matches!(
        name,
        "big5" | "gbk" | "gb2312" | "gb18030" | "sjis" | "cp932" | "ujis" | "eucjpms" | "euckr"
    )
}

/// The codes that mean a character.
async fn ask(c: &mut dyn Ask, name: &str, codes: Vec<Vec<u8>>) -> Result<Vec<(Vec<u8>, char)>> {
    let mut out = Vec::new();
    for batch in codes.chunks(BATCH) {
        let cell = |code: &Vec<u8>| {
            let hex = hex::encode(code);
            format!("HEX(CONVERT(CONVERT(x'{hex}' USING {name}) USING utf8mb4))")
        };
        let cells: Vec<String> = batch.iter().map(cell).collect();
        let rows = c.query(&format!("SELECT {}", cells.join(","))).await?;
        for (i, code) in batch.iter().enumerate() {
            let text = rows.first().map(|r| r.text(i)).unwrap_or_default();
            let bytes = hex::decode(text).unwrap_or_default();
            let mut characters = std::str::from_utf8(&bytes).unwrap_or_default().chars();
            if let (Some(one), None) = (characters.next(), characters.next())
                && (one != '?' || code == b"?")
                // What tis620 has in its gaps.
                && (one != char::REPLACEMENT_CHARACTER || code.len() > 1)
            {
                out.push((code.clone(), one));
            }
        }
    }
    Ok(out)
}
