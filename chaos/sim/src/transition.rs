//! What happens to a simulated cluster, as data: generated up front from a seed, read from any
//! bytes, printed, left out one by one.
//!
//! Nodes, apps and Machines are named by slots, so that a trace stays the same trace when parts of
//! it are left out; what names nothing does nothing.

use std::fmt;

use skein_core::Random;
use skein_core::random::Seed;

use crate::agenda::{MS, Micros};

/// Apps that can exist.
pub const APPS: u8 = 4;
/// Machines that can exist.
pub const MACHINES: u8 = 250;
/// Of those, the ones that random traces name.
const SLOTS: usize = 24;

/// What an app answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A response.
    Plain,
    /// `fly-replay: region=`, by the region of a node.
    Region(u8),
    /// `fly-replay: instance=`, by slot.
    Instance(u8),
    /// `fly-replay: app=`, by slot.
    App(u8),
    /// `fly-replay: elsewhere=true`.
    Elsewhere,
}

/// What idleness and traffic do to a Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto {
    /// Nothing.
    Off,
    /// Traffic starts it.
    Starts,
    /// Idleness stops it too, as long as so many run.
    Both(u8),
}

/// A change of a Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what it says")]
pub enum Change {
    Start,
    Stop,
    Cordon,
    Uncordon,
    Fail,
    Recover,
    Crash,
    Destroy,
}

/// Something that happens. Nodes are counted from 0 and wrap around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// A new app, made through a node.
    Create {
        /// Its slot.
        app: u8,
        /// Through which node.
        node: u8,
    },
    /// A new Machine.
    Deploy {
        /// Its slot.
        machine: u8,
        /// Of which app.
        app: u8,
        /// On which node.
        node: u8,
        /// Its soft limit.
        soft: u8,
        /// Its hard limit is so much more.
        room: u8,
        /// What idleness and traffic do to it.
        auto: Auto,
    },
    /// A Machine changes.
    Machine {
        /// Its slot.
        machine: u8,
        /// How.
        change: Change,
    },
    /// Requests, all at once.
    Request {
        /// At which node.
        edge: u8,
        /// For which app.
        app: u8,
        /// POST instead of GET.
        post: bool,
        /// How many.
        count: u8,
        /// How long the app takes for each, in milliseconds.
        takes: u16,
        /// What its first Machine answers; the next one answers plainly.
        reply: Reply,
    },
    /// Requests that keep coming whatever becomes of them, at several edges in turn.
    Load {
        /// At which node the first.
        edge: u8,
        /// At how many nodes.
        edges: u8,
        /// For which app.
        app: u8,
        /// How many.
        count: u8,
        /// Milliseconds between two.
        gap: u8,
        /// How long the app takes for each, in milliseconds.
        takes: u16,
    },
    /// A node takes nothing new; or takes it again.
    Drain {
        /// Which.
        node: u8,
        /// Whether it drains.
        on: bool,
    },
    /// A node's process is killed.
    Kill {
        /// Which.
        node: u8,
    },
    /// A dead node is started.
    Restart {
        /// Which.
        node: u8,
    },
    /// A node stands still; or goes on.
    Pause {
        /// Which.
        node: u8,
        /// Whether it stands still.
        on: bool,
    },
    /// A node's wall clock is off by so many milliseconds.
    Skew {
        /// Which.
        node: u8,
        /// By how much: often for longer than a node is away, so that one may start before it ended.
        ms: i16,
    },
    /// Nothing passes between the nodes below and from `at` on; one way only, if so.
    Partition {
        /// The first node of the other side.
        at: u8,
        /// Whether the way back stays open.
        one_way: bool,
    },
    /// Packets from one node to another are lost and doubled, in percent, and late.
    Degrade {
        /// From which.
        from: u8,
        /// To which.
        to: u8,
        /// Percent lost.
        loss: u8,
        /// Percent doubled.
        double: u8,
        /// Milliseconds later.
        late: u8,
    },
    /// All links are whole again.
    Heal,
}

impl Transition {
    /// Whether it is a fault, or the end of one.
    pub fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::Kill { .. }
                | Self::Restart { .. }
                | Self::Pause { .. }
                | Self::Skew { .. }
                | Self::Partition { .. }
                | Self::Degrade { .. }
                | Self::Heal
        )
    }
}

impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { app, node } => write!(f, "create app {app} through node {node}"),
            Self::Deploy { machine, app, node, soft, room, auto } => {
                write!(
                    f,
                    "deploy machine {machine} of app {app} on node {node} soft {soft} room {room} auto {auto:?}"
                )
            }
            Self::Machine { machine, change } => write!(f, "machine {machine} {change:?}"),
            Self::Request { edge, app, post, count, takes, reply } => {
                let method = if *post { "POST" } else { "GET" };
                write!(f, "{count} x {method} app {app} at node {edge} takes {takes} ms answers {reply:?}")
            }
            Self::Load { edge, edges, app, count, gap, takes } => write!(
                f,
                "load of {count} requests every {gap} ms for app {app} at {edges} nodes from {edge} takes {takes} ms"
            ),
            Self::Drain { node, on } => write!(f, "drain node {node} {on}"),
            Self::Kill { node } => write!(f, "kill node {node}"),
            Self::Restart { node } => write!(f, "restart node {node}"),
            Self::Pause { node, on } => write!(f, "pause node {node} {on}"),
            Self::Skew { node, ms } => write!(f, "skew node {node} by {ms} ms"),
            Self::Partition { at, one_way } => write!(f, "partition at node {at} one way {one_way}"),
            Self::Degrade { from, to, loss, double, late } => {
                write!(f, "degrade {from} to {to} loss {loss} % double {double} % late {late} ms")
            }
            Self::Heal => f.write_str("heal links"),
        }
    }
}

/// A trace: what happens when.
pub type Trace = Vec<(Micros, Transition)>;

/// The weights of the kinds; faults come last.
const WEIGHTS: [(Kind, usize); 13] = [
    (Kind::Request, 51),
    (Kind::Load, 4),
    (Kind::Machine, 14),
    (Kind::Deploy, 6),
    (Kind::Create, 2),
    (Kind::Drain, 3),
    (Kind::Kill, 2),
    (Kind::Restart, 3),
    (Kind::Pause, 4),
    (Kind::Skew, 2),
    (Kind::Partition, 3),
    (Kind::Degrade, 5),
    (Kind::Heal, 6),
];
/// The kinds that are no faults.
const CALM: usize = 6;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Request,
    Load,
    Machine,
    Deploy,
    Create,
    Drain,
    Kill,
    Restart,
    Pause,
    Skew,
    Partition,
    Degrade,
    Heal,
}

/// Makes `steps` transitions, after those that give the cluster something to do. Every third seed
/// has no faults: there the reference model is strictest.
pub fn generate(seed: &Seed, number: u64, nodes: u8, steps: usize) -> Trace {
    let mut rng = seed.child("transitions");
    let kinds = if number.is_multiple_of(3) { &WEIGHTS[..CALM] } else { &WEIGHTS[..] };
    let mut trace = Vec::new();
    let mut at = 3_000 * MS;
    for app in 0..3 {
        trace.push((at, Transition::Create { app, node: rng.below(nodes.into()) as u8 }));
    }
    at += 2_000 * MS;
    for machine in 0..12 {
        trace.push((at, deploy(&mut rng, machine, nodes)));
    }
    at += 2_000 * MS;
    let total: usize = kinds.iter().map(|(_, weight)| weight).sum();
    for _ in 0..steps {
        at += (rng.fraction() * rng.fraction() * 500.0 * MS as f64) as Micros;
        let mut ticket = rng.below(total);
        let kind = kinds.iter().find(|(_, weight)| {
            let hit = ticket < *weight;
            ticket = ticket.saturating_sub(*weight);
            hit
        });
        if let Some((kind, _)) = kind {
            trace.push((at, make(&mut rng, *kind, nodes)));
        }
    }
    trace
}

fn deploy(rng: &mut impl Random, machine: u8, nodes: u8) -> Transition {
    Transition::Deploy {
        machine,
        app: rng.below(3) as u8,
        node: rng.below(nodes.into()) as u8,
        soft: 1 + rng.below(3) as u8,
        room: rng.below(3) as u8,
        auto: [Auto::Off, Auto::Starts, Auto::Both(0), Auto::Both(1)][rng.below(4)],
    }
}

