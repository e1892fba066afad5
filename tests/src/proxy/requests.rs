//! The HTTP/1.1 requests that pass, as far as tests ask: what was asked for, how much was sent, what was answered.
//!
//! A client that waits for the answer before it asks for something else on the same connection is all there is here, so
//! the first line after a request is its answer's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Clone, Debug)]
pub struct Request {
    /// `PUT /bucket/key?x-id=PutObject HTTP/1.1`
    pub line: String,
    /// Bytes of the body that the client sent.
    pub body: u64,
    /// Of the answer, once it was passed on to the client.
    pub status: Option<u16>,
}

#[derive(Default)]
pub(super) struct Log {
    requests: Mutex<Vec<Request>>,
    asked_bytes: AtomicU64,
    body_bytes: AtomicU64,
    reply_bytes: AtomicU64,
}

/// One connection, seen from both of its ends.
#[derive(Clone)]
pub(super) struct Conversation {
    log: Arc<Log>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Of the request that is being sent.
    head: Vec<u8>,
    body_left: u64,
    /// The request that is sent or answered now.
    current: Option<usize>,
    answered: bool,
}

impl Log {
    pub(super) fn requests(&self) -> Vec<Request> {
        self.lock().clone()
    }

    pub(super) fn asked_bytes(&self) -> u64 {
        self.asked_bytes.load(Ordering::SeqCst)
    }

    pub(super) fn body_bytes(&self) -> u64 {
        self.body_bytes.load(Ordering::SeqCst)
    }

    pub(super) fn reply_bytes(&self) -> u64 {
        self.reply_bytes.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Conversation {
    pub(super) fn new(log: &Arc<Log>) -> Self {
        Self { log: Arc::clone(log), state: Arc::default() }
    }

    /// Takes what the client sent; returns the head of a request that is complete with it.
    pub(super) fn asked(&self, mut bytes: &[u8]) -> Option<String> {
        let mut begun = None;
        self.log.asked_bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !bytes.is_empty() {
            if state.body_left > 0 {
                let here = bytes.len().min(usize::try_from(state.body_left).unwrap_or(usize::MAX));
                state.body_left -= here as u64;
                self.log.body_bytes.fetch_add(here as u64, Ordering::SeqCst);
                if let Some(current) = state.current {
                    self.log.lock()[current].body += here as u64;
                }
                bytes = &bytes[here..];
                continue;
            }
            state.head.push(bytes[0]);
            bytes = &bytes[1..];
            if state.head.ends_with(b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&std::mem::take(&mut state.head)).into_owned();
                let length = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
                });
                state.body_left = length.unwrap_or_default();
                let line = head.lines().next().unwrap_or_default().to_owned();
                let mut requests = self.log.lock();
                state.current = Some(requests.len());
                state.answered = false;
                requests.push(Request { line, body: 0, status: None });
                begun = Some(head);
            }
        }
        begun
    }

    /// Takes what was passed on to the client.
    pub(super) fn replied(&self, bytes: &[u8]) {
        self.log.reply_bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let status = bytes.strip_prefix(b"HTTP/1.").and_then(|rest| std::str::from_utf8(rest.get(2..5)?).ok());
        // "100 Continue" is no answer.
        let Some(status) = status.and_then(|status| status.parse().ok()).filter(|status| *status != 100) else {
            return;
        };
        if let Some(current) = state.current.filter(|_| !state.answered) {
            state.answered = true;
            self.log.lock()[current].status = Some(status);
        }
    }
}
