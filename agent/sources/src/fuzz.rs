//! Entry points for fuzzers: bytes in, nothing out.
//!
//! Each function walks the decoders as a tail or a chunk reader does, as far as that
//! needs no server. Whatever the bytes are, none may panic, and memory stays within a
//! small multiple of the input. `tests/corpus.rs` of this crate and the fuzzing crate
//! both call these, so that an input that one finds is a file that the other keeps.

use crate::mysql::Flavor;
use crate::mysql::decode::events::{self, HEADER, kind};
use crate::mysql::decode::fetched::push_fetched;
use crate::mysql::decode::fuzz::{any_event, any_rows};
use crate::mysql::decode::values::Coerced;
use crate::mysql::decode::{Input, json, rows};
use crate::mysql::gtid::{GtidList, GtidSet, Place};
use crate::mysql::types::{Declared, column_type as mysql_type, retains};
use crate::mysql::{ddl, flavor, tail};
use crate::postgres::Lsn;
use crate::postgres::catalog::{ColumnType, TypeKey};
use crate::postgres::decode::oversize::Oversize;
use crate::postgres::decode::pgoutput::{self, Envelope, Message, Reader};
use crate::postgres::decode::value::Codec;
use crate::postgres::decode::{binary, text};
use crate::postgres::mapping::{self as postgres_mapping, BaseType};
use crate::postgres::relation::Relation;
use bytes::BytesMut;
use caudal_model::schema::ColumnSpec;
use caudal_model::{
    ChangeBuffer, ColumnBuilder, LakeType, Op, Position, TableBatch, TableName, TableSchema,
    TransactionMeta,
};
use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, LazyLock};

/// A fuzz target: the name of its corpus directory, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("pgoutput", pgoutput_frames),
    ("pg_text", pg_text),
    ("pg_copy", pg_copy),
    ("binlog", binlog),
    ("binlog_rows", binlog_rows),
    ("mysql_json", mysql_json),
    ("mysql_fetched", mysql_fetched),
    ("mysql_statement", mysql_statement),
    ("gtid", gtid),
    ("position", position),
    ("names", names),
];

/// The most that one input may unpack to here; the product's own limit is a packet's.
const UNPACKED: u64 = 16 << 20;

fn buffer() -> ChangeBuffer {
    let mut into = ChangeBuffer::new(1, usize::MAX);
    into.begin(TransactionMeta {
        committed_at_us: 0,
        position: "0/0".into(),
    });
    into
}

/// The column type of an oid, as the catalogue would describe it.
fn described((oid, type_mod): TypeKey) -> ColumnType {
    // Some of the system's arrays, by the oids of their elements.
    const ARRAYS: [(u32, u32); 8] = [
        (1000, 16),
        (1001, 17),
        (1007, 23),
        (1009, 25),
        (1022, 701),
        (1115, 1114),
        (1231, 1700),
        (3807, 3802),
    ];
    let element = ARRAYS.iter().find(|(array, _)| *array == oid);
    let base = BaseType {
        oid: element.map_or(oid, |(_, element)| *element),
        type_mod,
        name: String::new(),
        kind: "b".to_owned(),
        extension: None,
        delimiter: b',',
    };
    ColumnType {
        name: oid.to_string(),
        mapped: Ok(match element {
            Some(_) => postgres_mapping::map_array(&base),
            None => postgres_mapping::map(&base),
        }),
    }
}

/// The relations of one stream, and the rows that they became.
struct Stream {
    relations: HashMap<u32, Relation>,
    into: ChangeBuffer,
    /// Distinct for each relation message, as schema versions are.
    version: u32,
    in_stream: bool,
    /// Rows that cannot be written are errors, and no table is being copied.
    strict: bool,
}

impl Stream {
    fn relation(&mut self, body: &pgoutput::RelationBody<'_>) -> caudal_model::Result<()> {
        let mut relation = Relation::new(body)?;
        let types = relation
            .columns
            .iter()
            .map(|c| (c.type_key, described(c.type_key)))
            .collect();
        let (specs, codecs) = relation.describe(&types, None)?;
        let shown = relation.columns.iter().filter(|c| c.identity);
        let key = shown.map(|c| c.name.clone()).collect();
        self.version += 1;
        let mut schema = TableSchema::first(relation.table.clone(), 1, specs, key);
        schema.version = self.version;
        // Whether the table is being copied is the oid's lowest bit here.
        let copying = !self.strict && body.oid & 1 == 1;
        relation.make_plan(&Arc::new(schema), &codecs, None, copying, 1 << 16);
        self.relations.insert(body.oid, relation);
        Ok(())
    }

