//! Values that hold values: arrays, hstore and pgvector's vector, as text and in binary.
//!
//! Layouts: `array_out` and `array_send` of the server, `hstore_out` and `hstore_send`,
//! `vector_out` and `vector_send`. A value that is refused leaves the column as it was.

use super::pgoutput::Reader;
use super::value::{Codec, ValueError};
use super::{binary, text};
use caudal_model::ColumnBuilder;

type Result<T> = std::result::Result<T, ValueError>;

/// Runs `fill` on a column, and takes back what it began if it fails.
fn whole(
    column: &mut ColumnBuilder,
    fill: impl FnOnce(&mut ColumnBuilder) -> Result<()>,
) -> Result<()> {
    let len = column.len();
    let filled = fill(column);
    match filled {
        Ok(()) => column.close_list(),
        Err(_) => column.truncate(len),
    }
    filled
}

/// A text between double quotes, in which a backslash stands before a quote or a backslash.
///
/// `text` begins behind the opening quote; what follows the closing one is returned.
fn quoted<'a>(text: &'a [u8], into: &mut Vec<u8>) -> Result<&'a [u8]> {
    into.clear();
    let mut rest = text;
    loop {
        let at = memchr::memchr2(b'"', b'\\', rest).ok_or(ValueError::Form)?;
        let (plain, mark) = rest.split_at_checked(at).ok_or(ValueError::Form)?;
        into.extend_from_slice(plain);
        rest = match mark {
            [b'"', behind @ ..] => return Ok(behind),
            [_, escaped, behind @ ..] => {
                into.push(*escaped);
                behind
            }
            _ => return Err(ValueError::Form),
        };
    }
}

/// `{a,"b c",NULL}`
pub fn array_text(
    item: Codec,
    delimiter: u8,
    column: &mut ColumnBuilder,
    value: &[u8],
) -> Result<()> {
    let mut rest = match value {
        // Bounds are printed where the first element is not number 1.
        [b'[', ..] => return Err(ValueError::Dimensions),
        [b'{', inside @ .., b'}'] => inside,
        _ => return Err(ValueError::Form),
    };
    whole(column, |column| {
        let items = column.list_items();
        let mut scratch = Vec::new();
        while !rest.is_empty() {
            rest = match rest {
                [b'{', ..] => return Err(ValueError::Dimensions),
                [b'"', inside @ ..] => {
                    let behind = quoted(inside, &mut scratch)?;
                    text::append(item, items, &scratch)?;
                    behind
                }
                _ => {
                    let end = memchr::memchr(delimiter, rest).unwrap_or(rest.len());
                    let (element, behind) = rest.split_at_checked(end).ok_or(ValueError::Form)?;
                    match element {
                        b"NULL" => items.push_null(),
                        b"" => return Err(ValueError::Form),
                        _ => text::append(item, items, element)?,
                    }
                    behind
                }
            };
            rest = match rest {
                [] => break,
                // A delimiter that nothing follows is no array.
                [d, behind @ ..] if *d == delimiter && !behind.is_empty() => behind,
                _ => return Err(ValueError::Form),
            };
        }
        Ok(())
    })
}

/// Dimensions, a flag for nulls, the elements' type; size and lower bound a dimension; then
/// each element behind its length, -1 for null.
pub fn array_binary(item: Codec, column: &mut ColumnBuilder, bytes: &[u8]) -> Result<()> {
    let mut r = Reader(bytes);
    let mut number = || r.u32().map_err(|_| ValueError::Form);
    let (dimensions, _, _) = (number()?, number()?, number()?);
    let size = match dimensions {
        0 => 0,
        1 => {
            let (size, lower) = (number()?, number()?);
            if lower != 1 {
                return Err(ValueError::Dimensions);
            }
            size
        }
        _ => return Err(ValueError::Dimensions),
    };
    whole(column, |column| {
        let items = column.list_items();
        for _ in 0..size {
            match binary::cell(&mut r)? {
                None => items.push_null(),
                Some(element) => binary::append(item, items, element)?,
            }
        }
        if r.0.is_empty() {
            Ok(())
        } else {
            Err(ValueError::Form)
        }
    })
}

