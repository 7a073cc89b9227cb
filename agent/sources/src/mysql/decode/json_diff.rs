//! Partial updates of JSON: `binlog_row_value_options=PARTIAL_JSON`.
//!
//! The image after the update holds, in place of a document, the steps that made it out of the
//! one before: replace, insert or remove at a path. They are applied to a tree of the old
//! document's parts, which is then written as any document is.

use super::json::{self, Writer};
use super::{DecodeError, Decoded, Input};
use std::borrow::Cow;

const BAD: DecodeError = DecodeError::Malformed("a partial update of json");

/// A part of a document.
enum Node<'a> {
    /// Its type and its bytes.
    Scalar(u8, &'a [u8]),
    Array(Vec<Node<'a>>),
    /// Members in the server's order: by length, then by bytes.
    Object(Vec<(Cow<'a, [u8]>, Node<'a>)>),
}

/// A step of a path.
enum Leg {
    Member(Vec<u8>),
    Element(usize),
}

/// Appends the text of `before` after the steps of `diff`.
pub fn write(before: &[u8], diff: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
    let mut root = read(before)?;
    let mut input = Input(diff);
    while !input.is_empty() {
        let operation = input.u8()?;
        let path = legs(input.lenenc_bytes()?)?;
        let value = match operation {
            0 | 1 => Some(read(input.lenenc_bytes()?)?),
            2 => None,
            _ => return Err(BAD),
        };
        apply(&mut root, &path, operation, value)?;
    }
    let limit = json::text_limit(before.len().saturating_add(diff.len()));
    print(&root, &mut Writer::new(out, limit), json::MAX_DEPTH + 1)
}

fn read(document: &[u8]) -> Decoded<Node<'_>> {
    match document.split_first() {
        // What the server itself reads an empty document as.
        None => Ok(Node::Scalar(4, &[0])),
        Some((kind, value)) => {
            // No entry is shorter than three bytes.
            let mut left = document.len();
            node(*kind, value, json::MAX_DEPTH + 1, &mut left)
        }
    }
}

fn node<'a>(kind: u8, value: &'a [u8], depth: u32, left: &mut usize) -> Decoded<Node<'a>> {
    *left = left.checked_sub(1).ok_or(BAD)?;
    if depth == 0 {
        return Err(BAD);
    }
    let (width, object) = match kind {
        0 => (2, true),
        1 => (4, true),
        2 => (2, false),
        3 => (4, false),
        _ => return Ok(Node::Scalar(kind, value)),
    };
    let mut members = Vec::new();
    let mut elements = Vec::new();
    json::each(value, width, object, |key, kind, value| {
        let part = node(kind, value, depth - 1, left)?;
        match key {
            Some(key) => members.push((Cow::Borrowed(key), part)),
            None => elements.push(part),
        }
        Ok(())
    })?;
    Ok(if object {
        Node::Object(members)
    } else {
        Node::Array(elements)
    })
}

/// Splits `$.a."b c"[3]`.
fn legs(path: &[u8]) -> Decoded<Vec<Leg>> {
    let text = std::str::from_utf8(path).map_err(|_| BAD)?;
    let mut rest = text.strip_prefix('$').ok_or(BAD)?;
    let mut out = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let (index, after) = after.split_once(']').ok_or(BAD)?;
            out.push(Leg::Element(index.trim().parse().map_err(|_| BAD)?));
            rest = after;
            continue;
        }
        let after = rest.strip_prefix('.').ok_or(BAD)?;
        if after.starts_with('"') {
            // A JSON string: the parser says where it ends.
            let mut strings = serde_json::Deserializer::from_str(after).into_iter::<String>();
            let name = strings.next().and_then(Result::ok).ok_or(BAD)?;
            rest = after.get(strings.byte_offset()..).ok_or(BAD)?;
            out.push(Leg::Member(name.into_bytes()));
        } else {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let (name, behind) = after.split_at_checked(end).ok_or(BAD)?;
            out.push(Leg::Member(name.as_bytes().to_vec()));
            rest = behind;
        }
    }
    Ok(out)
}

fn position(members: &[(Cow<'_, [u8]>, Node<'_>)], name: &[u8]) -> Result<usize, usize> {
    members.binary_search_by(|(key, _)| (key.len(), &key[..]).cmp(&(name.len(), name)))
}

