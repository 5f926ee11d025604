//! A WAL segment as a file: whether it is what its name says.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::formats::wal_name::SegmentName;
use crate::formats::wal_page::{LONG_HEADER_LEN, LongPageHeader, check_segment};

/// The header of the file's first page.
///
/// # Errors
///
/// When the file cannot be read, or is not segment `name`: cut short, another one, or one that waits to be reused.
pub fn first_page(file: &File, name: SegmentName) -> io::Result<LongPageHeader> {
    let mut start = [0; LONG_HEADER_LEN];
    file.read_exact_at(&mut start, 0)?;
    check_segment(name, &start, file.metadata()?.len()).map_err(io::Error::other)
}
