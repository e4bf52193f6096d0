//! The collected traces: the newest ones, found by trace id and by request id.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skein_core::attr;
use tokio::sync::watch;
use tokio::time::Instant;

use super::convert::Received;
use crate::trace::TraceJson;

/// A trace is whole when all its parents are there and nothing was added for so long: nodes export
/// every 200 ms, each for itself.
const QUIET: Duration = Duration::from_millis(500);

/// How much is kept; the oldest goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// Traces.
    pub traces: usize,
    /// Spans of all traces.
    pub spans: usize,
    /// Spans of one trace; more are counted and dropped.
    pub spans_per_trace: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { traces: 10_000, spans: 60_000, spans_per_trace: 1_000 }
    }
}

/// A handle of the store.
#[derive(Debug, Clone)]
pub struct Store {
    traces: Arc<Mutex<Traces>>,
    limits: StoreLimits,
    added: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Traces {
    by_id: BTreeMap<String, Kept>,
    by_request: BTreeMap<String, String>,
    oldest: VecDeque<String>,
    spans: usize,
}

#[derive(Debug)]
struct Kept {
    trace: TraceJson,
    changed: Instant,
}

impl Store {
    pub(crate) fn new(limits: StoreLimits) -> Self {
        let added = Arc::new(watch::Sender::new(0));
        Self { traces: Arc::new(Mutex::new(Traces::default())), limits, added }
    }

    /// How much is kept.
    pub fn limits(&self) -> StoreLimits {
        self.limits
    }

    fn with<T>(&self, f: impl FnOnce(&mut Traces) -> T) -> T {
        let mut guard = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut guard)
    }

    pub(super) fn add(&self, spans: Vec<Received>) {
        if spans.is_empty() {
            return;
        }
        let now = Instant::now();
        self.with(|traces| {
            for received in spans {
                traces.add(received, &self.limits, now);
            }
            traces.shrink(&self.limits);
        });
        self.added.send_modify(|count| *count += 1);
    }

    /// The trace of that trace id or request id, as far as it was collected.
    pub fn get(&self, id: &str) -> Option<TraceJson> {
        self.with(|traces| traces.find(id).map(|kept| kept.trace.clone()))
    }

    /// The same once it is whole; what there is, if anything, when `patience` ends.
    pub async fn settled(&self, id: &str, patience: Duration) -> Option<TraceJson> {
        let deadline = Instant::now() + patience;
        let mut added = self.added.subscribe();
        loop {
            added.borrow_and_update();
            let whole_at = self.with(|traces| {
                let kept = traces.find(id)?;
                kept.trace.is_connected().then(|| kept.changed + QUIET)
            });
            let next = whole_at.unwrap_or(deadline).min(deadline);
            if Instant::now() >= next {
                return self.get(id);
            }
            // Whatever comes first: more spans, or the moment to look again.
            let _added_or_late = tokio::time::timeout_at(next, added.changed()).await;
        }
    }
}

impl Traces {
    fn find(&self, id: &str) -> Option<&Kept> {
        let id = self.by_request.get(id).map_or(id, String::as_str);
        self.by_id.get(id)
    }

    fn add(&mut self, received: Received, limits: &StoreLimits, now: Instant) {
        let Received { trace: id, span } = received;
        let kept = self.by_id.entry(id.clone()).or_insert_with(|| {
            self.oldest.push_back(id.clone());
            Kept { trace: TraceJson { trace_id: id.clone(), ..TraceJson::default() }, changed: now }
        });
        kept.changed = now;
        if let Some(request) = span.attributes.get(attr::REQUEST_ID).and_then(|value| value.as_str())
            && !kept.trace.request_ids.iter().any(|known| known == request)
            && kept.trace.request_ids.len() < limits.spans_per_trace
        {
            kept.trace.request_ids.push(request.to_owned());
            self.by_request.insert(request.to_owned(), id);
        }
        let spans = &mut kept.trace.spans;
        // An exporter that got no answer sends a batch again.
        if let Some(same) = spans.iter_mut().find(|known| known.span_id == span.span_id) {
            *same = span;
        } else if spans.len() < limits.spans_per_trace {
            spans.push(span);
            self.spans += 1;
        } else {
            kept.trace.dropped_spans += 1;
        }
    }

    fn shrink(&mut self, limits: &StoreLimits) {
        while self.by_id.len() > limits.traces || self.spans > limits.spans {
            let Some(id) = self.oldest.pop_front() else { return };
            let Some(Kept { trace, .. }) = self.by_id.remove(&id) else { continue };
            self.spans -= trace.spans.len();
            for request in trace.request_ids {
                if self.by_request.get(&request) == Some(&id) {
                    self.by_request.remove(&request);
                }
            }
        }
    }
}
