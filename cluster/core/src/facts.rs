//! The registry: facts of organizations and apps, and the commands that change them.
//!
//! [`State`] is the state machine that Raft replicates: [`State::apply`] is deterministic and total,
//! so every node that applies the same log holds the same facts. Time, ids and random bits come in
//! with the command. Persistence is the shell's: `apply` names the facts that changed.

mod command;
mod fact;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

pub use command::{Command, Outcome, Proposal, Refusal};
pub use fact::{
    Address, AddressKind, App, Counters, Fact, FactKey, JoinToken, Network, Node, Org, Scope, Settings, Token,
};
use imbl::{OrdMap, OrdSet};
use ulid::Ulid;

use crate::id::{AppId, AppName, NetworkId, NetworkName, NodeName, NodeNumber, OrgId, TokenId};
use crate::region::RegionCode;

const REMEMBERED: usize = 1_024;

/// All facts. Cloning is cheap: the maps are persistent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    settings: Option<Arc<Settings>>,
    counters: Counters,
    orgs: OrdMap<OrgId, Arc<Org>>,
    networks: OrdMap<NetworkId, Arc<Network>>,
    apps: OrdMap<AppId, Arc<App>>,
    names: OrdMap<AppName, AppId>,
    addresses: OrdMap<(IpAddr, AppId), Arc<Address>>,
    nodes: OrdMap<NodeNumber, Arc<Node>>,
    fenced: OrdSet<[u8; 32]>,
    tokens: OrdMap<TokenId, Arc<Token>>,
    join_tokens: OrdMap<TokenId, Arc<JoinToken>>,
    /// With the key in `answered_order`.
    answered: OrdMap<Ulid, (u64, Result<Outcome, Refusal>)>,
    /// Oldest first. The order is a fact: all nodes must forget the same answer, also one that was
    /// restarted or filled from a snapshot.
    answered_order: OrdMap<u64, Ulid>,
}

impl State {
    /// The cluster's settings; `None` before it is initialized.
    pub fn settings(&self) -> Option<&Arc<Settings>> {
        self.settings.as_ref()
    }
    /// All organizations, by id.
    pub fn orgs(&self) -> impl Iterator<Item = &Arc<Org>> {
        self.orgs.values()
    }
    /// The organization of that id.
    pub fn org(&self, id: OrgId) -> Option<&Arc<Org>> {
        self.orgs.get(&id)
    }
    /// The organization of that slug.
    pub fn org_by_slug(&self, slug: &str) -> Option<&Arc<Org>> {
        self.orgs.values().find(|org| org.slug.as_str() == slug)
    }
    /// All networks, by id.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }
    /// The network of that id.
    pub fn network(&self, id: NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(&id)
    }
    /// All apps, by id.
    pub fn apps(&self) -> impl Iterator<Item = &Arc<App>> {
        self.apps.values()
    }
    /// The app of that id.
    pub fn app(&self, id: AppId) -> Option<&Arc<App>> {
        self.apps.get(&id)
    }
    /// The app of that name.
    pub fn app_by_name(&self, name: &str) -> Option<&Arc<App>> {
        let name: AppName = name.parse().ok()?;
        self.apps.get(self.names.get(&name)?)
    }
    /// All addresses, by address.
    pub fn addresses(&self) -> impl Iterator<Item = &Arc<Address>> {
        self.addresses.values()
    }
    /// The addresses of an app, in the order IPv4, shared IPv4, IPv6 of DESIGN section 8.
    pub fn addresses_of(&self, app: AppId) -> Vec<&Arc<Address>> {
        let mut addresses: Vec<_> = self.addresses.values().filter(|address| address.app == app).collect();
        addresses.sort_by_key(|address| match address.kind {
            AddressKind::V4 => 0,
            AddressKind::SharedV4 => 1,
            AddressKind::V6 => 2,
        });
        addresses
    }
    /// The app that a dedicated address belongs to.
    pub fn app_at(&self, ip: IpAddr) -> Option<&Arc<Address>> {
        let first = AppId(Ulid(0));
        let (_, address) = self.addresses.range((ip, first)..).next()?;
        (address.ip == ip && address.kind != AddressKind::SharedV4).then_some(address)
    }
    /// All nodes, by number.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }
    /// The node of that number.
    pub fn node(&self, number: NodeNumber) -> Option<&Arc<Node>> {
        self.nodes.get(&number)
    }
    /// Whether a node was given that number and removed since; never true of a number that is still
    /// to be given.
    pub fn was_removed(&self, number: NodeNumber) -> bool {
        number.0 <= self.counters.node && !self.nodes.contains_key(&number)
    }
    /// The keys of removed nodes (SHA-256 of the public key), but those that were admitted again.
    pub fn fenced(&self) -> &OrdSet<[u8; 32]> {
        &self.fenced
    }
    /// All API tokens, by id.
    pub fn tokens(&self) -> impl Iterator<Item = &Arc<Token>> {
        self.tokens.values()
    }
    /// The API token of that id.
    pub fn token(&self, id: TokenId) -> Option<&Arc<Token>> {
        self.tokens.get(&id)
    }

