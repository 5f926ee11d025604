//! Storage and formats joined: files become objects and objects become files, streaming, with bounded memory.

pub mod archive_end;
mod buffer;
pub mod compress;
pub mod decompress;
mod error;
pub mod extract;
pub mod fingerprint;
pub mod identity;
pub mod later_timeline;
pub mod partition_download;
pub mod partition_upload;
pub mod progress;
pub mod rate_limit;
pub mod turns;
pub mod upload;
pub mod wal_download;
pub mod wal_upload;

pub(crate) use error::file_hint;
pub use error::{Kind, TransferError};

/// What every transfer returns.
pub type Result<T> = std::result::Result<T, TransferError>;

/// Runs CPU or disk work on a thread where it holds up no one else's I/O. A panic in it goes on in the caller.
pub(crate) async fn off_async<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // only a runtime that shuts down cancels blocking work, and then nobody polls this any more
            Err(_) => std::future::pending().await,
        },
    }
}

/// How many blocks to work on at once: one a core.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
