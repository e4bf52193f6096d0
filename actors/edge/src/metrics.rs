//! Counters of the edge, as Prometheus text (SPEC OBS-2).
//!
//! Atomics per app; the map of apps is swapped when an app is met for the first time, so a request
//! takes no lock. `fly_edge_*` have the labels app, region and host.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use skein_core::AppId;
use skein_core::budget::RetryBudget;
use skein_core::snapshot::Snapshot;

use crate::worker::Worker;

type AppMap = BTreeMap<AppId, Arc<AppCounters>>;

/// Upper bounds of the response time's buckets, in seconds.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Statuses are counted from 100 to 599; others fall into the last.
const STATUSES: usize = 500;

/// A histogram of durations.
#[derive(Debug, Default)]
struct Times {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum_us: AtomicU64,
}

impl Times {
    fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    fn render(&self, name: &str, labels: &str, lines: &mut Vec<String>) {
        let mut sum = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            sum += count.load(Ordering::Relaxed);
            let bound = BUCKETS.get(bucket).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            lines.push(format!("{name}_bucket{{{labels},le=\"{bound}\"}} {sum}"));
        }
        let seconds = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        lines.push(format!("{name}_sum{{{labels}}} {seconds}"));
        lines.push(format!("{name}_count{{{labels}}} {sum}"));
    }
}

/// Counters of one app at this edge.
#[derive(Debug)]
pub(crate) struct AppCounters {
    responses: Box<[AtomicU64]>,
    time: Times,
    /// Of those that waited in the queue.
    queued: Times,
    /// What retries may cost (SPEC LB-9).
    pub(crate) budget: RetryBudget,
    connects: AtomicU64,
    data_in: AtomicU64,
    data_out: AtomicU64,
}

impl Default for AppCounters {
    fn default() -> Self {
        Self {
            responses: (0..=STATUSES).map(|_| AtomicU64::new(0)).collect(),
            time: Times::default(),
            queued: Times::default(),
            budget: RetryBudget::default(),
            connects: AtomicU64::new(0),
            data_in: AtomicU64::new(0),
            data_out: AtomicU64::new(0),
        }
    }
}

impl AppCounters {
    pub(crate) fn response(&self, status: u16, took: Duration) {
        let index = usize::from(status).wrapping_sub(100).min(STATUSES);
        self.responses[index].fetch_add(1, Ordering::Relaxed);
        self.time.add(took);
    }

    /// A request waited so long until a Machine took it, or it was given up.
    pub(crate) fn queued(&self, waited: Duration) {
        self.queued.add(waited);
    }

    pub(crate) fn connect(&self) {
        self.connects.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn data(&self, received: u64, sent: u64) {
        self.data_in.fetch_add(received, Ordering::Relaxed);
        self.data_out.fetch_add(sent, Ordering::Relaxed);
    }
}

/// All counters of an edge.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    apps: ArcSwap<AppMap>,
    /// Connections that were closed at once: nothing listens there, or too many.
    pub(crate) closed_at_once: AtomicU64,
    /// Connections that ended because their bytes were no HTTP the library takes.
    pub(crate) malformed: AtomicU64,
    /// Connections that were cut off because their client took too long for what it had begun.
    pub(crate) slow: AtomicU64,
    /// Requests sent to another Machine after a failure or refusal.
    pub(crate) retries: AtomicU64,
    /// Requests that were not tried again because the budget was spent.
    pub(crate) unretried: AtomicU64,
    /// Attempts that went through a node in between.
    pub(crate) relayed: AtomicU64,
    /// Responses that had begun and did not reach their client whole.
    pub(crate) cut_off: AtomicU64,
    /// Upgraded and raw connections on which nothing moved for too long.
    pub(crate) idle: AtomicU64,
    /// Replays that apps asked for.
    pub(crate) replays: AtomicU64,
    /// Requests that wanted a Machine started.
    pub(crate) starts_wanted: AtomicU64,
}

impl Metrics {
    /// The counters of an app.
    pub(crate) fn app(&self, app: AppId) -> Arc<AppCounters> {
        if let Some(counters) = self.apps.load().get(&app) {
            return Arc::clone(counters);
        }
        let fresh = Arc::new(AppCounters::default());
        self.apps.rcu(|apps| {
            let mut apps = AppMap::clone(apps);
            apps.entry(app).or_insert_with(|| Arc::clone(&fresh));
            apps
        });
        self.apps.load_full().get(&app).map_or(fresh, Arc::clone)
    }

