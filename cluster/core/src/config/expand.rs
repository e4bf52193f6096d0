//! The model into the configuration of one process group's Machines, as flyctl's `ToMachineConfig`
//! makes it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::model::{AppConfig, HttpService, Probe, ServiceSection, TopLevelCheck, VmSection};
use super::size::preset;
use super::words::split_words;
use crate::ProcessGroup;
use crate::machine::{
    Check, CheckHeader, Guest, Init, MachineConfig, PROCESS_GROUP_KEY, Port, Restart, RestartPolicy, Service,
    StopConfig,
};

impl AppConfig {
    /// The process groups, sorted; `app` alone when the file has no `[processes]`.
    pub fn groups(&self) -> Vec<ProcessGroup> {
        if self.processes.is_empty() {
            return vec![ProcessGroup::app()];
        }
        self.processes.keys().cloned().collect()
    }

    /// The group of sections that name none: `app` if it is there, else the first.
    pub fn default_group(&self) -> ProcessGroup {
        let groups = self.groups();
        let app = ProcessGroup::app();
        if groups.contains(&app) { app } else { groups.into_iter().next().unwrap_or(app) }
    }

    fn matches(&self, group: &ProcessGroup, named: &[ProcessGroup]) -> bool {
        if named.is_empty() { *group == self.default_group() } else { named.contains(group) }
    }

    /// Whether `http_service` belongs to a group.
    pub(super) fn serves_http(&self, group: &ProcessGroup) -> bool {
        self.http_service.as_ref().is_some_and(|http| self.matches(group, &http.settings.processes))
    }

    /// The configuration of a group's Machines; `None` when there is no such group. The image is
    /// the file's, empty when it names none: which of Skein's own stands in is the deploy's choice.
    pub fn machine(&self, group: &ProcessGroup) -> Option<MachineConfig> {
        if !self.groups().contains(group) {
            return None;
        }
        let http = self.http_service.iter().filter(|http| self.matches(group, &http.settings.processes));
        let services =
            self.services.iter().filter(|service| self.matches(group, &service.settings.processes));
        let checks = self.checks.iter().filter(|(_, check)| self.matches(group, &check.processes));
        let http_port = self.http_service.as_ref().map(|http| http.settings.internal_port);
        Some(MachineConfig {
            image: self.build.image.clone().unwrap_or_default(),
            env: self.environment(group),
            init: self.init(group),
            guest: self.guest(group),
            metadata: BTreeMap::from([
                ("fly_platform_version".to_owned(), "v2".to_owned()),
                (PROCESS_GROUP_KEY.to_owned(), group.to_string()),
            ]),
            services: http.map(HttpService::expand).chain(services.map(ServiceSection::expand)).collect(),
            checks: checks.map(|(name, check)| (name.clone(), check.expand(http_port))).collect(),
            restart: self.restart(group),
            stop_config: self.stop_config(),
            ..MachineConfig::default()
        })
    }

    fn environment(&self, group: &ProcessGroup) -> BTreeMap<String, String> {
        let mut env = self.env.clone();
        env.insert("FLY_PROCESS_GROUP".into(), group.to_string());
        if let Some(region) = self.primary_region {
            env.insert("PRIMARY_REGION".into(), region.to_string());
        }
        env
    }

    fn init(&self, group: &ProcessGroup) -> Init {
        let line = self.processes.get(group).map(String::as_str).unwrap_or_default();
        // A line that does not split is an error of the load.
        let words = split_words(line).unwrap_or_default();
        Init {
            exec: self.experimental.exec.clone(),
            entrypoint: self.experimental.entrypoint.clone(),
            cmd: if words.is_empty() { self.experimental.cmd.clone() } else { words },
            rest: BTreeMap::new(),
        }
    }

    /// The last section that names the group wins; else the first without groups, which is for all.
    fn guest(&self, group: &ProcessGroup) -> Option<Guest> {
        let named = self.vm.iter().rfind(|vm| vm.processes.contains(group));
        let section = named.or_else(|| self.vm.iter().find(|vm| vm.processes.is_empty()))?;
        Some(section.expand(self.kept.get("host_dedication_id")))
    }

