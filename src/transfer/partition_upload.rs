//! Files of a data directory to one tar partition in the archive: no temporary copy, bounded memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use crc32c::crc32c_append;
use futures::stream;
use tokio::sync::mpsc;

use super::buffer::{CHUNK_SIZE, CHUNKS};
use super::compress::lzop_stream;
use super::progress::{Progress, Stage};
use super::rate_limit::RateLimit;
use super::{Result, TransferError, off_async, upload};
use crate::formats::lzo1x::Level;
use crate::formats::tar_partition::header::{self, MemberKind};
use crate::fs::account;
use crate::storage::{Put, PutOptions, Store};

/// Where a member's contents come from.
#[derive(Debug)]
pub enum Source {
    /// A file that is opened when its turn comes. It contributes exactly `size` bytes: growth is cut, shrinkage is padded with
    /// zeros, and one that has vanished is left out (`spec/wal-e-format.md` §4.7); replay mends all three.
    Path {
        /// Where it lies.
        path: PathBuf,
        /// Its size in bytes when it was planned.
        size: u64,
    },
    /// A file that is open already, and its size in bytes.
    Open(File, u64),
    /// Bytes in memory.
    Bytes(Bytes),
    /// A directory.
    Directory,
    /// A symbolic link's raw text.
    Symlink(Vec<u8>),
}

/// A member of a partition.
#[derive(Debug)]
pub struct Member {
    /// The path relative to the data directory; `/` for itself; a directory's ends in a slash.
    pub name: Vec<u8>,
    /// Its contents.
    pub source: Source,
    /// The permission bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
}

impl Member {
    /// The planned size in bytes: what counts for the partition's bound and the backup's expanded size.
    pub fn size(&self) -> u64 {
        match &self.source {
            Source::Path { size, .. } | Source::Open(_, size) => *size,
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::Directory | Source::Symlink(_) => 0,
        }
    }
}

/// A file as it went into a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedFile {
    /// The path relative to the data directory.
    pub name: Vec<u8>,
    /// Its size in bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Of its bytes.
    pub crc32c: u32,
}

/// What all partitions of a backup share.
#[derive(Clone)]
pub struct PartitionContext {
    /// How hard to compress.
    pub level: Level,
    /// The bound on reading, if any.
    pub rate_limit: Option<Arc<RateLimit>>,
    /// Counters to move.
    pub progress: Arc<Progress>,
    /// Told of each file, from a thread that may block.
    pub on_file: Arc<dyn Fn(ArchivedFile) -> io::Result<()> + Send + Sync>,
}

/// Stores `members` as the partition `key`, with `options`; the sum of the archived files' sizes in bytes.
pub async fn upload_partition(
    store: &dyn Store,
    key: &str,
    members: Vec<Member>,
    options: &PutOptions,
    context: &PartitionContext,
) -> Result<(Put, u64)> {
    let (sender, receiver) = mpsc::channel(2);
    let reading = context.clone();
    let reader = off_async(move || {
        let mut tar = TarWriter::new(sender, reading);
        let written = members.into_iter().try_for_each(|member| tar.member(member)).and_then(|()| tar.finish());
        match written {
            Ok(bytes) => Ok(bytes),
            Err(Stop::Failed(failed)) => Err(failed),
            // the upload has failed and says why
            Err(Stop::NobodyListens) => Ok(0),
        }
    });
    let plain = stream::unfold((receiver, context.progress.clone()), |(mut receiver, progress)| async move {
        let waiting = Instant::now();
        let chunk = receiver.recv().await?;
        progress.waited(Stage::Disk, waiting.elapsed());
        Some((chunk, (receiver, progress)))
    });
    let pieces = lzop_stream(context.level, 0, 0, plain);
    let storing = upload::upload(store, key, options, pieces, Some(context.progress.clone()));
    let (read, stored) = futures::join!(reader, storing);
    // a failed read also ends the stream early, so it is the cause and comes first
    let bytes = read?;
    Ok((stored?, bytes))
}

/// Why a tar stream ended before its end.
enum Stop {
    Failed(TransferError),
    NobodyListens,
}

