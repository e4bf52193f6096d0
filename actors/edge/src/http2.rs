//! HTTP/2 to clients: its limits, and who owns its streams (SPEC HTTP-1, HTTP-9).

use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::TokioTimer;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Limits of a client's HTTP/2 connection. What a connection may take of memory is at most
/// `connection_window` for requests, and `send_buffer` and two heads for each of its streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http2Limits {
    /// Requests at once: 100. Further ones are refused (REFUSED_STREAM).
    pub streams: u32,
    /// Bytes of one request's body that may wait here unread: 256 KiB.
    pub stream_window: u32,
    /// Bytes of all its requests' bodies together that may wait here unread: 1 MiB.
    pub connection_window: u32,
    /// Bytes of one response that may wait for the client: 64 KiB.
    pub send_buffer: usize,
    /// How long a client may be silent before it is asked whether it is still there: 20 s.
    pub ping_after: Duration,
    /// How long it may take to say so: 20 s.
    pub ping_timeout: Duration,
    /// Requests that were reset before they were looked at: 20. More end the connection
    /// (CVE-2023-44487).
    pub unseen_resets: usize,
    /// Requests that were reset because they broke the protocol: 100. More end the connection.
    pub faulty_resets: usize,
}

impl Default for Http2Limits {
    fn default() -> Self {
        Self {
            streams: 100,
            stream_window: 256 << 10,
            connection_window: 1 << 20,
            send_buffer: 64 << 10,
            ping_after: Duration::from_secs(20),
            ping_timeout: Duration::from_secs(20),
            unseen_resets: 20,
            faulty_resets: 100,
        }
    }
}

impl Http2Limits {
    /// A builder of connections with these limits and heads of at most `max_head` bytes.
    pub(crate) fn server(&self, max_head: usize, streams: Streams) -> Builder<Streams> {
        let mut builder = Builder::new(streams);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.streams)
            .max_header_list_size(u32::try_from(max_head).unwrap_or(u32::MAX))
            .initial_stream_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_send_buf_size(self.send_buffer)
            .keep_alive_interval(self.ping_after)
            .keep_alive_timeout(self.ping_timeout)
            .max_pending_accept_reset_streams(self.unseen_resets)
            .max_local_error_reset_streams(self.faulty_resets);
        builder
    }
}

/// Owns the tasks of a connection's streams: they end with it.
#[derive(Debug, Clone)]
pub(crate) struct Streams {
    tasks: TaskTracker,
    ended: CancellationToken,
}

impl Streams {
    /// The owner, and what ends its tasks when it is dropped.
    pub(crate) fn new() -> (Self, DropGuard) {
        let ended = CancellationToken::new();
        (Self { tasks: TaskTracker::new(), ended: ended.clone() }, ended.drop_guard())
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let ended = self.ended.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                () = stream => {}
            }
        });
    }
}

/// What this side found wrong with a client's HTTP/2, when that is why its connection ended.
pub(crate) fn fault(error: &hyper::Error) -> Option<h2::Reason> {
    let error = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
    error.reason().filter(|reason| error.is_library() && *reason != h2::Reason::NO_ERROR)
}
