//! A load that waits for nothing: requests come at a fixed rate, whatever became of those before, over
//! kept connections and new ones, as from many clients behind an anycast front. An edge that the front
//! has withdrawn gets no new connection; those that it has are used until it closes them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::connection::{Broken, Connection};
use crate::support::{Request, SOON, eventually, now};
use crate::websocket::{Ended, WebSocket};

/// Requests that may wait at once; a further one is held back.
const WAITING: usize = 400;
/// By then a request has its answer, or it has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Seldom used connections of each edge: between two requests of one, a drain may find it quiet.
const SELDOM: usize = 6;

/// WebSockets that are open all the time.
const WEB_SOCKETS: usize = 12;
/// Requests that are under way all the time, whatever the rate: a drain meets some at every edge and
/// Machine.
const SLOW: usize = 9;

/// Numbers of requests that differ by less belong together.
const FAR: u64 = 1 << 40;

/// What a request travels on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A connection of its own.
    Own,
    /// One that is busy.
    Busy,
    /// One that waits for seconds between requests.
    Seldom,
}

/// What is asked for, and how.
#[derive(Debug, Clone, Copy)]
struct Kind {
    way: Way,
    path: &'static str,
}

/// What else there is than requests that can be answered twice, from their first byte to their last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mix {
    /// WebSockets, and bodies that take a while.
    All,
    /// Nothing: a Machine that dies takes no begun response with it, so no client may notice.
    Repeatable,
}

impl Kind {
    /// Most requests are quick, some bring a body worth the name.
    fn of(number: u64, mix: Mix) -> Self {
        let (way, path) = match number % 50 {
            1 => (Way::Seldom, "/"),
            2 if mix == Mix::All => (Way::Busy, "/bytes/100000"),
            rest if rest % 5 == 0 => (Way::Own, "/"),
            _ => (Way::Busy, "/"),
        };
        Self { way, path }
    }
}

/// What became of the requests.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) answered: u64,
    /// Requests that were sent late: too many waited.
    pub(crate) held: u64,
    /// Connections that were opened.
    pub(crate) opened: u64,
    /// Connections that ended by `Connection: close` in a response.
    pub(crate) told: u64,
    /// Kept connections that were found closed before a request was put on them.
    pub(crate) found_closed: u64,
    /// Requests that were sent again, as a browser does it (RFC 9112 section 9.3.1): the edge had
    /// closed the kept connection in order, and no byte of a response had come.
    pub(crate) again: u64,
    /// WebSockets that were opened.
    pub(crate) web_sockets: u64,
    /// Those that were closed with 1012, and opened again.
    pub(crate) restarted: u64,
    /// Messages that came back on them.
    pub(crate) heard: u64,
    /// When, and why.
    pub(crate) failed: Vec<String>,
    /// From when a request was due to the end of its response, in milliseconds; those that are to be
    /// slow are not there.
    pub(crate) took: Vec<f64>,
}

impl Tally {
    /// The time that this share of the requests stayed below, in milliseconds.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.took.clone();
        sorted.sort_by(f64::total_cmp);
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or_default()
    }
}

struct Edge {
    address: SocketAddr,
    announced: AtomicBool,
    /// Connections that are being opened.
    opening: AtomicUsize,
    busy: Mutex<VecDeque<Connection>>,
    seldom: Mutex<VecDeque<Connection>>,
}

impl Edge {
    fn kept(&self, way: Way) -> Option<&Mutex<VecDeque<Connection>>> {
        match way {
            Way::Own => None,
            Way::Busy => Some(&self.busy),
            Way::Seldom => Some(&self.seldom),
        }
    }

    fn is_announced(&self) -> bool {
        self.announced.load(Ordering::SeqCst)
    }
}

struct Front {
    edges: Vec<Edge>,
    tally: Mutex<Tally>,
    /// What happens meanwhile, for failures.
    phase: Mutex<String>,
    began: Instant,
}

/// A running load.
pub(crate) struct Load {
    front: Arc<Front>,
    stop: CancellationToken,
    thread: std::thread::JoinHandle<()>,
}

