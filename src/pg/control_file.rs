//! The control file, `global/pg_control`: which cluster this is, where its log stands, and how it was built.
//!
//! The file is a C struct in the server's own byte order and alignment; its layout changes with
//! `PG_CONTROL_VERSION`. Only what 64-bit little-endian servers write is read. The first sixteen bytes never move, so
//! a version that is not known here still tells its [`ControlHeader`].

use std::fmt;

use super::{Kind, PgError, Result};
use crate::formats::lsn::Lsn;
use crate::formats::wal_name::SegmentSize;

/// The size of the file in bytes, in every supported major.
pub const CONTROL_FILE_SIZE: usize = 8192;

/// The leading fields, which are at the same place in every version of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlHeader {
    /// The cluster's identity, drawn by `initdb` and kept by its standbys.
    pub system_identifier: u64,
    /// `PG_CONTROL_VERSION`: the layout of the rest.
    pub control_version: u32,
    /// The layout of the system catalogues.
    pub catalog_version: u32,
}

/// What the control file says of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's identity, drawn by `initdb` and kept by its standbys.
    pub system_identifier: u64,
    /// `PG_CONTROL_VERSION`.
    pub control_version: u32,
    /// The layout of the system catalogues.
    pub catalog_version: u32,
    /// What the cluster was doing when the file was last written.
    pub state: ClusterState,
    /// When the file was last written, in seconds since 1970.
    pub time: i64,
    /// The last checkpoint's record.
    pub checkpoint: Lsn,
    /// Where recovery from that checkpoint starts.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: u32,
    /// How far recovery must get before the cluster is consistent; 0/0 when it does not matter.
    pub min_recovery_point: Lsn,
    /// The timeline of `min_recovery_point`.
    pub min_recovery_timeline: u32,
    /// Where the base backup began from which this cluster has not yet fully recovered; 0/0 when there is none.
    pub backup_start_point: Lsn,
    /// `wal_level` as the log now says it.
    pub wal_level: WalLevel,
    /// A standby may not have less than this.
    pub max_connections: u32,
    /// A standby may not have less than this.
    pub max_worker_processes: u32,
    /// A standby may not have less than this; recorded from 12 on.
    pub max_wal_senders: Option<u32>,
    /// A standby may not have less than this.
    pub max_prepared_xacts: u32,
    /// A standby may not have less than this.
    pub max_locks_per_xact: u32,
    /// The size of a page in bytes.
    pub block_size: u32,
    /// The size of a page of the log in bytes.
    pub wal_block_size: u32,
    /// The size of a segment of the log.
    pub wal_segment_size: SegmentSize,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
}

/// What a cluster is doing: `pg_controldata`'s "Database cluster state".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Coming up, or never started.
    StartingUp,
    /// Shut down cleanly.
    ShutDown,
    /// Shut down cleanly while it was a standby or recovering.
    ShutDownInRecovery,
    /// Going down.
    ShuttingDown,
    /// Recovering from a crash.
    InCrashRecovery,
    /// Replaying an archive, or a standby.
    InArchiveRecovery,
    /// Open for writes, or killed while it was.
    InProduction,
}

impl ClusterState {
    fn from_number(number: u32) -> Option<Self> {
        const STATES: [ClusterState; 7] = [
            ClusterState::StartingUp,
            ClusterState::ShutDown,
            ClusterState::ShutDownInRecovery,
            ClusterState::ShuttingDown,
            ClusterState::InCrashRecovery,
            ClusterState::InArchiveRecovery,
            ClusterState::InProduction,
        ];
        STATES.get(usize::try_from(number).ok()?).copied()
    }

    /// Whether the files on disk are complete without any log: what a copy of a stopped cluster needs.
    pub fn is_shut_down(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }
}

impl fmt::Display for ClusterState {
    /// `pg_controldata`'s words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StartingUp => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

/// How much the cluster writes to its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Only enough for crash recovery: no archive, no base backup.
    Minimal,
    /// Enough for archiving and standbys.
    Replica,
    /// Enough for logical decoding too.
    Logical,
}

