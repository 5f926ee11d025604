//! The URL under which an archive lies: `WALE_S3_PREFIX`, `WALE_FILE_PREFIX` (`spec/wal-e-format.md` §1.1).

use std::fmt;
use std::str::FromStr;

/// Which kind of store a prefix names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Amazon S3 or a server that speaks its protocol.
    S3,
    /// A local directory.
    File,
}

/// A parsed prefix. Runs of slashes are one slash, as WAL-E's S3 client makes them on every read and write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixUrl {
    scheme: Scheme,
    authority: String,
    path: String,
}

/// Why a text is no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixUrlError {
    /// There is no `scheme://`.
    #[error("\"{0}\" is not a URL with a scheme such as s3:// or file://")]
    NoScheme(String),
    /// A scheme that WAL-E knows and wal-eve does not.
    #[error("stores of the kind \"{0}://\" are not supported")]
    UnsupportedScheme(String),
    /// A scheme that nobody knows.
    #[error("unknown scheme in \"{0}\"")]
    UnknownScheme(String),
    /// No bucket.
    #[error("\"{0}\" names no bucket")]
    NoBucket(String),
    /// `?` or `#`, after which WAL-E ignores everything and writes every object under one key.
    #[error("\"{0}\" contains \"{1}\", which no object's name may")]
    ForbiddenCharacter(String, char),
    /// A `file://` prefix without a path.
    #[error("\"{0}\" names no directory")]
    NoDirectory(String),
}

impl PrefixUrl {
    /// Which kind of store it names.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The bucket. Conventionally `localhost`, and ignored, for `file://`.
    pub fn bucket(&self) -> &str {
        &self.authority
    }

    /// What all keys begin with: empty, or ending in a slash and not beginning with one.
    pub fn key_prefix(&self) -> String {
        if self.path.is_empty() { String::new() } else { format!("{}/", self.path) }
    }

    /// The absolute directory of a `file://` prefix.
    pub fn directory(&self) -> String {
        format!("/{}", self.path)
    }
}

impl FromStr for PrefixUrl {
    type Err = PrefixUrlError;

    fn from_str(text: &str) -> Result<Self, PrefixUrlError> {
        let owned = || text.to_owned();
        let (scheme, rest) = text.split_once("://").ok_or_else(|| PrefixUrlError::NoScheme(owned()))?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "s3" => Scheme::S3,
            "file" => Scheme::File,
            known @ ("wabs" | "gs" | "swift") => return Err(PrefixUrlError::UnsupportedScheme(known.to_owned())),
            _ => return Err(PrefixUrlError::UnknownScheme(owned())),
        };
        if let Some(forbidden) = rest.chars().find(|c| matches!(c, '?' | '#')) {
            return Err(PrefixUrlError::ForbiddenCharacter(owned(), forbidden));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        if scheme == Scheme::S3 && authority.is_empty() {
            return Err(PrefixUrlError::NoBucket(owned()));
        }
        if scheme == Scheme::File && path.is_empty() {
            return Err(PrefixUrlError::NoDirectory(owned()));
        }
        Ok(Self { scheme, authority: authority.to_owned(), path })
    }
}

impl fmt::Display for PrefixUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::S3 => "s3",
            Scheme::File => "file",
        };
        write!(f, "{scheme}://{}", self.authority)?;
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_prefixes_holds() {
        // §1.1; doubled slashes are collapsed for reading as well as for writing
        for (text, bucket, prefix) in [
            ("s3://foo", "foo", ""),
            ("s3://foo/", "foo", ""),
            ("s3://foo/bar", "foo", "bar/"),
            ("s3://foo/bar/", "foo", "bar/"),
            ("S3://b/p/q", "b", "p/q/"),
            ("s3://b//p", "b", "p/"),
            ("s3://b/p//", "b", "p/"),
            ("s3://b/a//b", "b", "a/b/"),
            ("s3://b/p%20q", "b", "p%20q/"),
        ] {
            let url: PrefixUrl = text.parse().unwrap();
            assert_eq!((url.bucket(), url.key_prefix().as_str()), (bucket, prefix), "{text}");
        }
        let file: PrefixUrl = "file://localhost/srv//archive/".parse().unwrap();
        assert_eq!((file.scheme(), file.directory().as_str()), (Scheme::File, "/srv/archive"));
        assert_eq!(file.to_string(), "file://localhost/srv/archive");
        assert_eq!("s3://b/a//b/".parse::<PrefixUrl>().unwrap().to_string(), "s3://b/a/b");
    }

    #[test]
    fn what_would_lose_objects_is_refused() {
        for text in [
            "",
            "b/p",
            "s3:/b",
            "http://b/p",
            "s3://",
            "s3:///p",
            "s3://b/p?x",
            "s3://b/p#x",
            "gs://b/p",
            "file://localhost",
            "file://localhost//",
        ] {
            assert!(text.parse::<PrefixUrl>().is_err(), "accepted {text:?}");
        }
    }
}
