//! The keys of an archive's objects, storage version 005 (`spec/wal-e-format.md` §1.3).

use super::backup_name::BackupName;
use super::wal_name::{SegmentName, WalName};

const SENTINEL_SUFFIX: &str = "_backup_stop_sentinel.json";

/// What any sentinel's name contains, also those of older storage versions.
const SENTINEL_MARK: &str = "_backup_stop_sentinel.";

/// What a key below [`Layout::base_backups`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseBackupKey {
    /// The sentinel of a backup.
    Sentinel(BackupName),
    /// Something else that belongs to a backup: its version text or what lies in its `tar_partitions` (§8.6).
    Data(BackupName),
    /// Nothing that WAL-E or wal-eve wrote, with the segment that its name says a backup starts in, if it says so: WAL-G keeps
    /// its backups in the same directory, under names such as `base_<SEG>_D_<SEG>`.
    Foreign(Option<SegmentName>),
}

/// The directories of one older storage version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldVersion {
    /// Under which its base backups lie.
    pub base_backups: String,
    /// Under which its WAL lies.
    pub wal: String,
}

/// Makes keys below one prefix and reads them back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    prefix: String,
}

impl Layout {
    /// `prefix` is empty or ends in a slash.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// What every key begins with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Under which all WAL lies.
    pub fn wal_directory(&self) -> String {
        format!("{}wal_005/", self.prefix)
    }

    /// The object of the WAL file that PostgreSQL calls `file_name`.
    pub fn wal(&self, file_name: &str) -> String {
        format!("{}wal_005/{file_name}.lzo", self.prefix)
    }

    /// What the keys of `timeline`'s WAL files begin with.
    pub fn wal_timeline(&self, timeline: u32) -> String {
        format!("{}wal_005/{timeline:08X}", self.prefix)
    }

