//! A base backup made by hand, object by object, so that a test can damage any byte of it. It needs no server: its control
//! file is a good one, but nothing could start on it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use wal_eve::formats::lzo1x::Level;
use wal_eve::formats::lzop::{BLOCK_SIZE, BlockEncoder, TERMINATOR, encode_header};

use super::S3Server;
use super::wal_segment::{noise, segment, segment_name};

/// The name of the backup: it begins in segment 2 and stops in segment 4.
pub const BACKUP: &str = "base_000000010000000000000002_00000040";

/// The segments that it needs.
pub const NEEDED_SEGMENTS: [u32; 3] = [2, 3, 4];

/// A tar member as raw as a test wants it.
#[derive(Debug, Clone)]
pub struct RawMember {
    pub name: String,
    /// The type byte of the header: `0` a file, `5` a directory, `2` a symbolic link.
    pub kind: u8,
    pub link: String,
    pub contents: Vec<u8>,
    /// The name of the owner and of its group.
    pub owner: String,
}

impl RawMember {
    pub fn file(name: &str, contents: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), kind: b'0', link: String::new(), contents: contents.into(), owner: String::new() }
    }

    pub fn directory(name: &str) -> Self {
        Self { kind: b'5', ..Self::file(name, "") }
    }

    pub fn symlink(name: &str, target: &str) -> Self {
        Self { kind: b'2', link: target.into(), ..Self::file(name, "") }
    }

    /// Of any type at all.
    pub fn of_kind(name: &str, kind: u8) -> Self {
        Self { kind, ..Self::file(name, "") }
    }
}

/// A whole tar stream.
pub fn tar(members: &[RawMember]) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..member.name.len()].copy_from_slice(member.name.as_bytes());
        header.as_mut_bytes()[157..157 + member.link.len()].copy_from_slice(member.link.as_bytes());
        header.set_mode(if member.kind == b'5' { 0o700 } else { 0o600 });
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        header.set_username(&member.owner).unwrap();
        header.set_groupname(&member.owner).unwrap();
        header.set_mtime(1_700_000_000);
        header.set_entry_type(tar::EntryType::new(member.kind));
        header.set_size(member.contents.len() as u64);
        header.set_cksum();
        out.extend(header.as_bytes());
        out.extend(&member.contents);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize((out.len() + 1024).next_multiple_of(10_240), 0);
    out
}

/// A whole lzop stream.
pub fn lzop(plain: &[u8]) -> Vec<u8> {
    let mut out = encode_header(0, 0).to_vec();
    let mut encoder = BlockEncoder::new(Level::Fast);
    plain.chunks(BLOCK_SIZE).for_each(|block| encoder.encode(block, &mut out));
    out.extend(TERMINATOR);
    out
}

/// A control file as PostgreSQL 15 writes it, as far as its checksum and the fields that are read go.
pub fn control_file() -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &super::wal_segment::SYSTEM_IDENTIFIER.to_le_bytes());
    put(8, &1300_u32.to_le_bytes());
    put(12, &202_209_061_u32.to_le_bytes());
    put(16, &6_u32.to_le_bytes());
    put(32, &0x0020_0060_u64.to_le_bytes());
    put(40, &0x0020_0040_u64.to_le_bytes());
    put(48, &1_u32.to_le_bytes());
    put(172, &1_u32.to_le_bytes());
    put(180, &100_u32.to_le_bytes());
    put(204, &8_u32.to_le_bytes());
    put(208, &1_234_567_f64.to_le_bytes());
    put(216, &8192_u32.to_le_bytes());
    put(224, &8192_u32.to_le_bytes());
    put(228, &(super::wal_segment::SEGMENT_BYTES as u32).to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..288]);
    bytes[288..292].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The objects of a backup by their keys below the prefix.
#[derive(Debug, Clone)]
pub struct HandMadeBackup {
    pub objects: BTreeMap<String, Vec<u8>>,
}

impl HandMadeBackup {
    /// A good one of three partitions, with the WAL that it needs.
    pub fn new() -> Self {
        let mut backup = Self { objects: BTreeMap::new() };
        backup.partition(
            0,
            &[
                RawMember::directory("/"),
                RawMember::file("PG_VERSION", "15\n"),
                RawMember::directory("base/"),
                RawMember::directory("base/1/"),
                RawMember::file("base/1/1259", [b"pg_class".repeat(40_000), noise(1, 300_000)].concat()),
            ],
        );
        backup.partition(1, &[RawMember::file("base/2/1259", noise(2, 400_000)), RawMember::directory("pg_tblspc/")]);
        backup.partition(
            2,
            &[
                RawMember::file("backup_label", "START WAL LOCATION: 0/200040\n"),
                RawMember::file("global/pg_control", control_file()),
            ],
        );
        backup.sentinel(1_000_000);
        for number in NEEDED_SEGMENTS {
            backup.objects.insert(Self::wal_key(number), lzop(&segment(number)));
        }
        backup
    }

    pub fn sentinel_key() -> String {
        format!("basebackups_005/{BACKUP}_backup_stop_sentinel.json")
    }

    pub fn partition_key(number: u32) -> String {
        format!("basebackups_005/{BACKUP}/tar_partitions/part_{number:08}.tar.lzo")
    }

    pub fn wal_key(number: u32) -> String {
        format!("wal_005/{}.lzo", segment_name(number))
    }

    /// Makes or replaces a partition.
    pub fn partition(&mut self, number: u32, members: &[RawMember]) {
        self.objects.insert(Self::partition_key(number), lzop(&tar(members)));
    }

    /// Makes or replaces the sentinel.
    pub fn sentinel(&mut self, expanded_size_bytes: u64) {
        let text = format!(
            "{{\"wal_segment_backup_stop\": \"{}\", \"wal_segment_offset_backup_stop\": \"00000100\", \
             \"expanded_size_bytes\": {expanded_size_bytes}, \"spec\": {{\"base_prefix\": \"/data/\", \"tablespaces\": []}}}}",
            segment_name(4)
        );
        self.objects.insert(Self::sentinel_key(), text.into_bytes());
    }

    /// Changes an object that is there.
    pub fn change(&mut self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(self.objects.get_mut(key).unwrap_or_else(|| panic!("there is no object \"{key}\"")));
    }

    /// Stores the objects below a directory.
    pub fn write_to(&self, root: &Path) {
        for (key, body) in &self.objects {
            let path = root.join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, body).unwrap();
        }
    }

    /// Stores the objects in a bucket, below a prefix that is empty or ends in a slash.
    pub fn put_into(&self, server: &S3Server, bucket: &str, prefix: &str) {
        for (key, body) in &self.objects {
            server.put_object(bucket, &format!("{prefix}{key}"), body.clone());
        }
    }
}
