//! fly-replay: an app's instruction to send the request elsewhere (SPEC RPL-1, RPL-3, RPL-4, RPL-11).
//!
//! Source: `networking/dynamic-request-routing` of `superfly/docs`. The instruction stands in the
//! response header `fly-replay`, whatever the status; its fields are separated by `;`, and by `,`
//! between plain fields as existing clients send them. Unknown fields are ignored.

use std::fmt;

use crate::balance::Constraint;
use crate::code::ErrorCode;
use crate::id::{AppId, MachineId};
use crate::region::{RegionCode, Regions};
use crate::snapshot::{AppView, Snapshot};

/// The response header that carries the instruction.
pub const HEADER: &str = "fly-replay";
/// Response headers of an instruction: none of them reaches the client (SPEC RPL-11).
pub const RESPONSE_HEADERS: [&str; 4] =
    ["fly-replay", "fly-replay-cache", "fly-replay-cache-ttl-secs", "fly-replay-cache-allow-bypass"];
/// The request header that tells the target where the request comes from.
pub const SRC_HEADER: &str = "fly-replay-src";
/// Replays of one request; the next instruction is answered PA02 (SPEC RPL-5).
pub const MAX_REPLAYS: u32 = 10;
/// The longest instruction that is read, in bytes.
pub const MAX_HEADER: usize = 64 << 10;

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replay {
    /// Regions (codes or aliases) in order of preference.
    pub regions: Vec<String>,
    /// A Machine id, as given: one that does not exist is not an invalid value (SPEC RUN-1).
    pub instance: Option<String>,
    /// Another app's name.
    pub app: Option<String>,
    /// Handed to the target in `fly-replay-src`.
    pub state: Option<String>,
    /// Any Machine but the one that answered.
    pub elsewhere: bool,
}

/// Why an instruction is not valid; the app caused it (PA03).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// No known field.
    #[error("the instruction names no region, instance, app or elsewhere")]
    Empty,
    /// Longer than [`MAX_HEADER`].
    #[error("the instruction is {0} bytes long; at most {MAX_HEADER} are read")]
    TooLong(usize),
    /// Not text.
    #[error("the instruction is not ASCII text")]
    NotText,
    /// A region that is neither code nor alias.
    #[error("{0:?} is neither a region nor an alias (apac, eu, na, sa, us, any)")]
    Region(String),
    /// A value that its field does not take.
    #[error("{value:?} is not a value of the field {field}")]
    Value {
        /// The field.
        field: &'static str,
        /// The value.
        value: String,
    },
}

/// Reads an instruction.
///
/// # Errors
/// [`ReplayError`]; never panics, and allocates at most a small multiple of the input.
pub fn parse(value: &[u8], regions: &Regions) -> Result<Replay, ReplayError> {
    if value.len() > MAX_HEADER {
        return Err(ReplayError::TooLong(value.len()));
    }
    let text = std::str::from_utf8(value).ok().filter(|t| t.is_ascii()).ok_or(ReplayError::NotText)?;
    let mut replay = Replay::default();
    // The field that a part without `=` goes on with: `region=iad,lhr` and `state=a,b`.
    let mut open = Field::Other;
    for (separator, part) in split(text) {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (Some(name.trim()), unquote(value.trim())),
            None => (None, unquote(part.trim())),
        };
        match name {
            Some(name) => open = Field::named(name),
            None if separator == ',' => match (open, replay.state.as_mut()) {
                (Field::Region, _) if !value.is_empty() => replay.regions.push(value.to_owned()),
                (Field::State, Some(state)) => *state = format!("{state},{value}"),
                _ => {}
            },
            None => open = Field::Other,
        }
        if name.is_none() {
            continue;
        }
        match open {
            Field::Region => {
                replay.regions =
                    value.split(',').map(str::trim).filter(|r| !r.is_empty()).map(str::to_owned).collect();
                if replay.regions.is_empty() {
                    return Err(ReplayError::Region(value.to_owned()));
                }
            }
            Field::Instance if value.is_empty() => return Err(invalid("instance", value)),
            Field::Instance => replay.instance = Some(value.to_owned()),
            Field::App if value.parse::<crate::AppName>().is_err() => return Err(invalid("app", value)),
            Field::App => replay.app = Some(value.to_owned()),
            Field::State => replay.state = Some(value.to_owned()),
            Field::Elsewhere => {
                replay.elsewhere = match value {
                    "true" => true,
                    "false" => false,
                    other => return Err(invalid("elsewhere", other)),
                }
            }
            Field::Other => {}
        }
    }
    for name in &replay.regions {
        let known = regions.iter().next().is_some_and(|any| regions.matches(name, any.code).is_some());
        if !known {
            return Err(ReplayError::Region(name.clone()));
        }
    }
    let names_something =
        !replay.regions.is_empty() || replay.instance.is_some() || replay.app.is_some() || replay.elsewhere;
    if names_something { Ok(replay) } else { Err(ReplayError::Empty) }
}

