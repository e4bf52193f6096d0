//! Errors of the API: one shape, one place that turns causes into statuses (`COMPAT` 3.2).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use skein_cluster::registry::ProposeError;
use skein_core::facts::Refusal;
use skein_machine::MachineError;

/// What a failed call answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    /// The status: clients of the Machines API decide by it.
    pub(crate) status: StatusCode,
    /// For people: what happened and what to do next.
    pub(crate) error: String,
    /// For programs, where the reference has one.
    pub(crate) code: Option<&'static str>,
}

/// The body of [`ApiError`].
#[derive(Debug, Serialize)]
struct Body<'a> {
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
}

impl ApiError {
    /// An error of that status.
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), code: None }
    }

    /// The same with a code for programs.
    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// 400: the call itself is wrong.
    pub(crate) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 401 with the text that the Machines API gives, whatever is wrong with the token.
    pub(crate) fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Authenticate: token validation error")
    }

    /// 403: the token is good, but not for this.
    pub(crate) fn forbidden(error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error)
    }

    /// 404 `<what> not found`.
    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{what} not found"))
    }

    /// 409: it collides with what is there.
    pub(crate) fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    /// 422: understood, and impossible.
    pub(crate) fn unprocessable(error: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error)
    }

    /// 501: a part of the Machines API that this version does not have.
    pub(crate) fn not_provided(what: &str) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{what} not provided by this version of Skein"))
    }

    /// 503: another try may work.
    pub(crate) fn unavailable(error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }

    /// 503: the registry has no majority (SPEC API-4).
    pub(crate) fn no_majority(reached: usize, voters: usize) -> Self {
        Self::unavailable(format!(
            "only {reached} of the registry's {voters} voters are reached: nothing can be named or released; \
             what exists goes on"
        ))
    }

    /// 504: something did not happen in time.
    pub(crate) fn too_late(error: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, error)
    }

    /// 500: a fault of Skein's own.
    pub(crate) fn internal(error: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NameTaken(_) => Self::unprocessable(text).with_code("name_taken"),
            Refusal::NotFound(_) => Self::new(StatusCode::NOT_FOUND, text),
            Refusal::PoolEmpty(_) => Self::unprocessable(text).with_code("insufficient_capacity"),
            Refusal::AlreadyInitialized => Self::conflict(text),
            Refusal::NotInitialized => Self::unavailable(text),
            Refusal::JoinTokenInvalid | Refusal::JoinTokenExpired | Refusal::JoinTokenUsed => {
                Self::forbidden(text)
            }
        }
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Refused(refusal) => refusal.into(),
            ProposeError::NoMajority { reached, voters } => Self::no_majority(reached, voters),
            ProposeError::Timeout | ProposeError::Stopped(_) => Self::unavailable(error.to_string()),
        }
    }
}

impl From<MachineError> for ApiError {
    fn from(error: MachineError) -> Self {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Body { error: &self.error, status: self.code };
        let mut response = super::body::json(self.status, &body);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shown(error: ApiError) -> (u16, serde_json::Value) {
        let response = error.into_response();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn a_taken_name_is_422_with_the_code_that_clients_match() {
        let (status, body) = shown(Refusal::NameTaken("shop".into()).into()).await;
        assert_eq!(status, 422);
        assert_eq!(body, serde_json::json!({"error": "the name \"shop\" is taken", "status": "name_taken"}));
    }

    #[tokio::test]
    async fn without_a_majority_the_caller_learns_how_many_voters_are_reached() {
        let (status, body) = shown(ProposeError::NoMajority { reached: 1, voters: 3 }.into()).await;
        assert_eq!(status, 503);
        assert!(body["error"].as_str().unwrap().contains("only 1 of the registry's 3 voters"), "{body}");
    }

    #[tokio::test]
    async fn an_error_without_a_code_has_no_status_member() {
        let (status, body) = shown(ApiError::not_found("machine")).await;
        assert_eq!((status, body), (404, serde_json::json!({"error": "machine not found"})));
    }
}