    fn message(&mut self, data: &[u8]) -> caudal_model::Result<()> {
        match pgoutput::parse(data, self.in_stream)? {
            Message::StreamStart { .. } => self.in_stream = true,
            Message::StreamStop => self.in_stream = false,
            Message::Relation { relation, .. } => self.relation(&relation)?,
            Message::Row { relation, row, .. } => {
                if let Some(relation) = self.relations.get_mut(&relation)
                    && let Some(plan) = &mut relation.plan
                    && let Err(e) = plan.write(&mut self.into, &row)
                {
                    let error = relation.row_error(e, Lsn(0));
                    let _ = error.to_string();
                    if self.strict {
                        return Err(error);
                    }
                }
            }
            Message::Truncate { relations, .. } => {
                let mut oids = Reader(relations);
                while let Ok(oid) = oids.u32() {
                    let plan = self.relations.get_mut(&oid).and_then(|r| r.plan.as_mut());
                    if let Some(plan) = plan {
                        plan.truncate(&mut self.into);
                    }
                }
            }
            Message::Commit { end_lsn } => {
                self.into.begin(TransactionMeta {
                    committed_at_us: 0,
                    position: end_lsn.to_string().into(),
                });
            }
            _ => {}
        }
        Ok(())
    }
}

impl Stream {
    fn new(strict: bool) -> Self {
        Stream {
            strict,
            relations: HashMap::new(),
            into: buffer(),
            version: 0,
            in_stream: false,
        }
    }
}

/// The rows of frames of PostgreSQL's replication stream that no server is needed for.
///
/// Errors: what a tail would end with.
pub fn pgoutput_rows(data: &[u8]) -> caudal_model::Result<Vec<TableBatch>> {
    let mut stream = Stream::new(true);
    let mut rest = Reader(data);
    while !rest.0.is_empty() {
        if let Envelope::Data(message) = pgoutput::envelope(&mut rest)? {
            stream.message(message)?;
        }
    }
    stream.into.take()
}

/// Frames of PostgreSQL's replication stream, through relations into a buffer. A
/// message that is refused is left out, so that those behind it are reached.
pub fn pgoutput_frames(data: &[u8]) {
    let mut stream = Stream::new(false);
    oversize_frames(data);
    let mut rest = data;
    while let Ok(Some(len)) = pgoutput::message_len(rest, 1 << 20)
        && let Some((frame, behind)) = rest.split_at_checked(len)
    {
        rest = behind;
        let _ = pgoutput::wants_reply(frame);
        if let Ok(Envelope::Data(message)) = pgoutput::envelope(&mut Reader(frame)) {
            let _ = stream.message(message);
        }
    }
    // Rows that were written must make a whole batch.
    assert!(stream.into.take().is_ok());
}

/// The same frames with every cell of more than eight bytes left out.
fn oversize_frames(data: &[u8]) {
    let mut buf = BytesMut::from(data);
    for in_stream in [false, true] {
        while let Ok(Some(mut oversize)) = Oversize::begin(&mut buf, 8, in_stream)
            && let Ok(Some(left)) = oversize.feed(&mut buf)
        {
            assert!(left.len() <= data.len());
            if !left.is_empty() {
                assert!(pgoutput::envelope(&mut Reader(&left)).is_ok());
            }
        }
    }
}