impl fmt::Display for WalLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minimal => "minimal",
            Self::Replica => "replica",
            Self::Logical => "logical",
        })
    }
}

/// Where the fields are, by `PG_CONTROL_VERSION`; offsets in bytes.
struct Layout {
    /// `checkPointCopy`: redo is its first field, the timeline its second.
    checkpoint_copy: usize,
    /// `minRecoveryPoint`; its timeline, `backupStartPoint`, `backupEndPoint`, a flag and `wal_level` follow.
    min_recovery_point: usize,
    /// From 12 on `max_wal_senders` stands among the settings.
    has_max_wal_senders: bool,
    /// `maxAlign`; at the next multiple of eight `floatFormat`, and after that the sizes.
    max_align: usize,
    data_checksum_version: usize,
    crc: usize,
}

impl Layout {
    fn of(control_version: u32) -> Option<Self> {
        // A CheckPoint takes 80 bytes up to 11 and 88 since 12, when nextXid became 64 bits wide; a second checkpoint
        // pointer stood before it up to 10. The nonce for SCRAM before the CRC came with 10.
        let layout =
            |checkpoint_copy: usize, checkpoint_size: usize, has_max_wal_senders, data_checksum_version, crc| {
                let min_recovery_point = checkpoint_copy + checkpoint_size + 8;
                let max_align = min_recovery_point + if has_max_wal_senders { 68 } else { 64 };
                Self { checkpoint_copy, min_recovery_point, has_max_wal_senders, max_align, data_checksum_version, crc }
            };
        Some(match control_version {
            960 => layout(48, 80, false, 252, 256),  // 9.6
            1002 => layout(48, 80, false, 252, 288), // 10
            1100 => layout(40, 80, false, 244, 280), // 11
            1201 => layout(40, 88, true, 252, 288),  // 12
            1300 => layout(40, 88, true, 252, 288),  // 13 to 16
            1700 => layout(40, 88, true, 252, 288),  // 17: wal_level in what was padding of the CheckPoint
            1800 => layout(40, 88, true, 252, 292),  // 18: a flag before the nonce
            _ => return None,
        })
    }
}

impl ControlHeader {
    /// Reads the leading fields of a control file of whatever version.
    ///
    /// # Errors
    ///
    /// [`Kind::Damaged`] when the file is not [`CONTROL_FILE_SIZE`] long or its version is no version at all;
    /// [`Kind::UnknownVersion`] when it is of the other byte order.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() != CONTROL_FILE_SIZE {
            return Err(PgError::new(Kind::Damaged, "the control file has the wrong size")
                .with_detail(format!("It has {} bytes; {CONTROL_FILE_SIZE} are expected.", bytes.len())));
        }
        let control_version = u32_at(bytes, 8);
        // The server's own test: a version of small multiples of 65536 is one of the other byte order.
        if control_version != 0 && control_version.is_multiple_of(65536) {
            return Err(PgError::new(Kind::UnknownVersion, "the control file has the other byte order")
                .with_detail("Only the files of little-endian servers can be read."));
        }
        if control_version == 0 {
            return Err(PgError::new(Kind::Damaged, "the control file holds no version"));
        }
        Ok(Self { system_identifier: u64_at(bytes, 0), control_version, catalog_version: u32_at(bytes, 12) })
    }
}

