use super::*;
use proptest::prelude::*;

#[test]
fn lengths_are_checked_before_they_are_believed() {
    assert_eq!(message_len(b"d\0\0\0", 100).unwrap(), None);
    assert_eq!(message_len(b"d\0\0\0\x09", 100).unwrap(), Some(10));
    assert!(message_len(b"d\0\0\0\x03", 100).is_err());
    assert!(message_len(b"d\xff\0\0\x03", 100).is_err());
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut f = vec![b'd'];
    f.extend((payload.len() as u32 + 4).to_be_bytes());
    f.extend(payload);
    f
}

#[test]
fn envelopes_are_split_one_after_another() {
    let mut keepalive = vec![b'k'];
    keepalive.extend(7u64.to_be_bytes());
    keepalive.extend(0u64.to_be_bytes());
    keepalive.push(1);
    let mut data = vec![b'w'];
    data.extend([0; 24]);
    data.extend(b"Bxyz");
    let mut bytes = frame(&keepalive);
    assert!(wants_reply(&bytes));
    bytes.extend(frame(&data));
    bytes.extend(b"c\0\0\0\x04");
    assert!(!wants_reply(&frame(&data)));
    let mut r = Reader(&bytes);
    assert_eq!(
        envelope(&mut r).unwrap(),
        Envelope::Keepalive { wal_end: Lsn(7) }
    );
    assert_eq!(envelope(&mut r).unwrap(), Envelope::Data(b"Bxyz"));
    assert_eq!(envelope(&mut r).unwrap(), Envelope::End);
    assert!(r.0.is_empty() && envelope(&mut r).is_err());
}

/// Messages as PostgreSQL 15 sent them for
/// `CREATE TABLE t (id int PRIMARY KEY, v text)` and changes to it.
const RELATION: &[u8] = b"R\x00\x00\x40\x06public\0t\0d\x00\x02\x01id\0\x00\x00\x00\x17\xff\xff\xff\xff\x00v\0\x00\x00\x00\x19\xff\xff\xff\xff";
const INSERT: &[u8] = b"I\x00\x00\x40\x06N\x00\x02t\x00\x00\x00\x011n";
const UPDATE: &[u8] = b"U\x00\x00\x40\x06K\x00\x02t\x00\x00\x00\x011nN\x00\x02t\x00\x00\x00\x012u";
const DELETE: &[u8] = b"D\x00\x00\x40\x06K\x00\x02t\x00\x00\x00\x012n";

fn cells<'a>(t: &Tuple<'a>) -> Vec<Cell<'a>> {
    let mut c = t.cells();
    std::iter::from_fn(|| c.next_cell().unwrap()).collect()
}

#[test]
fn rows_carry_their_cells() {
    let Message::Relation {
        relation,
        xid: None,
    } = parse(RELATION, false).unwrap()
    else {
        panic!()
    };
    assert_eq!(
        (
            relation.oid,
            relation.schema,
            relation.name,
            relation.identity
        ),
        (16390, "public", "t", b'd')
    );
    let columns = relation.columns().unwrap();
    assert_eq!(
        columns[0],
        RelationColumn {
            identity: true,
            name: "id",
            type_oid: 23,
            type_mod: -1
        }
    );
    assert!(!columns[1].identity);
    let Message::Row {
        row: RowBody::Insert(new),
        relation: 16390,
        ..
    } = parse(INSERT, false).unwrap()
    else {
        panic!()
    };
    assert_eq!(cells(&new), [Cell::Text(b"1"), Cell::Null]);
    let Message::Row {
        row: RowBody::Update {
            old: Some(old),
            new,
        },
        ..
    } = parse(UPDATE, false).unwrap()
    else {
        panic!()
    };
    assert!(!old.whole);
    assert_eq!(cells(&old.tuple), [Cell::Text(b"1"), Cell::Null]);
    assert_eq!(cells(&new), [Cell::Text(b"2"), Cell::Unchanged]);
    assert!(matches!(
        parse(DELETE, false).unwrap(),
        Message::Row {
            row: RowBody::Delete(_),
            ..
        }
    ));
    let mut streamed = vec![b'I', 0, 0, 0, 9];
    streamed.extend(&INSERT[1..]);
    assert!(matches!(
        parse(&streamed, true).unwrap(),
        Message::Row {
            xid: Some(9),
            relation: 16390,
            ..
        }
    ));
}

