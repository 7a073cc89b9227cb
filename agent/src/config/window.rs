//! Hours of the day, as `snapshot.window` names them: `22:00-06:00`.
//!
//! A window may go over midnight. Its times are UTC unless an offset follows, or `local`:
//! the time of the machine (`TZ`, or its own), which knows of summer time.

use chrono::{DateTime, FixedOffset, Local, NaiveTime, Timelike, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// The schema format of windows.
pub(super) const WINDOW_FORMAT: &str = "caudal-window";
/// What errors show.
pub(super) const WINDOW_EXAMPLE: &str = "\"22:00-06:00\" or \"22:00-06:00 +02:00\"";

const DAY: u32 = 24 * 60;

/// Whose clock a window's times are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zone {
    Offset(FixedOffset),
    Local,
}

/// A part of every day; minutes since midnight, the last one excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    opens: u32,
    closes: u32,
    zone: Zone,
}

impl Window {
    fn time(&self, now: DateTime<Utc>) -> NaiveTime {
        match self.zone {
            Zone::Offset(offset) => now.with_timezone(&offset).time(),
            Zone::Local => now.with_timezone(&Local).time(),
        }
    }

    fn is_open(&self, now: DateTime<Utc>) -> bool {
        let time = self.time(now);
        let minute = time.hour() * 60 + time.minute();
        if self.opens < self.closes {
            (self.opens..self.closes).contains(&minute)
        } else {
            minute >= self.opens || minute < self.closes
        }
    }

    /// Minutes until it opens.
    fn wait(&self, now: DateTime<Utc>) -> u32 {
        let time = self.time(now);
        (self.opens + DAY - (time.hour() * 60 + time.minute())) % DAY
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a window; write it like {WINDOW_EXAMPLE}");
        let (times, zone) = match text.trim().split_once(char::is_whitespace) {
            Some((times, zone)) => (times, zone.trim()),
            None => (text.trim(), "UTC"),
        };
        let zone = match zone {
            "UTC" | "Z" => Zone::Offset(FixedOffset::east_opt(0).ok_or_else(wrong)?),
            "local" => Zone::Local,
            zone => Zone::Offset(offset(zone).ok_or_else(|| {
                format!("`{zone}` is not a zone; the zones are `UTC`, `local` and offsets such as `+02:00`")
            })?),
        };
        let (opens, closes) = times.split_once('-').ok_or_else(wrong)?;
        let minute = |t: &str| {
            clock(t)
                .filter(|m| *m <= DAY)
                .map(|m| m % DAY)
                .ok_or_else(wrong)
        };
        let (opens, closes) = (minute(opens)?, minute(closes)?);
        if opens == closes {
            return Err(format!(
                "`{text}` opens and closes at the same time; remove it for the whole day"
            ));
        }
        Ok(Window {
            opens,
            closes,
            zone,
        })
    }
}

/// `HH:MM` in minutes.
fn clock(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |t: &str| {
        let plain = t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| t.parse::<u32>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60).then_some(hours * 60 + minutes)
}

fn offset(text: &str) -> Option<FixedOffset> {
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let minutes = clock(&text[1..]).filter(|m| *m < DAY)?;
    FixedOffset::east_opt(sign * i32::try_from(minutes).ok()? * 60)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, b) = (self.opens, self.closes);
        write!(f, "{:02}:{:02}-{:02}:{:02}", a / 60, a % 60, b / 60, b % 60)?;
        match self.zone {
            Zone::Offset(o) if o.local_minus_utc() == 0 => Ok(()),
            Zone::Offset(o) => write!(f, " {o}"),
            Zone::Local => f.write_str(" local"),
        }
    }
}

/// The windows of a day; none means always.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows(Vec<Window>);

impl Windows {
    /// The moment at which the next one opens, or `None` while one is open.
    pub fn closed_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if self.0.iter().any(|w| w.is_open(now)) {
            return None;
        }
        let wait = self.0.iter().map(|w| w.wait(now)).min()?;
        let minute = now.timestamp() / 60 + i64::from(wait);
        DateTime::from_timestamp(minute * 60, 0)
    }
}

impl Serialize for Windows {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.0.iter().map(Window::to_string))
    }
}

impl<'de> Deserialize<'de> for Windows {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Text {
            One(String),
            Many(Vec<String>),
        }
        let texts = match Text::deserialize(d)? {
            // An environment variable holds no list.
            Text::One(text) => text.split(',').map(str::to_owned).collect(),
            Text::Many(texts) => texts,
        };
        let windows: Result<Vec<Window>, String> = texts.iter().map(|t| t.parse()).collect();
        windows.map(Windows).map_err(serde::de::Error::custom)
    }
}

/// The schema of windows.
pub(super) struct WindowsText;

impl JsonSchema for WindowsText {
    fn schema_name() -> Cow<'static, str> {
        "Windows".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "array"],
            "items": {"type": "string"},
            "format": WINDOW_FORMAT,
            "examples": ["22:00-06:00", ["12:00-13:00 +02:00", "22:00-06:00 +02:00"]],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-11-21T{text}:30Z").parse().unwrap()
    }

    fn windows(texts: &[&str]) -> Windows {
        Windows(texts.iter().map(|t| t.parse().unwrap()).collect())
    }

    #[test]
    fn a_window_opens_and_closes_by_its_clock() {
        let night = windows(&["22:00-06:00"]);
        for open in ["22:00", "23:59", "00:00", "05:59"] {
            assert_eq!(night.closed_until(at(open)), None, "{open}");
        }
        let opens = "2026-11-21T22:00:00Z".parse().unwrap();
        for closed in ["06:00", "12:00", "21:59"] {
            assert_eq!(night.closed_until(at(closed)), Some(opens), "{closed}");
        }
        let berlin = windows(&["12:00-24:00 +02:00"]);
        assert_eq!(berlin.closed_until(at("10:00")), None);
        assert!(berlin.closed_until(at("22:00")).is_some());
        assert!(berlin.closed_until(at("09:59")).is_some());
        let two = windows(&["22:00-06:00", "12:00-13:00"]);
        assert_eq!(two.closed_until(at("12:59")), None);
        assert_eq!(
            two.closed_until(at("07:15")),
            Some("2026-11-21T12:00:00Z".parse().unwrap())
        );
        assert_eq!(Windows::default().closed_until(at("07:15")), None);
    }

    #[test]
    fn mistakes_say_what_is_allowed() {
        let said = |t: &str| t.parse::<Window>().unwrap_err();
        for bad in [
            "",
            "22-6",
            "22:00",
            "25:00-06:00",
            "22:60-06:00",
            "2:00-06:00",
            "+1:00-06:00",
        ] {
            assert!(said(bad).contains("write it like"), "{bad}: {}", said(bad));
        }
        assert!(said("22:00-06:00 Mars").contains("`Mars` is not a zone"));
        assert!(said("06:00-06:00").contains("whole day"));
        for same in ["22:00-06:00", "22:00-06:00 +02:00", "01:30-02:00 local"] {
            assert_eq!(same.parse::<Window>().unwrap().to_string(), same);
        }
    }
}
