//! Bodies that go out no faster than they may.
//!
//! The body is exchanged after the request was signed, so the signature is that of the bytes, and the length is in the
//! head already.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::{BoxError, SdkError};
use aws_sdk_s3::primitives::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::bandwidth::{Bandwidth, Direction};

/// What is handed to the connection at once where there is no limit: its buffer takes about as much.
const PIECE_BYTES: usize = 64 * 1024;

/// Exchanges the body of one request; shared by cloning with whoever watches it.
#[derive(Clone)]
pub(super) struct Pacer {
    bandwidth: Bandwidth,
    body: Bytes,
    pulse: Arc<Pulse>,
}

/// When a request last moved.
struct Pulse {
    moved: Mutex<Instant>,
    /// Held back by us, not by the link.
    waiting: AtomicBool,
}

impl Pacer {
    /// For one attempt at a request with this body.
    pub(super) fn new(bandwidth: Bandwidth, body: Bytes) -> Self {
        let pulse = Pulse { moved: Mutex::new(Instant::now()), waiting: AtomicBool::new(false) };
        Self { bandwidth, body, pulse: Arc::new(pulse) }
    }

    /// Waits for the request, but not for a link that takes nothing for so long.
    pub(super) async fn watch<T, E, R>(
        &self,
        silence_max: Duration,
        request: impl Future<Output = Result<T, SdkError<E, R>>>,
    ) -> Result<T, SdkError<E, R>> {
        let mut request = std::pin::pin!(request);
        loop {
            let deadline = self.pulse.moved() + silence_max;
            tokio::select! {
                done = &mut request => return done,
                () = tokio::time::sleep_until(deadline) => {}
            }
            if self.pulse.waiting.load(Ordering::Relaxed) {
                self.pulse.beat();
            } else if self.pulse.moved() + silence_max <= Instant::now() {
                let seconds = silence_max.as_secs();
                return Err(SdkError::timeout_error(format!("nothing moved for {seconds} s")));
            }
        }
    }
}

impl Pulse {
    fn moved(&self) -> Instant {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beat(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl fmt::Debug for Pacer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pacer")
    }
}

impl Intercept for Pacer {
    fn name(&self) -> &'static str {
        "Pacer"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let paced = PacedBody { left: self.body.clone(), acquiring: None, pacer: self.clone() };
        *context.request_mut().body_mut() = SdkBody::from_body_1_x(paced);
        Ok(())
    }
}

type Acquiring = Pin<Box<dyn Future<Output = usize> + Send + Sync>>;

struct PacedBody {
    left: Bytes,
    acquiring: Option<Acquiring>,
    pacer: Pacer,
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let pulse = Arc::clone(&self.pacer.pulse);
        pulse.beat();
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let (bandwidth, requested) = (self.pacer.bandwidth.clone(), self.left.len().min(PIECE_BYTES));
        let acquiring = self
            .acquiring
            .get_or_insert_with(|| Box::pin(async move { bandwidth.acquire(Direction::Up, requested).await }));
        pulse.waiting.store(true, Ordering::Relaxed);
        let granted = ready!(acquiring.as_mut().poll(context));
        pulse.waiting.store(false, Ordering::Relaxed);
        self.acquiring = None;
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(granted)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}
