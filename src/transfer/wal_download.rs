//! An archived WAL file to a file of `pg_wal`, checked before it appears.

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::{StreamExt as _, TryStreamExt as _};

use super::progress::{Progress, Stage};
use super::turns::Turns;
use super::{Result, TransferError, cores, decompress, off_async};
use crate::formats::key::Layout;
use crate::formats::lzop::Block;
use crate::formats::timeline_history::TimelineHistory;
use crate::formats::wal_name::{SegmentName, WalName};
use crate::formats::wal_page::{self, LONG_HEADER_LEN, LongPageHeader};
use crate::fs::staged::StagedFile;
use crate::storage::Store;

/// The largest segment that PostgreSQL allows, 1 GiB: what decompresses to more is no WAL file.
const LIMIT_BYTES: u64 = 1 << 30;

/// What a file has to be.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Its name; a file that has none of PostgreSQL's names is checked by its checksums alone.
    pub name: Option<WalName>,
    /// The cluster that it is for, where that is known.
    pub system_identifier: Option<u64>,
}

/// A download's place among those that share the processor.
#[derive(Debug, Clone)]
pub struct Lane {
    /// Whose turn it is to decompress.
    pub turns: Arc<Turns>,
    /// How urgent this download is: the lowest goes first.
    pub rank: u64,
    /// Counts what it reads and writes, and what it waits for.
    pub progress: Arc<Progress>,
}

impl Lane {
    /// All cores for one download.
    pub fn alone() -> Self {
        let cores = NonZeroUsize::new(cores()).unwrap_or(NonZeroUsize::MIN);
        Self { turns: Turns::new(cores), rank: 0, progress: Arc::default() }
    }
}

/// Fetches the object `key` to `destination`. The file appears there by rename, and only when it is whole, its checksums
/// hold, and, for a segment, its size and first page are what is `expected`. Not fsynced: PostgreSQL makes
/// what it keeps durable itself, and asks again after a crash.
///
/// An object that fails its checks is fetched once more, since a network without TLS can damage bytes as well.
pub async fn download_wal(
    store: &dyn Store,
    key: &str,
    expected: &Expected,
    destination: &Path,
    lane: &Lane,
) -> Result<()> {
    match attempt(store, key, expected, destination, lane).await {
        Err(failed @ (TransferError::Lzop { .. } | TransferError::NotTheSegment { .. })) => {
            tracing::warn!(error = %failed, "fetching a damaged object once more");
            attempt(store, key, expected, destination, lane).await
        }
        done => done,
    }
}

async fn attempt(store: &dyn Store, key: &str, expected: &Expected, destination: &Path, lane: &Lane) -> Result<()> {
    let url = store.url(key);
    let asked = Instant::now();
    let object = store.get(key, 0, None).await?;
    lane.progress.waited(Stage::Store, asked.elapsed());
    let staged = StagedFile::create(destination).map_err(TransferError::file("create a file beside", destination))?;
    let staged = Arc::new(staged);
    let start = Arc::new(Mutex::new([0_u8; LONG_HEADER_LEN]));
    let mut size = 0_u64;
    let mut writes = Box::pin(
        decompress::blocks(url.clone(), object.body, Some(Arc::clone(&lane.progress)))
            .map(|block| {
                let block = block?;
                let begin = size;
                size += block.plain_len() as u64;
                if size > LIMIT_BYTES {
                    return Err(TransferError::TooLong { url: url.clone(), limit: LIMIT_BYTES });
                }
                let (staged, start, url) = (Arc::clone(&staged), Arc::clone(&start), url.clone());
                let destination = destination.to_owned();
                Ok(async move {
                    let turn = lane.turns.turn(lane.rank).await;
                    let progress = Arc::clone(&lane.progress);
                    off_async(move || {
                        let _turn = turn;
                        write_block(&url, &block, begin, &staged, &start, &destination, &progress)
                    })
                    .await
                })
            })
            .try_buffer_unordered(cores()),
    );
    while writes.next().await.transpose()?.is_some() {}
    drop(writes);
    let start = *start.lock().unwrap_or_else(PoisonError::into_inner);
    let start = &start[..start.len().min(usize::try_from(size).unwrap_or(usize::MAX))];
    if let Some(WalName::Segment(segment) | WalName::Partial(segment)) = expected.name {
        check(segment, expected.system_identifier, start, size, &url)?;
    }
    let staged = Arc::into_inner(staged).expect("every write has ended and dropped its share");
    staged.publish().map_err(TransferError::file("publish", destination))
}