/// `[1,2.5]`
pub fn vector_text(column: &mut ColumnBuilder, value: &[u8]) -> Result<()> {
    let [b'[', inside @ .., b']'] = value else {
        return Err(ValueError::Form);
    };
    whole(column, |column| {
        let ColumnBuilder::Float32(items) = column.list_items() else {
            return Err(ValueError::Mismatch);
        };
        for element in inside.split(|b| *b == b',') {
            items.push(text::float::<f32>(element)?);
        }
        Ok(())
    })
}

/// The number of elements and an unused number, 16 bits each; then floats.
pub fn vector_binary(column: &mut ColumnBuilder, bytes: &[u8]) -> Result<()> {
    let mut r = Reader(bytes);
    let mut number = || r.u16().map_err(|_| ValueError::Form);
    let (size, _) = (usize::from(number()?), number()?);
    let (floats, rest) = r.0.as_chunks::<4>();
    if floats.len() != size || !rest.is_empty() {
        return Err(ValueError::Form);
    }
    whole(column, |column| {
        let ColumnBuilder::Float32(items) = column.list_items() else {
            return Err(ValueError::Mismatch);
        };
        for float in floats {
            items.push(f32::from_be_bytes(*float));
        }
        Ok(())
    })
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| ValueError::Utf8)
}

fn entry(column: &mut ColumnBuilder, key: &[u8], value: Option<&[u8]>) -> Result<()> {
    if let ColumnBuilder::Map(_, keys, values, _) = column
        && !(keys.fits(key.len()) && values.fits(value.map_or(0, <[u8]>::len)))
    {
        return Err(ValueError::Long);
    }
    column.push_entry(utf8(key)?, value.map(utf8).transpose()?);
    Ok(())
}

/// `"a"=>"1", "b"=>NULL`
pub fn hstore_text(column: &mut ColumnBuilder, value: &[u8]) -> Result<()> {
    let mut rest = value;
    whole(column, |column| {
        let (mut key, mut text) = (Vec::new(), Vec::new());
        while !rest.is_empty() {
            let inside = rest.strip_prefix(b"\"").ok_or(ValueError::Form)?;
            rest = quoted(inside, &mut key)?;
            rest = rest.strip_prefix(b"=>").ok_or(ValueError::Form)?;
            if let Some(inside) = rest.strip_prefix(b"\"") {
                rest = quoted(inside, &mut text)?;
                entry(column, &key, Some(&text))?;
            } else {
                rest = rest.strip_prefix(b"NULL").ok_or(ValueError::Form)?;
                entry(column, &key, None)?;
            }
            rest = match rest {
                [] => break,
                [b',', b' ', behind @ ..] if !behind.is_empty() => behind,
                _ => return Err(ValueError::Form),
            };
        }
        Ok(())
    })
}

