//! Whether a file system that should be mounted is not.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The first directory on the way to `path` that `/etc/fstab` wants mounted and that is not a mount point now.
pub(super) fn unmounted(path: &Path) -> Option<PathBuf> {
    let fstab = fs::read_to_string("/etc/fstab").unwrap_or_default();
    let points = mount_points(&fstab);
    points.into_iter().find(|point| path.starts_with(point) && !is_mount_point(point))
}

/// The second field of each line of `fstab(5)`, but for the root and for what has no place in the tree.
fn mount_points(fstab: &str) -> Vec<PathBuf> {
    let fields = fstab.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let points = fields.filter_map(|line| line.split_whitespace().nth(1));
    points.filter(|point| point.starts_with('/') && *point != "/").map(|point| unescape(point).into()).collect()
}

/// `fstab(5)` writes a space as `\040` and a tab as `\011`.
fn unescape(point: &str) -> String {
    point.replace("\\040", " ").replace("\\011", "\t")
}

/// Whether a directory is on another device than the one above it; what cannot be looked at is not mounted.
fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    match (device(path), path.parent().and_then(device)) {
        (Some(own), Some(above)) => own != above,
        (own, None) => own.is_some(),
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_the_second_fields() {
        let fstab =
            "# comment /x\nUUID=1 / ext4 defaults 0 1\n\n/dev/b  /mnt/my\\040disk xfs noatime 0 2\nswap none swap";
        assert_eq!(mount_points(fstab), [PathBuf::from("/mnt/my disk")]);
    }

    #[test]
    fn proc_is_mounted_and_a_fresh_directory_is_not() {
        let directory = tempfile::tempdir().unwrap();
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(directory.path()));
        assert!(!is_mount_point(&directory.path().join("absent")));
    }
}