thread_local! {
    /// A block's plain bytes: fresh memory for each would cost a page fault every 4 KiB.
    static PLAIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn write_block(
    url: &str,
    block: &Block,
    begin: u64,
    staged: &StagedFile,
    start: &Mutex<[u8; LONG_HEADER_LEN]>,
    destination: &Path,
    progress: &Progress,
) -> Result<()> {
    PLAIN.with_borrow_mut(|plain| {
        let began = Instant::now();
        plain.resize(block.plain_len(), 0);
        decompress::decode(url, block, plain)?;
        let decoded = Instant::now();
        progress.waited(Stage::Codec, decoded - began);
        if begin < LONG_HEADER_LEN as u64 {
            let mut start = start.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = begin as usize;
            let len = plain.len().min(LONG_HEADER_LEN - begin);
            start[begin..begin + len].copy_from_slice(&plain[..len]);
        }
        let written = staged.file().write_all_at(plain, begin).map_err(TransferError::file("write", destination));
        progress.waited(Stage::Disk, decoded.elapsed());
        progress.add_plain(plain.len() as u64);
        written
    })
}

fn check(name: SegmentName, system_identifier: Option<u64>, start: &[u8], size: u64, url: &str) -> Result<()> {
    let page = wal_page::check_segment(name, start, size)
        .and_then(|page| wal_page::check_cluster(&page, system_identifier).map(|()| page))
        .map_err(|source| TransferError::NotTheSegment { url: url.to_owned(), source })?;
    if !page.is_known_version() {
        tracing::warn!(url, magic = format_args!("{:#06X}", page.magic), "segment of an unknown major version");
    }
    Ok(())
}

/// The header of the archived segment `name`'s first page; none when the archive does not hold it. Only the object's first
/// block is read.
pub async fn first_page(store: &dyn Store, key: &str, name: SegmentName) -> Result<Option<LongPageHeader>> {
    let Some(plain) = first_block(store, key).await? else { return Ok(None) };
    let not_the_segment = |source| TransferError::NotTheSegment { url: store.url(key), source };
    let page = LongPageHeader::parse(&plain).map_err(not_the_segment)?;
    wal_page::check_segment(name, &plain, page.segment_size.bytes()).map_err(not_the_segment)?;
    Ok(Some(page))
}

/// The history of `timeline`; none when the archive does not hold one that the server would accept. Only the object's first
/// block is read, which has room for thousands of ancestors.
pub async fn archived_history(store: &dyn Store, layout: &Layout, timeline: u32) -> Result<Option<TimelineHistory>> {
    let plain = first_block(store, &layout.wal(&WalName::History { timeline }.to_string())).await?;
    Ok(plain.and_then(|plain| TimelineHistory::parse(timeline, &String::from_utf8_lossy(&plain)).ok()))
}

/// The plain bytes of an object's first block, none of an empty object; none when the archive does not hold it.
async fn first_block(store: &dyn Store, key: &str) -> Result<Option<Vec<u8>>> {
    let url = store.url(key);
    let object = match store.get(key, 0, None).await {
        Err(absent) if absent.kind() == crate::storage::Kind::NotFound => return Ok(None),
        object => object?,
    };
    let mut blocks = Box::pin(decompress::blocks(url.clone(), object.body, None));
    let mut plain = Vec::new();
    if let Some(block) = blocks.try_next().await? {
        plain.resize(block.plain_len(), 0);
        decompress::decode(&url, &block, &mut plain)?;
    }
    Ok(Some(plain))
}