impl ControlFile {
    /// Reads the whole content of `global/pg_control`, checking its CRC-32C.
    ///
    /// # Errors
    ///
    /// [`Kind::UnknownVersion`] when the version is not one of 9.6 to 18, or the server was built for another
    /// architecture: [`ControlHeader::parse`] may still tell which cluster it is. [`Kind::Damaged`] when the size or
    /// the CRC is wrong: a running server rewrites the file in place, so a reader may try again.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let ControlHeader { system_identifier, control_version, catalog_version } = ControlHeader::parse(bytes)?;
        let layout = Layout::of(control_version).ok_or_else(|| {
            PgError::new(Kind::UnknownVersion, format!("control file version {control_version} is not known"))
                .with_detail("The versions of PostgreSQL 9.6 to 18 are known.")
                .with_hint("A newer release of wal-eve may know it.")
        })?;
        let (stored, computed) = (u32_at(bytes, layout.crc), crc32c::crc32c(&bytes[..layout.crc]));
        if stored != computed {
            return Err(PgError::new(Kind::Damaged, "the control file's checksum does not match its content")
                .with_detail(format!("It holds {stored:08X}, and its content gives {computed:08X}.")));
        }
        let float_format = (layout.max_align + 4).next_multiple_of(8);
        if u32_at(bytes, layout.max_align) != 8 || u64_at(bytes, float_format) != 1_234_567_f64.to_bits() {
            return Err(PgError::new(Kind::UnknownVersion, "the control file is of another architecture")
                .with_detail("Only the files of 64-bit servers with IEEE floating point can be read."));
        }
        let odd = |field: &str, value: u32| {
            PgError::new(Kind::Damaged, format!("the control file holds {value} as its {field}"))
        };

        let checkpoint = layout.checkpoint_copy;
        let recovery = layout.min_recovery_point;
        let sizes = float_format + 8;
        // wal_level, wal_log_hints, then the settings that a standby compares, four bytes each.
        let settings = recovery + 44;
        let after_senders = settings + if layout.has_max_wal_senders { 12 } else { 8 };
        let (state, wal_level, segment) = (u32_at(bytes, 16), u32_at(bytes, recovery + 36), u32_at(bytes, sizes + 12));
        Ok(Self {
            system_identifier,
            control_version,
            catalog_version,
            state: ClusterState::from_number(state).ok_or_else(|| odd("cluster state", state))?,
            time: i64::from_le_bytes(array_at(bytes, 24)),
            checkpoint: Lsn(u64_at(bytes, 32)),
            redo: Lsn(u64_at(bytes, checkpoint)),
            timeline: u32_at(bytes, checkpoint + 8),
            min_recovery_point: Lsn(u64_at(bytes, recovery)),
            min_recovery_timeline: u32_at(bytes, recovery + 8),
            backup_start_point: Lsn(u64_at(bytes, recovery + 16)),
            wal_level: match wal_level {
                0 => WalLevel::Minimal,
                1 => WalLevel::Replica,
                2 => WalLevel::Logical,
                other => return Err(odd("wal_level", other)),
            },
            max_connections: u32_at(bytes, settings),
            max_worker_processes: u32_at(bytes, settings + 4),
            max_wal_senders: layout.has_max_wal_senders.then(|| u32_at(bytes, settings + 8)),
            max_prepared_xacts: u32_at(bytes, after_senders),
            max_locks_per_xact: u32_at(bytes, after_senders + 4),
            block_size: u32_at(bytes, sizes),
            wal_block_size: u32_at(bytes, sizes + 8),
            wal_segment_size: SegmentSize::new(u64::from(segment)).ok_or_else(|| odd("WAL segment size", segment))?,
            data_checksums: u32_at(bytes, layout.data_checksum_version) != 0,
        })
    }
}

/// Whether `bytes` are a control file that was read in one piece, of whatever version: somewhere within the first 512
/// bytes, which the server promises to write at once, stands the CRC-32C of all before it.
pub fn is_whole(bytes: &[u8]) -> bool {
    let earliest = 128;
    let mut crc = crc32c::crc32c(&bytes[..earliest.min(bytes.len())]);
    bytes.len() == CONTROL_FILE_SIZE
        && (earliest..512).step_by(4).any(|at| {
            let found = u32_at(bytes, at) == crc;
            crc = crc32c::crc32c_append(crc, &bytes[at..at + 4]);
            found
        })
}