    /// The WAL file's name of a key below [`Self::wal_directory`].
    pub fn wal_file_name<'a>(&self, key: &'a str) -> Option<&'a str> {
        let name = key.strip_prefix(&self.prefix)?.strip_prefix("wal_005/")?.strip_suffix(".lzo")?;
        (!name.contains('/')).then_some(name)
    }

    /// Under which all base backups lie.
    pub fn base_backups(&self) -> String {
        format!("{}basebackups_005/", self.prefix)
    }

    /// Under which all of one backup but its sentinel lies.
    pub fn backup(&self, name: &BackupName) -> String {
        format!("{}{name}/", self.base_backups())
    }

    /// The object whose existence makes a backup complete.
    pub fn sentinel(&self, name: &BackupName) -> String {
        format!("{}{name}{SENTINEL_SUFFIX}", self.base_backups())
    }

    /// The object with the server's version text.
    pub fn extended_version(&self, name: &BackupName) -> String {
        format!("{}extended_version.txt", self.backup(name))
    }

    /// Under which a backup's tar partitions lie.
    pub fn partitions(&self, name: &BackupName) -> String {
        format!("{}tar_partitions/", self.backup(name))
    }

    /// The object of partition `number`.
    pub fn partition(&self, name: &BackupName, number: u32) -> String {
        format!("{}part_{number:08}.tar.lzo", self.partitions(name))
    }

    /// The backup that `key` is the sentinel of. As WAL-E does, trailing text is ignored (§8.5).
    pub fn sentinel_backup(&self, key: &str) -> Option<BackupName> {
        let name = key.strip_prefix(&self.base_backups())?;
        let (name, suffix) = name.split_at_checked(BackupName::LEN)?;
        (suffix.starts_with(SENTINEL_SUFFIX) && !suffix.contains('/')).then(|| name.parse().ok()).flatten()
    }

    /// What a key below [`Self::base_backups`] is; none for any other key.
    pub fn base_backup_key(&self, key: &str) -> Option<BaseBackupKey> {
        if let Some(name) = self.sentinel_backup(key) {
            return Some(BaseBackupKey::Sentinel(name));
        }
        let path = key.strip_prefix(&self.base_backups())?;
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        if let Ok(name) = first.parse::<BackupName>() {
            let data = rest == "extended_version.txt"
                || rest.strip_prefix("tar_partitions/").is_some_and(|part| !part.is_empty() && !part.contains('/'));
            return Some(if data { BaseBackupKey::Data(name) } else { BaseBackupKey::Foreign(None) });
        }
        if first.get(..BackupName::LEN).is_some_and(|start| start.parse::<BackupName>().is_ok()) {
            return Some(BaseBackupKey::Foreign(None));
        }
        let start = first.strip_prefix("base_").and_then(|name| name.get(..24)?.parse().ok());
        Some(BaseBackupKey::Foreign(start))
    }

    /// The WAL file of a key below [`Self::wal_directory`], if PostgreSQL could have named it.
    pub fn wal_name(&self, key: &str) -> Option<WalName> {
        self.wal_file_name(key)?.parse().ok()
    }

    /// The directories of the storage versions 004 to 000, newest first (§11.1, §8.6).
    pub fn old_versions(&self) -> Vec<OldVersion> {
        let version = |number: &str| OldVersion {
            base_backups: format!("{}basebackups_{number}/", self.prefix),
            wal: format!("{}wal_{number}/", self.prefix),
        };
        ["004", "003", "002", "001", "000"].map(version).into()
    }

    /// The directories of what came before WAL-E's first release, whose base backups bear the version in their own names.
    pub fn pre_release(&self) -> OldVersion {
        OldVersion { base_backups: format!("{}basebackups/", self.prefix), wal: format!("{}wal_0/", self.prefix) }
    }

    /// Whether a key below [`Self::pre_release`]'s base backups is one of WAL-E's: `base_<SEG>_<offset>_<version>`, and then
    /// whatever. Others keep things in directories of that name too.
    pub fn is_pre_release_backup(&self, key: &str) -> bool {
        let path = key.strip_prefix(&self.prefix).and_then(|key| key.strip_prefix("basebackups/base_"));
        let version = path.and_then(|path| {
            let (segment, rest) = path.split_once('_')?;
            segment.parse::<SegmentName>().ok()?;
            let (offset, rest) = rest.split_once('_')?;
            let is_offset = (1..=8).contains(&offset.len()) && offset.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_offset.then(|| rest.split(['/', '_']).next()).flatten()
        });
        matches!(version, Some("0" | "000" | "001"))
    }
}

/// Whether a key is that of a sentinel, of whatever storage version.
pub fn is_sentinel(key: &str) -> bool {
    key.rsplit('/').next().is_some_and(|name| name.contains(SENTINEL_MARK))
}

