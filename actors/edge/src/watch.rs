//! How long a client may keep a connection without moving on (SPEC HTTP-6, HTTP-9).
//!
//! A timer per request would be set and taken back some hundred thousand times before it fires once.
//! Here a request only counts; a look every tenth of the shortest limit sees what moved since the
//! last one. So a limit is kept to a tenth of the shortest.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use skein_core::machine::HttpOptions;
use tokio::time::{Instant, sleep_until};

/// Looks per shortest limit.
const LOOKS: u32 = 10;

/// The shortest time that is looked at in such parts.
const LEAST: Duration = Duration::from_millis(100);

/// How long each phase of a connection may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Nothing of a request has come.
    pub(crate) idle: Duration,
    /// A head has begun, or none was ever there; `None` where bytes do not tell that, and then it is as
    /// long as `idle`.
    pub(crate) head: Option<Duration>,
    /// Nothing comes of a body that is waited for.
    pub(crate) body: Duration,
    /// The client takes nothing of what is to be sent.
    pub(crate) write: Duration,
}

/// What a connection does, as its requests and bytes tell. Only its own task writes, except for the
/// counts of requests and bodies.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    begun: AtomicU32,
    ended: AtomicU32,
    /// Whether bytes came since the last request began.
    heard: AtomicBool,
    /// Reads that brought bytes.
    reads: AtomicU32,
    /// Whether the last read brought nothing yet.
    hungry: AtomicBool,
    /// Bodies that did not come whole, of requests without a response.
    bodies: AtomicU32,
    /// Whether the last write could not be made yet.
    blocked: AtomicBool,
    /// Writes that were made.
    writes: AtomicU32,
    /// Milliseconds that the app allows instead of the usual idle time; 0 for none.
    idle: AtomicU64,
    /// The same for a head.
    head: AtomicU64,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing that is the client's: requests are served.
    Busy,
    /// The rest of a head.
    Head,
    /// A request.
    Idle,
    /// More of a body.
    Body,
    /// That the client reads.
    Write,
}

/// A phase, and what would have moved on if it were another one of its kind.
type Look = (Phase, u32);

