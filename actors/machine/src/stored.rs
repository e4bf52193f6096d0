//! What is kept of a Machine, in memory and in the node's store.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skein_cluster::configs::hash_of;
use skein_core::machine::{CheckStatus, ImageRef, MachineConfig, MachineEvent, MachineJson, MachineState};
use skein_core::{
    AppId, AppName, ConfigHash, MachineId, NetworkId, NodeName, NodeNumber, RegionCode, VersionId, sixpn,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::life::Desired;

/// The table of Machines; the key is the Machine's id.
pub(crate) const TABLE: &str = "machines";
/// Events kept per Machine.
pub const KEPT_EVENTS: usize = 50;

/// A Machine, as its node remembers it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    pub(crate) id: MachineId,
    pub(crate) app: AppId,
    pub(crate) app_name: AppName,
    pub(crate) network: NetworkId,
    pub(crate) name: String,
    pub(crate) number: u32,
    pub(crate) config: Arc<MachineConfig>,
    pub(crate) config_json: Bytes,
    pub(crate) hash: ConfigHash,
    pub(crate) version: VersionId,
    pub(crate) desired: Desired,
    pub(crate) state: MachineState,
    pub(crate) cordoned: bool,
    pub(crate) created_ms: u64,
    pub(crate) updated_ms: u64,
    pub(crate) changed_ms: u64,
    /// As in [`skein_core::record::Record`].
    pub(crate) start_ms: u32,
    /// The same of its last resumption.
    pub(crate) resume_ms: u32,
    /// Newest first.
    pub(crate) events: VecDeque<MachineEvent>,
    pub(crate) adopt: Option<Adoptable>,
}

/// A run that outlives this node's process for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Adoptable {
    pub(crate) path: PathBuf,
    pub(crate) secret: [u8; 32],
    /// Internal port and the loopback port that stands for it.
    pub(crate) ports: Vec<(u16, u16)>,
}

/// A row: what has no binary form stands in it as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    id: MachineId,
    app: AppId,
    app_name: AppName,
    network: NetworkId,
    name: String,
    number: u32,
    config: String,
    version: VersionId,
    desired: Desired,
    state: MachineState,
    cordoned: bool,
    created_ms: u64,
    updated_ms: u64,
    changed_ms: u64,
    start_ms: u32,
    resume_ms: u32,
    events: String,
    adopt: Option<Adoptable>,
}

/// The canonical JSON of a configuration, and its hash.
pub(crate) fn canonical(config: &MachineConfig) -> Result<(Bytes, ConfigHash), serde_json::Error> {
    let json = serde_json::to_vec(config)?;
    let hash = hash_of(&json);
    Ok((json.into(), hash))
}

impl Stored {
    pub(crate) fn row(&self) -> Result<Row, serde_json::Error> {
        Ok(Row {
            id: self.id,
            app: self.app,
            app_name: self.app_name.clone(),
            network: self.network,
            name: self.name.clone(),
            number: self.number,
            config: String::from_utf8_lossy(&self.config_json).into_owned(),
            version: self.version,
            desired: self.desired,
            state: self.state,
            cordoned: self.cordoned,
            created_ms: self.created_ms,
            updated_ms: self.updated_ms,
            changed_ms: self.changed_ms,
            start_ms: self.start_ms,
            resume_ms: self.resume_ms,
            events: serde_json::to_string(&self.events)?,
            adopt: self.adopt.clone(),
        })
    }

    pub(crate) fn from_row(row: Row) -> Result<Self, serde_json::Error> {
        let config: MachineConfig = serde_json::from_str(&row.config)?;
        let config_json = Bytes::from(row.config);
        Ok(Self {
            id: row.id,
            app: row.app,
            app_name: row.app_name,
            network: row.network,
            name: row.name,
            number: row.number,
            hash: hash_of(&config_json),
            config: Arc::new(config),
            config_json,
            version: row.version,
            desired: row.desired,
            state: row.state,
            cordoned: row.cordoned,
            created_ms: row.created_ms,
            updated_ms: row.updated_ms,
            changed_ms: row.changed_ms,
            start_ms: row.start_ms,
            resume_ms: row.resume_ms,
            events: serde_json::from_str(&row.events)?,
            adopt: row.adopt,
        })
    }