/// The number in a partition's last path component: `part_` and one or more digits, padded or not, then `.tar.lzo`.
/// As WAL-E does, trailing text is ignored (§1.3).
pub fn partition_number(component: &str) -> Option<u32> {
    let (digits, _) = component.strip_prefix("part_")?.split_once(".tar.lzo")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_the_specs_vectors() {
        // §12, vectors 1 to 3
        let layout = Layout::new("bar/");
        assert_eq!(layout.base_backups(), "bar/basebackups_005/");
        assert_eq!(layout.wal_directory(), "bar/wal_005/");
        let root = Layout::new("");
        let name: BackupName = "base_000000010000000000000002_00000040".parse().unwrap();
        assert_eq!(root.wal("000000010000000000000001"), "wal_005/000000010000000000000001.lzo");
        assert_eq!(
            root.sentinel(&name),
            "basebackups_005/base_000000010000000000000002_00000040_backup_stop_sentinel.json"
        );
        assert_eq!(
            root.partition(&name, 0),
            "basebackups_005/base_000000010000000000000002_00000040/tar_partitions/part_00000000.tar.lzo"
        );
        assert_eq!(root.sentinel_backup(&root.sentinel(&name)), Some(name.clone()));
        assert_eq!(root.sentinel_backup(&root.extended_version(&name)), None);
        assert_eq!(layout.sentinel_backup(&root.sentinel(&name)), None, "another prefix");
    }

    #[test]
    fn partition_names_of_every_version_are_read() {
        // §12, vector 5
        for (component, number) in
            [("part_0.tar.lzo", 0), ("part_00000012.tar.lzo", 12), ("part_000000000002.tar.lzo", 2)]
        {
            assert_eq!(partition_number(component), Some(number));
        }
        for bad in [
            "part_.tar.lzo",
            "part_1.tar",
            "part_-1.tar.lzo",
            "part_+1.tar.lzo",
            "xpart_1.tar.lzo",
            "part_a.tar.lzo",
            "part_99999999999.tar.lzo",
        ] {
            assert_eq!(partition_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn wal_keys_are_read_back() {
        let layout = Layout::new("p/");
        assert_eq!(layout.wal_file_name("p/wal_005/00000002.history.lzo"), Some("00000002.history"));
        for other in ["p/wal_005/a/b.lzo", "p/wal_005/x", "q/wal_005/x.lzo", "p/basebackups_005/x.lzo"] {
            assert_eq!(layout.wal_file_name(other), None, "{other}");
        }
    }

    #[test]
    fn what_lies_below_base_backups_is_told_apart() {
        let layout = Layout::new("p/");
        let name: BackupName = "base_000000010000000000000002_00000040".parse().unwrap();
        let key = |rest: &str| layout.base_backup_key(&format!("p/basebackups_005/{rest}"));
        for sentinel in [layout.sentinel(&name), format!("{}.old", layout.sentinel(&name))] {
            assert_eq!(layout.base_backup_key(&sentinel), Some(BaseBackupKey::Sentinel(name.clone())));
        }
        for data in ["extended_version.txt", "tar_partitions/part_0.tar.lzo", "tar_partitions/whatever"] {
            assert_eq!(key(&format!("{name}/{data}")), Some(BaseBackupKey::Data(name.clone())), "{data}");
        }
        for odd in ["extended_version.txt.x", "x", "tar_partitions", "tar_partitions/a/b", "a/extended_version.txt", ""]
        {
            assert_eq!(key(&format!("{name}/{odd}")), Some(BaseBackupKey::Foreign(None)), "{odd}");
        }
        for odd in ["x", "", "base_1/x", "base_000000010000000000000002_00000040x/extended_version.txt", "xé", "base_é"]
        {
            assert_eq!(key(odd), Some(BaseBackupKey::Foreign(None)), "{odd}");
        }
        let start = "00000001000000000000000A".parse().unwrap();
        for wal_g in [
            "base_00000001000000000000000A_backup_stop_sentinel.json",
            "base_00000001000000000000000A_D_000000010000000000000002/x",
        ] {
            assert_eq!(key(wal_g), Some(BaseBackupKey::Foreign(Some(start))), "{wal_g}");
        }
        for other in ["p/wal_005/x", "basebackups_005/x", "p/basebackups_0050/x", "p/basebackups_005"] {
            assert_eq!(layout.base_backup_key(other), None, "{other}");
        }
    }

    #[test]
    fn old_versions_are_never_the_current_one() {
        let layout = Layout::new("p/");
        let mut directories = Vec::new();
        for version in layout.old_versions().into_iter().chain([layout.pre_release()]) {
            directories.extend([version.base_backups, version.wal]);
        }
        for current in [layout.base_backups(), layout.wal_directory()] {
            assert!(!directories.iter().any(|old| current.starts_with(old.as_str()) || old.starts_with(&current)));
        }
        assert_eq!(directories.len(), 12);
        for ours in ["0_0/x", "12_001/x/y", "00000040_001_backup_stop_sentinel.txt", "00000040_000/"] {
            let key = format!("p/basebackups/base_000000010000000000000002_{ours}");
            assert!(layout.is_pre_release_backup(&key), "{key}");
        }
        for other in
            ["base_000000010000000000000002_40_005/x", "base_000000010000000000000002_40", "base_1_2_0/x", "x", ""]
        {
            assert!(!layout.is_pre_release_backup(&format!("p/basebackups/{other}")), "{other}");
        }
        assert!(
            is_sentinel("p/basebackups_002/base_x_backup_stop_sentinel.txt")
                && !is_sentinel("p/_backup_stop_sentinel.x/y")
        );
    }
}
