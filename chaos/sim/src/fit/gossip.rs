//! Gossip: how long a change takes, what it costs, how soon a death is known.

use skein_cluster::Members;
use skein_cluster::gossip::Membership;
use skein_core::fault::LinkRule;
use skein_core::random::Seed;
use skein_core::{MachineId, NodeNumber, Random};

use super::stats::{Row, Samples};
use crate::agenda::{MS, Micros, SECOND};
use crate::bare::{Bare, record};
use crate::gossip::Params;
use crate::net::Carried;
use crate::real::Real;

/// What both the model and the real one can do.
#[expect(async_fn_in_trait, reason = "both are used on one thread")]
pub trait Subject {
    /// The time.
    fn now(&self) -> Micros;
    /// What was carried.
    fn carried(&self) -> Carried;
    /// Lets time pass.
    async fn run(&mut self, time: Micros);
    /// Waits until all running nodes believe this; whether they did in time.
    async fn until(&mut self, limit: Micros, wanted: impl Fn(&Members) -> bool) -> bool;
    /// Changes a Machine's record of that node.
    fn change(&mut self, node: NodeNumber, number: u32);
    /// Ends a node.
    async fn kill(&mut self, node: NodeNumber);
    /// Starts it again.
    fn restart(&mut self, node: NodeNumber);
    /// Whether some running node believes this.
    fn first(&self, wanted: impl Fn(&Members) -> bool) -> bool;
    /// How many of all pairs of running nodes are wrong about each other.
    fn wrong(&self) -> usize;
}

fn machine(node: NodeNumber) -> MachineId {
    MachineId::from_bits(u64::from(node.0))
}

fn wrong<'a>(members: impl Iterator<Item = &'a Members>, running: &[NodeNumber]) -> usize {
    let dead = |members: &Members| {
        let calls_dead = |number: &&NodeNumber| members.get(*number).is_some_and(|facts| !facts.alive);
        running.iter().filter(calls_dead).count()
    };
    members.map(dead).sum()
}

impl Subject for Bare {
    fn now(&self) -> Micros {
        Self::now(self)
    }
    fn carried(&self) -> Carried {
        Self::carried(self)
    }
    async fn run(&mut self, time: Micros) {
        Self::run(self, time);
    }
    async fn until(&mut self, limit: Micros, wanted: impl Fn(&Members) -> bool) -> bool {
        Self::until(self, limit, wanted)
    }
    fn change(&mut self, node: NodeNumber, number: u32) {
        let record = skein_core::record::Record { number, ..record(u64::from(node.0)) };
        self.say(node, [record]);
    }
    async fn kill(&mut self, node: NodeNumber) {
        Self::kill(self, node);
    }
    fn restart(&mut self, node: NodeNumber) {
        Self::restart(self, node);
    }
    fn first(&self, wanted: impl Fn(&Members) -> bool) -> bool {
        self.cluster().running().filter_map(|number| self.members(number)).any(wanted)
    }
    fn wrong(&self) -> usize {
        let running: Vec<_> = self.cluster().running().collect();
        wrong(running.iter().filter_map(|number| self.members(*number)), &running)
    }
}

impl Subject for Real {
    fn now(&self) -> Micros {
        Self::now(self)
    }
    fn carried(&self) -> Carried {
        Self::carried(self)
    }
    async fn run(&mut self, time: Micros) {
        tokio::time::sleep(std::time::Duration::from_micros(time)).await;
    }
    async fn until(&mut self, limit: Micros, wanted: impl Fn(&Members) -> bool) -> bool {
        Self::until(self, limit, wanted).await
    }
    fn change(&mut self, node: NodeNumber, number: u32) {
        let record = skein_core::record::Record { number, ..record(u64::from(node.0)) };
        let said = self.gossip(node).map(|gossip| gossip.set_machine(&record));
        debug_assert!(said.is_none_or(|said| said.is_ok()), "a record is short");
    }
    async fn kill(&mut self, node: NodeNumber) {
        Self::kill(self, node).await;
    }
    fn restart(&mut self, node: NodeNumber) {
        Self::restart(self, node);
    }
    fn first(&self, wanted: impl Fn(&Members) -> bool) -> bool {
        let believes = |gossip: skein_cluster::Gossip| wanted(&gossip.members().borrow());
        self.running().iter().filter_map(|number| self.gossip(*number)).any(believes)
    }
    fn wrong(&self) -> usize {
        let running = self.running();
        let members: Vec<Members> = running
            .iter()
            .filter_map(|number| self.gossip(*number))
            .map(|gossip| gossip.members().borrow().clone())
            .collect();
        wrong(members.iter(), &running)
    }
}

/// What was measured of one subject.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Milliseconds until the last node had a change.
    pub change: Samples,
    /// Messages that a change cost beyond those of quiet times.
    pub messages: f64,
    /// Their kilobytes.
    pub kilobytes: f64,
    /// Messages per node and second when nothing changes.
    pub quiet: f64,
    /// Kilobytes per node and second when nothing changes.
    pub quiet_kilobytes: f64,
    /// Milliseconds until the first node called a dead one dead.
    pub detected: Samples,
    /// Milliseconds until the last one did.
    pub detected_by_all: Samples,
    /// Pairs of living nodes of which one called the other dead, at the most, in one look per
    /// change.
    pub wrong: usize,
    /// Changes or deaths that not all knew of within the time limit.
    pub missed: usize,
}