    pub(crate) fn note(&mut self, event: MachineEvent) {
        self.events.truncate(KEPT_EVENTS - 1);
        self.events.push_front(event);
    }
}

/// All that can be seen of a Machine; replaced whole when any of it changes.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) stored: Stored,
    /// What others are told of its health.
    pub(crate) healthy: bool,
    pub(crate) checks: Vec<CheckStatus>,
    /// What went wrong last.
    pub(crate) error: Option<String>,
}

impl View {
    pub(crate) fn json(&self, node: NodeNumber, node_name: &NodeName, region: RegionCode) -> MachineJson {
        let stored = &self.stored;
        MachineJson {
            id: stored.id,
            name: stored.name.clone(),
            state: stored.state,
            region,
            instance_id: stored.version,
            private_ip: sixpn::machine(stored.network, node, stored.number).to_string(),
            config: MachineConfig::clone(&stored.config),
            image_ref: ImageRef::parse(&stored.config.image),
            created_at: rfc3339(stored.created_ms),
            updated_at: rfc3339(stored.updated_ms),
            events: stored.events.iter().cloned().collect(),
            checks: self.checks.clone(),
            host_status: "ok".into(),
            cordoned: stored.cordoned,
            node: Some(node_name.clone()),
            start_ms: stored.start_ms,
            resume_ms: stored.resume_ms,
        }
    }
}

/// A time as the API writes it.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        // Only a clock beyond the year 9999 has no such form.
        .unwrap_or_else(|| "9999-12-31T23:59:59Z".into())
}

#[cfg(test)]
pub(crate) fn sample(config: &str) -> Stored {
    let config: MachineConfig = serde_json::from_str(config).unwrap();
    let (config_json, hash) = canonical(&config).unwrap();
    Stored {
        id: MachineId::from_bits(1),
        app: AppId(ulid::Ulid(2)),
        app_name: "a".parse().unwrap(),
        network: NetworkId(3),
        name: "m".into(),
        number: 4,
        config: Arc::new(config),
        config_json,
        hash,
        version: VersionId(ulid::Ulid(5)),
        desired: Desired::Started,
        state: MachineState::Created,
        cordoned: false,
        created_ms: 6,
        updated_ms: 7,
        changed_ms: 8,
        start_ms: 9,
        resume_ms: 10,
        events: VecDeque::new(),
        adopt: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> MachineEvent {
        MachineEvent {
            id: number.to_string(),
            kind: "start".into(),
            status: "started".into(),
            source: "flyd".into(),
            timestamp: 1,
            request: Some(serde_json::json!({"exit_event": {"exit_code": 1}})),
        }
    }

    #[test]
    fn a_row_gives_back_what_was_stored_keys_unknown_to_skein_included() {
        let mut stored =
            sample(r#"{"image":"skein/hello","mounts":[{"path":"/d"}],"services":[{"internal_port":80}]}"#);
        stored.note(event(1));
        stored.adopt = Some(Adoptable { path: "/x".into(), secret: [1; 32], ports: vec![(1, 2)] });
        let bytes = skein_core::codec::encode(&stored.row().unwrap());
        assert_eq!(Stored::from_row(skein_core::codec::decode(&bytes).unwrap()).unwrap(), stored);
    }

    #[test]
    fn events_are_newest_first_and_bounded() {
        let mut stored = sample("{}");
        for number in 0..KEPT_EVENTS + 7 {
            stored.note(event(number));
        }
        assert_eq!(stored.events.len(), KEPT_EVENTS);
        assert_eq!(stored.events[0].id, (KEPT_EVENTS + 6).to_string());
    }

    #[test]
    fn the_api_sees_the_address_of_the_network_and_times_in_its_own_form() {
        let view = View { stored: sample("{}"), healthy: true, checks: vec![], error: None };
        let json = view.json(NodeNumber(9), &"iad-1".parse().unwrap(), "iad".parse().unwrap());
        assert_eq!(json.private_ip, "fdaa:0:3:0:9:0:4:2");
        assert_eq!(json.created_at, "1970-01-01T00:00:00.006Z");
    }
}
