//! Health checks as a pure state (SPEC CHK-1, CHK-2, CHK-3): which there are, and what probes mean.

use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use skein_core::machine::{Check, CheckHeader, GoDuration, MachineConfig};

use crate::error::MachineError;

/// Shortest and longest duration of a check; others are clamped (SPEC CHK-3).
pub const RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The pause before a process that does not listen yet is probed again; it doubles up to the interval.
pub const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A connection that is accepted.
    Tcp,
    /// A response with a status of 2xx.
    Http {
        /// Its method.
        method: String,
        /// Its path.
        path: String,
        /// Its headers.
        headers: Vec<CheckHeader>,
        /// How it is secured; plain HTTP when `None`.
        tls: Option<Tls>,
    },
}

/// How an HTTPS server is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The name that is asked for and that its certificate has to have; the dialled address when `None`.
    pub name: Option<ServerName<'static>>,
    /// Whether its certificate is looked at.
    pub verify: bool,
}

/// A check, defaults applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// As the API shows it.
    pub name: String,
    /// What a probe does.
    pub kind: Kind,
    /// The port inside the Machine.
    pub port: u16,
    /// Time between probes.
    pub interval: Duration,
    /// Time a probe may take.
    pub timeout: Duration,
    /// Time after the start during which failures do not count.
    pub grace: Duration,
    /// Whether it decides routing: a service's own check.
    pub routing: bool,
}

/// The checks of a configuration: those of services, then the top-level ones.
///
/// # Errors
/// [`MachineError::Invalid`] for a check that can't be carried out.
pub fn specs(config: &MachineConfig) -> Result<Vec<Spec>, MachineError> {
    let mut found = Vec::new();
    for service in &config.services {
        for check in &service.checks {
            let port = check.port.unwrap_or(service.internal_port);
            let name = format!("servicecheck-{:02}-{}-{port}", found.len(), check.kind);
            found.push(spec(name, check, port, true)?);
        }
    }
    for (name, check) in &config.checks {
        let first = config.services.first().map(|service| service.internal_port);
        let port = check.port.or(first).ok_or_else(|| {
            MachineError::Invalid(format!(
                "check {name:?} names no port and there is no service to take one from"
            ))
        })?;
        found.push(spec(name.clone(), check, port, false)?);
    }
    Ok(found)
}

fn spec(name: String, check: &Check, port: u16, routing: bool) -> Result<Spec, MachineError> {
    let or = |value: Option<GoDuration>, default: u64| {
        value.map_or(Duration::from_secs(default), |GoDuration(value)| value).clamp(RANGE.0, RANGE.1)
    };
    let kind = match check.kind.as_str() {
        "tcp" => Kind::Tcp,
        "http" => http(&name, check)?,
        other => {
            return Err(MachineError::Invalid(format!(
                "check {name:?} has type {other:?}; it has to be http or tcp"
            )));
        }
    };
    Ok(Spec {
        name,
        kind,
        port,
        interval: or(check.interval, 15),
        timeout: or(check.timeout, 2),
        // None at all is a choice, too.
        grace: if check.grace_period == Some(GoDuration(Duration::ZERO)) {
            Duration::ZERO
        } else {
            or(check.grace_period, 1)
        },
        routing,
    })
}

fn http(name: &str, check: &Check) -> Result<Kind, MachineError> {
    let invalid = |what: &str| MachineError::Invalid(format!("check {name:?}: {what}"));
    let tls = match check.protocol.as_deref() {
        None | Some("" | "http") => None,
        Some("https") => Some(tls(name, check)?),
        Some(other) => return Err(invalid(&format!("protocol {other:?} has to be http or https"))),
    };
    let method =
        check.method.clone().filter(|m| !m.is_empty()).unwrap_or_else(|| "GET".into()).to_ascii_uppercase();
    let path = check.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".into());
    http::Method::from_bytes(method.as_bytes()).map_err(|_| invalid("its method is not one"))?;
    if !path.starts_with('/') || path.parse::<http::Uri>().is_err() {
        return Err(invalid("its path has to begin with / and be a valid URL path"));
    }
    for header in &check.headers {
        let values_fit = header.values.iter().all(|v| http::HeaderValue::from_str(v).is_ok());
        if http::HeaderName::try_from(&header.name).is_err() || !values_fit {
            return Err(invalid(&format!("header {:?} can't be sent", header.name)));
        }
    }
    Ok(Kind::Http { method, path, headers: check.headers.clone(), tls })
}

/// The name is the one that was given, else that of a Host header.
fn tls(check_name: &str, check: &Check) -> Result<Tls, MachineError> {
    let host = check.headers.iter().find(|header| header.name.eq_ignore_ascii_case("host"));
    let host = host.and_then(|header| header.values.first()).and_then(|host| host.split(':').next());
    let given = check.tls_server_name.as_deref().or(host).filter(|name| !name.is_empty());
    let name = given.map(|name| {
        ServerName::try_from(name.to_owned()).map_err(|_| {
            let wrong = format!("check {check_name:?}: tls_server_name {name:?} is no host name");
            MachineError::Invalid(wrong)
        })
    });
    Ok(Tls { name: name.transpose()?, verify: !check.tls_skip_verify.unwrap_or(false) })
}

/// Where a check stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// No probe decided yet.
    Unknown,
    /// The last probe passed.
    Passing,
    /// The last probe that counted failed.
    Critical,
}

impl Status {
    /// As the API shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "warning",
            Self::Passing => "passing",
            Self::Critical => "critical",
        }
    }
}

/// How a probe failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nothing listens: the process was not disturbed.
    NotListening(String),
    /// It answered wrongly, or not in time.
    Bad(String),
}

/// One check of one run.
#[derive(Debug, Clone)]
pub struct CheckCore {
    interval: Duration,
    grace_until: Instant,
    status: Status,
    output: String,
    pause: Duration,
}

impl CheckCore {
    /// A check of a process that was started at `now`.
    pub fn new(spec: &Spec, now: Instant) -> Self {
        Self {
            interval: spec.interval,
            grace_until: now + spec.grace,
            status: Status::Unknown,
            output: "waiting for the first probe".into(),
            pause: FIRST_PAUSE,
        }
    }

    /// Where it stands, and what the last probe saw.
    pub fn status(&self) -> (Status, &str) {
        (self.status, &self.output)
    }

    /// Takes a probe's outcome; the time until the next probe.
    pub fn probed(&mut self, now: Instant, outcome: Result<String, Failure>) -> Duration {
        let starting_up = self.status != Status::Passing && matches!(outcome, Err(Failure::NotListening(_)));
        match outcome {
            Ok(output) => {
                self.status = Status::Passing;
                self.output = output;
            }
            Err(Failure::NotListening(output) | Failure::Bad(output)) => {
                self.output = output;
                if now >= self.grace_until {
                    self.status = Status::Critical;
                }
            }
        }
        if !starting_up {
            return self.interval;
        }
        // A process that is coming up shall not wait a whole interval for its traffic.
        let pause = self.pause;
        self.pause = (self.pause * 2).min(self.interval);
        pause
    }
}

#[cfg(test)]
mod tests;
