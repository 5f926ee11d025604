//! Why a transfer failed, by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::formats::lzop::LzopError;
use crate::formats::tar_partition::{MemberPathError, TooLarge};
use crate::formats::wal_page::WalPageError;
use crate::storage::{self, StorageError};

/// What the caller can do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The store said that the object does not exist.
    NotFound,
    /// The store could not be reached or kept failing.
    Unavailable,
    /// The archive, the command line or the credentials are wrong: a person has to look.
    User,
    /// A file could not be read or written here.
    Local,
}

/// A transfer that failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file could not be read or written.
    #[error("could not {verb} \"{}\"", path.display())]
    File {
        /// Completes "could not …".
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file changed while it was archived.
    #[error("\"{}\" changed while it was being archived", .0.display())]
    FileChanged(PathBuf),
    /// Not a good lzop stream.
    #[error("\"{url}\" is damaged")]
    Lzop {
        /// The object.
        url: String,
        /// What is wrong with it.
        source: LzopError,
    },
    /// Decodes, but is not what its name says.
    #[error("\"{url}\" is not the segment that its name says")]
    NotTheSegment {
        /// The object.
        url: String,
        /// How it differs.
        source: WalPageError,
    },
    /// Decodes to more than the file it should be can hold.
    #[error("\"{url}\" decompresses to more than {limit} bytes")]
    TooLong {
        /// The object.
        url: String,
        /// The most that was acceptable.
        limit: u64,
    },
    /// The key is taken by other bytes.
    #[error("\"{url}\" already exists with different contents")]
    Conflict {
        /// The object.
        url: String,
    },
    /// A tar stream that cannot be read.
    #[error("the tar stream in \"{url}\" is damaged near its byte {offset}")]
    Tar {
        /// The object.
        url: String,
        /// How many plain bytes had been read.
        offset: u64,
        /// What the tar reader said.
        source: io::Error,
    },
    /// A member that would be written outside of the destination.
    #[error("refusing to extract from \"{url}\"")]
    UnsafeMember {
        /// The object.
        url: String,
        /// Why.
        source: UnsafeMember,
    },
    /// A file that no object can hold.
    #[error("a file is too large to be archived")]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// How large.
        source: TooLarge,
    },
}

/// Why a member may not be extracted.
#[derive(Debug, thiserror::Error)]
pub enum UnsafeMember {
    /// Its name.
    #[error(transparent)]
    Name(#[from] MemberPathError),
    /// A link in its way.
    #[error("member \"{}\" leads through the symbolic link \"{}\", which is no tablespace of this backup", member.display(), link.display())]
    ThroughLink {
        /// The member.
        member: PathBuf,
        /// The link.
        link: PathBuf,
    },
    /// A kind of member that no backup has.
    #[error("member \"{}\" is of the unsupported tar type \"{kind}\"", member.display())]
    Kind {
        /// The member.
        member: PathBuf,
        /// The type byte as a character.
        kind: char,
    },
}

/// What the user can do about a file that could not be read or written, if anything is known.
pub(crate) fn file_hint(failed: &io::Error) -> Option<String> {
    use io::ErrorKind as E;
    let hint = match failed.kind() {
        E::StorageFull | E::QuotaExceeded => "The disk is full. Free some space and run the same command again.",
        E::ReadOnlyFilesystem => "The file system is mounted read-only.",
        E::PermissionDenied => "Run the command as the user that owns the data directory.",
        _ => return None,
    };
    Some(hint.into())
}

impl TransferError {
    pub(crate) fn file(verb: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { verb, path, source }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Storage(failed) => match failed.kind() {
                storage::Kind::NotFound => Kind::NotFound,
                storage::Kind::Unavailable | storage::Kind::Changed => Kind::Unavailable,
                storage::Kind::Credentials | storage::Kind::Denied | storage::Kind::Misconfigured => Kind::User,
                storage::Kind::Other => Kind::Local,
            },
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Kind::User,
            Self::File { .. } | Self::FileChanged(_) => Kind::Local,
            Self::Lzop { .. }
            | Self::NotTheSegment { .. }
            | Self::TooLong { .. }
            | Self::Conflict { .. }
            | Self::Tar { .. }
            | Self::UnsafeMember { .. }
            | Self::TooLarge { .. } => Kind::User,
        }
    }

    /// What the user can do about it, if anything is known: whole sentences.
    pub fn hint(&self) -> Option<String> {
        use crate::formats::body_kind::BodyKind;
        Some(match self {
            Self::Storage(failed) => return failed.hint().map(str::to_owned),
            Self::Lzop { source: LzopError::NotLzop(BodyKind::OpenPgp), .. } => {
                "WAL-E encrypted this object with GPG, which wal-eve does not read. Decrypt the archive's objects in place with gpg first.".into()
            }
            Self::Lzop { source: LzopError::NotLzop(BodyKind::Empty), .. } => {
                "Something other than wal-eve wrote or truncated this object. Restore it from another copy of the archive.".into()
            }
            Self::Lzop { source: LzopError::NotLzop(kind), .. } if *kind != BodyKind::Unknown => {
                format!("Something other than WAL-E wrote this object: it is {kind}.")
            }
            Self::Lzop { .. } | Self::Tar { .. } | Self::NotTheSegment { .. } | Self::TooLong { .. } => {
                "The object in the archive is damaged. Restore it from another copy of the archive, or an older version of the object if the bucket keeps versions.".into()
            }
            Self::Conflict { .. } => {
                "Two clusters may be archiving to the same prefix, or this one was restored and promoted without a new timeline. Nothing was overwritten: give each cluster a prefix of its own.".into()
            }
            Self::FileChanged(_) => "Something other than PostgreSQL writes to this file.".into(),
            Self::TooLarge { path, source } => format!(
                "\"{}\" has {} bytes. Move it out of the data directory if it does not belong there.",
                path.display(),
                source.size
            ),
            Self::File { source, .. } => return file_hint(source),
            Self::UnsafeMember { .. } => "Nothing was written outside of the destination. The backup was not made by WAL-E or wal-eve, or was tampered with.".into(),
        })
    }
}