    fn restart(&self, group: &ProcessGroup) -> Restart {
        let Some(section) = self.restart.iter().rfind(|section| self.matches(group, &section.processes))
        else {
            return Restart::default();
        };
        let policy = match section.policy.as_str() {
            "always" => RestartPolicy::Always,
            "never" => RestartPolicy::No,
            _ => RestartPolicy::OnFailure,
        };
        Restart { policy: Some(policy), max_retries: section.retries }
    }

    fn stop_config(&self) -> Option<StopConfig> {
        let config = StopConfig { signal: self.kill_signal.clone(), timeout: self.kill_timeout };
        (config != StopConfig::default()).then_some(config)
    }
}

impl HttpService {
    /// Ports 80 `[http]` and 443 `[http, tls]`; `force_https` stands on 80 alone (`COMPAT` 4, rule 1).
    fn expand(&self) -> Service {
        let plain = Port {
            port: Some(80),
            handlers: vec!["http".into()],
            force_https: self.force_https,
            http_options: self.http_options.clone(),
            ..Port::default()
        };
        let mut tls = Port {
            port: Some(443),
            handlers: vec!["http".into(), "tls".into()],
            http_options: self.http_options.clone(),
            ..Port::default()
        };
        tls.rest.extend(self.tls_options.clone().map(|options| ("tls_options".to_owned(), options)));
        let section = ServiceSection {
            protocol: "tcp".into(),
            settings: self.settings.clone(),
            ports: vec![plain, tls],
            http_checks: self.checks.clone(),
            ..ServiceSection::default()
        };
        section.expand()
    }
}

impl ServiceSection {
    fn expand(&self) -> Service {
        let tcp = self.tcp_checks.iter().map(|probe| probe.expand("tcp", None));
        let http = self.http_checks.iter().map(|probe| probe.expand("http", None));
        Service {
            protocol: self.protocol.clone(),
            internal_port: self.settings.internal_port,
            ports: self.ports.clone(),
            autostop: self.settings.autostop,
            autostart: self.settings.autostart,
            min_machines_running: self.settings.min_machines_running,
            concurrency: self.settings.concurrency.clone(),
            checks: tcp.chain(http).collect(),
            rest: BTreeMap::new(),
        }
    }
}

impl TopLevelCheck {
    fn expand(&self, http_port: Option<u16>) -> Check {
        self.probe.expand(&self.kind, self.port.or(http_port))
    }
}

impl Probe {
    fn expand(&self, kind: &str, port: Option<u16>) -> Check {
        let headers = self.headers.iter();
        Check {
            kind: kind.to_owned(),
            port,
            interval: self.interval,
            timeout: self.timeout,
            grace_period: self.grace_period,
            method: self.method.clone(),
            path: self.path.clone(),
            protocol: self.protocol.clone(),
            headers: headers
                .map(|(name, value)| CheckHeader { name: name.clone(), values: vec![value.clone()] })
                .collect(),
            tls_server_name: self.tls_server_name.clone(),
            tls_skip_verify: self.tls_skip_verify,
            rest: BTreeMap::new(),
        }
    }
}

impl VmSection {
    /// The preset (when none is named, the one that flyctl takes with or without a GPU), then what the
    /// section says itself.
    fn expand(&self, host: Option<&Value>) -> Guest {
        let mut rest = BTreeMap::new();
        rest.extend(host.map(|host| ("host_dedication_id".to_owned(), host.clone())));
        let gpu = self.kept.get("gpu_kind").is_some_and(|kind| kind != "");
        let size = self.size.as_deref().unwrap_or(if gpu { "performance-8x" } else { "shared-cpu-1x" });
        // A size that does not exist is an error of the load.
        let preset = preset(size);
        if let Some(kind) = preset.and_then(|preset| preset.gpu_kind) {
            rest.extend([("gpu_kind".to_owned(), kind.into()), ("gpus".to_owned(), 1.into())]);
        }
        rest.extend(self.kept.clone());
        Guest {
            cpu_kind: self.cpu_kind.clone().or_else(|| preset.map(|preset| preset.cpu_kind.to_owned())),
            cpus: self.cpus.or_else(|| preset.map(|preset| preset.cpus)),
            memory_mb: self.memory_mb.or_else(|| preset.map(|preset| preset.memory_mb)),
            rest,
        }
    }
}