impl Load {
    /// Sends so many requests a second to these edges, until [`Self::stop`].
    pub(crate) fn start(edges: &[SocketAddr], rate: f64, mix: Mix) -> Self {
        let edge = |address: &SocketAddr| Edge {
            address: *address,
            announced: true.into(),
            opening: 0.into(),
            busy: Mutex::default(),
            seldom: Mutex::default(),
        };
        let front = Arc::new(Front {
            edges: edges.iter().map(edge).collect(),
            tally: Mutex::default(),
            phase: Mutex::default(),
            began: now(),
        });
        let stop = CancellationToken::new();
        let (shared, stopped) = (Arc::clone(&front), stop.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let thread = std::thread::spawn(move || runtime.block_on(arrive(shared, rate, mix, stopped)));
        Self { front, stop, thread }
    }

    /// Says what happens from now on.
    pub(crate) fn phase(&self, what: String) {
        *self.front.phase.lock().unwrap() = what;
    }

    /// Lets no client open a connection to an edge; returns when nobody is about to.
    pub(crate) fn withdraw(&self, edge: usize) {
        let edge = &self.front.edges[edge];
        edge.announced.store(false, Ordering::SeqCst);
        eventually("connections are open", SOON, || match edge.opening.load(Ordering::SeqCst) {
            0 => Ok(()),
            opening => Err(opening),
        });
    }

    /// Lets clients open connections to an edge again.
    pub(crate) fn announce(&self, edge: usize) {
        self.front.edges[edge].announced.store(true, Ordering::SeqCst);
    }

    /// Requests that have failed so far.
    pub(crate) fn failed(&self) -> usize {
        self.front.tally.lock().unwrap().failed.len()
    }

    /// When and why they did, but for the first so many.
    pub(crate) fn failures(&self, but: usize) -> Vec<String> {
        self.front.tally.lock().unwrap().failed.iter().skip(but).cloned().collect()
    }

    /// Waits for the requests under way; what became of all.
    pub(crate) fn stop(self) -> Tally {
        self.stop.cancel();
        self.thread.join().expect("the load ran to its end");
        std::mem::take(&mut *self.front.tally.lock().unwrap())
    }
}

async fn arrive(front: Arc<Front>, rate: f64, mix: Mix, stop: CancellationToken) {
    let mut always = JoinSet::new();
    for home in 0..SLOW {
        let (front, stop) = (Arc::clone(&front), stop.clone());
        always.spawn(async move {
            let kind = Kind { way: Way::Busy, path: "/slow?ms=800" };
            for number in ((1 + home as u64) * FAR..).take_while(|_| !stop.is_cancelled()) {
                if !front.bring(kind, home, number, None).await {
                    return;
                }
            }
        });
    }
    for home in 0..if mix == Mix::All { WEB_SOCKETS } else { 0 } {
        let (front, stop) = (Arc::clone(&front), stop.clone());
        always.spawn(async move {
            if let Err(why) = front.web_socket(home, &stop).await {
                front.fail(&format!("WebSocket {home}"), why);
            }
        });
    }
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = JoinSet::new();
    for number in 0.. {
        let due = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            due = ticks.tick() => due,
        };
        while requests.try_join_next().is_some() {}
        if requests.len() >= WAITING {
            front.tally.lock().unwrap().held += 1;
            requests.join_next().await;
        }
        let front = Arc::clone(&front);
        requests.spawn(async move {
            front.bring(Kind::of(number, mix), (number / 5) as usize, number, Some(due)).await;
        });
    }
    while requests.join_next().await.is_some() {}
    while always.join_next().await.is_some() {}
}

impl Front {
    fn fail(&self, what: &str, why: String) {
        let at = now().saturating_duration_since(self.began).as_secs_f64();
        let phase = self.phase.lock().unwrap().clone();
        self.tally.lock().unwrap().failed.push(format!("{at:.3} s, {what}, {phase}: {why}"));
    }