    /// Applies a proposal: its outcome, and the keys of the facts that it changed. A request id that
    /// was applied before gives its first outcome and changes nothing.
    pub fn apply(&mut self, proposal: &Proposal) -> (Result<Outcome, Refusal>, BTreeSet<FactKey>) {
        if let Some((_, outcome)) = self.answered.get(&proposal.request) {
            return (outcome.clone(), BTreeSet::new());
        }
        let mut changed = BTreeSet::new();
        let mut next = self.clone();
        let outcome = next.execute(proposal, &mut changed);
        if outcome.is_err() {
            changed.clear();
            next = self.clone();
        }
        let place = next.answered_order.get_max().map_or(0, |(last, _)| last + 1);
        next.answered.insert(proposal.request, (place, outcome.clone()));
        next.answered_order.insert(place, proposal.request);
        changed.insert(FactKey::Answered(proposal.request));
        if next.answered_order.len() > REMEMBERED
            && let (Some((_, oldest)), rest) = next.answered_order.without_min_with_key()
        {
            next.answered_order = rest;
            next.answered.remove(&oldest);
            changed.insert(FactKey::Answered(oldest));
        }
        *self = next;
        (outcome, changed)
    }

    fn execute(&mut self, proposal: &Proposal, changed: &mut BTreeSet<FactKey>) -> Result<Outcome, Refusal> {
        let now_ms = proposal.now_ms;
        match &proposal.command {
            Command::Init { settings, org, slug, token } => {
                if self.settings.is_some() {
                    return Err(Refusal::AlreadyInitialized);
                }
                self.settings = Some(Arc::new(settings.clone()));
                let name = slug.to_string();
                self.orgs
                    .insert(*org, Arc::new(Org { id: *org, slug: slug.clone(), name, created_ms: now_ms }));
                self.tokens.insert(token.id, Arc::new(token.clone()));
                self.network_of(*org, &NetworkName::default_network(), changed);
                changed.extend([FactKey::Settings, FactKey::Org(*org), FactKey::Token(token.id)]);
                Ok(Outcome::Done)
            }
            Command::CreateOrg { id, slug, name } => {
                if self.org_by_slug(slug.as_str()).is_some() || self.orgs.contains_key(id) {
                    return Err(Refusal::NameTaken(slug.to_string()));
                }
                let org = Org { id: *id, slug: slug.clone(), name: name.clone(), created_ms: now_ms };
                self.orgs.insert(*id, Arc::new(org));
                self.network_of(*id, &NetworkName::default_network(), changed);
                changed.insert(FactKey::Org(*id));
                Ok(Outcome::Org(*id))
            }
            Command::CreateApp { id, name, org, network } => {
                if self.names.contains_key(name) || self.apps.contains_key(id) {
                    return Err(Refusal::NameTaken(name.to_string()));
                }
                if !self.orgs.contains_key(org) {
                    return Err(Refusal::NotFound("organization".into()));
                }
                let network = self.network_of(*org, network, changed);
                let app = App { id: *id, name: name.clone(), org: *org, network, created_ms: now_ms };
                self.apps.insert(*id, Arc::new(app.clone()));
                self.names.insert(name.clone(), *id);
                changed.insert(FactKey::App(*id));
                Ok(Outcome::App(app))
            }
            Command::DestroyApp { id } => {
                let app = self.apps.remove(id).ok_or_else(|| Refusal::NotFound("app".into()))?;
                self.names.remove(&app.name);
                changed.insert(FactKey::App(*id));
                let mine: Vec<_> = self.addresses.keys().filter(|(_, app)| app == id).copied().collect();
                for key in mine {
                    self.addresses.remove(&key);
                    changed.insert(FactKey::Address(key.0, key.1));
                }
                Ok(Outcome::Done)
            }
            Command::Allocate { app, kind } => self.allocate(*app, *kind, now_ms, changed),
            Command::Release { app, ip } => {
                self.addresses.remove(&(*ip, *app)).ok_or_else(|| Refusal::NotFound("address".into()))?;
                changed.insert(FactKey::Address(*ip, *app));
                Ok(Outcome::Done)
            }
            Command::CreateToken { token } => {
                if let Scope::Org(org) = token.scope
                    && !self.orgs.contains_key(&org)
                {
                    return Err(Refusal::NotFound("organization".into()));
                }
                self.tokens.insert(token.id, Arc::new(token.clone()));
                changed.insert(FactKey::Token(token.id));
                Ok(Outcome::Done)
            }
            Command::RevokeToken { id } => {
                self.tokens.remove(id).ok_or_else(|| Refusal::NotFound("token".into()))?;
                changed.insert(FactKey::Token(*id));
                Ok(Outcome::Done)
            }
            Command::CreateJoinToken { token } => {
                self.join_tokens.insert(token.id, Arc::new(token.clone()));
                changed.insert(FactKey::JoinToken(token.id));
                Ok(Outcome::Done)
            }
            Command::AddNode { token, secret_hash, name, region, key, backhaul } => {
                let join = self.join_tokens.get(token).ok_or(Refusal::JoinTokenInvalid)?;
                if join.hash != *secret_hash {
                    return Err(Refusal::JoinTokenInvalid);
                }
                if let Some(node) = self.nodes.values().find(|node| node.key == *key) {
                    let node = Node { region: *region, backhaul: *backhaul, ..Node::clone(node) };
                    return Ok(self.put_node(node, changed));
                }
                if join.expires_ms <= now_ms {
                    return Err(Refusal::JoinTokenExpired);
                }
                let uses_left = join.uses_left.checked_sub(1).ok_or(Refusal::JoinTokenUsed)?;
                let join = JoinToken { uses_left, ..JoinToken::clone(join) };
                self.join_tokens.insert(*token, Arc::new(join));
                changed.insert(FactKey::JoinToken(*token));
                self.add_node(name.clone(), *region, *key, *backhaul, now_ms, changed)
            }
            Command::AddFirstNode { name, region, key, backhaul } => {
                if !self.nodes.is_empty() {
                    return Err(Refusal::AlreadyInitialized);
                }
                self.add_node(Some(name.clone()), *region, *key, *backhaul, now_ms, changed)
            }
            Command::MoveNode { number, backhaul } => {
                let node = self.nodes.get(number).ok_or_else(|| Refusal::NotFound("node".into()))?;
                let node = Node { backhaul: *backhaul, ..Node::clone(node) };
                self.nodes.insert(*number, Arc::new(node));
                changed.insert(FactKey::Node(*number));
                Ok(Outcome::Done)
            }
            Command::RemoveNode { number } => {
                let node = self.nodes.remove(number).ok_or_else(|| Refusal::NotFound("node".into()))?;
                self.fenced.insert(node.key);
                changed.extend([FactKey::Node(*number), FactKey::Fenced(node.key)]);
                Ok(Outcome::Done)
            }
        }
    }

