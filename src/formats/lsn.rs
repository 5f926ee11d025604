//! A log sequence number: a byte position in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use super::ParseError;

/// A position in the write-ahead log, in bytes from its beginning. Text form: `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ParseError;

    /// Accepts what PostgreSQL's `pg_lsn` accepts: two hexadecimal numbers of one to eight digits around a slash.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse = |half: &str| {
            let well_formed = (1..=8).contains(&half.len()) && half.bytes().all(|b| b.is_ascii_hexdigit());
            well_formed.then(|| u64::from_str_radix(half, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(parse(high)? << 32 | parse(low)?)))
            .ok_or_else(|| ParseError::new("an LSN", text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "1A/F0000028"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        assert_eq!("2/16B374D8".parse::<Lsn>().unwrap(), Lsn(0x2_16B3_74D8));
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in ["", "/", "0/", "/0", "0", "0/0/0", "0/123456789", "123456789/0", "+1/0", "0/-1", "0/G", " 0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "accepted {text:?}");
        }
    }
}
