//! What is written and kept of each request, exactly once: by a guard's drop, so a cancelled request
//! is written too.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{Method, Uri};
use skein_cluster::clock;
use skein_core::attr;
use skein_core::code::ErrorCode;
use skein_core::explain::{Ended, MAX_PATH, MAX_WORDS, Pen, Steps, Story, bounded, method};
use skein_core::{AppName, MachineId, NodeNumber, OrgId, RequestId};

use crate::connection::Connection;
use crate::demand::Waiting;
use crate::metrics::AppCounters;
use crate::trace::Trace;

/// The target of the access log's lines: DEBUG for what went well, INFO for the rest.
pub(crate) const TARGET: &str = "skein::access";

/// One request, as the access log, the metrics and its story will tell it.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) started: Instant,
    pub(crate) connection: Arc<Connection>,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) id: RequestId,
    /// The same as text.
    pub(crate) request_id: Arc<str>,
    pub(crate) app: Option<(AppName, Arc<AppCounters>)>,
    /// The app's organization.
    pub(crate) org: Option<OrgId>,
    /// The response's status; `None` until there is one.
    pub(crate) status: Option<u16>,
    /// The code of an error that the proxy made.
    pub(crate) code: Option<&'static str>,
    /// What that error says.
    pub(crate) why: Option<Box<str>>,
    pub(crate) machine: Option<(MachineId, NodeNumber)>,
    pub(crate) attempts: u32,
    /// How the last attempt failed that did.
    pub(crate) last: Option<ErrorCode>,
    pub(crate) replays: u32,
    /// How long it waited until a Machine had room.
    pub(crate) queued: Option<Duration>,
    /// What is started while it waits; `None` while a Machine is tried.
    pub(crate) waiting: Option<Waiting>,
    /// Whether it waited for a start: what comes up is worth waiting for.
    pub(crate) woke: bool,
    pub(crate) sent: u64,
    /// Whether the response was sent to its end.
    pub(crate) complete: bool,
    pub(crate) trace: Trace,
    /// What was decided and tried.
    pub(crate) steps: Steps,
}

impl Access {
    /// Writes down what comes about at `now`.
    pub(crate) fn at(&mut self, now: Instant) -> Pen<'_> {
        self.steps.at(now.saturating_duration_since(self.started))
    }

    /// An error that the proxy answers itself.
    pub(crate) fn fail(&mut self, code: &'static str, why: &str) {
        (self.code, self.why) = (Some(code), Some(bounded(why, MAX_WORDS)));
    }

    /// What is kept of it, for those who ask.
    fn story(&mut self, took: Duration) -> Story {
        let (steps, steps_left_out) = std::mem::take(&mut self.steps).end();
        Story {
            request_id: self.id,
            trace_id: self.trace.id(),
            begun_ms: self.id.ulid.timestamp_ms(),
            edge: None,
            app: self.app.take().map(|(name, _)| name),
            org_id: self.org,
            method: method(&self.method),
            path: bounded(self.uri.path(), MAX_PATH),
            steps,
            steps_left_out,
            ended: Ended {
                status: self.status,
                code: self.code.map(Cow::Borrowed),
                why: self.why.take(),
                machine: self.machine.map(|(machine, _)| machine),
                took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                sent: self.sent,
                complete: self.complete,
            },
        }
    }
}

impl Access {
    /// It waited until a Machine had room, or was given up.
    pub(crate) fn waited(&mut self, waited: Duration) {
        self.queued = Some(self.queued.unwrap_or_default() + waited);
        if let Some((_, counters)) = &self.app {
            counters.queued(waited);
        }
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let took = clock::now().saturating_duration_since(self.started);
        if let (Some((_, counters)), Some(status)) = (&self.app, self.status) {
            counters.response(status, took);
        }
        if self.status.is_some() && !self.complete {
            self.connection.core.metrics.cut_off.fetch_add(1, Ordering::Relaxed);
        }
        self.connection.flush();
        self.connection.watch.end();
        if let Some(status) = self.status {
            self.trace.set(attr::STATUS, || i64::from(status));
        }
        if let Some(code) = self.code {
            self.trace.set(attr::ERROR_CODE, || code);
        }
        match (self.status, self.complete) {
            (Some(status), _) if status >= 500 => self.trace.fail(self.code.unwrap_or("5xx")),
            (Some(_), true) => {}
            (Some(_) | None, _) => self.trace.fail("cut_off"),
        }
        // What went well is for those who look for it; what the proxy answered itself, or what was cut
        // off, is for everybody.
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: TARGET,
                    request = &*self.request_id,
                    app = self.app.as_ref().map(|(name, _)| name.as_str()),
                    method = self.method.as_str(),
                    path = self.uri.path(),
                    status = self.status,
                    code = self.code,
                    machine = self.machine.map(|(machine, _)| tracing::field::display(machine)),
                    node = self.machine.map(|(_, node)| node.0),
                    attempts = self.attempts,
                    last = self.last.map(ErrorCode::as_str),
                    replays = self.replays,
                    queued_ms = self.queued.map(|queued| queued.as_secs_f64() * 1e3),
                    bytes = self.sent,
                    complete = self.complete,
                    ms = took.as_secs_f64() * 1e3,
                    client = %self.connection.ends.client,
                    public = %self.connection.ends.public,
                    "request"
                )
            };
        }
        if self.code.is_some() || !self.complete {
            line!(info)
        } else {
            line!(debug)
        }
        let story = Box::new(self.story(took));
        self.connection.core.stories.keep(story);
    }
}
