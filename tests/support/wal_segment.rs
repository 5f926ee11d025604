//! WAL segments made by hand: a good first page and contents that differ from segment to segment. They have 1 MiB, so
//! that tests of many of them stay quick.

use std::fs;
use std::path::{Path, PathBuf};

/// The size of a segment in bytes.
pub const SEGMENT_BYTES: usize = 1 << 20;

/// The cluster that "wrote" them.
pub const SYSTEM_IDENTIFIER: u64 = 7_400_000_000_000_000_001;

/// The name of segment `number` of timeline 1.
pub fn segment_name(number: u32) -> String {
    format!("00000001{:08X}{:08X}", number / 4096, number % 4096)
}

/// Segment `number` of timeline 1: half of it compresses well, half not at all.
pub fn segment(number: u32) -> Vec<u8> {
    segment_of(SYSTEM_IDENTIFIER, number)
}

/// The same segment of another cluster.
pub fn segment_of(system_identifier: u64, number: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SEGMENT_BYTES);
    bytes.extend(0xD110_u16.to_le_bytes());
    bytes.extend(0x0002_u16.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend((u64::from(number) * SEGMENT_BYTES as u64).to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(system_identifier.to_le_bytes());
    bytes.extend((SEGMENT_BYTES as u32).to_le_bytes());
    bytes.extend(8192_u32.to_le_bytes());
    bytes.extend(noise(u64::from(number) ^ system_identifier, SEGMENT_BYTES / 2));
    bytes.resize(SEGMENT_BYTES, number as u8);
    bytes
}

/// Bytes that no compressor makes smaller.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 0x9e37_79b9_0000_0001;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// A data directory that looks like one to `wal-push` and `wal-fetch`: `PG_VERSION` and `pg_wal/archive_status`.
#[derive(Debug)]
pub struct WalDirectory(PathBuf);

impl WalDirectory {
    pub fn create(data_directory: &Path) -> Self {
        fs::create_dir_all(data_directory.join("pg_wal/archive_status")).unwrap();
        fs::write(data_directory.join("PG_VERSION"), "15\n").unwrap();
        Self(data_directory.to_owned())
    }

    pub fn data_directory(&self) -> &Path {
        &self.0
    }

    pub fn path(&self) -> PathBuf {
        self.0.join("pg_wal")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Puts segment `number` there and gives its path relative to the data directory, as `%p` would.
    pub fn add(&self, number: u32) -> String {
        let name = segment_name(number);
        fs::write(self.file(&name), segment(number)).unwrap();
        format!("pg_wal/{name}")
    }

    /// Puts segment `number` there, waiting to be archived.
    pub fn add_ready(&self, number: u32) -> String {
        let path = self.add(number);
        self.mark_ready(&segment_name(number));
        path
    }

    pub fn mark_ready(&self, name: &str) {
        fs::write(self.path().join("archive_status").join(format!("{name}.ready")), "").unwrap();
    }

    /// Every name in `pg_wal` but for `archive_status`, hidden ones too, ascending.
    pub fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "archive_status").collect();
        names.sort();
        names
    }
}