fn invalid(field: &'static str, value: &str) -> ReplayError {
    ReplayError::Value { field, value: value.chars().take(80).collect() }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Region,
    Instance,
    App,
    State,
    Elsewhere,
    Other,
}

impl Field {
    fn named(name: &str) -> Self {
        [
            ("region", Self::Region),
            ("instance", Self::Instance),
            ("app", Self::App),
            ("state", Self::State),
            ("elsewhere", Self::Elsewhere),
        ]
        .into_iter()
        .find(|(known, _)| name.eq_ignore_ascii_case(known))
        .map_or(Self::Other, |(_, field)| field)
    }
}

/// Parts between `;` and `,` outside double quotes, each with the separator before it.
fn split(text: &str) -> impl Iterator<Item = (char, &str)> {
    let mut rest = Some((';', text));
    std::iter::from_fn(move || {
        let (separator, text) = rest.take()?;
        let mut quoted = false;
        let end = text.find(|c: char| {
            quoted ^= c == '"';
            !quoted && (c == ';' || c == ',')
        });
        match end {
            Some(end) => {
                let next = text[end..].chars().next().unwrap_or(';');
                rest = Some((next, &text[end + 1..]));
                Some((separator, &text[..end]))
            }
            None => Some((separator, text)),
        }
    })
}

fn unquote(value: &str) -> &str {
    value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value)
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.regions.is_empty() {
            parts.push(format!("region=\"{}\"", self.regions.join(",")));
        }
        if let Some(instance) = &self.instance {
            parts.push(format!("instance={instance}"));
        }
        if let Some(app) = &self.app {
            parts.push(format!("app={app}"));
        }
        if self.elsewhere {
            parts.push("elsewhere=true".to_owned());
        }
        if let Some(state) = &self.state {
            parts.push(format!("state=\"{state}\""));
        }
        f.write_str(&parts.join(";"))
    }
}

impl Replay {
    /// What it names, for traces: `region`, `instance`, `app` or `elsewhere`.
    pub fn kind(&self) -> &'static str {
        if self.instance.is_some() {
            "instance"
        } else if !self.regions.is_empty() {
            "region"
        } else if self.app.is_some() {
            "app"
        } else {
            "elsewhere"
        }
    }
}

/// Where a replay goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The app.
    pub app: AppId,
    /// Which of its Machines.
    pub constraint: Constraint,
}

/// Why a replay goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The named Machine does not exist in the app.
    #[error("Machine {0:?} does not exist in the app")]
    NoMachine(String),
    /// The target is on another network of the organization.
    #[error("app {0:?} is on another network")]
    Network(String),
    /// The target belongs to another organization, or does not exist: the two are not told apart.
    #[error("app {0:?} does not exist, or belongs to another organization")]
    Organization(String),
}

impl Refusal {
    /// Its code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoMachine(_) => ErrorCode::PR02,
            Self::Network(_) => ErrorCode::PA04,
            Self::Organization(_) => ErrorCode::PA05,
        }
    }
}

/// Resolves an instruction given by `source`, a Machine of `app` (SPEC RPL-8 for other apps).
///
/// # Errors
/// [`Refusal`], with its code.
pub fn resolve(
    replay: &Replay,
    app: &AppView,
    source: MachineId,
    snapshot: &Snapshot,
) -> Result<Target, Refusal> {
    let target = match &replay.app {
        None => app,
        Some(name) => {
            let other = || Refusal::Organization(name.clone());
            let target = snapshot.app_by_name(name).ok_or_else(other)?;
            if target.app.org != app.app.org {
                return Err(other());
            }
            if target.app.network != app.app.network {
                return Err(Refusal::Network(name.clone()));
            }
            target
        }
    };
    let machine = match &replay.instance {
        None => None,
        Some(text) => {
            let missing = || Refusal::NoMachine(text.chars().take(80).collect());
            let id: MachineId = text.parse().map_err(|_| missing())?;
            let exists = target.machines.keys().any(|(machine, _)| *machine == id);
            Some(exists.then_some(id).ok_or_else(missing)?)
        }
    };
    let exclude = if replay.elsewhere { vec![source] } else { Vec::new() };
    let constraint = Constraint { machine, regions: replay.regions.clone(), prefer: Vec::new(), exclude };
    Ok(Target { app: target.app.id, constraint })
}

