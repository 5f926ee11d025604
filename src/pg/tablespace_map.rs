//! `tablespace_map`: the links that a server makes in `pg_tblspc` when it first starts on a base backup.
//!
//! One line a tablespace: its OID, a space, its location. In the location a newline, carriage return or backslash has a
//! backslash before it. The server makes these links over whatever a restore made (`spec/postgres-rules.md`), so
//! a restore to other places has to rewrite the file.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::tablespace::Tablespace;
use super::{Kind, PgError, Result};

/// The content of a `tablespace_map`, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TablespaceMap {
    /// The links to make.
    pub tablespaces: Vec<Tablespace>,
}

impl TablespaceMap {
    /// Reads the file's bytes. Empty is no tablespaces.
    ///
    /// # Errors
    ///
    /// [`Kind::Damaged`] when a line is not an OID and a location, or the last line has no end.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut tablespaces = Vec::new();
        let mut line = Vec::new();
        let mut bytes = bytes.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            match byte {
                b'\\' => match bytes.next_if(|next| matches!(next, b'\n' | b'\r' | b'\\')) {
                    Some(escaped) => line.push(escaped),
                    None => line.push(byte),
                },
                b'\n' | b'\r' if line.is_empty() => {}
                b'\n' | b'\r' => tablespaces.push(parse_line(&std::mem::take(&mut line))?),
                _ => line.push(byte),
            }
        }
        if line.is_empty() { Ok(Self { tablespaces }) } else { Err(malformed(&line)) }
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Tablespace { oid_name, location } in &self.tablespaces {
            bytes.extend(oid_name.as_bytes());
            bytes.push(b' ');
            for byte in location.as_os_str().as_bytes() {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    bytes.push(b'\\');
                }
                bytes.push(*byte);
            }
            bytes.push(b'\n');
        }
        bytes
    }

    /// Points each tablespace to where `location_of` says, given its OID and present place; where it says none, the
    /// line is dropped.
    #[must_use]
    pub fn relocated(self, mut location_of: impl FnMut(&Tablespace) -> Option<PathBuf>) -> Self {
        let moved = |tablespace: Tablespace| {
            location_of(&tablespace).map(|location| Tablespace { oid_name: tablespace.oid_name, location })
        };
        Self { tablespaces: self.tablespaces.into_iter().filter_map(moved).collect() }
    }
}

fn parse_line(line: &[u8]) -> Result<Tablespace> {
    let at = line.iter().position(|b| *b == b' ').ok_or_else(|| malformed(line))?;
    let (oid, location) = (&line[..at], &line[at + 1..]);
    let oid_name = std::str::from_utf8(oid).map_err(|_| malformed(line))?;
    let is_oid = !oid_name.starts_with('+') && oid_name.parse::<u32>().is_ok_and(|oid| oid != 0);
    if !is_oid || location.is_empty() {
        return Err(malformed(line));
    }
    Ok(Tablespace { oid_name: oid_name.to_owned(), location: OsString::from_vec(location.to_vec()).into() })
}

fn malformed(line: &[u8]) -> PgError {
    PgError::new(Kind::Damaged, "the tablespace map has a line that is not an OID and a location")
        .with_detail(format!("The line is {:?}.", String::from_utf8_lossy(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tablespace(oid: &str, location: &str) -> Tablespace {
        Tablespace { oid_name: oid.into(), location: location.into() }
    }

    #[test]
    fn text_round_trips() {
        for (text, tablespaces) in [
            ("", vec![]),
            ("16384 /mnt/ts1\n", vec![tablespace("16384", "/mnt/ts1")]),
            ("16385 /a b\n16384 /c\n", vec![tablespace("16385", "/a b"), tablespace("16384", "/c")]),
            ("1 /a\\\nb\\\rc\\\\d\n", vec![tablespace("1", "/a\nb\rc\\d")]),
        ] {
            let map = TablespaceMap::parse(text.as_bytes()).unwrap();
            assert_eq!(map.tablespaces, tablespaces, "{text:?}");
            assert_eq!(map.to_bytes(), text.as_bytes());
        }
    }

    #[test]
    fn malformed_lines_are_refused() {
        for text in
            ["16384", "16384\n", "16384 \n", " /a\n", "x /a\n", "0 /a\n", "+1 /a\n", "1 /a", "1 /a\\\n", "-1 /a\n"]
        {
            assert_eq!(TablespaceMap::parse(text.as_bytes()).unwrap_err().kind(), Kind::Damaged, "{text:?}");
        }
    }

    #[test]
    fn relocation_moves_some_and_drops_others() {
        let map = TablespaceMap::parse(b"1 /a\n2 /b\n3 /c\n").unwrap();
        let moved = map.relocated(|tablespace| match tablespace.oid_name.as_str() {
            "1" => Some("/new".into()),
            "2" => None,
            _ => Some(tablespace.location.clone()),
        });
        assert_eq!(moved.to_bytes(), b"1 /new\n3 /c\n");
    }
}
