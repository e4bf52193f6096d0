//! Which kind of public IPv4 address an app needs, as flyctl decides it (`COMPAT` 4, rule 10).

use std::collections::BTreeSet;

use serde::Serialize;

use super::model::AppConfig;
use crate::machine::Port;

/// The kind of public IPv4 address of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IpType {
    /// One that other apps have too; the name in HTTP or TLS tells them apart.
    Shared,
    /// One of its own: some port carries nothing that names the app.
    Dedicated,
}

impl AppConfig {
    /// The kind of address that the app needs. Only `[[services]]` that say `tcp` or `udp` are
    /// looked at, as in flyctl: `http_service` always does with a shared one.
    pub fn ip_type(&self) -> IpType {
        let own = self.services.iter().any(|service| match service.protocol.as_str() {
            "udp" => true,
            "tcp" => service.ports.iter().any(needs_own_address),
            _ => false,
        });
        if own { IpType::Dedicated } else { IpType::Shared }
    }
}

fn needs_own_address(port: &Port) -> bool {
    let range = port.range();
    let set: BTreeSet<&str> = port.handlers.iter().map(String::as_str).collect();
    let exactly =
        |names: &[&str]| port.handlers.len() == names.len() && names.iter().all(|name| set.contains(name));
    // A range of more than two ports holds another one; so does one of two, 80 and 443 being apart.
    let others = !range.is_empty() && (range.start() != range.end() || ![80, 443].contains(range.start()));
    others
        || (range.contains(&80) && !exactly(&["http"]))
        || (range.contains(&443) && !exactly(&["http", "tls"]))
}
