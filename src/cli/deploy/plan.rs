//! What a deploy changes: decisions over the file and what there is.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use skein_core::config::AppConfig;
use skein_core::machine::{CheckStatus, EXTERNAL_KEY, Init, MachineConfig, MachineJson};
use skein_core::region::Regions;
use skein_core::service::HandlerChain;
use skein_core::{MachineId, ProcessGroup, RegionCode};

use super::Configs;
use crate::cli::ips::IpRow;

/// The metadata of Machines that a deploy made; others are left alone.
const DEPLOYED: (&str, &str) = ("fly_platform_version", "v2");

/// What a Machine runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Process {
    /// What the file says.
    Configured,
    /// This command, in groups for which the file has none.
    Command(Vec<String>),
    /// Nothing: a server at this address already runs.
    External(String),
}

/// One step of a deploy.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// A new Machine; the API chooses the region when it is `None`.
    Create { group: ProcessGroup, region: Option<String>, config: Box<MachineConfig> },
    /// A new version of a Machine.
    Update { id: MachineId, config: Box<MachineConfig> },
    /// A Machine of a group that is gone.
    Destroy { id: MachineId, group: ProcessGroup },
}

/// The configuration of each process group's Machines.
///
/// # Errors
/// When there is nothing to run.
pub(super) fn configs(file: &AppConfig, process: &Process) -> anyhow::Result<Configs> {
    let mut configs = Configs::new();
    for group in file.groups() {
        let mut config = file.machine(&group).context("invariant: a group has a configuration")?;
        config.metadata.insert(DEPLOYED.0.to_owned(), DEPLOYED.1.to_owned());
        let own = !config.init.exec.is_empty() || !config.init.cmd.is_empty();
        match process {
            Process::External(address) => {
                config.metadata.insert(EXTERNAL_KEY.to_owned(), address.clone());
                config.init = Init::default();
                config.image = String::new();
            }
            Process::Command(command) if !own => {
                config.init.exec.clone_from(command);
                config.image = String::new();
            }
            Process::Configured | Process::Command(_) if own && config.init.exec.is_empty() => {
                // A command stands in `init.exec` (DESIGN section 8): without an image there is no
                // entry point but the file's own.
                let init = &mut config.init;
                init.exec = std::mem::take(&mut init.entrypoint);
                init.exec.append(&mut init.cmd);
            }
            Process::Configured | Process::Command(_) => {}
        }
        // The API would say so too, once the app is made.
        crate::api::check_config(&config).with_context(|| format!("process group {group}"))?;
        configs.insert(group, config);
    }
    Ok(configs)
}

/// The kinds of addresses that the first deploy allots (SPEC PUB-1).
pub(super) fn wanted_addresses<'a>(
    configs: impl Iterator<Item = &'a MachineConfig> + Clone,
    have: &[IpRow],
) -> Vec<&'static str> {
    let lacks = |kind: &str| !have.iter().any(|ip| ip.kind == kind);
    let ports = || configs.clone().flat_map(|config| &config.services).flat_map(|service| &service.ports);
    let serves = |number: u16, chain: HandlerChain| {
        ports().any(|port| {
            port.range().contains(&number) && HandlerChain::parse(&port.handlers).as_ref() == Ok(&chain)
        })
    };
    let http = serves(80, HandlerChain::Http) || serves(443, HandlerChain::TlsHttp);
    let mut kinds = Vec::new();
    if ports().next().is_some() && lacks("v6") {
        kinds.push("v6");
    }
    if http && lacks("shared_v4") {
        kinds.push("shared_v4");
    }
    kinds
}

/// The steps from `existing` to one Machine of each group in each of `regions`: every Machine of a
/// deploy is updated wherever it is; a group has a new Machine in each region that has fewer of it
/// than the region is named; a group without any gets them all.
pub(super) fn changes(
    configs: &Configs,
    existing: &[MachineJson],
    regions: &[Option<String>],
) -> Vec<Action> {
    let deployed = |machine: &&MachineJson| {
        machine.config.metadata.get(DEPLOYED.0).map(String::as_str) == Some(DEPLOYED.1)
            && !machine.state.is_final()
    };
    let existing: Vec<&MachineJson> = existing.iter().filter(deployed).collect();
    let mut actions = Vec::new();
    for (group, config) in configs {
        let of_group = existing.iter().filter(|machine| machine.config.process_group() == *group);
        let mut there: BTreeMap<String, usize> = BTreeMap::new();
        let mut any = false;
        for machine in of_group {
            any = true;
            *there.entry(machine.region.to_string()).or_default() += 1;
            actions.push(Action::Update { id: machine.id, config: Box::new(config.clone()) });
        }
        for region in regions {
            let have = region.as_ref().and_then(|region| there.get_mut(region));
            match have {
                Some(count) if *count > 0 => *count -= 1,
                // Without a region of its own choice a group that is somewhere is where it should be.
                _ if region.is_none() && any => {}
                _ => actions.push(Action::Create {
                    group: group.clone(),
                    region: region.clone(),
                    config: Box::new(config.clone()),
                }),
            }
        }
    }
    let gone = existing.iter().filter(|machine| !configs.contains_key(&machine.config.process_group()));
    actions.extend(
        gone.map(|machine| Action::Destroy { id: machine.id, group: machine.config.process_group() }),
    );
    actions
}

/// Whether each new Machine has somewhere to go; `open` are the regions with nodes that take Machines.
///
/// # Errors
/// When a region does not exist, or none of its nodes takes Machines; the message says which do.
pub(super) fn placeable(actions: &[Action], open: &BTreeSet<RegionCode>) -> anyhow::Result<()> {
    let regions = Regions::default();
    let names = || open.iter().map(RegionCode::as_str).collect::<Vec<_>>().join(", ");
    for action in actions {
        let Action::Create { region, .. } = action else { continue };
        let wanted = region.as_deref().map(|region| regions.find(region)).transpose()?;
        match wanted.map(|region| region.code) {
            _ if open.is_empty() => {
                bail!("no node takes Machines: all are draining or dead; see `skein status`")
            }
            Some(region) if !open.contains(&region) => bail!(
                "no node in {region} takes Machines; there are nodes in {}: name regions with --regions",
                names()
            ),
            Some(_) | None => {}
        }
    }
    Ok(())
}

/// A check of a service that does not pass yet; such checks decide routing, others do not.
pub(super) fn unpassed(machine: &MachineJson) -> Option<&CheckStatus> {
    let of_services = machine.checks.iter().filter(|check| check.name.starts_with("servicecheck-"));
    of_services.into_iter().find(|check| check.status != "passing")
}

/// What the events of a Machine say about why it does not run.
pub(super) fn why(machine: &MachineJson) -> Option<String> {
    let exit = machine.events.iter().find(|event| event.kind == "exit" || event.kind == "start_failed")?;
    let request = exit.request.as_ref()?;
    let exit = request.get("exit_event").unwrap_or(request);
    let error = exit.get("error").or_else(|| exit.get("guest_error")).and_then(|error| error.as_str());
    if let Some(error) = error.filter(|error| !error.is_empty()) {
        return Some(format!("; {error}"));
    }
    let code = exit.get("exit_code").or_else(|| exit.get("guest_exit_code"))?.as_i64()?;
    Some(format!("; its process exited with code {code}"))
}

#[cfg(test)]
mod tests;
