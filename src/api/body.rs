//! Bodies in and out: JSON whatever the content type says, as real clients send it (`COMPAT` 1).

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// The content type of every JSON answer.
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// A JSON answer.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = (status, Body::from(bytes)).into_response();
            response.headers_mut().insert(header::CONTENT_TYPE, JSON);
            response
        }
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// 200 with a JSON body.
pub(crate) fn ok(value: &impl Serialize) -> Response {
    json(StatusCode::OK, value)
}

/// 200 `{"ok":true}`.
pub(crate) fn done() -> Response {
    ok(&serde_json::json!({ "ok": true }))
}

/// A JSON body; no body at all counts as `{}`.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| ApiError::new(rejection.status(), rejection.body_text()))?;
        parse(&bytes).map(Self)
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bytes = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| ApiError::bad_request(format!("invalid body: {error}")))
}

/// The parameters of a query, in order; a name may stand more than once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    /// The first value of a name; an empty one counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let mut of_name = self.0.iter().filter(|(key, value)| key == name && !value.is_empty());
        of_name.next().map(|(_, value)| value.as_str())
    }

    /// All values of a name that are not empty.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let of_name = self.0.iter().filter(move |(key, value)| key == name && !value.is_empty());
        of_name.map(|(_, value)| value.as_str())
    }

    /// Whether a name stands there with anything but `false` or `0`.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(key, value)| key == name && value != "false" && value != "0")
    }

    /// Names and values whose name begins with `prefix`, without it.
    pub(crate) fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, value.as_str())))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        query
            .map(|Query(pairs)| Self(pairs))
            .map_err(|rejection| ApiError::bad_request(rejection.body_text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default)]
    struct Stop {
        signal: Option<String>,
    }

    #[test]
    fn no_body_counts_as_an_empty_object_and_unknown_members_are_ignored() {
        assert_eq!(parse::<Stop>(b"").unwrap(), Stop::default());
        assert_eq!(parse::<Stop>(br#"{"id":"m1","signal":"SIGTERM"}"#).unwrap().signal.unwrap(), "SIGTERM");
        let error = parse::<Stop>(b"[").unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        assert!(error.error.starts_with("invalid body: "), "{}", error.error);
    }

    #[test]
    fn a_parameter_may_stand_twice_and_a_flag_may_be_switched_off() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let params = Params(vec![
            pair("state", "stopped"),
            pair("state", "suspended"),
            pair("kill", "true"),
            pair("force", "false"),
            pair("region", ""),
        ]);
        assert_eq!(params.all("state").collect::<Vec<_>>(), ["stopped", "suspended"]);
        assert!(params.flag("kill") && !params.flag("force"));
        assert_eq!(params.get("region"), None);
    }
}
