//! The backup manifest while its files are archived: on disk, since there may be millions.

use std::fs::File;
use std::io::{self, BufWriter, Seek as _, Write as _};
use std::sync::{Mutex, PoisonError};

use crate::formats::backup_manifest::{ManifestWriter, WalRange};
use crate::transfer::partition_upload::ArchivedFile;

/// A manifest being written by several partitions at once. Its file has no name, so nothing is left behind.
pub(super) struct ManifestSpool {
    inner: Mutex<Inner>,
}

struct Inner {
    writer: ManifestWriter,
    file: BufWriter<File>,
}

impl ManifestSpool {
    /// In `$TMPDIR`: about 200 bytes for each file of the cluster.
    pub(super) fn create() -> io::Result<Self> {
        let mut writer = ManifestWriter::default();
        let mut file = BufWriter::new(tempfile::tempfile()?);
        file.write_all(writer.begin().as_bytes())?;
        Ok(Self { inner: Mutex::new(Inner { writer, file }) })
    }

    /// Adds a file.
    pub(super) fn add(&self, archived: &ArchivedFile) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let text = inner.writer.file(&archived.name, archived.size, archived.mtime, archived.crc32c);
        inner.file.write_all(text.as_bytes())
    }

    /// The finished manifest, to be read from its beginning, and its size in bytes.
    pub(super) fn finish(self, wal: WalRange) -> io::Result<(File, u64)> {
        let Inner { writer, mut file } = self.inner.into_inner().unwrap_or_else(PoisonError::into_inner);
        file.write_all(writer.finish(wal).as_bytes())?;
        let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let size = file.stream_position()?;
        file.rewind()?;
        Ok((file, size))
    }
}