/// The number of pairs; then key and value, each behind its length, -1 for null.
pub fn hstore_binary(column: &mut ColumnBuilder, bytes: &[u8]) -> Result<()> {
    let mut r = Reader(bytes);
    let pairs = r.u32().map_err(|_| ValueError::Form)?;
    whole(column, |column| {
        for _ in 0..pairs {
            let key = binary::cell(&mut r)?.ok_or(ValueError::Form)?;
            let value = binary::cell(&mut r)?;
            entry(column, key, value)?;
        }
        if r.0.is_empty() {
            Ok(())
        } else {
            Err(ValueError::Form)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::util::display::{ArrayFormatter, FormatOptions};
    use caudal_model::LakeType;

    fn shown(lake: &str, fill: impl FnOnce(&mut ColumnBuilder) -> Result<()>) -> Result<String> {
        let mut column = ColumnBuilder::new(&lake.parse::<LakeType>().unwrap());
        column.push_null();
        let filled = fill(&mut column);
        assert_eq!(column.len(), 1 + usize::from(filled.is_ok()));
        let array = column.finish();
        let options = FormatOptions::default().with_null("NULL");
        filled?;
        Ok(ArrayFormatter::try_new(&array, &options)
            .unwrap()
            .value(1)
            .to_string())
    }

    #[test]
    fn arrays_are_read_as_the_server_quotes_them() {
        let read = |v: &str| {
            shown("list<string>", |c| {
                array_text(Codec::Text, b',', c, v.as_bytes())
            })
        };
        assert_eq!(read("{}").unwrap(), "[]");
        assert_eq!(
            read(r#"{a,NULL,"NULL","","b \"c\" \\","x,y","{z}"}"#).unwrap(),
            r#"[a, NULL, NULL, , b "c" \, x,y, {z}]"#
        );
        for several in ["{{1,2},{3,4}}", "[0:1]={1,2}", "[1:1][2:2]={{1}}"] {
            assert_eq!(read(several), Err(ValueError::Dimensions), "{several}");
        }
        for bad in [
            "", "{", "}", "{a,}", "{,a}", "{\"a}", "{\"a\"b}", "{\"a\\", "a",
        ] {
            assert_eq!(read(bad), Err(ValueError::Form), "{bad}");
        }
        let boxes = |v: &str| {
            shown("list<string>", |c| {
                array_text(Codec::Text, b';', c, v.as_bytes())
            })
        };
        assert_eq!(
            boxes("{(1,2),(3,4);(5,6),(7,8)}").unwrap(),
            "[(1,2),(3,4), (5,6),(7,8)]"
        );
        let ints = |v: &str| {
            shown("list<int32>", |c| {
                array_text(Codec::Int, b',', c, v.as_bytes())
            })
        };
        assert_eq!(ints("{1,NULL,-3}").unwrap(), "[1, NULL, -3]");
        assert_eq!(ints("{1,3000000000}"), Err(ValueError::Range));
    }

    #[test]
    fn binary_arrays_have_one_dimension_from_one_on() {
        let head = |n: [i32; 5]| n.iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<u8>>();
        let read = |b: &[u8]| shown("list<int32>", |c| array_binary(Codec::Int, c, b));
        let mut two = head([1, 1, 23, 2, 1]);
        two.extend([0, 0, 0, 4, 0, 0, 0, 7, 255, 255, 255, 255]);
        assert_eq!(read(&two).unwrap(), "[7, NULL]");
        assert_eq!(read(&head([0, 0, 23, 0, 0])[..12]).unwrap(), "[]");
        assert_eq!(read(&head([1, 0, 23, 1, 0])), Err(ValueError::Dimensions));
        assert_eq!(read(&head([2, 0, 23, 1, 1])), Err(ValueError::Dimensions));
        assert_eq!(read(&head([1, 0, 23, i32::MAX, 1])), Err(ValueError::Form));
        two.push(0);
        assert_eq!(read(&two), Err(ValueError::Form));
    }

    #[test]
    fn maps_and_vectors_of_both_forms() {
        let text = |v: &str| shown("map<string,string>", |c| hstore_text(c, v.as_bytes()));
        assert_eq!(text("").unwrap(), "{}");
        assert_eq!(
            text(r#""a"=>"1", "b\"\\"=>NULL, ""=>"x, y""#).unwrap(),
            r#"{a: 1, b"\: NULL, : x, y}"#
        );
        for bad in [
            "a=>1",
            r#""a"=>"#,
            r#""a"=>"1","#,
            r#""a"=>"1", "#,
            r#""a"=>NULLx"#,
        ] {
            assert_eq!(text(bad), Err(ValueError::Form), "{bad}");
        }
        let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, 1, b'k', 255, 255, 255, 255];
        let binary = |b: &[u8]| shown("map<string,string>", |c| hstore_binary(c, b));
        assert_eq!(binary(&bytes).unwrap(), "{k: NULL}");
        bytes[3] = 2;
        assert_eq!(binary(&bytes), Err(ValueError::Form));
        let vector = |v: &str| shown("list<float32>", |c| vector_text(c, v.as_bytes()));
        assert_eq!(vector("[1,-2.5,1e-05]").unwrap(), "[1.0, -2.5, 0.00001]");
        assert_eq!(vector("[]"), Err(ValueError::Form));
        let raw = [0, 1, 0, 0, 0x3f, 0x80, 0, 0];
        assert_eq!(
            shown("list<float32>", |c| vector_binary(c, &raw)).unwrap(),
            "[1.0]"
        );
        let short = shown("list<float32>", |c| vector_binary(c, &raw[..7]));
        assert_eq!(short, Err(ValueError::Form));
    }
}