/// The value of `fly-replay-src` (SPEC RPL-4): separator `;` without spaces, as fly-ruby reads it;
/// `t` in microseconds since 1970.
pub fn src_header(source: MachineId, region: RegionCode, unix_us: u64, state: Option<&str>) -> String {
    let mut value = format!("instance={source};region={region};t={unix_us}");
    if let Some(state) = state {
        value.push_str(";state=");
        value.push_str(state);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Replay, ReplayError> {
        parse(text.as_bytes(), &Regions::default())
    }

    fn regions(replay: Replay) -> Vec<String> {
        replay.regions
    }

    /// COMPAT section 2: what existing clients send.
    #[test]
    fn rpl_1_instructions_of_existing_clients_are_understood() {
        assert_eq!(regions(read("region=iad").unwrap()), ["iad"]);
        let fly_ruby = read("region=iad;state=captured_write").unwrap();
        assert_eq!(fly_ruby.state.as_deref(), Some("captured_write"));
        let litefs = read("instance=0123456789abcd").unwrap();
        assert_eq!(litefs.instance.as_deref(), Some("0123456789abcd"));
        let plain = read("app=other,region=lhr").unwrap();
        assert_eq!((plain.app.as_deref(), regions(plain.clone())), (Some("other"), vec!["lhr".to_owned()]));
        assert!(read("elsewhere=true").unwrap().elsewhere);
        assert_eq!(regions(read("region=\"iad, lhr\"; app=web").unwrap()), ["iad", "lhr"]);
        assert_eq!(regions(read("region=iad,lhr;elsewhere=false").unwrap()), ["iad", "lhr"]);
        assert_eq!(read("Region=us;state=a,b=c").unwrap().state.as_deref(), Some("a"));
        assert_eq!(read("region=any;state=a,b").unwrap().state.as_deref(), Some("a,b"));
    }

    #[test]
    fn invalid_values_are_refused_and_unknown_fields_ignored() {
        assert_eq!(read("region=zzz"), Err(ReplayError::Region("zzz".into())));
        assert!(matches!(read("elsewhere=maybe"), Err(ReplayError::Value { field: "elsewhere", .. })));
        assert!(matches!(read("app=Not Valid"), Err(ReplayError::Value { field: "app", .. })));
        assert_eq!(read("donuts=7"), Err(ReplayError::Empty));
        assert_eq!(read(""), Err(ReplayError::Empty));
        assert_eq!(read("state=x"), Err(ReplayError::Empty));
        assert_eq!(parse(b"region=\xff", &Regions::default()), Err(ReplayError::NotText));
        assert!(read("instance=not-an-id").is_ok(), "SPEC RUN-1: an id that does not exist");
        let long = vec![b'a'; MAX_HEADER + 1];
        assert_eq!(parse(&long, &Regions::default()), Err(ReplayError::TooLong(MAX_HEADER + 1)));
    }

    #[test]
    fn the_source_header_reads_as_fly_ruby_reads_it() {
        let id = "0123456789abcd".parse().unwrap();
        let value = src_header(id, "iad".parse().unwrap(), 42, Some("captured_write"));
        assert_eq!(value, "instance=0123456789abcd;region=iad;t=42;state=captured_write");
        assert_eq!(
            src_header(id, "iad".parse().unwrap(), 42, None),
            "instance=0123456789abcd;region=iad;t=42"
        );
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(
            names in proptest::sample::subsequence(vec!["iad", "lhr", "nrt", "eu", "any"], 0..5),
            instance in proptest::option::of("[a-z0-9]{1,20}"),
            app in proptest::option::of("[a-z]([a-z0-9-]{0,10}[a-z0-9])?"),
            state in proptest::option::of("[ -!#-~]{0,40}"),
            elsewhere: bool,
        ) {
            let state = state.map(|s| s.trim().to_owned());
            let regions = names.into_iter().map(str::to_owned).collect();
            let replay = Replay { regions, instance, app, state, elsewhere };
            match read(&replay.to_string()) {
                Ok(parsed) => prop_assert_eq!(parsed, replay),
                Err(error) => prop_assert_eq!(error, ReplayError::Empty),
            }
        }

        #[test]
        fn any_bytes_give_an_instruction_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(replay) = parse(&bytes, &Regions::default()) {
                prop_assert!(!replay.kind().is_empty());
                prop_assert!(replay.regions.iter().all(|name| Regions::default().matches(name, "iad".parse().unwrap()).is_some()));
            }
        }
    }
}
