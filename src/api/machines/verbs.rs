//! What is done to one Machine of this node.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use skein_core::VersionId;
use skein_core::machine::{GoDuration, MachineConfig, MachineState};
use skein_machine::MachineError;

use super::leases::check;
use super::owner::Owned;
use crate::api::ApiState;
use crate::api::body::{JsonBody, Params, done, ok};
use crate::api::error::ApiError;
use crate::api::validate::prepare;

/// The longest wait for a state, and the wait when nobody says.
const WAIT: Duration = Duration::from_secs(60);

pub(super) async fn show(State(state): State<ApiState>, owned: Owned) -> Result<Response, ApiError> {
    Ok(ok(&owned.machine(&state)?))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct UpdateMachine {
    config: Option<MachineConfig>,
    region: Option<String>,
    skip_launch: bool,
    current_version: Option<String>,
}

pub(super) async fn update(
    State(state): State<ApiState>,
    owned: Owned,
    headers: HeaderMap,
    JsonBody(body): JsonBody<UpdateMachine>,
) -> Result<Response, ApiError> {
    check(&state, owned.id, &headers)?;
    let mut config = body.config.ok_or_else(|| ApiError::bad_request("config is needed"))?;
    prepare(&mut config)?;
    let region = state.node().region;
    if body.region.is_some_and(|wanted| !wanted.is_empty() && wanted != region.as_str()) {
        return Err(ApiError::bad_request(format!(
            "the Machine is in {region} and can't be moved; make one in the other region"
        )));
    }
    let current = body.current_version.filter(|version| !version.is_empty());
    Ok(ok(&state.node().machines.update(owned.id, config, body.skip_launch, current).await?))
}

pub(super) async fn destroy(
    State(state): State<ApiState>,
    owned: Owned,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check(&state, owned.id, &headers)?;
    // Clients say either.
    let force = params.flag("force") || params.flag("kill");
    state.node().machines.destroy(owned.id, force).await.map_err(conflict)?;
    state.leases(|leases| leases.forget(owned.id));
    Ok(done())
}

/// A state that does not allow the call is 409 where the reference says so.
fn conflict(error: MachineError) -> ApiError {
    if matches!(error, MachineError::Precondition(_)) {
        return ApiError::conflict(error.to_string());
    }
    error.into()
}

#[derive(Debug, Serialize)]
struct Started {
    message: &'static str,
    status: MachineState,
    previous_state: MachineState,
}

pub(super) async fn start(
    State(state): State<ApiState>,
    owned: Owned,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check(&state, owned.id, &headers)?;
    let previous_state = state.node().machines.start_machine(owned.id).await.map_err(conflict)?;
    let status = owned.machine(&state)?.state;
    Ok(ok(&Started { message: "", status, previous_state }))
}

/// Begins a suspension (SPEC AUTO-3); `wait` with `state=suspended` tells its end.
pub(super) async fn suspend(
    State(state): State<ApiState>,
    owned: Owned,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check(&state, owned.id, &headers)?;
    state.node().machines.suspend(owned.id).await?;
    Ok(done())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stop {
    signal: Option<Signal>,
    timeout: Option<GoDuration>,
}

pub(super) async fn stop(
    State(state): State<ApiState>,
    owned: Owned,
    headers: HeaderMap,
    JsonBody(body): JsonBody<Stop>,
) -> Result<Response, ApiError> {
    check(&state, owned.id, &headers)?;
    let signal = body.signal.map(Signal::text);
    let timeout = body.timeout.map(|timeout| timeout.0);
    state.node().machines.stop(owned.id, signal, timeout).await?;
    Ok(done())
}

pub(super) async fn restart(
    State(state): State<ApiState>,
    owned: Owned,
    params: Params,
    headers: HeaderMap,
    JsonBody(body): JsonBody<Stop>,
) -> Result<Response, ApiError> {
    check(&state, owned.id, &headers)?;
    let in_query = params.get("signal").map(|name| Signal::Name(name.to_owned()));
    let signal = in_query.or(body.signal).map(Signal::text);
    let timeout = params.get("timeout").map(seconds).transpose()?.or(body.timeout.map(|timeout| timeout.0));
    // A timeout of zero is a forced stop.
    let timeout = if params.flag("force_stop") { Some(Duration::ZERO) } else { timeout };
    state.node().machines.restart(owned.id, signal, timeout).await?;
    Ok(done())
}

/// A signal as clients name it: fly-go's kill sends the number 9.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Signal {
    Number(u8),
    Name(String),
}

impl Signal {
    fn text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Name(name) => name,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct SendSignal {
    signal: Signal,
}

pub(super) async fn signal(
    State(state): State<ApiState>,
    owned: Owned,
    headers: HeaderMap,
    JsonBody(body): JsonBody<SendSignal>,
) -> Result<Response, ApiError> {
    check(&state, owned.id, &headers)?;
    state.node().machines.signal(owned.id, body.signal.text()).await?;
    Ok(done())
}

pub(super) async fn cordon(
    State(state): State<ApiState>,
    owned: Owned,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check(&state, owned.id, &headers)?;
    state.node().machines.cordon(owned.id).await?;
    Ok(done())
}

pub(super) async fn uncordon(
    State(state): State<ApiState>,
    owned: Owned,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check(&state, owned.id, &headers)?;
    state.node().machines.uncordon(owned.id).await?;
    Ok(done())
}

/// What `wait` waits for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    states: Vec<MachineState>,
    version: Option<VersionId>,
    timeout: Duration,
}

impl Wanted {
    fn parse(params: &Params) -> Result<Self, ApiError> {
        let bad = |error: &dyn std::fmt::Display| ApiError::bad_request(error.to_string());
        let states: Result<Vec<MachineState>, _> = params.all("state").map(str::parse).collect();
        let mut states = states.map_err(|error| bad(&error))?;
        if states.is_empty() {
            states.push(MachineState::Started);
        }
        let version = params.get("instance_id").or_else(|| params.get("version"));
        let timeout = params.get("timeout").map(seconds).transpose()?.unwrap_or(WAIT);
        if timeout > WAIT {
            return Err(bad(&format_args!("timeout is at most {} seconds", WAIT.as_secs())));
        }
        Ok(Self {
            states,
            version: version.map(str::parse).transpose().map_err(|error| bad(&error))?,
            timeout,
        })
    }
}

/// A number of seconds, or a duration with a unit.
fn seconds(text: &str) -> Result<Duration, ApiError> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let duration = text.parse::<GoDuration>();
    duration.map(|duration| duration.0).map_err(|error| ApiError::bad_request(error.to_string()))
}

