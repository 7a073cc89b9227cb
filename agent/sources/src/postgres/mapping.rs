//! Types of PostgreSQL and of the lake: how a column's values are carried.

use super::catalog::ColumnType;
use super::connect::ident;
use super::decode::value::Codec;
use crate::TableOptions;
use caudal_model::LakeType;
use caudal_model::schema::ColumnSpec;

/// A type that is no domain.
#[derive(Debug, Clone)]
pub struct BaseType {
    /// Its oid.
    pub oid: u32,
    /// The column's or the domain's modifier; -1 without one.
    pub type_mod: i32,
    /// Its name.
    pub name: String,
    /// `pg_type.typtype`.
    pub kind: String,
    /// The extension that it belongs to.
    pub extension: Option<String>,
    /// What stands between the elements of its arrays' text.
    pub delimiter: u8,
}

/// How a snapshot selects a column, so that it gives what the log has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyForm {
    /// As it is, in its binary form.
    Plain,
    /// Cast to text, where the cast is the type's output function.
    Cast,
    /// Through the type's output function: casts of some types print otherwise
    /// (inet adds its mask, xml keeps the encoding, char drops its padding).
    Output,
}

/// How a type is carried.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapped {
    /// Its type in the lake.
    pub lake: LakeType,
    /// How its values are read.
    pub codec: Codec,
    /// How a snapshot selects it.
    pub form: CopyForm,
    /// Whether its operators are the system's own, which a session with a pinned
    /// `search_path` finds: others would be compared as what they cast to.
    pub ranged: bool,
    /// Whether it is numeric, which may be carried with digits that its type does not say.
    numeric: bool,
}

/// The first oid that is not of the system itself.
const FIRST_USER_OID: u32 = 16_384;

/// How a type that is no array is carried.
pub fn map(base: &BaseType) -> Mapped {
    let ranged = base.oid < FIRST_USER_OID || base.kind == "e";
    let with = |lake, codec, form| Mapped {
        lake,
        codec,
        form,
        ranged,
        numeric: base.oid == 1700,
    };
    let plain = |lake, codec| with(lake, codec, CopyForm::Plain);
    let text = |form| with(LakeType::Utf8, Codec::Text, form);
    match base.oid {
        16 => plain(LakeType::Boolean, Codec::Bool),
        17 => plain(LakeType::Binary, Codec::Bytea),
        20 => plain(LakeType::Int64, Codec::Int),
        21 => plain(LakeType::Int16, Codec::Int),
        23 => plain(LakeType::Int32, Codec::Int),
        26 => plain(LakeType::Int64, Codec::Oid),
        700 => plain(LakeType::Float32, Codec::Float4),
        701 => plain(LakeType::Float64, Codec::Float8),
        790 => plain(
            LakeType::Decimal {
                precision: 19,
                scale: 2,
            },
            Codec::Money,
        ),
        1082 => plain(LakeType::Date32, Codec::Date),
        1083 => plain(LakeType::Time64, Codec::Time),
        1114 => plain(LakeType::Timestamp, Codec::Timestamp),
        1184 => plain(LakeType::TimestampUtc, Codec::Timestamp),
        1700 => match numeric(base.type_mod) {
            Some(lake) => plain(lake, Codec::Numeric),
            None => text(CopyForm::Cast),
        },
        2950 => plain(LakeType::Utf8, Codec::Uuid),
        3802 => plain(LakeType::Utf8, Codec::Jsonb),
        // text, varchar, char(n), name and json are their own text in binary.
        19 | 25 | 114 | 1042 | 1043 => text(CopyForm::Plain),
        18 | 142 | 650 | 869 => text(CopyForm::Output),
        // int2vector and oidvector, which have elements and are no arrays.
        22 | 30 => text(CopyForm::Output),
        oid if oid < FIRST_USER_OID => text(CopyForm::Cast),
        _ => match (
            base.kind.as_str(),
            base.extension.as_deref(),
            base.name.as_str(),
        ) {
            // An enum's binary form is its label.
            ("e", ..) => text(CopyForm::Plain),
            ("b", Some("citext"), "citext") => text(CopyForm::Cast),
            ("b", Some("hstore"), "hstore") => plain(LakeType::Map, Codec::Hstore),
            ("b", Some("postgis"), "geometry" | "geography") => {
                plain(LakeType::Binary, Codec::Ewkb)
            }
            ("b", Some("vector"), "vector") => {
                plain(LakeType::List(Box::new(LakeType::Float32)), Codec::Vector)
            }
            _ => text(CopyForm::Output),
        },
    }
}

/// How an array of these elements is carried.
pub fn map_array(element: &BaseType) -> Mapped {
    let item = map(element);
    Mapped {
        lake: LakeType::List(Box::new(item.lake)),
        codec: Codec::List(item.codec.shared(), element.delimiter),
        // Elements whose binary form is not read come as the array's text.
        form: match item.form {
            CopyForm::Plain => CopyForm::Plain,
            CopyForm::Cast | CopyForm::Output => CopyForm::Output,
        },
        ranged: item.ranged,
        numeric: item.numeric,
    }
}

