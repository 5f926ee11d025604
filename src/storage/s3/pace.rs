//! Noticing that the server takes no more bytes of an upload.
//!
//! A dead connection swallows what the kernel buffers and then nothing, and no error comes. So an upload's body is handed
//! to the HTTP client in frames, and each frame asked for is progress. What the client sends stays one body of known
//! length, signed as a whole: the frames are cut after that, without a copy.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::super::Payload;

/// The size of a frame: small against what the kernel buffers, large against the cost of a frame.
const FRAME_SIZE_BYTES: usize = 64 << 10;

/// How often progress is looked at within the time allowed without any.
const LOOKS: u32 = 4;

/// An upload's body, and how much of it this try has sent.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    body: Payload,
    taken: Arc<AtomicUsize>,
}

impl Pace {
    pub(super) fn new(body: Payload) -> Self {
        Self { body, taken: Arc::default() }
    }

    /// Waits for the answer, but not while no byte is taken for `timeout`; `None` then. Once all were taken the answer may
    /// take its time: the caller's own timeout covers that.
    pub(super) async fn watch<T>(&self, timeout: Duration, sending: impl Future<Output = T>) -> Option<T> {
        let mut sending = pin!(sending);
        let (mut before, mut idle) = (0, 0);
        loop {
            match tokio::time::timeout(timeout / LOOKS, &mut sending).await {
                Ok(sent) => return Some(sent),
                Err(_) => {
                    let taken = self.taken.load(Ordering::Relaxed);
                    idle = if taken == before { idle + 1 } else { 0 };
                    before = taken;
                    if idle >= LOOKS && taken < self.body.bytes.len() {
                        return None;
                    }
                }
            }
        }
    }
}

impl Intercept for Pace {
    fn name(&self) -> &'static str {
        "Pace"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let framed = Framed { rest: self.body.bytes.clone(), pace: self.clone() };
        *context.request_mut().body_mut() = SdkBody::from_body_1_x(framed);
        Ok(())
    }
}

/// The body in frames.
struct Framed {
    rest: Bytes,
    pace: Pace,
}

impl http_body::Body for Framed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let size = self.rest.len().min(FRAME_SIZE_BYTES);
        if size == 0 {
            return Poll::Ready(None);
        }
        let frame = self.rest.split_to(size);
        let taken = self.pace.taken.fetch_add(size, Ordering::Relaxed) + size;
        self.pace.body.note_taken(taken);
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn an_upload_of_which_nothing_is_taken_is_given_up() {
        let pace = Pace::new(Bytes::from_static(b"body").into());
        let begun = tokio::time::Instant::now();
        assert_eq!(pace.watch(TIMEOUT, std::future::pending::<()>()).await, None);
        assert!(begun.elapsed() <= TIMEOUT * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_moves_goes_on_and_its_answer_may_take_time() {
        let pace = Pace::new(Bytes::from_static(b"body").into());
        let sending = async {
            for _ in 0..4 {
                tokio::time::sleep(TIMEOUT * 9 / 10).await;
                pace.taken.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(TIMEOUT * 10).await;
        };
        assert_eq!(pace.watch(TIMEOUT, sending).await, Some(()));
    }
}