#[derive(Debug, Serialize)]
struct Waited {
    ok: bool,
    state: MachineState,
    version: VersionId,
    event_id: String,
}

pub(super) async fn wait(
    State(state): State<ApiState>,
    owned: Owned,
    params: Params,
) -> Result<Response, ApiError> {
    let Wanted { states, version, timeout } = Wanted::parse(&params)?;
    let machine = state.node().machines.wait(owned.id, states, version, timeout).await?;
    let event_id = machine.events.first().map(|event| event.id.clone()).unwrap_or_default();
    Ok(ok(&Waited { ok: true, state: machine.state, version: machine.instance_id, event_id }))
}

pub(super) async fn events(
    State(state): State<ApiState>,
    owned: Owned,
    params: Params,
) -> Result<Response, ApiError> {
    let limit = params.get("limit").map(str::parse::<usize>).transpose();
    let limit = limit.map_err(|_| ApiError::bad_request("limit is a number"))?.unwrap_or(usize::MAX);
    let mut events = owned.machine(&state)?.events;
    events.truncate(limit);
    Ok(ok(&events))
}

pub(super) async fn not_provided(_owned: Owned, uri: Uri) -> ApiError {
    let verb = uri.path().splitn(6, '/').nth(5).unwrap_or_default().to_owned();
    ApiError::not_provided(&format!("{verb} of Machines is"))
}

#[cfg(test)]
mod tests {
    use axum::extract::FromRequestParts;
    use axum::http::Request;

    use super::*;

    async fn wanted(query: &str) -> Result<Wanted, ApiError> {
        let (mut parts, ()) = Request::get(format!("/x?{query}")).body(()).unwrap().into_parts();
        Wanted::parse(&Params::from_request_parts(&mut parts, &()).await.unwrap())
    }

    #[tokio::test]
    async fn a_wait_reads_as_clients_send_it() {
        let default = wanted("").await.unwrap();
        assert_eq!(default, Wanted { states: vec![MachineState::Started], version: None, timeout: WAIT });
        let fly_go =
            wanted("state=stopped&state=suspended&timeout=5&version=01JNRQ9VVKJ7HZFMJWJB3M3RYN").await;
        let fly_go = fly_go.unwrap();
        assert_eq!(fly_go.states, [MachineState::Stopped, MachineState::Suspended]);
        assert_eq!(fly_go.timeout, Duration::from_secs(5));
        assert!(fly_go.version.is_some());
        assert_eq!(wanted("timeout=2s").await.unwrap().timeout, Duration::from_secs(2));
        for bad in ["state=donuts", "timeout=61", "timeout=soon", "instance_id=7"] {
            assert_eq!(wanted(bad).await.unwrap_err().status.as_u16(), 400, "{bad}");
        }
    }

    #[test]
    fn a_signal_is_a_name_or_a_number() {
        let text = |json: &str| serde_json::from_str::<SendSignal>(json).unwrap().signal.text();
        assert_eq!(text(r#"{"signal":9}"#), "9");
        assert_eq!(text(r#"{"signal":"SIGTERM"}"#), "SIGTERM");
    }

    #[test]
    fn a_stop_ignores_what_it_does_not_know() {
        let stop: Stop = serde_json::from_str(r#"{"id":"m1","timeout":"10s"}"#).unwrap();
        assert_eq!(stop.timeout.unwrap().0, Duration::from_secs(10));
        let stop: Stop = serde_json::from_str(r#"{"timeout":5000000000,"signal":"SIGTERM"}"#).unwrap();
        assert_eq!(stop.timeout.unwrap().0, Duration::from_secs(5));
    }
}