struct TarWriter {
    sender: mpsc::Sender<Result<Bytes>>,
    context: PartitionContext,
    chunk: Vec<u8>,
    written: u64,
    file_bytes: u64,
    /// The names of the owners so far.
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl TarWriter {
    fn new(sender: mpsc::Sender<Result<Bytes>>, context: PartitionContext) -> Self {
        let (users, groups) = (HashMap::new(), HashMap::new());
        Self { sender, context, chunk: CHUNKS.empty(), written: 0, file_bytes: 0, users, groups }
    }

    fn member(&mut self, member: Member) -> std::result::Result<(), Stop> {
        let size = member.size();
        let kind = match &member.source {
            Source::Path { .. } | Source::Open(..) | Source::Bytes(_) => MemberKind::File(size),
            Source::Directory => MemberKind::Directory,
            Source::Symlink(text) => MemberKind::Symlink(text),
        };
        let (uid, gid, mode, mtime) = (member.uid, member.gid, member.mode, member.mtime);
        let user = self.users.entry(uid).or_insert_with(|| account::user_name(uid).unwrap_or_default());
        let group = self.groups.entry(gid).or_insert_with(|| account::group_name(gid).unwrap_or_default());
        let head = header::Member { name: &member.name, kind, mode, uid, gid, user, group, mtime };
        let mut head_bytes = Vec::new();
        head.encode(&mut head_bytes);
        let (mut contents, path): (Box<dyn Read>, PathBuf) = match member.source {
            Source::Path { path, .. } => match File::open(&path) {
                Ok(file) => (Box::new(file), path),
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => {
                    tracing::debug!(path = %path.display(), "file has vanished and is left out");
                    return Ok(());
                }
                Err(failed) => return self.fail(TransferError::file("open", path)(failed)),
            },
            Source::Open(file, _) => (Box::new(file), "backup_manifest".into()),
            Source::Bytes(bytes) => (Box::new(io::Cursor::new(bytes)), PathBuf::new()),
            Source::Directory | Source::Symlink(_) => return self.bytes(&head_bytes),
        };
        self.bytes(&head_bytes)?;
        let mut crc32c = 0;
        let mut left = size;
        while left > 0 {
            let room = CHUNK_SIZE - self.chunk.len();
            let wanted = room.min(usize::try_from(left).unwrap_or(room));
            let begin = self.chunk.len();
            if let Err(failed) = contents.by_ref().take(wanted as u64).read_to_end(&mut self.chunk) {
                return self.fail(TransferError::file("read", path)(failed));
            }
            // shorter than planned: zeros take the place of the rest
            self.chunk.resize(begin + wanted, 0);
            crc32c = crc32c_append(crc32c, &self.chunk[begin..]);
            left -= wanted as u64;
            self.context.progress.add_plain(wanted as u64);
            self.flush_if_full()?;
        }
        self.file_bytes += size;
        let file = ArchivedFile { name: member.name, size, mtime, crc32c };
        if let Err(failed) = (self.context.on_file)(file) {
            return self.fail(TransferError::file("write to", std::env::temp_dir())(failed));
        }
        self.bytes(&[0; header::BLOCK][..header::padding(size)])
    }

    /// The sum of the files' sizes.
    fn finish(mut self) -> std::result::Result<u64, Stop> {
        let zeros = header::ending(self.written + self.chunk.len() as u64);
        self.bytes(&vec![0; zeros])?;
        if !self.chunk.is_empty() {
            self.flush()?;
        }
        Ok(self.file_bytes)
    }

    fn bytes(&mut self, mut bytes: &[u8]) -> std::result::Result<(), Stop> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_SIZE - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            bytes = later;
            self.flush_if_full()?;
        }
        Ok(())
    }

    fn flush_if_full(&mut self) -> std::result::Result<(), Stop> {
        if self.chunk.len() == CHUNK_SIZE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> std::result::Result<(), Stop> {
        let chunk = CHUNKS.share(std::mem::replace(&mut self.chunk, CHUNKS.empty()));
        self.written += chunk.len() as u64;
        if let Some(limit) = &self.context.rate_limit {
            limit.wait(chunk.len());
        }
        self.sender.blocking_send(Ok(chunk)).map_err(|_| Stop::NobodyListens)
    }

    /// Ends the stream so that the upload cannot take what there is for the whole.
    fn fail<T>(&self, failed: TransferError) -> std::result::Result<T, Stop> {
        let cut = io::Error::other("the data directory could not be read");
        let _ = self.sender.blocking_send(Err(TransferError::file("read", "the data directory")(cut)));
        Err(Stop::Failed(failed))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Mutex;

    use futures::TryStreamExt as _;

    use super::*;
    use crate::storage::MemoryStore;
    use crate::transfer::decompress;

    /// The names and contents of a partition's members.
    async fn members(store: &MemoryStore, key: &str) -> Vec<(String, Vec<u8>)> {
        let body = store.get(key, 0, None).await.unwrap().body;
        let blocks: Vec<Vec<u8>> = decompress::plain_blocks(key.into(), body, None).try_collect().await.unwrap();
        let plain = blocks.concat();
        let mut archive = tar::Archive::new(&plain[..]);
        let member = |entry: io::Result<tar::Entry<'_, _>>| {
            let mut entry = entry.unwrap();
            let mut contents = Vec::new();
            Read::read_to_end(&mut entry, &mut contents).unwrap();
            (entry.path().unwrap().to_str().unwrap().to_owned(), contents)
        };
        archive.entries().unwrap().map(member).collect()
    }

    #[tokio::test]
    async fn a_file_gives_what_was_planned_when_it_grows_shrinks_or_vanishes_before_it_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        // more than a chunk each
        let (planned, larger, smaller) = (vec![b'x'; 700_001], vec![b'y'; 900_000], vec![b'z'; 300_000]);
        let names = ["first", "grown", "shrunk", "emptied", "vanished", "last"];
        let plan = names.map(|name| {
            fs::write(at(name), &planned).unwrap();
            let source = Source::Path { path: at(name), size: planned.len() as u64 };
            Member { name: name.into(), source, mode: 0o600, uid: 0, gid: 0, mtime: 1 }
        });
        let told = Arc::new(Mutex::new(Vec::new()));
        let on_file = {
            let (told, larger, smaller) = (told.clone(), larger.clone(), smaller.clone());
            let changed = ["grown", "shrunk", "emptied", "vanished"].map(at);
            move |file: ArchivedFile| {
                if file.name == b"first" {
                    let [grown, shrunk, emptied, vanished] = &changed;
                    fs::write(grown, &larger)?;
                    fs::write(shrunk, &smaller)?;
                    fs::write(emptied, "")?;
                    fs::remove_file(vanished)?;
                }
                told.lock().unwrap().push((String::from_utf8(file.name).unwrap(), file.size, file.crc32c));
                Ok(())
            }
        };
        let (level, progress) = (Level::Fast, Arc::default());
        let context = PartitionContext { level, rate_limit: None, progress, on_file: Arc::new(on_file) };
        let store = MemoryStore::new();
        let (_, bytes) = upload_partition(&store, "part", plan.into(), &PutOptions::default(), &context).await.unwrap();

        let padded = |mut contents: Vec<u8>| {
            contents.resize(planned.len(), 0);
            contents
        };
        let expected = [
            ("first", planned.clone()),
            ("grown", larger[..planned.len()].to_vec()),
            ("shrunk", padded(smaller)),
            ("emptied", padded(Vec::new())),
            ("last", planned.clone()),
        ];
        assert_eq!(bytes, 5 * planned.len() as u64, "all but the vanished one");
        let archived = members(&store, "part").await;
        assert!(
            archived
                .iter()
                .map(|(name, contents)| (name.as_str(), contents))
                .eq(expected.iter().map(|(name, contents)| (*name, contents)))
        );
        let of_contents =
            |(name, contents): &(&str, Vec<u8>)| (name.to_string(), contents.len() as u64, crc32c::crc32c(contents));
        assert_eq!(*told.lock().unwrap(), expected.iter().map(of_contents).collect::<Vec<_>>());
    }
}
