//! Transitions: what each does to the world.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use skein_core::facts::Proposal;
use skein_core::fault::LinkRule;
use skein_core::load::LoadClass;
use skein_core::machine::MachineState;
use skein_core::{ConfigHash, MachineId, NodeNumber};
use ulid::Ulid;

use super::{Event, PATIENCE, Packet, World};
use crate::agenda::MS;
use crate::facts;
use crate::node::{Held, Machine, config};
use crate::reference::{NodeStatus, Status};
use crate::request::{Asked, Edge, Running};
use crate::transition::{APPS, Auto, Change, MACHINES, Reply, Transition};

/// A Machine's process takes so long to start.
const START: u64 = 200 * MS;
/// And so long to end when it is asked to.
pub(super) const STOP: u64 = 300 * MS;

impl World {
    fn number(&self, node: u8) -> NodeNumber {
        NodeNumber(1 + u32::from(node) % self.places.len() as u32)
    }

    pub(super) fn apply(&mut self, index: usize, transition: Transition) {
        if !matches!(transition, Transition::Request { .. } | Transition::Load { .. }) {
            self.reference.meddles(self.agenda.now());
        }
        match transition {
            Transition::Create { app, node } => self.create(index, app % APPS, self.number(node)),
            Transition::Deploy { machine, app, node, soft, room, auto } => {
                let limits = (u32::from(soft.max(1)), u32::from(soft.max(1)) + u32::from(room));
                self.deploy(index, machine % MACHINES, app % APPS, self.number(node), limits, auto);
            }
            Transition::Machine { machine, change } => self.change(machine % MACHINES, change),
            Transition::Request { edge, app, post, count, takes, reply } => {
                for _ in 0..count {
                    self.request(self.number(edge), app % APPS, post, u64::from(takes) * MS, reply);
                }
            }
            Transition::Load { edge, edges, app, count, gap, takes } => {
                for number in 0..count {
                    let edge = self.number(edge.wrapping_add(number % edges.max(1)));
                    let (post, takes) = (number % 4 == 3, u64::from(takes) * MS);
                    let after = u64::from(number) * u64::from(gap) * MS;
                    self.agenda.after(after, Event::Come { edge, app: app % APPS, post, takes });
                }
            }
            Transition::Drain { node, on } => self.drain(self.number(node), on),
            Transition::Kill { node } => self.kill(self.number(node)),
            Transition::Restart { node } => {
                self.start(self.number(node));
                self.trouble();
            }
            Transition::Pause { node, on } => {
                self.pause(self.number(node), on);
                self.trouble();
            }
            Transition::Skew { node, ms } => {
                let number = self.number(node);
                if let Some(node) = self.nodes.get_mut(&number) {
                    node.skew = ms.into();
                }
            }
            Transition::Partition { at, one_way } => {
                let cut = LinkRule { cut: true, ..LinkRule::default() };
                let first = self.number(at).0;
                for (from, _) in self.places.clone() {
                    for (to, _) in self.places.clone() {
                        if (from.0 < first && to.0 >= first) || (!one_way && from.0 >= first && to.0 < first)
                        {
                            self.fault(from, to, cut);
                        }
                    }
                }
                self.trouble();
            }
            Transition::Degrade { from, to, loss, double, late } => {
                let share = |percent: u8| f64::from(percent.min(100)) / 100.0;
                let rule = LinkRule {
                    loss: share(loss),
                    duplicate: share(double),
                    delay_us: u64::from(late) * MS,
                    ..LinkRule::default()
                };
                self.fault(self.number(from), self.number(to), rule);
                self.trouble();
            }
            Transition::Heal => {
                self.heal();
                self.trouble();
            }
        }
    }