/// The decimal of a numeric's modifier, if the lake has it.
fn numeric(type_mod: i32) -> Option<LakeType> {
    let packed = type_mod.checked_sub(4).filter(|p| *p >= 0)?;
    let precision = (packed >> 16) & 0xffff;
    // Eleven bits, signed; servers before 15 only wrote 0 to 1000.
    let scale = ((packed & 0x7ff) ^ 1024) - 1024;
    if (1..=38).contains(&precision) && (0..=precision).contains(&scale) {
        let (precision, scale) = (u8::try_from(precision).ok()?, u8::try_from(scale).ok()?);
        return Some(LakeType::Decimal { precision, scale });
    }
    None
}

impl Mapped {
    /// The same values in the lake type that the user asks for.
    ///
    /// Errors: what is allowed instead.
    fn carried_as(&self, asked: &LakeType) -> Result<Mapped, String> {
        if *asked == self.lake {
            return Ok(self.clone());
        }
        if *asked == LakeType::Utf8 {
            return Ok(Mapped {
                lake: LakeType::Utf8,
                codec: Codec::Text,
                form: CopyForm::Output,
                ranged: self.ranged,
                numeric: false,
            });
        }
        let (from, to) = match (&self.lake, asked) {
            (LakeType::List(from), LakeType::List(to)) => (&**from, &**to),
            pair => pair,
        };
        let (plain, delimiter) = match self.codec {
            Codec::List(item, delimiter) => (*item, Some(delimiter)),
            codec => (codec, None),
        };
        let codec = match (plain, from, to) {
            (Codec::Int | Codec::Float4, from, to) if from.widens_to(to) => plain,
            (_, _, LakeType::Decimal { .. }) if self.numeric => Codec::Numeric,
            _ => return Err(self.allowed(asked)),
        };
        if delimiter.is_some() != matches!(asked, LakeType::List(_)) {
            return Err(self.allowed(asked));
        }
        Ok(Mapped {
            lake: asked.clone(),
            codec: match delimiter {
                Some(d) => Codec::List(codec.shared(), d),
                None => codec,
            },
            form: CopyForm::Plain,
            ..self.clone()
        })
    }

    /// The expression that tells a value's bytes without reading it, where there is one.
    pub fn size_expression(&self, name: &str) -> Option<String> {
        let column = ident(name);
        match (self.codec, self.form) {
            (Codec::Bytea, CopyForm::Plain) => Some(format!("octet_length({column})")),
            (Codec::Text, CopyForm::Plain) => Some(format!("octet_length({column}::text)")),
            _ => None,
        }
    }

    fn allowed(&self, asked: &LakeType) -> String {
        let more = match &self.lake {
            LakeType::Int16 => ", int32, int64",
            LakeType::Int32 => ", int64",
            LakeType::Float32 => ", float64",
            _ if self.numeric => ", decimal(p,s)",
            _ => "",
        };
        format!(
            "`as` cannot make {asked} of it; allowed are {}, string{more}",
            self.lake
        )
    }
}

/// A column as the lake has it under the table's override, and how it is read.
///
/// Errors: why it cannot be carried, or not as it was asked for.
pub fn describe(
    name: &str,
    described: &ColumnType,
    options: Option<&TableOptions>,
) -> Result<(ColumnSpec, Mapped), String> {
    let mapped = described.mapped.as_ref().map_err(|why| (*why).to_owned())?;
    let asked = options.and_then(|o| o.lake_type(name));
    let mapped = match asked {
        Some(asked) => mapped.carried_as(asked)?,
        None => mapped.clone(),
    };
    let source_type = match options {
        Some(o) => o.source_type(name, &described.name),
        None => described.name.clone(),
    };
    Ok((
        ColumnSpec::new(name, source_type, mapped.lake.clone()),
        mapped,
    ))
}

/// The expression that selects a column for a copy.
pub fn copy_expression(name: &str, form: CopyForm) -> String {
    let column = ident(name);
    match form {
        CopyForm::Plain => column,
        CopyForm::Cast => format!("{column}::text"),
        // num_nulls, because a composite of nulls IS NULL without being null.
        CopyForm::Output => {
            format!("CASE WHEN num_nulls({column}) = 0 THEN format('%s', {column}) END")
        }
    }
}

/// A type's name with what stands in its parentheses, as `format_type` prints it:
/// `timestamp(3) without time zone` is (`timestamp without time zone`, [3]).
fn parts(printed: &str) -> (String, Vec<i32>) {
    let Some((head, rest)) = printed.split_once('(') else {
        return (printed.to_owned(), Vec::new());
    };
    let Some((inside, tail)) = rest.split_once(')') else {
        return (printed.to_owned(), Vec::new());
    };
    let numbers: Option<Vec<i32>> = inside.split(',').map(|n| n.trim().parse().ok()).collect();
    match numbers {
        Some(numbers) => (format!("{head}{tail}"), numbers),
        None => (printed.to_owned(), Vec::new()),
    }
}

