//! What a `wal-fetch` and the prefetcher say to each other: a line each, through the prefetcher's socket.

use std::fmt;
use std::str::FromStr;

use crate::formats::ParseError;
use crate::formats::wal_name::SegmentName;

/// The longest line of either side.
pub const MAX_LINE_BYTES: usize = 4096;

/// What a caller says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// What it is about.
    pub about: About,
    /// The process whose end ends the need for prefetching.
    pub recovery: u32,
    /// The most segments to keep ahead; none for as many as there is room for.
    pub look_ahead: Option<usize>,
}

/// What a caller's line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// It needs this segment, which is not in the spool, and waits for a [`Reply`].
    Want(SegmentName),
    /// It took this segment from the spool, and waits for nothing.
    Took(SegmentName),
    /// It fetched this segment itself, and waits for nothing.
    Found(SegmentName),
    /// The prefetcher has another configuration than its callers now, and has to go.
    Retire,
}

/// What the prefetcher answers to [`About::Want`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The segment is on its way; said again and again, so that the caller can tell a slow network from a dead process.
    Wait,
    /// The segment is in the spool.
    Ready,
    /// The caller has to fetch it itself, for this reason.
    Direct(String),
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let look_ahead = self.look_ahead.map_or_else(|| "-".into(), |number| number.to_string());
        write!(f, "{} {look_ahead} ", self.recovery)?;
        match self.about {
            About::Want(name) => write!(f, "want {name}"),
            About::Took(name) => write!(f, "took {name}"),
            About::Found(name) => write!(f, "found {name}"),
            About::Retire => f.write_str("retire"),
        }
    }
}

impl FromStr for Ask {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Self, ParseError> {
        let refuse = || ParseError::new("a prefetcher's message", line);
        let words: Vec<&str> = line.split(' ').collect();
        let [recovery, look_ahead, about @ ..] = words.as_slice() else { return Err(refuse()) };
        let about = match about {
            ["want", name] => About::Want(name.parse()?),
            ["took", name] => About::Took(name.parse()?),
            ["found", name] => About::Found(name.parse()?),
            ["retire"] => About::Retire,
            _ => return Err(refuse()),
        };
        let look_ahead = match *look_ahead {
            "-" => None,
            number => Some(number.parse().map_err(|_| refuse())?),
        };
        Ok(Self { about, recovery: recovery.parse().map_err(|_| refuse())?, look_ahead })
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait => f.write_str("wait"),
            Self::Ready => f.write_str("ready"),
            Self::Direct(why) => write!(f, "direct {}", why.replace(['\n', '\r'], " ")),
        }
    }
}

impl FromStr for Reply {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Self, ParseError> {
        match line.split_once(' ') {
            None if line == "wait" => Ok(Self::Wait),
            None if line == "ready" => Ok(Self::Ready),
            Some(("direct", why)) => Ok(Self::Direct(why.to_owned())),
            _ => Err(ParseError::new("a prefetcher's answer", line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_round_trips() {
        let name = "0000000200000001000000FF".parse().unwrap();
        for about in [About::Want(name), About::Took(name), About::Found(name), About::Retire] {
            for look_ahead in [None, Some(8)] {
                let ask = Ask { about, recovery: 4711, look_ahead };
                assert_eq!(ask.to_string().parse::<Ask>().unwrap(), ask);
            }
        }
        for reply in [Reply::Wait, Reply::Ready, Reply::Direct("the disk is full".into()), Reply::Direct(String::new())]
        {
            assert_eq!(reply.to_string().parse::<Reply>().unwrap(), reply);
        }
        assert_eq!(Reply::Direct("a\nb".into()).to_string(), "direct a b", "one line in any case");
    }

    #[test]
    fn anything_else_is_refused() {
        for line in ["", "1 -", "1 - want", "1 - want x", "x - retire", "1 x retire", "1 - retire now", "1 - WANT 0000"]
        {
            assert!(line.parse::<Ask>().is_err(), "accepted {line:?}");
        }
        for line in ["", "Ready", "ready ", "direct"] {
            assert!(line.parse::<Reply>().is_err(), "accepted {line:?}");
        }
    }
}
