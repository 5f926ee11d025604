//! The members that only the backup's end can give.

use std::os::unix::fs::MetadataExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use crc32c::crc32c;

use super::manifest_spool::ManifestSpool;
use super::{CommandError, Result};
use crate::formats::backup_manifest::WalRange;
use crate::pg::data_directory::DataDirectory;
use crate::transfer::partition_upload::{ArchivedFile, Member, Source};

/// Makes the last partition's members: `files` by name and contents, in order, and the manifest, which has them in it.
pub(super) fn members(
    directory: &DataDirectory,
    files: Vec<(String, Bytes)>,
    manifest: ManifestSpool,
    wal: WalRange,
) -> Result<Vec<Member>> {
    let root = directory.path().metadata().map_err(CommandError::file("examine", directory.path()))?;
    let mtime = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let member = |name: &str, source| Member {
        name: name.as_bytes().to_vec(),
        source,
        mode: 0o600,
        uid: root.uid(),
        gid: root.gid(),
        mtime,
    };
    let spooled = |failed| CommandError::file("write to", std::env::temp_dir())(failed);
    let mut members = Vec::new();
    for (name, contents) in files {
        let archived = ArchivedFile {
            name: name.as_bytes().to_vec(),
            size: contents.len() as u64,
            mtime,
            crc32c: crc32c(&contents),
        };
        manifest.add(&archived).map_err(spooled)?;
        members.push(member(&name, Source::Bytes(contents)));
    }
    let (file, size) = manifest.finish(wal).map_err(spooled)?;
    members.push(member("backup_manifest", Source::Open(file, size)));
    Ok(members)
}