/// The codecs with each lake type that they are used with.
static POSTGRES_TYPES: LazyLock<Vec<(Codec, LakeType)>> = LazyLock::new(|| {
    let decimal = |precision, scale| LakeType::Decimal { precision, scale };
    let list = |item: LakeType| LakeType::List(Box::new(item));
    vec![
        (Codec::Bool, LakeType::Boolean),
        (Codec::Int, LakeType::Int16),
        (Codec::Int, LakeType::Int32),
        (Codec::Int, LakeType::Int64),
        (Codec::Oid, LakeType::Int64),
        (Codec::Float4, LakeType::Float32),
        (Codec::Float4, LakeType::Float64),
        (Codec::Float8, LakeType::Float64),
        (Codec::Numeric, decimal(38, 0)),
        (Codec::Numeric, decimal(38, 38)),
        (Codec::Numeric, decimal(12, 2)),
        (Codec::Numeric, decimal(1, 0)),
        (Codec::Money, decimal(19, 2)),
        (Codec::Text, LakeType::Utf8),
        (Codec::Jsonb, LakeType::Utf8),
        (Codec::Uuid, LakeType::Utf8),
        (Codec::Bytea, LakeType::Binary),
        (Codec::Date, LakeType::Date32),
        (Codec::Time, LakeType::Time64),
        (Codec::Timestamp, LakeType::Timestamp),
        (Codec::Timestamp, LakeType::TimestampUtc),
        // What a schema that does not fit its log would give.
        (Codec::Numeric, LakeType::Date32),
        (Codec::List(&Codec::Int, b','), list(LakeType::Int32)),
        (Codec::List(&Codec::Text, b','), list(LakeType::Utf8)),
        (Codec::List(&Codec::Numeric, b';'), list(decimal(9, 3))),
        (Codec::List(&Codec::Bytea, b','), list(LakeType::Binary)),
        (Codec::List(&Codec::Hstore, b','), list(LakeType::Map)),
        (Codec::List(&Codec::Int, b','), list(LakeType::Boolean)),
        (Codec::Hstore, LakeType::Map),
        (Codec::Ewkb, LakeType::Binary),
        (Codec::Vector, list(LakeType::Float32)),
        (Codec::Vector, list(LakeType::Utf8)),
    ]
});

/// One value, as text and in binary: the first byte chooses the type, the rest is the
/// value. A refused value must leave no trace.
pub fn pg_text(data: &[u8]) {
    let Some((choice, value)) = data.split_first() else {
        return;
    };
    let choice = usize::from(*choice) % POSTGRES_TYPES.len();
    let Some((codec, lake_type)) = POSTGRES_TYPES.get(choice) else {
        return;
    };
    let mut column = ColumnBuilder::new(lake_type);
    let as_text = text::append(*codec, &mut column, value).is_ok();
    let as_binary = binary::append(*codec, &mut column, value).is_ok();
    let cells = usize::from(as_text) + usize::from(as_binary);
    assert_eq!((column.len(), column.finish().len()), (cells, cells));
}

/// `COPY … (FORMAT binary)`, with the columns of `POSTGRES_TYPES` in turn. After a row that
/// is refused the next is read.
pub fn pg_copy(data: &[u8]) {
    let columns = POSTGRES_TYPES.iter().enumerate();
    let specs =
        columns.map(|(i, (_, lake_type))| ColumnSpec::new(i.to_string(), "", lake_type.clone()));
    let table = TableName::new("s", "t");
    let schema = Arc::new(TableSchema::first(table, 1, specs.collect(), Vec::new()));
    let mut into = buffer();
    let slot = into.slot(&schema);
    let mut rest = match binary::header_len(data) {
        Ok(Some(len)) => data.get(len..).unwrap_or_default(),
        _ => data,
    };
    while let Ok(binary::Row::Whole(_, cells, len)) = binary::row(rest) {
        rest = rest.get(len..).unwrap_or_default();
        let mut cells = Reader(cells);
        let mut row = into.row(slot, Op::Snapshot);
        let written = POSTGRES_TYPES.iter().enumerate().all(|(i, (codec, _))| {
            match binary::cell(&mut cells) {
                Ok(Some(value)) => {
                    row.count(value.len());
                    binary::append(*codec, row.column(i), value).is_ok()
                }
                Ok(None) => true,
                // A row of fewer cells.
                Err(_) => cells.0.is_empty(),
            }
        });
        if written {
            row.finish();
        }
    }
    assert!(into.take().is_ok());
}

/// The table map that rows events follow, by the body of the event.
#[derive(Default)]
struct Binlog {
    map: Vec<u8>,
    /// Payloads may hold payloads only where they are damaged.
    depth: u8,
}

impl Binlog {
    fn event(&mut self, event: &[u8], checksummed: bool) {
        any_event(event);
        let Ok((header, body)) = events::header(event) else {
            return;
        };
        // A changed byte always breaks the checksum, so that it is cut off unchecked.
        let body = match body.len().checked_sub(4).filter(|_| checksummed) {
            Some(n) => body.get(..n).unwrap_or_default(),
            None => body,
        };
        match header.event_type {
            kind::TABLE_MAP => self.map = body.to_vec(),
            kind::TRANSACTION_PAYLOAD => self.payload(body),
            t => {
                if let Some((op, v2, compressed)) = rows_kind(t) {
                    self.rows(body, op, v2, compressed);
                }
            }
        }
    }