    /// Brings one request to its end, and notes how that was and how long it took since it was due;
    /// whether it was answered.
    async fn bring(&self, kind: Kind, home: usize, number: u64, due: Option<tokio::time::Instant>) -> bool {
        let what = format!("request {number} of {}", kind.path);
        let why = match tokio::time::timeout(PATIENCE, self.request(kind, home, number)).await {
            Ok(Ok(())) => {
                let mut tally = self.tally.lock().unwrap();
                tally.answered += 1;
                tally.took.extend(due.map(|due| due.elapsed().as_secs_f64() * 1e3));
                return true;
            }
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        self.fail(&what, why);
        false
    }

    async fn request(&self, Kind { way, path }: Kind, home: usize, number: u64) -> Result<(), String> {
        loop {
            let (edge, mut connection, reused) = self.connection(way, home).await?;
            let at = edge.address;
            match connection.get(path, number).await {
                Ok(last) => {
                    if last {
                        self.tally.lock().unwrap().told += 1;
                    } else if let Some(kept) = edge.kept(way) {
                        kept.lock().unwrap().push_back(connection);
                    }
                    return Ok(());
                }
                Err(Broken::Closed) if reused => self.tally.lock().unwrap().again += 1,
                Err(broken) => {
                    let which = if reused { "a kept" } else { "a new" };
                    return Err(format!("{which} connection to {at}: {broken:?}"));
                }
            }
        }
    }

    /// A connection, and whether it carried requests before.
    async fn connection(&self, way: Way, home: usize) -> Result<(&Edge, Connection, bool), String> {
        for turn in 0..self.edges.len() {
            let edge = &self.edges[(home + turn) % self.edges.len()];
            if let Some(connection) = self.take(edge, way)? {
                return Ok((edge, connection, true));
            }
            if edge.is_announced() {
                return Ok((edge, self.open(edge).await?, false));
            }
        }
        Err("no edge is announced".to_owned())
    }

    async fn open(&self, edge: &Edge) -> Result<Connection, String> {
        edge.opening.fetch_add(1, Ordering::SeqCst);
        let opened = Connection::open(edge.address).await;
        edge.opening.fetch_sub(1, Ordering::SeqCst);
        self.tally.lock().unwrap().opened += 1;
        opened.map_err(|error| format!("no connection to {}: {error}", edge.address))
    }

    /// Holds a WebSocket open until `stop`: another one whenever it was closed with 1012.
    async fn web_socket(&self, home: usize, stop: &CancellationToken) -> Result<(), String> {
        loop {
            let (edge, connection, _) = self.connection(Way::Own, home).await?;
            let upgrade = WebSocket::upgrade(connection.into_stream());
            let upgraded = match tokio::time::timeout(PATIENCE, upgrade).await {
                Ok(upgraded) => upgraded.map_err(|why| format!("no upgrade by {}: {why}", edge.address))?,
                Err(_) => return Err(format!("no upgrade by {} within {PATIENCE:?}", edge.address)),
            };
            let mut heard = 0;
            let ended = upgraded.talk(stop, &mut heard).await;
            let mut tally = self.tally.lock().unwrap();
            tally.web_sockets += 1;
            tally.heard += heard;
            match ended.map_err(|why| format!("at {}: {why}", edge.address))? {
                Ended::Stopped => return Ok(()),
                Ended::Restart => tally.restarted += 1,
            }
        }
    }

    /// A kept connection that is open still.
    fn take(&self, edge: &Edge, way: Way) -> Result<Option<Connection>, String> {
        let Some(kept) = edge.kept(way) else { return Ok(None) };
        loop {
            let mut kept = kept.lock().unwrap();
            if way == Way::Seldom && edge.is_announced() && kept.len() < SELDOM {
                return Ok(None);
            }
            let Some(connection) = kept.pop_front() else { return Ok(None) };
            drop(kept);
            match connection.look() {
                Ok(true) => return Ok(Some(connection)),
                Ok(false) => self.tally.lock().unwrap().found_closed += 1,
                Err(broken) => return Err(format!("a kept connection to {}: {broken:?}", edge.address)),
            }
        }
    }
}

/// Requests in a second that a program that is not optimized is given at most: a quarter of what was
/// measured where the machine is slow; else `wanted`.
pub(crate) fn rate(edges: &[SocketAddr], wanted: f64) -> f64 {
    if !cfg!(debug_assertions) {
        return wanted;
    }
    const EACH: usize = 60;
    let began = now();
    let clients = || edges.iter().chain(edges);
    std::thread::scope(|scope| {
        for edge in clients() {
            scope.spawn(move || (0..EACH).for_each(|_| drop(Request::get(*edge, "/").ok())));
        }
    });
    let capacity = (clients().count() * EACH) as f64 / now().saturating_duration_since(began).as_secs_f64();
    eprintln!("load: {capacity:.0} requests/s over new connections is what this machine can");
    wanted.min(capacity / 4.0)
}