impl Watch {
    /// Bytes came, or none are there.
    pub(crate) fn read(&self, bytes: usize) {
        self.hungry.store(bytes == 0, Ordering::Relaxed);
        if bytes > 0 {
            self.heard.store(true, Ordering::Relaxed);
            self.reads.store(self.reads.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// A write was made, or has to wait.
    pub(crate) fn wrote(&self, made: bool) {
        self.blocked.store(!made, Ordering::Relaxed);
        if made {
            self.writes.store(self.writes.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// A request's head is complete.
    pub(crate) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.heard.store(false, Ordering::Relaxed);
    }

    /// Its response is complete, or given up.
    pub(crate) fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests whose response is complete or given up, wrapping.
    pub(crate) fn ended(&self) -> u32 {
        self.ended.load(Ordering::Relaxed)
    }

    /// A body is to come.
    pub(crate) fn want(&self) {
        self.bodies.fetch_add(1, Ordering::Relaxed);
    }

    /// It came, or need not come soon.
    pub(crate) fn satisfied(&self) {
        self.bodies.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether a request is served.
    pub(crate) fn is_busy(&self) -> bool {
        self.begun.load(Ordering::Relaxed) != self.ended.load(Ordering::Relaxed)
    }

    /// The app's own limits, where it has some.
    pub(crate) fn limit(&self, options: Option<&HttpOptions>) {
        let ms = |seconds: Option<u64>| seconds.unwrap_or_default().saturating_mul(1000);
        self.idle.store(ms(options.and_then(|options| options.idle_timeout)), Ordering::Relaxed);
        self.head.store(ms(options.and_then(|options| options.headers_read_timeout)), Ordering::Relaxed);
    }

    fn look(&self) -> Look {
        let (begun, ended) = (self.begun.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed));
        if self.blocked.load(Ordering::Relaxed) {
            (Phase::Write, self.writes.load(Ordering::Relaxed))
        } else if self.bodies.load(Ordering::Relaxed) > 0 && self.hungry.load(Ordering::Relaxed) {
            // A body that is not read, because its Machine does not, is nothing to hurry the client for.
            (Phase::Body, self.reads.load(Ordering::Relaxed))
        } else if begun != ended {
            (Phase::Busy, begun)
        } else if begun == 0 || self.heard.load(Ordering::Relaxed) {
            (Phase::Head, begun)
        } else {
            (Phase::Idle, begun)
        }
    }

    /// Waits until nothing moved for too long, and says what was waited for.
    pub(crate) async fn overdue(&self, limits: Limits) -> Phase {
        let Limits { body, write, .. } = limits;
        let (mut seen, mut since) = (self.look(), Instant::now());
        loop {
            let idle = match self.idle.load(Ordering::Relaxed) {
                0 => limits.idle,
                wanted => Duration::from_millis(wanted),
            };
            let head = match (limits.head, self.head.load(Ordering::Relaxed)) {
                (None, _) => idle,
                (Some(usual), 0) => usual,
                (Some(_), wanted) => Duration::from_millis(wanted),
            };
            let limit = match seen.0 {
                Phase::Busy => None,
                Phase::Head => Some(since + head),
                Phase::Idle => Some(since + idle),
                Phase::Body => Some(since + body),
                Phase::Write => Some(since + write),
            };
            let shortest = idle.min(head).min(body).min(write).max(LEAST);
            let next = Instant::now() + shortest / LOOKS;
            sleep_until(limit.map_or(next, |limit| limit.min(next))).await;
            let look = self.look();
            if look != seen {
                (seen, since) = (look, Instant::now());
            } else if limit.is_some_and(|limit| limit <= Instant::now()) {
                return seen.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        idle: Duration::from_secs(60),
        head: Some(Duration::from_secs(30)),
        body: Duration::from_secs(50),
        write: Duration::from_secs(100),
    };

    /// What the connection is overdue for, and seconds until then.
    async fn overdue(watch: &Watch) -> (Phase, u64) {
        let begun = Instant::now();
        let phase = watch.overdue(LIMITS).await;
        (phase, begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_may_have_limits_of_its_own_for_heads_and_for_idle_connections() {
        let watch = Watch::default();
        let own: HttpOptions =
            serde_json::from_str(r#"{"headers_read_timeout":5,"idle_timeout":20}"#).unwrap();
        watch.limit(Some(&own));
        assert_eq!(overdue(&watch).await, (Phase::Head, 5));
        watch.begin();
        watch.end();
        assert_eq!(overdue(&watch).await, (Phase::Idle, 20));
        watch.limit(None);
        assert_eq!(overdue(&watch).await, (Phase::Idle, 60));
    }

    #[tokio::test(start_paused = true)]
    async fn http_9_a_head_must_come_in_its_time_and_an_idle_connection_has_another() {
        let watch = Watch::default();
        assert_eq!(overdue(&watch).await, (Phase::Head, 30), "nothing ever came");
        watch.begin();
        watch.end();
        assert_eq!(overdue(&watch).await, (Phase::Idle, 60));
        watch.read(1);
        assert_eq!(overdue(&watch).await, (Phase::Head, 30), "a head that does not end");
    }

    #[tokio::test(start_paused = true)]
    async fn http_9_bytes_of_a_head_win_no_time_and_bytes_of_a_body_do() {
        let watch = Watch::default();
        let dripping = async {
            loop {
                watch.read(1);
                watch.read(0);
                tokio::time::sleep(Duration::from_secs(7)).await;
            }
        };
        tokio::select! {
            overdue = overdue(&watch) => assert_eq!(overdue, (Phase::Head, 30)),
            () = dripping => {}
        }
        watch.begin();
        watch.want();
        let some = async {
            for _ in 0..10 {
                watch.read(1);
                watch.read(0);
                tokio::time::sleep(Duration::from_secs(40)).await;
            }
        };
        let ((phase, seconds), ()) = tokio::join!(overdue(&watch), some);
        assert!(phase == Phase::Body && (410..=416).contains(&seconds), "{phase:?} {seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn http_9_only_a_body_that_is_waited_for_can_be_late() {
        let watch = Watch::default();
        watch.begin();
        watch.want();
        watch.read(1);
        let later = async {
            tokio::time::sleep(Duration::from_secs(1000)).await;
            watch.read(0);
        };
        let ((phase, seconds), ()) = tokio::join!(overdue(&watch), later);
        assert!(
            phase == Phase::Body && (1050..=1056).contains(&seconds),
            "its Machine did not read: {seconds}"
        );
        watch.satisfied();
        let answered = async {
            tokio::time::sleep(Duration::from_secs(1000)).await;
            watch.end();
        };
        let ((phase, seconds), ()) = tokio::join!(overdue(&watch), answered);
        assert!(phase != Phase::Body && seconds > 1000, "{phase:?} {seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn http_9_a_client_must_read_something_of_what_is_sent() {
        let watch = Watch::default();
        watch.begin();
        let reading = async {
            for _ in 0..5 {
                watch.wrote(true);
                watch.wrote(false);
                tokio::time::sleep(Duration::from_secs(90)).await;
            }
        };
        let ((phase, seconds), ()) = tokio::join!(overdue(&watch), reading);
        assert!(phase == Phase::Write && (460..=466).contains(&seconds), "{phase:?} {seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_a_request_is_never_overdue_and_each_request_begins_the_time_anew() {
        let watch = Watch::default();
        watch.begin();
        let served = async {
            tokio::time::sleep(Duration::from_secs(1000)).await;
            watch.end();
            tokio::time::sleep(Duration::from_secs(50)).await;
            watch.begin();
            watch.end();
        };
        let ((_, seconds), ()) = tokio::join!(overdue(&watch), served);
        assert!((1110..=1113).contains(&seconds), "{seconds}: to a tenth of the shortest limit");
    }
}
