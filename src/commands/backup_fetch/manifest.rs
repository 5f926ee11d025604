//! The restored `backup_manifest`, which has to tell of the files as the restore made them.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;

use crate::commands::{CommandError, Result};
use crate::formats::backup_manifest::ManifestEditor;
use crate::fs::staged::StagedFile;

/// Edits the manifest, line by line since it may be of millions of files. A backup of WAL-E has none.
pub(super) fn edit(root: &Path, mut editor: ManifestEditor) -> Result<()> {
    let path = root.join("backup_manifest");
    let manifest = match File::open(&path) {
        Ok(manifest) => manifest,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(failed) => return Err(CommandError::file("read", &path)(failed)),
    };
    let rewrite = || {
        let staged = StagedFile::create(&path)?;
        let mut lines = BufReader::new(manifest);
        let mut written = BufWriter::new(staged.file());
        let mut line = String::new();
        while lines.read_line(&mut line)? > 0 {
            written.write_all(editor.line(&line).as_bytes())?;
            line.clear();
        }
        written.flush()?;
        drop(written);
        staged.publish()
    };
    rewrite().map_err(CommandError::file("rewrite", &path))
}