    fn rows(&self, body: &[u8], op: Op, v2: bool, compressed: bool) {
        if !compressed {
            any_rows(&self.map, body, v2, op);
            return;
        }
        let Ok(h) = rows::rows_header(body, v2, op == Op::Update) else {
            return;
        };
        if let Some((head, packed)) = body.split_at_checked(h.start) {
            let mut whole = head.to_vec();
            if events::inflate(packed, &mut whole).is_ok() {
                any_rows(&self.map, &whole, v2, op);
            }
        }
    }

    fn payload(&mut self, body: &[u8]) {
        let Ok(payload) = events::payload(body) else {
            return;
        };
        if self.depth > 1 {
            return;
        }
        self.depth += 1;
        if payload.zstd {
            if let Ok(decoder) = zstd::stream::read::Decoder::new(payload.bytes) {
                self.events_of(&mut decoder.take(UNPACKED));
            }
        } else {
            self.events_of(&mut std::io::Cursor::new(payload.bytes.to_vec()));
        }
        self.depth -= 1;
    }

    fn events_of(&mut self, bytes: &mut (dyn Read + Send + Sync)) {
        while let Ok(Some(event)) = tail::next_of_payload(bytes, 1 << 20) {
            self.event(&event, false);
        }
    }
}

/// The operation of a rows event, whether its header has extra data, and whether its rows
/// are compressed.
fn rows_kind(event_type: u8) -> Option<(Op, bool, bool)> {
    let ops = [Op::Insert, Op::Update, Op::Delete];
    let of = |first: u8| ops.get(usize::from(event_type - first)).copied();
    let (first, v2, compressed) = match event_type {
        kind::WRITE_ROWS_V1..=kind::DELETE_ROWS_V1 => (kind::WRITE_ROWS_V1, false, false),
        kind::WRITE_ROWS..=kind::DELETE_ROWS => (kind::WRITE_ROWS, true, false),
        kind::MARIA_WRITE_ROWS_COMPRESSED_V1..=kind::MARIA_DELETE_ROWS_COMPRESSED_V1 => {
            (kind::MARIA_WRITE_ROWS_COMPRESSED_V1, false, true)
        }
        kind::MARIA_WRITE_ROWS_COMPRESSED..=kind::MARIA_DELETE_ROWS_COMPRESSED => {
            (kind::MARIA_WRITE_ROWS_COMPRESSED, true, true)
        }
        _ => return None,
    };
    Some((of(first)?, v2, compressed))
}

/// Events of a MySQL or MariaDB binary log one after another, each with its checksum,
/// through what compresses them and their table maps into a buffer.
pub fn binlog(data: &[u8]) {
    let mut log = Binlog::default();
    let mut rest = data;
    while let Ok((header, _)) = events::header(rest) {
        let len = (header.size as usize).clamp(HEADER, rest.len());
        let Some((event, behind)) = rest.split_at_checked(len) else {
            return;
        };
        rest = behind;
        log.event(event, true);
    }
}

/// A rows event against a table map: a byte that chooses the operation and the version,
/// the two-byte length of the map's body, that body, and the rows event's body.
pub fn binlog_rows(data: &[u8]) {
    let mut input = Input(data);
    let (Ok(choice), Ok(len)) = (input.u8(), input.u16()) else {
        return;
    };
    let op = match choice & 3 {
        0 => Op::Insert,
        1 => Op::Update,
        _ => Op::Delete,
    };
    if let Ok(map) = input.take(len.into()) {
        any_rows(map, input.rest(), choice & 4 != 0, op);
    }
}

/// A binary JSON document; its text must be UTF-8.
pub fn mysql_json(data: &[u8]) {
    let mut out = Vec::new();
    if json::write(data, &mut out).is_ok() {
        assert!(std::str::from_utf8(&out).is_ok());
    }
}

/// The types of fetched cells: the server's words, and the protocol's type.
const FETCHED: [(&str, u8); 20] = [
    ("tinyint", 1),
    ("smallint unsigned", 2),
    ("int", 3),
    ("bigint unsigned", 8),
    ("float", 4),
    ("double", 5),
    ("timestamp(6)", 7),
    ("date", 10),
    ("time(3)", 11),
    ("datetime(6)", 12),
    ("year", 13),
    ("decimal(20,4)", 246),
    ("decimal(65,30)", 246),
    ("bit(9)", 16),
    ("binary(8)", 254),
    ("text", 252),
    ("text character set utf16", 252),
    ("geometry", 255),
    ("vector(3)", 242),
    ("int(9) unsigned zerofill", 3),
];

