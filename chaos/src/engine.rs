//! Keeps a testbed's nodes in step with the active faults.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use skein_core::NodeName;
use skein_core::api::{LinkJson, LinksJson};
use skein_testbed::{CallError, Life, NodeSpec, NodeView, Testbed, TestbedError};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::fault::{ActiveJson, Fault, InjectJson};
use crate::place::UnknownPlace;
use crate::rules::rules;

/// One change of a node's links.
const CALL: Duration = Duration::from_secs(5);
/// Before links that could not be set are tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The faults of one testbed. Clones are handles of the same.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    testbed: Testbed,
    table: Mutex<Table>,
    /// What each node was last told; changes follow each other.
    applied: tokio::sync::Mutex<BTreeMap<NodeName, Applied>>,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    active: BTreeMap<u64, Active>,
}

#[derive(Debug, Clone)]
struct Active {
    fault: Fault,
    /// Of the node that it befell: a later start ends it.
    incarnation: u64,
    heals_at: Option<Instant>,
}

#[derive(Debug)]
struct Applied {
    incarnation: u64,
    /// `None` when a call failed: whether it took them is not known.
    links: Option<Vec<LinkJson>>,
}

/// Why a fault can't be injected or healed.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// A value out of range.
    #[error("{0}")]
    Invalid(&'static str),
    /// A place that is not there.
    #[error(transparent)]
    Place(#[from] UnknownPlace),
    /// The node does not do what was asked.
    #[error(transparent)]
    Node(#[from] TestbedError),
    /// A node does not take the rules of its links.
    #[error("set the links of {node}")]
    Links {
        /// The node.
        node: NodeName,
        /// Its answer.
        #[source]
        source: CallError,
    },
    /// No such fault.
    #[error("there is no active fault {0:?}; `skein chaos list` shows them")]
    Unknown(String),
}

impl ChaosError {
    /// The HTTP status that the API answers.
    pub fn status(&self) -> u16 {
        match self {
            Self::Invalid(_) | Self::Place(_) => 422,
            Self::Node(error) => error.status(),
            Self::Links { .. } => 502,
            Self::Unknown(_) => 404,
        }
    }
}

impl Faults {
    /// No fault yet. Nodes that start later get the rules of the faults that are active then.
    pub fn new(testbed: Testbed) -> Self {
        let mut changes = testbed.changes();
        let inner = Arc::new(Inner {
            testbed,
            table: Mutex::default(),
            applied: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
        });
        // It must not keep the testbed alive: with the last handle, its nodes end.
        let weak = Arc::downgrade(&inner);
        let follow = async move {
            while changes.changed().await.is_ok() {
                loop {
                    changes.borrow_and_update();
                    let Some(faults) = Self::upgrade(&weak) else { return };
                    let Err(error) = faults.apply().await else { break };
                    drop(faults);
                    tracing::warn!(%error, "links could not be set");
                    // Sooner when something changes; a paused node is not tried before that.
                    let _changed_or_later = tokio::time::timeout(AGAIN, changes.changed()).await;
                }
            }
        };
        inner.spawn(follow);
        Self(inner)
    }

    fn upgrade(weak: &Weak<Inner>) -> Option<Self> {
        weak.upgrade().map(Self)
    }

    fn with<T>(&self, f: impl FnOnce(&mut Table) -> T) -> T {
        let mut guard = self.0.table.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut guard)
    }

    /// The active faults, in the order of their beginning. One that a restart or a signal from
    /// elsewhere ended is not listed.
    pub fn list(&self) -> Vec<ActiveJson> {
        let nodes = self.0.testbed.nodes();
        self.with(|table| {
            table.active.retain(|_, active| holds(active, &nodes));
            table.active.iter().map(|(id, active)| describe(*id, active, true)).collect()
        })
    }

    /// Makes it happen; returns once it has: a node is dead, drained or back, or all running nodes have
    /// the rules.
    ///
    /// # Errors
    /// [`ChaosError`]; nothing is changed then.
    pub async fn inject(&self, inject: InjectJson) -> Result<ActiveJson, ChaosError> {
        let InjectJson { fault, for_ms } = inject;
        let testbed = &self.0.testbed;
        match &fault {
            Fault::Kill { node } => testbed.kill(node).await?,
            Fault::Pause { node } => testbed.pause(node).await?,
            Fault::Drain { node } => testbed.drain(node).await?,
            Fault::Restart { node } => {
                testbed.restart(node).await?;
                let over = Active { fault, incarnation: 0, heals_at: None };
                return Ok(describe(self.number(), &over, false));
            }
            Fault::Link { what, .. } => {
                if let Some(problem) = what.invalid() {
                    return Err(ChaosError::Invalid(problem));
                }
                rules([&fault], &specs(&testbed.nodes()))?;
            }
        }
        let incarnation =
            node_of(&fault).and_then(|node| find(&testbed.nodes(), node).map(|n| n.incarnation));
        let heals_at = for_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        let active = Active { fault, incarnation: incarnation.unwrap_or_default(), heals_at };
        let id = self.number();
        self.with(|table| table.active.insert(id, active.clone()));
        if let Err(error) = self.apply().await {
            self.with(|table| table.active.remove(&id));
            // The nodes that took the rule give it back; the first failure is the one to tell.
            if let Err(again) = self.apply().await {
                tracing::warn!(error = %again, "links could not be set back");
            }
            return Err(error);
        }
        if let Some(at) = heals_at {
            self.heal_at(id, at);
        }
        Ok(describe(id, &active, true))
    }

    fn number(&self) -> u64 {
        self.with(|table| {
            table.last += 1;
            table.last
        })
    }

    fn heal_at(&self, id: u64, at: Instant) {
        let weak = Arc::downgrade(&self.0);
        self.0.spawn(async move {
            tokio::time::sleep_until(at).await;
            let Some(faults) = Self::upgrade(&weak) else { return };
            match faults.heal(&format!("f{id}")).await {
                // Healed by hand meanwhile.
                Ok(_) | Err(ChaosError::Unknown(_)) => {}
                Err(error) => tracing::error!(%error, fault = id, "a fault does not heal"),
            }
        });
    }

    /// Ends one fault; returns once it has ended: its node is back, or links are without its rules.
    ///
    /// # Errors
    /// [`ChaosError`]; a node's fault stays listed then.
    pub async fn heal(&self, id: &str) -> Result<ActiveJson, ChaosError> {
        let unknown = || ChaosError::Unknown(id.chars().take(80).collect());
        let number: u64 = id.strip_prefix('f').and_then(|id| id.parse().ok()).ok_or_else(unknown)?;
        let nodes = self.0.testbed.nodes();
        let active = self.with(|table| {
            table.active.retain(|_, active| holds(active, &nodes));
            table.active.get(&number).cloned()
        });
        let active = active.ok_or_else(unknown)?;
        let testbed = &self.0.testbed;
        match &active.fault {
            Fault::Kill { node } => drop(testbed.restart(node).await?),
            Fault::Pause { node } => testbed.resume(node).await?,
            Fault::Drain { node } => testbed.undrain(node).await?,
            Fault::Restart { .. } | Fault::Link { .. } => {}
        }
        self.with(|table| table.active.remove(&number));
        self.apply().await?;
        Ok(describe(number, &active, false))
    }

    /// Ends every fault: first those of links, so that nodes which come back reach each other.
    ///
    /// # Errors
    /// The first failure; the others are healed all the same.
    pub async fn heal_all(&self) -> Result<Vec<ActiveJson>, ChaosError> {
        let mut faults = self.list();
        faults.sort_by_key(|fault| match fault.fault {
            Fault::Link { .. } => 0,
            Fault::Pause { .. } => 1,
            Fault::Drain { .. } | Fault::Restart { .. } => 2,
            Fault::Kill { .. } => 3,
        });
        let (mut healed, mut failed) = (Vec::new(), None);
        for fault in faults {
            match self.heal(&fault.id).await {
                Ok(fault) => healed.push(fault),
                Err(ChaosError::Unknown(_)) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(healed), Err)
    }

    /// Tells each running node its rules, if they are not what it was told last.
    async fn apply(&self) -> Result<(), ChaosError> {
        let mut applied = self.0.applied.lock().await;
        let nodes = self.0.testbed.nodes();
        let faults: Vec<Fault> = self.with(|table| table.active.values().map(|a| a.fault.clone()).collect());
        let wanted = rules(&faults, &specs(&nodes))?;
        let mut failed = None;
        for (node, links) in nodes.iter().zip(wanted) {
            // One that does not run is told when it does.
            let Some(api) = node.api() else { continue };
            let name = &node.spec.name;
            let incarnation = node.incarnation;
            // A process that began since has no rules.
            let told = applied.get(name).filter(|told| told.incarnation == incarnation);
            let same = told.map_or(links.is_empty(), |told| told.links.as_ref() == Some(&links));
            if same {
                continue;
            }
            let body = LinksJson { rules: links };
            let url = format!("{api}/skein/v1/links");
            let links = match self.0.testbed.client().put(&url, &body, CALL).await {
                Ok(()) => Some(body.rules),
                Err(source) => {
                    failed = failed.or(Some(ChaosError::Links { node: name.clone(), source }));
                    None
                }
            };
            applied.insert(name.clone(), Applied { incarnation, links });
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Inner {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

fn specs(nodes: &[NodeView]) -> Vec<NodeSpec> {
    nodes.iter().map(|node| node.spec.clone()).collect()
}

fn find<'a>(nodes: &'a [NodeView], name: &str) -> Option<&'a NodeView> {
    nodes.iter().find(|node| node.spec.name.as_str() == name)
}

fn node_of(fault: &Fault) -> Option<&str> {
    match fault {
        Fault::Kill { node } | Fault::Pause { node } | Fault::Restart { node } | Fault::Drain { node } => {
            Some(node)
        }
        Fault::Link { .. } => None,
    }
}

fn holds(active: &Active, nodes: &[NodeView]) -> bool {
    let node = node_of(&active.fault).and_then(|name| find(nodes, name));
    let same = node.filter(|node| node.incarnation == active.incarnation);
    match &active.fault {
        Fault::Link { .. } => true,
        Fault::Restart { .. } => false,
        Fault::Kill { .. } => same.is_some_and(|node| matches!(node.life, Life::Gone(_))),
        Fault::Pause { .. } => same.is_some_and(|node| node.life == Life::Paused),
        Fault::Drain { .. } => same.is_some_and(|node| !matches!(node.life, Life::Gone(_))),
    }
}

fn describe(id: u64, active: &Active, still: bool) -> ActiveJson {
    let left = active.heals_at.map(|at| at.saturating_duration_since(Instant::now()).as_millis() as u64);
    ActiveJson {
        id: format!("f{id}"),
        text: active.fault.to_string(),
        fault: active.fault.clone(),
        heals_in_ms: left.filter(|_| still),
        active: still,
    }
}
