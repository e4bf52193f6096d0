//! The registry: how long a write takes, how soon all have it, how long a lost leader is missed.
//!
//! The real one writes to real disks and runs in real time (its threads know no virtual clock), so
//! what the machine does beside shows in its figures.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use skein_cluster::BoxFuture;
use skein_cluster::Tasks;
use skein_cluster::registry::{RaftRegistry as Real, RaftTransport, Registry as _, RegistryConfig};
use skein_core::random::Seed;
use skein_core::region::Regions;
use skein_core::{NodeNumber, Random};
use tokio::time::Instant;

use super::stats::{Row, Samples};
use crate::agenda::{MS, Micros, SECOND, micros};
use crate::bare::region_of;
use crate::facts;
use crate::net::{Class, Network};
use crate::registry::{Alone, Params};

/// Who votes in both.
const VOTERS: usize = 3;
/// The longest that anything is waited for.
const LONGEST: Duration = Duration::from_secs(60);

/// What was measured of one of them, in milliseconds.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Until a write through some node was done there.
    pub done: Samples,
    /// Until all nodes had it.
    pub everywhere: Samples,
    /// From a leader's death until a write through another node was done.
    pub failover: Samples,
    /// Writes that did not end well.
    pub missed: usize,
}

fn network(count: u32, seed: &Seed) -> Network {
    let regions: Arc<Regions> = Arc::default();
    let mut network = Network::new(Arc::clone(&regions), seed.child("network"));
    network.add((1..=count).map(NodeNumber).map(|number| (number, region_of(&regions, number))));
    network
}

/// Both, at `count` nodes.
///
/// # Errors
/// The real registry did not come up.
pub fn rows(count: u32, writes: u32, deaths: u32, seed: &Seed) -> anyhow::Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().worker_threads(2).build()?;
    let real = runtime.block_on(measure_real(count, writes, deaths, seed))?;
    let mut model = Measured::default();
    // The model's elections are quick to run: as many as give a figure.
    for round in 0..u64::from(deaths.max(1)) * 4 {
        measure_model(count, writes.div_ceil(4), &seed.child(&format!("model {round}")), &mut model);
    }
    let case = format!("{count} registries");
    let row = |what, of: &dyn Fn(&Measured) -> f64| Row {
        case: case.clone(),
        what,
        real: of(&real),
        model: of(&model),
    };
    Ok(vec![
        row("write done p50, ms", &|m| m.done.percentile(0.5)),
        row("write done p99, ms", &|m| m.done.percentile(0.99)),
        row("write everywhere p50, ms", &|m| m.everywhere.percentile(0.5)),
        row("write everywhere p99, ms", &|m| m.everywhere.percentile(0.99)),
        row("failover p50, ms", &|m| m.failover.percentile(0.5)),
        row("failover p99, ms", &|m| m.failover.percentile(0.99)),
        row("missed", &|m| m.missed as f64),
    ])
}

// The real one.

struct Hub {
    epoch: Instant,
    network: Mutex<Network>,
    /// Messages take no time while the cluster is being made.
    quick: std::sync::atomic::AtomicBool,
    registries: Mutex<BTreeMap<NodeNumber, Real>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    fn way(&self, from: NodeNumber, to: NodeNumber, bytes: usize) -> Option<Instant> {
        if self.quick.load(std::sync::atomic::Ordering::Relaxed) {
            return Some(Instant::now());
        }
        let now = micros(self.epoch.elapsed());
        let arrivals = lock(&self.network).send(now, from, to, Class::Stream, bytes);
        arrivals.first().map(|at| self.epoch + Duration::from_micros(*at))
    }

    fn registry(&self, number: NodeNumber) -> Option<Real> {
        lock(&self.registries).get(&number).cloned()
    }
}

struct Wire {
    hub: Arc<Hub>,
    from: NodeNumber,
}

impl RaftTransport for Wire {
    fn call(
        &self,
        to: NodeNumber,
        message: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        let (hub, from) = (Arc::clone(&self.hub), self.from);
        let exchange = async move {
            // A dead node says nothing more.
            let there = hub.registry(from).and_then(|_| hub.way(from, to, message.len()));
            let Some(there) = there else { return std::future::pending().await };
            tokio::time::sleep_until(there).await;
            let Some(registry) = hub.registry(to) else { return std::future::pending().await };
            let answer = registry.handle(from, message).await;
            let length = answer.as_ref().map_or(0, Bytes::len);
            let Some(back) = hub.way(to, from, length) else { return std::future::pending().await };
            tokio::time::sleep_until(back).await;
            answer
        };
        Box::pin(
            async move { tokio::time::timeout(timeout, exchange).await.map_err(|_| "no answer".to_owned())? },
        )
    }

    fn reachable(&self, to: NodeNumber) -> bool {
        lock(&self.hub.registries).contains_key(&to)
    }
}

struct Cluster {
    hub: Arc<Hub>,
    dir: tempfile::TempDir,
    names: u128,
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(LONGEST, future).await.map_err(|_| anyhow::anyhow!("{what} takes too long"))
}

impl Cluster {
    async fn open(&self, number: NodeNumber) -> anyhow::Result<Real> {
        let path = self.dir.path().join(format!("{number}.redb"));
        let wire = Wire { hub: Arc::clone(&self.hub), from: number };
        let registry =
            Real::open(RegistryConfig::new(number, path), Arc::new(wire), &Tasks::current()).await?;
        lock(&self.hub.registries).insert(number, registry.clone());
        Ok(registry)
    }

