//! Servers of the test's own that stand behind Machines and count what they have in hand: a Machine
//! knows best whether it gets more than its limit.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

use crate::support::{Cluster, SOON, eventually};

/// What a server has in hand.
#[derive(Debug, Default)]
pub(crate) struct Count {
    now: AtomicUsize,
    most: AtomicUsize,
    taken: AtomicUsize,
}

impl Count {
    /// Requests in hand.
    pub(crate) fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }

    /// The most at once so far.
    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    /// All so far.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    fn take(self: &Arc<Self>) -> InHand {
        self.taken.fetch_add(1, Ordering::SeqCst);
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        InHand(Arc::clone(self))
    }
}

/// A request in hand, until its response is on its way.
struct InHand(Arc<Count>);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Servers that hold each request for the same time.
pub(crate) struct Servers {
    _runtime: Runtime,
    addresses: Vec<SocketAddr>,
    counts: Vec<Arc<Count>>,
}

impl Servers {
    pub(crate) fn start(count: usize, hold: Duration) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let counts: Vec<Arc<Count>> = (0..count).map(|_| Arc::default()).collect();
        let mut addresses = Vec::new();
        for count in &counts {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            addresses.push(listener.local_addr().unwrap());
            let count = Arc::clone(count);
            runtime.spawn(async move {
                let tasks = TaskTracker::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let count = Arc::clone(&count);
                    let service = hyper::service::service_fn(move |_: Request<Incoming>| {
                        let in_hand = count.take();
                        async move {
                            tokio::time::sleep(hold).await;
                            drop(in_hand);
                            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"done\n"))))
                        }
                    });
                    let serving = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    // A proxy may leave whenever it likes.
                    tasks.spawn(async move { drop(serving.await) });
                }
            });
        }
        Self { _runtime: runtime, addresses, counts }
    }

    /// What the servers have in hand, in their order.
    pub(crate) fn counts(&self) -> &[Arc<Count>] {
        &self.counts
    }

    /// Makes an app of a Machine per server, in a region, with these settings of its service; gives their
    /// ids in the order of the servers. Returns when each is started.
    pub(crate) fn deploy(&self, cluster: &Cluster, app: &str, region: &str, settings: &Value) -> Vec<String> {
        cluster.skein(&["apps", "create", app]).ok();
        let mut service = json!({
            "protocol": "tcp", "internal_port": 8080, "ports": [{"port": 80, "handlers": ["http"]}],
        });
        service.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let ids = self.addresses.iter().map(|address| {
            let config = json!({"metadata": {"skein_external": address.to_string()}, "services": [service]});
            let body = json!({"region": region, "config": config}).to_string();
            let call = cluster.api("POST", &format!("/v1/apps/{app}/machines"));
            call.header("content-type", "application/json").body(body).ok().field("id")
        });
        let ids = ids.collect();
        cluster.skein(&["ips", "allocate-v6", "-a", app]).ok();
        eventually("its Machines are started", SOON, || {
            let machines = cluster.machines(app);
            let started = machines.iter().filter(|machine| machine["state"] == "started").count();
            if started == self.addresses.len() { Ok(()) } else { Err(machines) }
        });
        ids
    }
}
