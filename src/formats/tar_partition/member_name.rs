//! A member's name as it stands in a tar, made safe to join to a destination.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Where a member goes below the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberPath {
    /// The destination itself: `/`, `.`, `./` or nothing.
    Root,
    /// A path of ordinary components only.
    Below(PathBuf),
}

/// A name that leads out of the destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the member name \"{0}\" leads outside of the destination")]
pub struct MemberPathError(String);

impl MemberPath {
    /// Reads the name of a member that any WAL-E or tar wrote (§4.4, RULE; §5.4, RULE).
    pub fn from_bytes(name: &[u8]) -> Result<Self, MemberPathError> {
        let refuse = || MemberPathError(String::from_utf8_lossy(name).into_owned());
        if name == b"/" {
            return Ok(Self::Root);
        }
        if name.contains(&0) {
            return Err(refuse());
        }
        let mut path = PathBuf::new();
        for component in Path::new(OsStr::from_bytes(name)).components() {
            match component {
                Component::CurDir => {}
                Component::Normal(part) => path.push(part),
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(refuse()),
            }
        }
        Ok(if path.as_os_str().is_empty() { Self::Root } else { Self::Below(path) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_writer_are_read() {
        for root in ["/", "", ".", "./"] {
            assert_eq!(MemberPath::from_bytes(root.as_bytes()), Ok(MemberPath::Root), "{root:?}");
        }
        for (name, path) in [
            ("base/1/", "base/1"),
            ("./PG_VERSION", "PG_VERSION"),
            ("a//b", "a/b"),
            ("...", "..."),
            ("\u{fc}", "\u{fc}"),
        ] {
            assert_eq!(MemberPath::from_bytes(name.as_bytes()), Ok(MemberPath::Below(path.into())), "{name:?}");
        }
    }

    #[test]
    fn names_that_lead_outside_are_refused() {
        for name in ["..", "../x", "a/../../x", "a/..", "/etc/passwd", "//", "/x", "a\0b", "./../x"] {
            assert!(MemberPath::from_bytes(name.as_bytes()).is_err(), "accepted {name:?}");
        }
    }
}
