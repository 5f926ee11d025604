//! Plain bytes to a lzop stream, blocks compressed on all cores and kept in order.

use std::cell::RefCell;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, future, stream};

use super::buffer::CHUNKS;
use super::{Result, cores, off_async};
use crate::formats::lzo1x::Level;
use crate::formats::lzop::{BLOCK_SIZE, BlockEncoder, TERMINATOR, encode_header};

thread_local! {
    static ENCODER: RefCell<Option<(Level, BlockEncoder)>> = const { RefCell::new(None) };
}

/// Turns `plain`, chunks but for the last, into the pieces of one lzop stream.
///
/// At most two more pieces than there are cores are in memory beside the one that the caller holds: while it is busy with that
/// one, every core has another to go on with.
pub fn lzop_stream(
    level: Level,
    mode: u32,
    mtime: u64,
    plain: impl Stream<Item = Result<Bytes>> + Send,
) -> impl Stream<Item = Result<Bytes>> + Send {
    let header = Bytes::copy_from_slice(&encode_header(mode, mtime));
    let blocks = plain
        .map_ok(move |chunk| async move { Ok(off_async(move || encode(level, &chunk)).await) })
        .try_buffered(cores() + 2);
    let once = |piece| stream::once(future::ready(Ok(piece)));
    once(header).chain(blocks).chain(once(Bytes::from_static(&TERMINATOR)))
}

/// The blocks that hold `plain`.
fn encode(level: Level, plain: &[u8]) -> Bytes {
    ENCODER.with_borrow_mut(|kept| {
        if kept.as_ref().is_none_or(|(of, _)| *of != level) {
            *kept = Some((level, BlockEncoder::new(level)));
        }
        let (_, encoder) = kept.as_mut().expect("filled above");
        let mut out = CHUNKS.empty();
        plain.chunks(BLOCK_SIZE).for_each(|block| encoder.encode(block, &mut out));
        CHUNKS.share(out)
    })
}
