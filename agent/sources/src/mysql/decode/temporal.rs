//! Dates and times in their packed forms.

use super::big_endian;
use std::io::Write as _;

/// Days since 1970-01-01, or `None` for a zero, partial or impossible date.
pub fn days(year: u32, month: u32, day: u32) -> Option<i32> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let in_month = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        _ => return None,
    };
    if !(1..=9999).contains(&year) || day == 0 || day > in_month {
        return None;
    }
    // Years begin in March here, so that the leap day is a year's last.
    let y = i64::from(if month <= 2 { year - 1 } else { year });
    let m = i64::from((month + 9) % 12);
    let day_of_year = (153 * m + 2) / 5 + i64::from(day) - 1;
    Some((y * 365 + y / 4 - y / 100 + y / 400 + day_of_year - 719_468) as i32)
}

/// Year, month, day, hour, minute, second, microsecond.
pub(in crate::mysql) type Parts = (u32, u32, u32, u32, u32, u32, u32);

pub(in crate::mysql) fn instant((y, mo, d, h, mi, s, us): Parts) -> Option<i64> {
    if h > 23 || mi > 59 || s > 59 {
        return None;
    }
    let seconds = i64::from(days(y, mo, d)?) * 86_400 + i64::from(h * 3600 + mi * 60 + s);
    Some(seconds * 1_000_000 + i64::from(us))
}

/// The parts of a packed datetime: a date and time above 24 bits of microseconds.
pub fn unpack_datetime(packed: u64) -> Parts {
    let (us, v) = ((packed & 0xff_ffff) as u32, packed >> 24);
    let (ymd, hms) = (v >> 17, (v & 0x1_ffff) as u32);
    let ym = (ymd >> 5) as u32;
    (
        ym / 13,
        ym % 13,
        (ymd & 31) as u32,
        hms >> 12,
        (hms >> 6) & 63,
        hms & 63,
        us,
    )
}

pub(super) fn fraction(bytes: &[u8]) -> u32 {
    let v = big_endian(bytes) as u32;
    match bytes.len() {
        0 => 0,
        1 => v.saturating_mul(10_000),
        2 => v.saturating_mul(100),
        _ => v,
    }
}

/// Writes `-838:59:59.999999` with `digits` digits after the second.
pub fn write_time(out: &mut Vec<u8>, negative: bool, hms: (u64, u32, u32), us: u32, digits: u8) {
    let (h, m, s) = hms;
    let sign = if negative { "-" } else { "" };
    // Writing to a vector cannot fail.
    let _ = write!(out, "{sign}{h:02}:{m:02}:{s:02}");
    if digits > 0 {
        let us = us.min(999_999);
        let cut = us / 10u32.pow(6 - u32::from(digits.min(6)));
        let _ = write!(out, ".{cut:0width$}", width = usize::from(digits.min(6)));
    }
}

/// Sign, (hours, minutes, seconds) and microseconds of a packed time.
pub fn unpack_time(packed: i64) -> (bool, (u64, u32, u32), u32) {
    let v = packed.unsigned_abs();
    let hms = v >> 24;
    let parts = (
        (hms >> 12) & 0x3ff,
        ((hms >> 6) & 63) as u32,
        (hms & 63) as u32,
    );
    (packed < 0, parts, (v & 0xff_ffff) as u32)
}

pub(super) fn log_time(bytes: &[u8]) -> i64 {
    let (whole, part) = bytes.split_at_checked(3).unwrap_or((bytes, &[]));
    if part.len() == 3 {
        return big_endian(bytes) as i64 - 0x8000_0000_0000;
    }
    let mut whole = big_endian(whole) as i64 - 0x80_0000;
    let mut part_value = big_endian(part) as i64;
    // The fraction of a negative time is stored as a complement.
    if whole < 0 && part_value != 0 {
        whole += 1;
        part_value -= 1 << (8 * part.len());
    }
    let us = part_value * if part.len() == 1 { 10_000 } else { 100 };
    (whole << 24) + us
}

/// The parts of a timestamp, in UTC; the zero timestamp is the zero date.
pub(super) fn moment(seconds: u64, us: u32) -> Parts {
    if seconds == 0 && us == 0 {
        return (0, 0, 0, 0, 0, 0, 0);
    }
    let (day, second) = (seconds / 86_400, (seconds % 86_400) as u32);
    // Years begin in March here, counted from the year 0.
    let shifted = day + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let d = (of_year - (153 * from_march + 2) / 5 + 1) as u32;
    let m = (if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    }) as u32;
    let y = (year_of_era + era * 400) as u32 + u32::from(m <= 2);
    (y, m, d, second / 3600, second / 60 % 60, second % 60, us)
}

/// Writes `2024-01-02 03:04:05.678` with `digits` digits after the second.
pub(super) fn write_moment(out: &mut Vec<u8>, parts: Parts, digits: u8) {
    let (y, mo, d, h, mi, s, us) = parts;
    // Writing to a vector cannot fail.
    let _ = write!(out, "{y:04}-{mo:02}-{d:02} ");
    write_time(out, false, (h.into(), mi, s), us, digits);
}