fn apply<'a>(
    root: &mut Node<'a>,
    path: &[Leg],
    operation: u8,
    value: Option<Node<'a>>,
) -> Decoded<()> {
    let Some((last, parents)) = path.split_last() else {
        *root = value.ok_or(BAD)?;
        return Ok(());
    };
    let mut at = root;
    for leg in parents {
        at = match (at, leg) {
            (Node::Object(members), Leg::Member(name)) => {
                let i = position(members, name).map_err(|_| BAD)?;
                &mut members.get_mut(i).ok_or(BAD)?.1
            }
            (Node::Array(elements), Leg::Element(i)) => elements.get_mut(*i).ok_or(BAD)?,
            _ => return Err(BAD),
        };
    }
    match (at, last, operation, value) {
        (Node::Object(members), Leg::Member(name), 0, Some(value)) => {
            let i = position(members, name).map_err(|_| BAD)?;
            members.get_mut(i).ok_or(BAD)?.1 = value;
        }
        (Node::Object(members), Leg::Member(name), 1, Some(value)) => {
            let i = position(members, name).err().ok_or(BAD)?;
            members.insert(i, (Cow::Owned(name.clone()), value));
        }
        (Node::Object(members), Leg::Member(name), 2, None) => {
            let i = position(members, name).map_err(|_| BAD)?;
            members.remove(i);
        }
        (Node::Array(elements), Leg::Element(i), 0, Some(value)) => {
            *elements.get_mut(*i).ok_or(BAD)? = value;
        }
        (Node::Array(elements), Leg::Element(i), 1, Some(value)) => {
            // Behind the end is at the end.
            elements.insert((*i).min(elements.len()), value);
        }
        (Node::Array(elements), Leg::Element(i), 2, None) if *i < elements.len() => {
            elements.remove(*i);
        }
        _ => return Err(BAD),
    }
    Ok(())
}

fn print(node: &Node<'_>, out: &mut Writer<'_>, depth: u32) -> Decoded<()> {
    let deeper = depth.checked_sub(1).ok_or(BAD)?;
    match node {
        Node::Scalar(kind, value) => out.value(*kind, value, depth),
        Node::Array(elements) => {
            out.put("[");
            for (i, e) in elements.iter().enumerate() {
                if i > 0 {
                    out.put(", ");
                }
                print(e, out, deeper)?;
            }
            out.put("]");
            Ok(())
        }
        Node::Object(members) => {
            out.put("{");
            for (i, (key, value)) in members.iter().enumerate() {
                if i > 0 {
                    out.put(", ");
                }
                out.string(key)?;
                out.put(": ");
                print(value, out, deeper)?;
            }
            out.put("}");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// {"a": 1, "b": [true]}
    const DOCUMENT: [u8; 29] = [
        0, 2, 0, 28, 0, 18, 0, 1, 0, 19, 0, 1, 0, 5, 1, 0, 2, 20, 0, b'a', b'b', 1, 0, 8, 0, 4, 1,
        0, 0,
    ];

    fn text(steps: &[(u8, &str, &[u8])]) -> Decoded<String> {
        let mut diff = Vec::new();
        for (operation, path, value) in steps {
            diff.push(*operation);
            diff.push(path.len() as u8);
            diff.extend_from_slice(path.as_bytes());
            if *operation != 2 {
                diff.push(value.len() as u8);
                diff.extend_from_slice(value);
            }
        }
        let mut out = Vec::new();
        write(&DOCUMENT, &diff, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn steps_at_paths() {
        let seven = &[5, 7, 0][..];
        assert_eq!(text(&[]).unwrap(), "{\"a\": 1, \"b\": [true]}");
        assert_eq!(
            text(&[
                (0, "$.a", seven),
                (1, "$.\"c \\\"d\"", seven),
                (1, "$.b[0]", seven)
            ])
            .unwrap(),
            "{\"a\": 7, \"b\": [7, true], \"c \\\"d\": 7}"
        );
        assert_eq!(
            text(&[(2, "$.b[0]", &[]), (2, "$.a", &[])]).unwrap(),
            "{\"b\": []}"
        );
        assert_eq!(text(&[(0, "$", seven)]).unwrap(), "7");
        for bad in [
            (0, "$.x", seven),
            (1, "$.a", seven),
            (2, "$.b[9]", &[][..]),
            (0, "a", seven),
            (9, "$.a", seven),
        ] {
            assert!(text(&[bad]).is_err());
        }
    }
}