    fn all(&self) -> Vec<Real> {
        lock(&self.hub.registries).values().cloned().collect()
    }

    async fn write(&mut self, through: &Real) -> Option<u64> {
        self.names += 1;
        let command = facts::create_app(self.names, &format!("app-{}", self.names));
        through.propose(command).await.ok().map(|(_, index)| index)
    }
}

fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1_000.0
}

async fn measure_real(count: u32, writes: u32, deaths: u32, seed: &Seed) -> anyhow::Result<Measured> {
    let hub = Hub {
        epoch: Instant::now(),
        network: Mutex::new(network(count, seed)),
        quick: true.into(),
        registries: Mutex::default(),
    };
    let mut cluster = Cluster { hub: Arc::new(hub), dir: tempfile::tempdir()?, names: 1_000 };
    let regions = Regions::default();
    let nodes: Vec<_> = (1..=count).map(NodeNumber).map(|n| (n, region_of(&regions, n))).collect();
    let first = cluster.open(NodeNumber(1)).await?;
    // The numbers are given in the order of these commands.
    let (rest, beginning): (Vec<_>, Vec<_>) = facts::beginning(&nodes)
        .into_iter()
        .partition(|command| matches!(command, skein_core::facts::Command::AddNode { .. }));
    first.bootstrap(beginning).await?;
    for (command, number) in rest.into_iter().zip(1u32..) {
        first.propose(command).await?;
        if number > 1 {
            cluster.open(NodeNumber(number)).await?;
        }
    }
    let settled = async {
        loop {
            let status = first.status();
            if status.voters.len() == VOTERS
                && !status.changing
                && status.learners.len() + VOTERS == count as usize
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    in_time("the cluster", settled).await?;
    cluster.hub.quick.store(false, std::sync::atomic::Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(3)).await;

    let mut rng = seed.child("measure");
    let mut measured = Measured::default();
    for _ in 0..writes {
        let all = cluster.all();
        let through = all[rng.below(all.len())].clone();
        let start = Instant::now();
        let Some(index) = cluster.write(&through).await else {
            measured.missed += 1;
            continue;
        };
        measured.done.add(ms_since(start));
        for registry in all {
            let mut watch = registry.watch();
            let reached = watch.wait_for(|(applied, _)| *applied >= index);
            measured.missed += usize::from(tokio::time::timeout(LONGEST, reached).await.is_err());
        }
        measured.everywhere.add(ms_since(start));
        tokio::time::sleep(Duration::from_millis(100 + rng.below(300) as u64)).await;
    }
    for _ in 0..deaths {
        let leader = cluster.all().iter().find_map(|registry| registry.status().leader);
        let Some(leader) = leader else { continue };
        tokio::time::sleep(Duration::from_millis(rng.below(600) as u64)).await;
        let dead = lock(&cluster.hub.registries).remove(&leader);
        let start = Instant::now();
        let alive = cluster.all();
        let through = alive[rng.below(alive.len())].clone();
        let mut tries = 0;
        while cluster.write(&through).await.is_none() && tries < 10 {
            tries += 1;
        }
        measured.missed += usize::from(tries == 10);
        measured.failover.add(ms_since(start));
        if let Some(dead) = dead {
            dead.shutdown().await;
        }
        cluster.open(leader).await?;
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    for registry in cluster.all() {
        registry.shutdown().await;
    }
    Ok(measured)
}

// The model.

fn measure_model(count: u32, writes: u32, seed: &Seed, measured: &mut Measured) {
    let mut model = Alone::new(count, VOTERS, Params::default(), seed);
    // The real one's first leader is the first node: here the others come later.
    model.start(NodeNumber(1));
    model.start(NodeNumber(2));
    model.until(20 * SECOND, |model| model.registries().leader().is_some());
    for number in 3..=count {
        model.start(NodeNumber(number));
    }
    model.run(5 * SECOND);
    let mut rng = seed.child("measure");
    let Some(leader) = model.registries().leader() else {
        measured.missed += 1;
        return;
    };
    let as_the_real_one = leader == NodeNumber(1);
    for write in 0..if as_the_real_one { writes } else { 0 } {
        let (start, name) = (model.now(), format!("app-{write}"));
        if model.write(NodeNumber(1 + rng.below(count as usize) as u32), &name).is_err() {
            measured.missed += 1;
            continue;
        }
        measured.done.add((model.now() - start) as f64 / MS as f64);
        let all = |model: &Alone| (1..=count).all(|number| model.has(NodeNumber(number), &name));
        measured.missed += usize::from(!model.until(60 * SECOND, all));
        measured.everywhere.add((model.now() - start) as f64 / MS as f64);
        model.run((100 + rng.below(300) as Micros) * MS);
    }
    model.run(rng.below(600) as Micros * MS);
    model.kill(leader);
    let start = model.now();
    let through = loop {
        let through = NodeNumber(1 + rng.below(count as usize) as u32);
        if through != leader {
            break through;
        }
    };
    let tries = (0..10).take_while(|_| model.write(through, "after").is_err()).count();
    measured.missed += usize::from(tries == 10);
    measured.failover.add((model.now() - start) as f64 / MS as f64);
}