fn make(rng: &mut impl Random, kind: Kind, nodes: u8) -> Transition {
    let node = rng.below(nodes.into()) as u8;
    match kind {
        Kind::Request => Transition::Request {
            edge: node,
            app: rng.below(3) as u8,
            post: rng.below(3) == 0,
            count: if rng.below(4) == 0 { 2 + rng.below(14) as u8 } else { 1 },
            takes: [5, 30, 100, 400, 2_000][rng.below(5)],
            reply: match rng.below(12) {
                0 => Reply::Region(rng.below(nodes.into()) as u8),
                1 => Reply::Instance(rng.below(14) as u8),
                2 => Reply::App(rng.below(4) as u8),
                3 => Reply::Elsewhere,
                _ => Reply::Plain,
            },
        },
        Kind::Load => Transition::Load {
            edge: node,
            edges: 1 + rng.below(4) as u8,
            app: rng.below(3) as u8,
            count: 20 + rng.below(60) as u8,
            gap: [2, 5, 10, 20][rng.below(4)],
            takes: [30, 100, 400][rng.below(3)],
        },
        Kind::Machine => {
            use Change::*;
            let change = [
                Start, Start, Start, Stop, Cordon, Uncordon, Uncordon, Fail, Recover, Recover, Crash, Destroy,
            ][rng.below(12)];
            Transition::Machine { machine: rng.below(16) as u8, change }
        }
        Kind::Deploy => {
            let machine = rng.below(SLOTS) as u8;
            deploy(rng, machine, nodes)
        }
        Kind::Create => Transition::Create { app: rng.below(APPS.into()) as u8, node },
        Kind::Drain => Transition::Drain { node, on: rng.below(2) == 0 },
        Kind::Kill => Transition::Kill { node },
        Kind::Restart => Transition::Restart { node },
        Kind::Pause => Transition::Pause { node, on: rng.below(2) == 0 },
        Kind::Skew => Transition::Skew { node, ms: (rng.below(60_000) as i32 - 30_000) as i16 },
        Kind::Partition => Transition::Partition { at: 1 + node, one_way: rng.below(3) == 0 },
        Kind::Degrade => Transition::Degrade {
            from: node,
            to: rng.below(nodes.into()) as u8,
            loss: rng.below(40) as u8,
            double: rng.below(30) as u8,
            late: rng.below(200) as u8,
        },
        Kind::Heal => Transition::Heal,
    }
}

/// A source of numbers that reads bytes, then zeros: any bytes make a trace.
struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Random for Bytes<'_> {
    fn next_u64(&mut self) -> u64 {
        // The highest byte decides, as `below` and `fraction` look at the highest bits first.
        let high = self.0.next().copied().unwrap_or(0);
        u64::from(high) << 56
    }
}

/// The trace that `bytes` mean: each one or more per choice, at most 64 transitions.
pub fn decode(bytes: &[u8], nodes: u8) -> Trace {
    let mut source = Bytes(bytes.iter());
    let mut at = 3_000 * MS;
    let mut trace = vec![(at, Transition::Create { app: 0, node: 0 })];
    at += 2_000 * MS;
    for machine in 0..3 {
        let node = machine % nodes.max(1);
        trace.push((at, Transition::Deploy { machine, app: 0, node, soft: 1, room: 1, auto: Auto::Off }));
    }
    at += 1_000 * MS;
    while source.0.len() > 0 && trace.len() < 64 {
        at += (source.fraction() * 1_000.0 * MS as f64) as Micros;
        let kind = WEIGHTS[source.below(WEIGHTS.len())].0;
        trace.push((at, make(&mut source, kind, nodes)));
    }
    trace
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_seed_makes_one_trace_and_every_third_has_no_faults() {
        let trace = generate(&Seed::new(4), 4, 9, 300);
        assert_eq!(trace, generate(&Seed::new(4), 4, 9, 300));
        assert_ne!(trace, generate(&Seed::new(5), 5, 9, 300));
        assert!(trace.iter().any(|(_, transition)| transition.is_fault()));
        assert!(!generate(&Seed::new(6), 6, 9, 300).iter().any(|(_, transition)| transition.is_fault()));
        assert!(trace.is_sorted_by_key(|(at, _)| *at));
    }

    proptest! {
        #[test]
        fn any_bytes_make_a_trace(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let trace = decode(&bytes, 5);
            prop_assert!((4..=64).contains(&trace.len()));
            prop_assert!(trace.is_sorted_by_key(|(at, _)| *at));
        }
    }
}