    fn network_of(&mut self, org: OrgId, name: &NetworkName, changed: &mut BTreeSet<FactKey>) -> NetworkId {
        if let Some(network) = self.networks.values().find(|n| n.org == org && n.name == *name) {
            return network.id;
        }
        self.counters.network += 1;
        let id = NetworkId(self.counters.network);
        self.networks.insert(id, Arc::new(Network { id, org, name: name.clone() }));
        changed.extend([FactKey::Counters, FactKey::Network(id)]);
        id
    }

    fn add_node(
        &mut self,
        name: Option<NodeName>,
        region: RegionCode,
        key: [u8; 32],
        backhaul: SocketAddr,
        joined_ms: u64,
        changed: &mut BTreeSet<FactKey>,
    ) -> Result<Outcome, Refusal> {
        let taken = |name: &NodeName| self.nodes.values().any(|node| node.name == *name);
        let name = match name {
            Some(name) if taken(&name) => return Err(Refusal::NameTaken(name.to_string())),
            Some(name) => name,
            None => (1u32..)
                .filter_map(|n| format!("{region}-{n}").parse().ok())
                .find(|name| !taken(name))
                .ok_or_else(|| Refusal::PoolEmpty("node name".into()))?,
        };
        self.counters.node += 1;
        let number = NodeNumber(self.counters.node);
        changed.insert(FactKey::Counters);
        if self.fenced.remove(&key).is_some() {
            changed.insert(FactKey::Fenced(key));
        }
        Ok(self.put_node(Node { number, name, region, key, backhaul, joined_ms }, changed))
    }

