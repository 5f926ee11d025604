//! The keys of an archive's objects, storage version 005 (`spec/wal-e-format.md` §1.3).

use super::backup_name::BackupName;

const SENTINEL_SUFFIX: &str = "_backup_stop_sentinel.json";

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
}