/// The `N` bytes at `offset`; every caller's offset lies within the first 512 of [`CONTROL_FILE_SIZE`].
fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("a slice of N bytes is an array of N bytes")
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as the server of that version writes it, built field by field from the C struct's declaration: each
    /// field is put at the next multiple of its size.
    fn build(control_version: u32, change: impl Fn(&str, u64) -> u64) -> Vec<u8> {
        let since = |first: u32| control_version >= first;
        let mut fields: Vec<(&str, usize, u64)> = vec![
            ("system_identifier", 8, 0x6543_2101_89AB_CDEF),
            ("pg_control_version", 4, u64::from(control_version)),
            ("catalog_version_no", 4, 201_809_051),
            ("state", 4, 6),
            ("time", 8, 1_700_000_000),
            ("checkPoint", 8, 0x16_B374_D848),
        ];
        if !since(1100) {
            fields.push(("prevCheckPoint", 8, 1));
        }
        fields.extend([("redo", 8, 0x16_B374_D810), ("tli", 4, 7), ("prev_tli", 4, 6), ("fullPageWrites", 1, 1)]);
        if since(1700) {
            fields.push(("checkpoint_wal_level", 4, 1));
        }
        if since(1201) {
            fields.push(("nextXid", 8, 900));
        } else {
            fields.extend([("nextXidEpoch", 4, 0), ("nextXid", 4, 900)]);
        }
        for name in
            ["nextOid", "nextMulti", "nextMultiOffset", "oldestXid", "oldestXidDB", "oldestMulti", "oldestMultiDB"]
        {
            fields.push((name, 4, 11));
        }
        fields.extend([
            ("checkpoint_time", 8, 1_699_999_999),
            ("oldestCts", 4, 0),
            ("newestCts", 4, 0),
            ("active", 4, 5),
        ]);
        fields.extend([
            ("unloggedLSN", 8, 1000),
            ("minRecoveryPoint", 8, 0x17_0000_0060),
            ("minRecoveryPointTLI", 4, 8),
        ]);
        fields.extend([("backupStartPoint", 8, 0x15_0000_0028), ("backupEndPoint", 8, 0), ("backupEndRequired", 1, 1)]);
        fields.extend([("wal_level", 4, 2), ("wal_log_hints", 1, 0), ("MaxConnections", 4, 101)]);
        fields.push(("max_worker_processes", 4, 9));
        if since(1201) {
            fields.push(("max_wal_senders", 4, 12));
        }
        fields.extend([("max_prepared_xacts", 4, 3), ("max_locks_per_xact", 4, 65), ("track_commit_timestamp", 1, 0)]);
        fields.extend([("maxAlign", 4, 8), ("floatFormat", 8, 1_234_567_f64.to_bits()), ("blcksz", 4, 8192)]);
        fields.extend([("relseg_size", 4, 131_072), ("xlog_blcksz", 4, 16384), ("xlog_seg_size", 4, 64 << 20)]);
        fields.extend([("nameDataLen", 4, 64), ("indexMaxKeys", 4, 32), ("toast", 4, 1996), ("loblksize", 4, 2048)]);
        if !since(1002) {
            fields.push(("enableIntTimes", 1, 1));
        }
        if !since(1300) {
            fields.push(("float4ByVal", 1, 1));
        }
        fields.extend([("float8ByVal", 1, 1), ("data_checksum_version", 4, 1)]);
        if since(1800) {
            fields.push(("default_char_signedness", 1, 1));
        }
        if since(1002) {
            fields.extend(std::iter::repeat_n(("nonce", 1, 0xA5), 32));
        }
        let mut bytes = Vec::new();
        for (name, size, value) in fields {
            // The CheckPoint is a struct of its own: it ends, too, at a multiple of eight.
            let alignment = if name == "unloggedLSN" { 8 } else { size };
            bytes.resize(bytes.len().next_multiple_of(alignment), 0);
            bytes.extend(&change(name, value).to_le_bytes()[..size]);
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
        bytes.resize(CONTROL_FILE_SIZE, 0);
        bytes
    }

    const VERSIONS: [u32; 7] = [960, 1002, 1100, 1201, 1300, 1700, 1800];

    fn unchanged(_: &str, value: u64) -> u64 {
        value
    }

    #[test]
    fn every_known_version_is_read() {
        for control_version in VERSIONS {
            let expected = ControlFile {
                system_identifier: 0x6543_2101_89AB_CDEF,
                control_version,
                catalog_version: 201_809_051,
                state: ClusterState::InProduction,
                time: 1_700_000_000,
                checkpoint: "16/B374D848".parse().unwrap(),
                redo: "16/B374D810".parse().unwrap(),
                timeline: 7,
                min_recovery_point: "17/60".parse().unwrap(),
                min_recovery_timeline: 8,
                backup_start_point: "15/28".parse().unwrap(),
                wal_level: WalLevel::Logical,
                max_connections: 101,
                max_worker_processes: 9,
                max_wal_senders: (control_version >= 1201).then_some(12),
                max_prepared_xacts: 3,
                max_locks_per_xact: 65,
                block_size: 8192,
                wal_block_size: 16384,
                wal_segment_size: SegmentSize::new(64 << 20).unwrap(),
                data_checksums: true,
            };
            assert_eq!(ControlFile::parse(&build(control_version, unchanged)).unwrap(), expected);
        }
    }

    #[test]
    fn any_flipped_byte_under_the_checksum_is_damage() {
        for control_version in VERSIONS {
            let good = build(control_version, unchanged);
            let crc = Layout::of(control_version).unwrap().crc;
            // The version itself lies at 8 to 11: a flip there makes it unknown.
            for at in (0..8).chain(12..crc + 4) {
                let mut bad = good.clone();
                bad[at] ^= 0x40;
                assert_eq!(ControlFile::parse(&bad).unwrap_err().kind(), Kind::Damaged, "{control_version}, byte {at}");
            }
        }
    }

    #[test]
    fn any_other_length_is_damage() {
        let good = build(1300, unchanged);
        for length in [0, 1, 16, 296, 512, CONTROL_FILE_SIZE - 1] {
            assert_eq!(ControlFile::parse(&good[..length]).unwrap_err().kind(), Kind::Damaged, "{length}");
        }
        assert_eq!(ControlFile::parse(&[good.as_slice(), &[0]].concat()).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(ControlFile::parse(&[0; CONTROL_FILE_SIZE]).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn an_unknown_version_still_tells_whose_it_is() {
        let future = build(1300, |name, value| if name == "pg_control_version" { 2100 } else { value });
        let error = ControlFile::parse(&future).unwrap_err();
        assert_eq!(error.kind(), Kind::UnknownVersion);
        assert_eq!(error.to_string(), "control file version 2100 is not known");
        let header = ControlHeader::parse(&future).unwrap();
        assert_eq!((header.system_identifier, header.control_version), (0x6543_2101_89AB_CDEF, 2100));
    }

    #[test]
    fn a_whole_file_is_told_from_a_torn_one_in_every_version() {
        for control_version in VERSIONS.into_iter().chain([2100]) {
            let good = build(control_version, unchanged);
            assert!(is_whole(&good), "{control_version}");
            let mut torn = good.clone();
            torn[32] ^= 1;
            assert!(!is_whole(&torn), "{control_version}");
            assert!(!is_whole(&good[..CONTROL_FILE_SIZE - 1]));
            assert!(!is_whole(&good[..100]));
        }
    }

    #[test]
    fn the_other_byte_order_is_named() {
        let mut swapped = build(1300, unchanged);
        swapped[8..12].reverse();
        let error = ControlFile::parse(&swapped).unwrap_err();
        assert_eq!(error.kind(), Kind::UnknownVersion);
        assert!(error.to_string().contains("byte order"));
    }

    #[test]
    fn values_that_no_server_writes_are_refused() {
        for (field, value, kind) in [
            ("state", 7, Kind::Damaged),
            ("wal_level", 3, Kind::Damaged),
            ("xlog_seg_size", 3 << 20, Kind::Damaged),
            ("xlog_seg_size", 0, Kind::Damaged),
            ("maxAlign", 4, Kind::UnknownVersion),
            ("floatFormat", 1, Kind::UnknownVersion),
        ] {
            let bad = build(1800, |name, good| if name == field { value } else { good });
            assert_eq!(ControlFile::parse(&bad).unwrap_err().kind(), kind, "{field} {value}");
        }
    }
}
