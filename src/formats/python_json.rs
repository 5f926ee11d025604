//! JSON as Python's `json.dumps` writes it: one line, `", "` and `": "`, everything beyond ASCII escaped
//! (`spec/wal-e-format.md` §1.5).

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// The text of `value`.
///
/// # Panics
/// Only when `value` cannot be JSON at all, such as a map with keys that are not text.
pub fn to_string(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut out, PythonFormatter))
        .expect("a Vec takes every write, and the archive's values have text as keys");
    String::from_utf8(out).expect("the formatter writes ASCII only")
}

struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut units = [0; 2];
        for c in fragment.chars() {
            if c.is_ascii() {
                write!(writer, "{c}")?;
            } else {
                for unit in c.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spacing_and_escapes_are_pythons() {
        let value = json!({"b": ["x", 1], "a": {}, "ü": "\u{1f600}\n\u{7f}"});
        assert_eq!(to_string(&value), "{\"b\": [\"x\", 1], \"a\": {}, \"\\u00fc\": \"\\ud83d\\ude00\\n\u{7f}\"}");
    }
}