    fn put_node(&mut self, node: Node, changed: &mut BTreeSet<FactKey>) -> Outcome {
        let outcome = Outcome::Node(node.number, node.name.clone());
        if self.nodes.get(&node.number).is_none_or(|known| **known != node) {
            changed.insert(FactKey::Node(node.number));
            self.nodes.insert(node.number, Arc::new(node));
        }
        outcome
    }

    fn allocate(
        &mut self,
        app: AppId,
        kind: AddressKind,
        now_ms: u64,
        changed: &mut BTreeSet<FactKey>,
    ) -> Result<Outcome, Refusal> {
        if !self.apps.contains_key(&app) {
            return Err(Refusal::NotFound("app".into()));
        }
        let settings = self.settings.clone().ok_or(Refusal::NotInitialized)?;
        let ip: IpAddr = match kind {
            AddressKind::SharedV4 => {
                let ip = IpAddr::V4(settings.shared_v4);
                if let Some(address) = self.addresses.get(&(ip, app)) {
                    return Ok(Outcome::Address(Address::clone(address)));
                }
                ip
            }
            AddressKind::V4 => {
                let [a, b, c] = settings.v4_pool;
                let free = (1..=254u8)
                    .map(|last| Ipv4Addr::new(a, b, c, last))
                    .find(|ip| *ip != settings.shared_v4 && self.app_at((*ip).into()).is_none());
                free.ok_or_else(|| Refusal::PoolEmpty("dedicated IPv4 address".into()))?.into()
            }
            AddressKind::V6 => {
                self.counters.v6 += 1;
                changed.insert(FactKey::Counters);
                Ipv6Addr::from(u128::from(settings.v6_pool) | u128::from(self.counters.v6)).into()
            }
        };
        let address = Address { ip, app, kind, created_ms: now_ms };
        self.addresses.insert((ip, app), Arc::new(address.clone()));
        changed.insert(FactKey::Address(ip, app));
        Ok(Outcome::Address(address))
    }