/// Measures `count` nodes that have just started.
pub async fn measure(
    subject: &mut impl Subject,
    count: u32,
    changes: u32,
    deaths: u32,
    seed: &Seed,
) -> Measured {
    let mut rng = seed.child("measure");
    let mut measured = Measured::default();
    let alive =
        |members: &Members, node: u32| members.get(&NodeNumber(node)).is_some_and(|facts| facts.alive);
    let formed = subject.until(60 * SECOND, |members| (1..=count).all(|node| alive(members, node))).await;
    measured.missed += usize::from(!formed);
    subject.run(5 * SECOND).await;

    let (before, start) = (subject.carried(), subject.now());
    subject.run(10 * SECOND).await;
    let seconds = (subject.now() - start) as f64 / SECOND as f64;
    let quiet = |after: Carried, before: Carried| {
        ((after.messages - before.messages) as f64, (after.bytes - before.bytes) as f64)
    };
    let (messages, bytes) = quiet(subject.carried(), before);
    let (per_second, bytes_per_second) = (messages / seconds, bytes / seconds);
    measured.quiet = per_second / f64::from(count);
    measured.quiet_kilobytes = bytes_per_second / f64::from(count) / 1_000.0;

    let (before, start) = (subject.carried(), subject.now());
    for round in 0..changes {
        let node = NodeNumber(1 + rng.below(count as usize) as u32);
        let at = subject.now();
        subject.change(node, 2 + round);
        let has = |members: &Members| {
            let facts = members.get(&node);
            let record = facts.and_then(|facts| facts.machines.get(&machine(node)));
            record.is_some_and(|record| record.number == 2 + round)
        };
        measured.missed += usize::from(!subject.until(30 * SECOND, has).await);
        measured.change.add((subject.now() - at) as f64 / MS as f64);
        measured.wrong = measured.wrong.max(subject.wrong());
        subject.run(SECOND + rng.below(500_000) as Micros).await;
    }
    let seconds = (subject.now() - start) as f64 / SECOND as f64;
    let (messages, bytes) = quiet(subject.carried(), before);
    measured.messages = (messages - per_second * seconds) / f64::from(changes);
    measured.kilobytes = (bytes - bytes_per_second * seconds) / f64::from(changes) / 1_000.0;

    for _ in 0..deaths {
        let node = NodeNumber(1 + rng.below(count as usize) as u32);
        let at = subject.now();
        subject.kill(node).await;
        let mut first = None;
        let dead = |members: &Members| !alive(members, node.0);
        // Looked at every 50 ms: the first to notice, whoever it is.
        while first.is_none() && subject.now() - at < 60 * SECOND {
            subject.run(50 * MS).await;
            first = subject.first(dead).then(|| subject.now());
        }
        measured.missed += usize::from(!subject.until(60 * SECOND, dead).await);
        measured.detected.add((first.unwrap_or(subject.now()) - at) as f64 / MS as f64);
        measured.detected_by_all.add((subject.now() - at) as f64 / MS as f64);
        subject.restart(node);
        measured.missed += usize::from(!subject.until(60 * SECOND, |members| alive(members, node.0)).await);
        subject.run(5 * SECOND).await;
    }
    measured
}

/// Both, at `count` nodes and `loss`.
pub fn rows(count: u32, loss: f64, changes: u32, deaths: u32, seed: &Seed) -> anyhow::Result<Vec<Row>> {
    let weather = LinkRule { loss, ..LinkRule::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let real = runtime.block_on(async {
        let mut real = Real::new(count, seed).await;
        real.set_weather(weather);
        measure(&mut real, count, changes, deaths, seed).await
    });
    let model = runtime.block_on(async {
        let mut model = Bare::new(count, Params::default(), seed);
        model.set_weather(weather);
        measure(&mut model, count, changes, deaths, seed).await
    });
    let case = format!("{count} nodes, {:.0} % loss", loss * 100.0);
    let row = |what, of: &dyn Fn(&Measured) -> f64| Row {
        case: case.clone(),
        what,
        real: of(&real),
        model: of(&model),
    };
    Ok(vec![
        row("change everywhere p50, ms", &|m| m.change.percentile(0.5)),
        row("change everywhere p99, ms", &|m| m.change.percentile(0.99)),
        row("messages per change", &|m| m.messages),
        row("kB per change", &|m| m.kilobytes),
        row("messages/s per node, quiet", &|m| m.quiet),
        row("kB/s per node, quiet", &|m| m.quiet_kilobytes),
        row("death known to first p50, ms", &|m| m.detected.percentile(0.5)),
        row("death known to all p50, ms", &|m| m.detected_by_all.percentile(0.5)),
        row("death known to all p99, ms", &|m| m.detected_by_all.percentile(0.99)),
        row("living called dead, pairs", &|m| m.wrong as f64),
        row("missed", &|m| m.missed as f64),
    ])
}