    fn create(&mut self, index: usize, app: u8, through: NodeNumber) {
        if self.nodes.get(&through).is_none_or(|node| node.life.is_none() || node.paused) {
            return;
        }
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&through) else { return };
        let request = Ulid(1_000_000 + index as u128);
        let command = facts::create_app(1 + u128::from(app), &format!("app-{app}"));
        let proposal = Proposal { request, now_ms: node.unix_ms(now), command };
        if let Some(knows) = &mut node.knows {
            knows.submit(proposal);
        }
    }

    fn deploy(
        &mut self,
        index: usize,
        slot: u8,
        app: u8,
        on: NodeNumber,
        (soft, hard): (u32, u32),
        auto: Auto,
    ) {
        let (now, app) = (self.now(), facts::app_id(1 + u128::from(app)));
        let Some(node) = self.nodes.get_mut(&on).filter(|node| node.life.is_some() && !node.paused) else {
            return;
        };
        if self.slots.contains_key(&slot) || !node.snapshot.apps.contains_key(&app) {
            return;
        }
        let id = MachineId::from_bits((u64::from(slot) << 32) | (0x10_000 + index as u64));
        let mut hash = [0; 16];
        hash[..4].copy_from_slice(&soft.to_be_bytes());
        hash[4..8].copy_from_slice(&hard.to_be_bytes());
        let (kind, least) = match auto {
            Auto::Off => (0, 0),
            Auto::Starts => (1, 0),
            Auto::Both(least) => (2, least),
        };
        (hash[8], hash[9]) = (kind, least);
        let machine = Machine {
            id,
            app,
            config: Arc::new(config(soft, hard, auto)),
            hash: ConfigHash(hash),
            state: MachineState::Created,
            healthy: true,
            cordoned: false,
            slots: Arc::default(),
            freed: Arc::default(),
            class: LoadClass::BelowSoft,
            since: now,
            life: 0,
            wanted: true,
            least: least.into(),
            tells: None,
        };
        let region = node.region;
        node.machines.insert(id, machine);
        self.slots.insert(slot, (on, id));
        self.reference.deploy(id, app, on, region, Some(hard));
        self.reference.limits(id, soft, auto != Auto::Off);
        self.boot(on, id);
    }

    /// Starts a Machine that is to run; its state is told in any case.
    pub(super) fn boot(&mut self, number: NodeNumber, id: MachineId) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number) else { return };
        if let Some(machine) = node.machines.get_mut(&id)
            && machine.wanted
            && machine.state != MachineState::Started
        {
            machine.life += 1;
            (machine.state, machine.since) = (MachineState::Starting, now);
            self.agenda.after(START, Event::Turned(number, id, machine.life));
        }
        self.tell(number, id);
    }

    /// A Machine's process has become what it was becoming.
    pub(super) fn turned(&mut self, number: NodeNumber, id: MachineId, life: u64) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.life.is_some()) else { return };
        let Some(machine) = node.machines.get_mut(&id).filter(|machine| machine.life == life) else { return };
        let next = if machine.state == MachineState::Starting {
            MachineState::Started
        } else if machine.state == MachineState::Stopping {
            MachineState::Stopped
        } else {
            return;
        };
        (machine.state, machine.since) = (next, now);
        self.tell(number, id);
        if next == MachineState::Stopped {
            self.break_off(number, id);
            let tells = self.nodes.get_mut(&number).and_then(|node| node.machines.get_mut(&id)?.tells.take());
            if let Some((to, carry, asked)) = tells {
                self.send(number, to, Packet::Rested { carry, asked, rested: true }, 0);
            }
        }
    }

    fn change(&mut self, slot: u8, change: Change) {
        let now = self.now();
        let Some((number, id)) = self.slots.get(&slot).copied() else { return };
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.life.is_some() && !node.paused)
        else {
            return;
        };
        let Some(machine) = node.machines.get_mut(&id) else { return };
        match change {
            Change::Start => {
                machine.wanted = true;
                self.boot(number, id);
                return;
            }
            Change::Stop => {
                machine.wanted = false;
                if matches!(machine.state, MachineState::Started | MachineState::Starting) {
                    machine.life += 1;
                    (machine.state, machine.since) = (MachineState::Stopping, now);
                    self.agenda.after(STOP, Event::Turned(number, id, machine.life));
                }
            }
            Change::Cordon => machine.cordoned = true,
            Change::Uncordon => machine.cordoned = false,
            Change::Fail => machine.healthy = false,
            Change::Recover => machine.healthy = true,
            Change::Crash if machine.state == MachineState::Started => {
                machine.life += 1;
                (machine.state, machine.since) = (MachineState::Stopped, now);
                self.tell(number, id);
                self.break_off(number, id);
                self.boot(number, id);
                return;
            }
            Change::Crash => {}
            Change::Destroy => {
                node.machines.remove(&id);
                self.slots.remove(&slot);
                self.tell(number, id);
                self.break_off(number, id);
                return;
            }
        }
        self.tell(number, id);
    }

    /// Tells worker, gossip and the reference model of a Machine as it is.
    pub(super) fn tell(&mut self, number: NodeNumber, id: MachineId) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.publish(id, &self.clock);
        let machine = node.machines.get(&id);
        let status = machine.map_or(Status::default(), |machine| Status {
            exists: true,
            started: machine.state == MachineState::Started,
            healthy: machine.healthy,
            cordoned: machine.cordoned,
        });
        self.reference.machine(now, id, status);
        node.say_machines();
    }

    fn drain(&mut self, number: NodeNumber, on: bool) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.life.is_some() && !node.paused)
        else {
            return;
        };
        node.draining.store(on, Ordering::Relaxed);
        node.say_itself();
        self.reference.node(now, number, NodeStatus { runs: true, answers: true, draining: on });
    }

    pub(super) fn request(&mut self, edge: NodeNumber, app: u8, post: bool, takes: u64, reply: Reply) {
        let now = self.now();
        let region = |node: u8| {
            let number = self.number(node);
            self.places.iter().find(|(place, _)| *place == number).map(|(_, region)| *region)
        };
        let instruction = match reply {
            Reply::Plain => None,
            Reply::Region(node) => region(node).map(|region| format!("region={region}")),
            Reply::Instance(slot) => {
                let id = self.slots.get(&slot).map(|(_, id)| *id);
                Some(format!("instance={}", id.unwrap_or(MachineId::from_bits(0xdead))))
            }
            Reply::App(app) => Some(format!("app=app-{}", app % APPS)),
            Reply::Elsewhere => Some("elsewhere=true".to_owned()),
        };
        let target = match reply {
            Reply::App(app) => Some(facts::app_id(1 + u128::from(app % APPS))),
            Reply::Plain | Reply::Region(_) | Reply::Instance(_) | Reply::Elsewhere => None,
        };
        let Some(node) = self.nodes.get_mut(&edge).filter(|node| node.life.is_some() && !node.paused) else {
            return;
        };
        self.requests += 1;
        self.counts.requests += 1;
        let id = self.requests;
        let app = facts::app_id(1 + u128::from(app));
        let deadline = now + PATIENCE;
        let asked = Asked { id, app, post, takes, instruction, deadline };
        self.reference.holds(now, &asked, true);
        let here = Edge {
            node: edge,
            clock: Arc::clone(&self.clock),
            peers: Arc::clone(&node.peers),
            regions: Arc::clone(&self.regions),
            draining: Arc::clone(&node.draining),
            reader: Rc::clone(&node.reader),
            queue: Rc::clone(&node.queue),
            budgets: Rc::clone(&node.budgets),
            demands: Rc::clone(&node.demands),
        };
        let rng = self.seed.child(&format!("request {id}"));
        let running = Running::begin(asked, here, rng);
        running.desk.borrow_mut().target = target;
        node.held.insert(id, Held { running, attempt: None, open: None, tried: now });
        if node.snapshot.apps.contains_key(&app) {
            self.reference.requests(now, edge, app);
        }
        if let Some(life) = node.life {
            self.agenda.at(deadline, Event::Late(edge, life, id));
        }
        self.go_on(edge, id);
    }
}