/// Cells of the binary protocol: the first byte chooses the type, the rest are cells.
pub fn mysql_fetched(data: &[u8]) {
    let Some((choice, cells)) = data.split_first() else {
        return;
    };
    let Some((words, protocol)) = FETCHED.get(usize::from(*choice) % FETCHED.len()) else {
        return;
    };
    for wanted in [None, Some(&LakeType::Utf8)] {
        let declared = Declared::parse(words);
        let Ok((value, lake_type)) = mysql_type(&declared, Flavor::MySql, wanted) else {
            return;
        };
        let mut column = ColumnBuilder::new(&lake_type);
        let mut input = Input(cells);
        let mut count = 0;
        while !input.is_empty()
            && push_fetched(
                &value,
                *protocol,
                declared.unsigned,
                &mut input,
                &mut column,
                &mut Coerced::default(),
            )
            .is_ok()
        {
            count += 1;
        }
        assert_eq!(column.finish().len(), count);
    }
}

/// A statement of the log, a column's type in the server's words, and its version.
pub fn mysql_statement(data: &[u8]) {
    let sql = String::from_utf8_lossy(data);
    for (ansi_quotes, no_backslash_escapes) in [(false, false), (true, true)] {
        let context = ddl::Context {
            database: "db",
            quoting: ddl::Quoting {
                ansi_quotes,
                no_backslash_escapes,
            },
            lower_case: ansi_quotes,
        };
        ddl::parse(&sql, context);
    }
    flavor::parse_version(&sql);
    for flavor in [Flavor::MySql, Flavor::MariaDb] {
        let _ = mysql_type(&Declared::parse(&sql), flavor, Some(&LakeType::Utf8));
        let _ = retains(&sql, &sql.to_lowercase(), true);
    }
}

/// GTID sets as text and as bytes; what parses prints and parses to itself.
pub fn gtid(data: &[u8]) {
    if let Ok(set) = GtidSet::decode(data) {
        assert!(set.covers(&set) && set.minus(&set).is_empty());
        let _ = set.to_string();
    }
    let text = String::from_utf8_lossy(data);
    // A semicolon parts two sets.
    let (a, b) = text.split_once(';').unwrap_or((&text, ""));
    if let (Some(a), Some(b)) = (GtidSet::parse(a), GtidSet::parse(b)) {
        assert_eq!(GtidSet::parse(&a.to_string()).as_ref(), Some(&a));
        assert_eq!(GtidSet::decode(&a.encode()).as_ref(), Ok(&a));
        assert!(a.covers(&a.minus(&b)));
        assert_eq!(a.minus(&b).is_empty(), b.covers(&a));
    }
    if let (Some(a), Some(b)) = (GtidList::parse(a), GtidList::parse(b)) {
        assert_eq!(GtidList::parse(&a.to_string()).as_ref(), Some(&a));
        let _ = a.covers(&b);
    }
}

/// A position's text, as each source reads it; what parses prints and parses to itself.
pub fn position(data: &[u8]) {
    let position = Position::new(&*String::from_utf8_lossy(data));
    if let Ok(lsn) = Lsn::of(&position) {
        assert_eq!(Lsn::of(&lsn.position()).ok(), Some(lsn));
        for (page, segment) in [(0, 0), (8192, 1 << 24)] {
            assert!(lsn.end_of_last_record(page, segment) <= lsn);
        }
    }
    for flavor in [Flavor::MySql, Flavor::MariaDb] {
        if let Ok(place) = Place::parse(flavor, &position) {
            let again = Place::parse(flavor, &place.position());
            assert_eq!(again.ok().as_ref(), Some(&place));
            assert!(place.covers(&place).is_ok_and(|c| c));
        }
    }
}

/// Names of tables and of the lake's types; what parses prints and parses to itself.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(table) = text.parse::<TableName>() {
        assert_eq!(table.to_string().parse().as_ref(), Ok(&table));
    }
    if let Ok(lake_type) = text.parse::<LakeType>() {
        assert_eq!(lake_type.to_string().parse().as_ref(), Ok(&lake_type));
        let _ = lake_type.arrow();
    }
}