#[test]
fn transactions_carry_their_positions() {
    let mut begin = vec![b'B'];
    begin.extend(0x1_0000_0010u64.to_be_bytes());
    begin.extend(1_000_000i64.to_be_bytes());
    begin.extend(77u32.to_be_bytes());
    assert_eq!(
        parse(&begin, false).unwrap(),
        Message::Begin {
            final_lsn: Lsn(0x1_0000_0010),
            committed_at_us: EPOCH_US + 1_000_000,
            xid: 77
        }
    );
    let mut commit = vec![b'C', 0];
    commit.extend([1, 2, 0].into_iter().flat_map(u64::to_be_bytes));
    assert_eq!(
        parse(&commit, false).unwrap(),
        Message::Commit { end_lsn: Lsn(2) }
    );
    let mut commit = vec![b'c', 0, 0, 0, 5, 0];
    commit.extend([1, 2, 0].into_iter().flat_map(u64::to_be_bytes));
    assert_eq!(
        parse(&commit, false).unwrap(),
        Message::StreamCommit {
            xid: 5,
            commit_lsn: Lsn(1),
            end_lsn: Lsn(2),
            committed_at_us: EPOCH_US
        }
    );
    assert_eq!(
        parse(b"A\0\0\0\x05\0\0\0\x06", false).unwrap(),
        Message::StreamAbort { xid: 5, subxid: 6 }
    );
    for unknown in [&b""[..], b"b", b"P", b"?", b"B\0"] {
        assert!(parse(unknown, false).is_err());
    }
}

fn walk(message: &Message<'_>) {
    let each = |t: &Tuple<'_>| {
        let mut c = t.cells();
        while let Ok(Some(_)) = c.next_cell() {}
    };
    match message {
        Message::Relation { relation, .. } => drop(relation.columns()),
        Message::Row {
            row: RowBody::Insert(t),
            ..
        } => each(t),
        Message::Row {
            row: RowBody::Delete(o),
            ..
        } => each(&o.tuple),
        Message::Row {
            row: RowBody::Update { old, new },
            ..
        } => {
            old.iter().for_each(|o| each(&o.tuple));
            each(new);
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..60, with in any::<u8>()) {
        use super::super::{binary, text, value::Codec};
        use caudal_model::{ColumnBuilder, LakeType};
        for in_stream in [false, true] {
            if let Ok(m) = parse(&bytes, in_stream) {
                walk(&m);
            }
            // Damage to messages that parse.
            for sound in [RELATION, INSERT, UPDATE, DELETE] {
                let mut damaged = sound.to_vec();
                if let Some(b) = damaged.get_mut(at) {
                    *b = with;
                }
                if let Ok(m) = parse(&damaged, in_stream) {
                    walk(&m);
                }
            }
        }
        let _ = message_len(&bytes, 1000);
        let _ = wants_reply(&bytes);
        let mut r = Reader(&bytes);
        while envelope(&mut r).is_ok() {}
        let _ = binary::header_len(&bytes);
        let mut rest = &bytes[..];
        while let Ok(binary::Row::Whole(_, cells, len)) = binary::row(rest) {
            let mut cells = Reader(cells);
            while let Ok(Some(_)) = binary::cell(&mut cells) {}
            rest = &rest[len..];
        }
        let types = [
            LakeType::Boolean, LakeType::Int16, LakeType::Int32, LakeType::Int64, LakeType::Float32, LakeType::Float64,
            LakeType::Decimal { precision: 38, scale: 10 }, LakeType::Decimal { precision: 5, scale: 0 }, LakeType::Utf8,
            LakeType::Binary, LakeType::Date32, LakeType::Time64, LakeType::Timestamp,
        ];
        let codecs = [
            Codec::Bool, Codec::Int, Codec::Oid, Codec::Float4, Codec::Float8, Codec::Numeric, Codec::Money, Codec::Text,
            Codec::Jsonb, Codec::Bytea, Codec::Uuid, Codec::Date, Codec::Time, Codec::Timestamp,
        ];
        for t in &types {
            for codec in codecs {
                let mut column = ColumnBuilder::new(t);
                let value = &bytes[..bytes.len().min(20)];
                let ok = text::append(codec, &mut column, value).is_ok();
                let ok = ok as usize + binary::append(codec, &mut column, value).is_ok() as usize;
                prop_assert_eq!(column.len(), ok);
            }
        }
    }

    #[test]
    fn no_text_panics(value in "[-+0-9:. TBC\\\\xainfty]{0,30}") {
        let v = value.as_bytes();
        let _ = (text::date(v), text::timestamp(v), text::integer(v), text::decimal(v, 38, 9));
    }
}
use super::super::text;
