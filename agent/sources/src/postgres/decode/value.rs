//! What text and binary values have in common: codecs, limits, calendars, errors.

use std::fmt;

/// How a column's values are read, whichever way they come.
///
/// The lake's type follows from it; integers are checked against the column that
/// they go to, because a schema may have been widened since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// boolean
    Bool,
    /// smallint, integer, bigint: by the width that comes
    Int,
    /// oid and its like: unsigned 32 bits
    Oid,
    /// real
    Float4,
    /// double precision
    Float8,
    /// numeric with a precision and scale that the lake has
    Numeric,
    /// money, with the two decimals of lc_monetary C
    Money,
    /// any type whose text is kept
    Text,
    /// jsonb, whose binary form has a version before the text
    Jsonb,
    /// bytea
    Bytea,
    /// uuid
    Uuid,
    /// date
    Date,
    /// time without time zone
    Time,
    /// timestamp, with or without time zone
    Timestamp,
    /// An array of one dimension, and what stands between its elements' texts
    List(&'static Codec, u8),
    /// hstore
    Hstore,
    /// PostGIS's geometry and geography: EWKB, in text as hex without a prefix
    Ewkb,
    /// pgvector's vector
    Vector,
}

impl Codec {
    /// The codec for an array's elements; an array of arrays is not among them.
    pub fn shared(self) -> &'static Codec {
        match self {
            Codec::Bool => &Codec::Bool,
            Codec::Int => &Codec::Int,
            Codec::Oid => &Codec::Oid,
            Codec::Float4 => &Codec::Float4,
            Codec::Float8 => &Codec::Float8,
            Codec::Numeric => &Codec::Numeric,
            Codec::Money => &Codec::Money,
            Codec::Text | Codec::List(..) => &Codec::Text,
            Codec::Jsonb => &Codec::Jsonb,
            Codec::Bytea => &Codec::Bytea,
            Codec::Uuid => &Codec::Uuid,
            Codec::Date => &Codec::Date,
            Codec::Time => &Codec::Time,
            Codec::Timestamp => &Codec::Timestamp,
            Codec::Hstore => &Codec::Hstore,
            Codec::Ewkb => &Codec::Ewkb,
            Codec::Vector => &Codec::Vector,
        }
    }

    /// Whether a cell's memory depends on its value.
    #[inline]
    pub fn is_variable(self) -> bool {
        matches!(
            self,
            Codec::Text
                | Codec::Jsonb
                | Codec::Bytea
                | Codec::Uuid
                | Codec::List(..)
                | Codec::Hstore
                | Codec::Ewkb
                | Codec::Vector
        )
    }

    /// The bytes of a value that came as text of this length, as the limit counts them: hex
    /// stands for half as many.
    #[inline]
    pub fn value_bytes(self, text: usize) -> usize {
        match self {
            Codec::Bytea => text.saturating_sub(2) / 2,
            Codec::Ewkb => text / 2,
            _ => text,
        }
    }
}

/// Why a value cannot arrive exactly. Never holds the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueError {
    /// A numeric that is not a number, or infinite.
    NotANumber,
    /// A numeric with more digits than its column says.
    Digits,
    /// An integer past its column's type.
    Range,
    /// A timestamp or date that microseconds or days in the lake cannot count.
    Late,
    /// Text that is not UTF-8.
    Utf8,
    /// A cell past what one Arrow column can hold.
    Long,
    /// Not the form that the type has.
    Form,
    /// The column has another type than the decoder expects.
    Mismatch,
    /// An array of several dimensions, or whose first element is not its number 1.
    Dimensions,
    /// More bytes than the limit for one value.
    Large {
        /// What it has.
        bytes: usize,
        /// What it may have.
        limit: usize,
    },
}

impl ValueError {
    /// Whether `as = "string"` lets the value through.
    pub fn text_helps(self) -> bool {
        matches!(
            self,
            ValueError::NotANumber | ValueError::Digits | ValueError::Late | ValueError::Dimensions
        )
    }
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ValueError::NotANumber => "holds NaN or infinity, which a decimal cannot",
            ValueError::Digits => "holds a number with more digits than its type says",
            ValueError::Range => "holds a number past its lake type",
            ValueError::Late => {
                "holds a time past the year 294247, which 64 bits of microseconds cannot"
            }
            ValueError::Utf8 => "holds text that is not UTF-8",
            ValueError::Long => "holds a value too long for one batch",
            ValueError::Form => "holds a value that does not have the form of its type",
            ValueError::Mismatch => "does not have the type that the schema says",
            ValueError::Dimensions => {
                "holds an array of several dimensions or with another lower bound than 1, which a list cannot"
            }
            ValueError::Large { bytes, limit } => {
                return write!(f, "holds a value of {bytes} bytes; the limit is {limit}");
            }
        })
    }
}

/// Microseconds from 1970 to 2000.
pub const EPOCH_US: i64 = super::pgoutput::EPOCH_US;
/// Days from 1970 to 2000.
pub const EPOCH_DAYS: i32 = 10_957;
/// A day in microseconds.
pub const DAY_US: i64 = 86_400_000_000;

/// Days from 1970-01-01 to a day of the proleptic Gregorian calendar; year 0 is 1 BC.
pub fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    // Years begin in March here, so that the leap day is a year's last.
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let of_era = y.rem_euclid(400);
    let of_year = (153 * i64::from((month + 9) % 12) + 2) / 5 + i64::from(day) - 1;
    let days = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    era * 146_097 + days - 719_468
}

const POWERS: [i128; 39] = {
    let mut powers = [1; 39];
    let mut n = 1;
    while n < 39 {
        powers[n] = powers[n - 1] * 10;
        n += 1;
    }
    powers
};

/// 10^n, n ≤ 38.
#[inline]
pub fn power_of_ten(n: u32) -> Option<i128> {
    POWERS.get(n as usize).copied()
}

/// Whether an unscaled value has at most `precision` digits.
#[inline]
pub fn fits_precision(value: i128, precision: u8) -> bool {
    power_of_ten(u32::from(precision))
        .is_some_and(|limit| value.unsigned_abs() < limit.unsigned_abs())
}