/// Whether every value of one type is the same value, and the same text, after
/// `ALTER COLUMN … TYPE` to the other.
///
/// real to double precision is not among them: the value stays, its text does not.
pub fn retains(old: &str, new: &str) -> bool {
    if let (Some(old), Some(new)) = (old.strip_suffix(" hashed"), new.strip_suffix(" hashed")) {
        return retains(old, new);
    }
    if let (Some(old), Some(new)) = (old.strip_suffix("[]"), new.strip_suffix("[]")) {
        return retains(old, new);
    }
    if old == new {
        return true;
    }
    let ((old, before), (new, after)) = (parts(old), parts(new));
    let no_less = match (before.first(), after.first()) {
        (_, None) => true,
        (Some(b), Some(a)) => a >= b,
        (None, Some(_)) => false,
    };
    match (old.as_str(), new.as_str()) {
        ("smallint", "integer" | "bigint") | ("integer", "bigint") => true,
        ("character varying" | "text", "text") => true,
        ("text", "character varying") => after.is_empty(),
        ("character varying", "character varying") | ("bit varying", "bit varying") => no_less,
        // The scale is what its text shows; without a modifier each value keeps its own.
        ("numeric", "numeric") => after.is_empty() || (before.get(1) == after.get(1) && no_less),
        (a, b) if a == b && (a.starts_with("timestamp") || a.starts_with("time ")) => {
            no_less || after.first() == Some(&6)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(oid: u32, type_mod: i32) -> BaseType {
        BaseType {
            oid,
            type_mod,
            name: "t".into(),
            kind: "b".into(),
            extension: None,
            delimiter: b',',
        }
    }

    #[test]
    fn numerics_become_decimals_only_where_the_lake_has_them() {
        let lake = |precision: i32, scale: i32| {
            map(&base(1700, ((precision << 16) | (scale & 0x7ff)) + 4)).lake
        };
        let decimal = |precision, scale| LakeType::Decimal { precision, scale };
        assert_eq!(lake(12, 2), decimal(12, 2));
        assert_eq!(lake(38, 38), decimal(38, 38));
        for (p, s) in [(39, 0), (5, -2), (3, 5)] {
            assert_eq!(lake(p, s), LakeType::Utf8, "numeric({p},{s})");
        }
        assert_eq!(map(&base(1700, -1)).lake, LakeType::Utf8);
    }

    #[test]
    fn another_lake_type_must_hold_every_value() {
        let asked = |m: &Mapped, t: &str| m.carried_as(&t.parse().unwrap()).map(|m| m.codec);
        let int = map(&base(23, -1));
        assert_eq!(asked(&int, "int64"), Ok(Codec::Int));
        assert_eq!(asked(&int, "string"), Ok(Codec::Text));
        let refused = asked(&int, "int16").unwrap_err();
        assert!(refused.contains("int32, string, int64"), "{refused}");
        let free = map(&base(1700, -1));
        assert_eq!(asked(&free, "decimal(38,9)"), Ok(Codec::Numeric));
        assert!(asked(&free, "int64").is_err());
        let list = map_array(&base(23, -1));
        assert_eq!(
            asked(&list, "list<int64>"),
            Ok(Codec::List(&Codec::Int, b','))
        );
        assert!(asked(&list, "int64").is_err() && asked(&int, "list<int64>").is_err());
        assert_eq!(asked(&list, "string"), Ok(Codec::Text));
    }

    #[test]
    fn only_types_that_keep_every_value_and_its_text_are_retained() {
        for (old, new) in [
            ("smallint", "bigint"),
            ("character varying(5)", "character varying(6)"),
            ("character varying(5)", "text"),
            ("text", "character varying"),
            ("character varying(5)[]", "text[]"),
            ("numeric(12,2)", "numeric(14,2)"),
            ("numeric(50,3)", "numeric"),
            (
                "timestamp(3) without time zone",
                "timestamp without time zone",
            ),
            (
                "timestamp without time zone",
                "timestamp(6) without time zone",
            ),
            ("integer hashed", "bigint hashed"),
            ("public.mood", "public.mood"),
        ] {
            assert!(retains(old, new), "{old} to {new}");
        }
        for (old, new) in [
            ("bigint", "integer"),
            ("text", "character varying(5)"),
            ("character varying(5)", "character varying(4)"),
            ("character(5)", "character(6)"),
            ("numeric(12,2)", "numeric(14,3)"),
            ("numeric", "numeric(14,3)"),
            ("numeric(12,2)", "numeric(11,2)"),
            ("timestamp without time zone", "timestamp with time zone"),
            (
                "timestamp without time zone",
                "timestamp(3) without time zone",
            ),
            ("real", "double precision"),
            ("text", "text hashed"),
            ("integer", "numeric"),
            ("public.price", "numeric(10,3)"),
            ("text", "text[]"),
        ] {
            assert!(!retains(old, new), "{old} to {new}");
            assert!(!retains(old, &format!("{old} hashed")), "{old} hashed");
            assert!(!retains(&format!("{new} hashed"), new), "{new} hashed");
        }
    }
}