    /// Prometheus text, all of the edge's and worker's families.
    pub(crate) fn render(
        &self,
        snapshot: &Snapshot,
        worker: &Worker,
        waiting: usize,
        region: &str,
        host: &str,
    ) -> String {
        let apps = self.apps.load_full();
        let label = |id: &AppId| {
            let app = snapshot.registry.app(*id).map_or_else(|| id.to_string(), |app| app.name.to_string());
            format!("app=\"{app}\",region=\"{region}\",host=\"{host}\"")
        };
        let labels: BTreeMap<AppId, String> = apps.keys().map(|id| (*id, label(id))).collect();
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, lines: &[String]| {
            // Writing to a string can't fail.
            let _infallible = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            lines.iter().for_each(|line| {
                out.push_str(line);
                out.push('\n');
            });
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let each = |name: &str, counter: fn(&AppCounters) -> &AtomicU64| -> Vec<String> {
            apps.iter().map(|(id, app)| format!("{name}{{{}}} {}", labels[id], read(counter(app)))).collect()
        };
        let mut lines = Vec::new();
        for (id, app) in apps.iter() {
            for (index, count) in app.responses.iter().enumerate().filter(|(_, count)| read(count) > 0) {
                let status = if index == STATUSES { "other".to_owned() } else { (index + 100).to_string() };
                lines.push(format!(
                    "fly_edge_http_responses_count{{{},status=\"{status}\"}} {}",
                    labels[id],
                    read(count)
                ));
            }
        }
        family("fly_edge_http_responses_count", "counter", "Responses to clients.", &lines);
        for (name, help, times) in [
            (
                "fly_edge_http_response_time_seconds",
                "Time from a request's head to the end of its response.",
                (|app| &app.time) as fn(&AppCounters) -> &Times,
            ),
            (
                "skein_edge_queue_wait_seconds",
                "Time that requests waited until a Machine had room, or were given up.",
                |app| &app.queued,
            ),
        ] {
            lines.clear();
            apps.iter().for_each(|(id, app)| times(app).render(name, &labels[id], &mut lines));
            family(name, "histogram", help, &lines);
        }
        for (name, help, counter) in [
            (
                "fly_edge_tcp_connects_count",
                "Connections of clients.",
                (|app| &app.connects) as fn(&AppCounters) -> &AtomicU64,
            ),
            ("fly_edge_data_in", "Bytes from clients.", |app| &app.data_in),
            ("fly_edge_data_out", "Bytes to clients.", |app| &app.data_out),
        ] {
            family(name, "counter", help, &each(name, counter));
        }
        let machines = worker.local().load();
        let concurrency: Vec<String> = machines
            .values()
            .map(|machine| {
                let load: u32 = machine.slots.iter().map(|slots| slots.in_flight()).sum();
                format!("fly_app_concurrency{{{},instance=\"{}\"}} {load}", label(&machine.app), machine.id)
            })
            .collect();
        family(
            "fly_app_concurrency",
            "gauge",
            "Requests or connections in flight at a Machine.",
            &concurrency,
        );
        family(
            "skein_edge_queue_waiting",
            "gauge",
            "Requests that wait until a Machine has room.",
            &[format!("skein_edge_queue_waiting{{region=\"{region}\",host=\"{host}\"}} {waiting}")],
        );
        for (name, help, counter) in [
            ("skein_edge_closed_at_once_count", "Connections closed at once.", &self.closed_at_once),
            ("skein_edge_malformed_count", "Connections ended by malformed HTTP.", &self.malformed),
            ("skein_edge_slow_count", "Connections of slow clients that were cut off.", &self.slow),
            ("skein_edge_retries_count", "Attempts after a failure or refusal.", &self.retries),
            (
                "skein_edge_cut_off_count",
                "Responses that had begun and did not reach their client whole.",
                &self.cut_off,
            ),
            (
                "skein_edge_idle_count",
                "Upgraded and raw connections that their idle_timeout ended.",
                &self.idle,
            ),
            (
                "skein_edge_unretried_count",
                "Requests that were not tried again because the app's budget for retries was spent.",
                &self.unretried,
            ),
            (
                "skein_edge_hints_count",
                "Hints to edges that a Machine has room, which found a request waiting.",
                worker.hints(),
            ),
            (
                "skein_edge_relayed_count",
                "Attempts that went through a node in between, around a link that is cut.",
                &self.relayed,
            ),
            ("skein_edge_replays_count", "Replays that apps asked for.", &self.replays),
            (
                "skein_edge_starts_wanted_count",
                "Requests that wanted a Machine started.",
                &self.starts_wanted,
            ),
        ] {
            family(
                name,
                "counter",
                help,
                &[format!("{name}{{region=\"{region}\",host=\"{host}\"}} {}", read(counter))],
            );
        }
        out
    }
}
