//! A body that passes another on, damaged, slowed or cut as the faults say.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// Time for what was sent to leave the buffers before the connection is closed.
const FLUSH_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(super) struct Shape {
    pub(super) flips: Vec<u64>,
    pub(super) stall: Option<(u64, Duration)>,
    pub(super) cut: Option<u64>,
    pub(super) bytes_per_second: Option<u64>,
    /// Set when the body is cut, for whoever has to drop the connection.
    pub(super) was_cut: Arc<AtomicBool>,
}

impl Shape {
    pub(super) fn is_plain(&self) -> bool {
        self.flips.is_empty() && self.stall.is_none() && self.cut.is_none() && self.bytes_per_second.is_none()
    }
}

/// Counts a request as in flight until its response body has been handed over or dropped.
#[derive(Debug)]
pub(super) struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    pub(super) fn enter(now: &Arc<AtomicUsize>, peak: &AtomicUsize) -> Self {
        let count = now.fetch_add(1, Ordering::SeqCst) + 1;
        peak.fetch_max(count, Ordering::SeqCst);
        Self(Arc::clone(now))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(super) struct ShapedBody<B> {
    inner: B,
    shape: Option<Shape>,
    pending: Bytes,
    position: u64,
    started: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    cutting: bool,
    _in_flight: Option<InFlight>,
}

impl<B> ShapedBody<B> {
    pub(super) fn new(inner: B, shape: Shape, in_flight: Option<InFlight>) -> Self {
        Self {
            inner,
            shape: (!shape.is_plain()).then_some(shape),
            pending: Bytes::new(),
            position: 0,
            started: None,
            timer: None,
            cutting: false,
            _in_flight: in_flight,
        }
    }

    /// The next piece of `pending`, or None when a pause has to come first.
    fn next_piece(&mut self) -> Option<Bytes> {
        let shape = self.shape.as_mut().expect("only shaped bodies are cut in pieces");
        let mut length = self.pending.len() as u64;
        if let Some(cut) = shape.cut {
            if self.position >= cut {
                self.cutting = true;
                self.timer = Some(Box::pin(sleep(FLUSH_PAUSE)));
                return None;
            }
            length = length.min(cut - self.position);
        }
        if let Some((after, pause)) = shape.stall {
            if self.position >= after {
                shape.stall = None;
                self.timer = Some(Box::pin(sleep(pause)));
                return None;
            }
            length = length.min(after - self.position);
        }
        if let Some(rate) = shape.bytes_per_second {
            let started = *self.started.get_or_insert_with(Instant::now);
            let due = started + Duration::from_secs_f64(self.position as f64 / rate as f64);
            if due > Instant::now() {
                self.timer = Some(Box::pin(sleep_until(due)));
                return None;
            }
            length = length.min((rate / 50).clamp(1, 64 * 1024));
        }
        let piece = self.pending.split_to(usize::try_from(length).expect("a piece is in memory"));
        let span = self.position..self.position + length;
        self.position = span.end;
        if !shape.flips.iter().any(|at| span.contains(at)) {
            return Some(piece);
        }
        let mut damaged = piece.to_vec();
        for at in shape.flips.iter().filter(|at| span.contains(at)) {
            damaged[(at - span.start) as usize] ^= 0x20;
        }
        Some(damaged.into())
    }
}

impl<B> Body for ShapedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.shape.is_none() {
            return Pin::new(&mut this.inner)
                .poll_frame(context)
                .map(|frame| frame.map(|result| result.map_err(Into::into)));
        }
        loop {
            if let Some(timer) = this.timer.as_mut() {
                ready!(timer.as_mut().poll(context));
                this.timer = None;
                if this.cutting {
                    if let Some(shape) = &this.shape {
                        shape.was_cut.store(true, Ordering::SeqCst);
                    }
                    return Poll::Ready(Some(Err("the connection is cut here by a fault".into())));
                }
            }
            if !this.pending.is_empty() {
                match this.next_piece() {
                    Some(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                    None => continue,
                }
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.pending = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pending.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.inner.size_hint();
        let pending = self.pending.len() as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + pending);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + pending);
        }
        hint
    }
}
