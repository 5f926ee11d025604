//! A directory's content as values, to compare a restored directory with its source file by file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryType {
    File,
    Directory,
    Link,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    pub entry_type: EntryType,
    /// The permission bits, 0 for links, which have none of their own.
    pub mode: u32,
    pub link_target: Option<PathBuf>,
    /// In bytes; 0 for all but files.
    pub size: u64,
    /// Of a file's content, in hex.
    pub sha256: Option<String>,
}

/// Every entry below `root`, by its path relative to it. Links are listed, not followed.
pub fn dir_tree(root: &Path) -> BTreeMap<String, TreeEntry> {
    let mut tree = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let described = describe(&path);
            if described.entry_type == EntryType::Directory {
                pending.push(path.clone());
            }
            let relative = path.strip_prefix(root).expect("the walk stays below its root");
            tree.insert(relative.to_string_lossy().into_owned(), described);
        }
    }
    tree
}

fn describe(path: &Path) -> TreeEntry {
    let metadata = fs::symlink_metadata(path).unwrap();
    let file_type = metadata.file_type();
    let mut entry = TreeEntry {
        entry_type: EntryType::Other,
        mode: metadata.permissions().mode() & 0o7777,
        link_target: None,
        size: 0,
        sha256: None,
    };
    if file_type.is_symlink() {
        entry.entry_type = EntryType::Link;
        entry.mode = 0;
        entry.link_target = Some(fs::read_link(path).unwrap());
    } else if file_type.is_dir() {
        entry.entry_type = EntryType::Directory;
    } else if file_type.is_file() {
        let content = fs::read(path).unwrap();
        entry.entry_type = EntryType::File;
        entry.size = content.len() as u64;
        entry.sha256 = Some(Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect());
    }
    entry
}