    /// The fact of that key; `None` when there is none (it was removed).
    pub fn fact(&self, key: &FactKey) -> Option<Fact> {
        Some(match key {
            FactKey::Settings => Fact::Settings(self.settings.as_deref()?.clone()),
            FactKey::Counters => Fact::Counters(self.counters),
            FactKey::Org(id) => Fact::Org(self.orgs.get(id)?.as_ref().clone()),
            FactKey::Network(id) => Fact::Network(self.networks.get(id)?.as_ref().clone()),
            FactKey::App(id) => Fact::App(self.apps.get(id)?.as_ref().clone()),
            FactKey::Address(ip, app) => Fact::Address(self.addresses.get(&(*ip, *app))?.as_ref().clone()),
            FactKey::Node(number) => Fact::Node(self.nodes.get(number)?.as_ref().clone()),
            FactKey::Fenced(key) => Fact::Fenced(*self.fenced.get(key)?),
            FactKey::Token(id) => Fact::Token(self.tokens.get(id)?.as_ref().clone()),
            FactKey::JoinToken(id) => Fact::JoinToken(self.join_tokens.get(id)?.as_ref().clone()),
            FactKey::Answered(request) => {
                let (place, outcome) = self.answered.get(request)?;
                Fact::Answered(*request, *place, outcome.clone())
            }
        })
    }

    /// All facts: what a Raft snapshot holds.
    pub fn facts(&self) -> Vec<Fact> {
        let keys = self
            .settings
            .iter()
            .map(|_| FactKey::Settings)
            .chain([FactKey::Counters])
            .chain(self.orgs.keys().map(|id| FactKey::Org(*id)))
            .chain(self.networks.keys().map(|id| FactKey::Network(*id)))
            .chain(self.apps.keys().map(|id| FactKey::App(*id)))
            .chain(self.addresses.keys().map(|(ip, app)| FactKey::Address(*ip, *app)))
            .chain(self.nodes.keys().map(|number| FactKey::Node(*number)))
            .chain(self.fenced.iter().map(|key| FactKey::Fenced(*key)))
            .chain(self.tokens.keys().map(|id| FactKey::Token(*id)))
            .chain(self.join_tokens.keys().map(|id| FactKey::JoinToken(*id)))
            .chain(self.answered_order.values().map(|request| FactKey::Answered(*request)));
        keys.filter_map(|key| self.fact(&key)).collect()
    }

    /// The state that holds `facts`, in whatever order they come.
    pub fn from_facts(facts: impl IntoIterator<Item = Fact>) -> Self {
        let mut state = Self::default();
        for fact in facts {
            match fact {
                Fact::Settings(settings) => state.settings = Some(Arc::new(settings)),
                Fact::Counters(counters) => state.counters = counters,
                Fact::Org(org) => drop(state.orgs.insert(org.id, Arc::new(org))),
                Fact::Network(network) => drop(state.networks.insert(network.id, Arc::new(network))),
                Fact::App(app) => {
                    state.names.insert(app.name.clone(), app.id);
                    state.apps.insert(app.id, Arc::new(app));
                }
                Fact::Address(address) => {
                    state.addresses.insert((address.ip, address.app), Arc::new(address));
                }
                Fact::Node(node) => drop(state.nodes.insert(node.number, Arc::new(node))),
                Fact::Fenced(key) => drop(state.fenced.insert(key)),
                Fact::Token(token) => drop(state.tokens.insert(token.id, Arc::new(token))),
                Fact::JoinToken(token) => drop(state.join_tokens.insert(token.id, Arc::new(token))),
                Fact::Answered(request, place, outcome) => {
                    state.answered.insert(request, (place, outcome));
                    state.answered_order.insert(place, request);
                }
            }
        }
        state
    }
}

#[cfg(test)]
mod tests;
