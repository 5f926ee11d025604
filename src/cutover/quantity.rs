//! Times and sizes as a plan writes them: "30 s", "2 min", "500 MB".

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A time: a number and one of ms, s, min, h, d.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

/// A number of bytes: a number and one of B, kB, MB, GB, TB, each 1024 times the one before, as in PostgreSQL's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let milliseconds =
            scaled(&text, &[("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)]);
        milliseconds.map(|number| Self(Duration::from_millis(number))).ok_or_else(|| {
            de::Error::custom(format!("\"{text}\" is no time; write it as \"30 s\", with ms, s, min, h or d"))
        })
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = scaled(&text, &[("B", 1), ("kB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30), ("TB", 1 << 40)]);
        bytes.map(Self).ok_or_else(|| {
            de::Error::custom(format!("\"{text}\" is no size; write it as \"500 MB\", with B, kB, MB, GB or TB"))
        })
    }
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = (text[..digits].parse::<u64>().ok()?, text[digits..].trim());
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*scale)
}

/// For messages: "1.4 GB".
pub fn bytes_text(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut scaled = bytes as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < units.len() {
        (scaled, unit) = (scaled / 1024.0, unit + 1);
    }
    if unit == 0 || scaled >= 100.0 {
        format!("{scaled:.0} {}", units[unit])
    } else {
        format!("{scaled:.1} {}", units[unit])
    }
}

/// For messages: "4.2 s", "3 min 5 s", "2 h 10 min".
pub fn time_text(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds @ 3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        seconds => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_has_a_unit() {
        let time = |text: &str| serde_json::from_value::<Time>(text.into()).ok().map(|time| time.0);
        let bytes = |text: &str| serde_json::from_value::<Bytes>(text.into()).ok().map(|bytes| bytes.0);
        assert_eq!(time("30 s"), Some(Duration::from_secs(30)));
        assert_eq!(time("2min"), Some(Duration::from_secs(120)));
        assert_eq!(bytes("500 MB"), Some(500 << 20));
        assert_eq!(bytes("0 B"), Some(0));
        for nonsense in ["", "30", "s", "1.5 s", "-1 s", "1 m", "99999999999999999 TB"] {
            assert_eq!((time(nonsense), bytes(nonsense)), (None, None), "{nonsense}");
        }
    }

    #[test]
    fn a_person_reads_two_units_at_most() {
        assert_eq!([0, 1023, 1536, 200 << 30].map(bytes_text), ["0 B", "1023 B", "1.5 kB", "200 GB"]);
        let texts = [4200, 185_000, 7_800_000].map(|ms| time_text(Duration::from_millis(ms)));
        assert_eq!(texts, ["4.2 s", "3 min 5 s", "2 h 10 min"]);
    }
}
