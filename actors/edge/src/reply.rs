//! Responses that the proxy makes itself (SPEC HTTP-13).
//!
//! One function turns what went wrong into status, headers and one line of help. What is told to
//! the client names the code and the request id; details are in the log and the trace.

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use skein_core::code::ErrorCode;
use skein_core::headers::{self, SKEIN_ERROR};
use skein_core::strict::Refusal;

/// Seconds after which a client may come back (`Retry-After`).
const RETRY_AFTER_SECONDS: &str = "1";

/// What the proxy answers by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// An error with a code of the reference; the text adds what the code's help does not say.
    Code(ErrorCode, Option<String>),
    /// The host names no app here.
    UnknownHost(String),
    /// The app has no HTTP service on the port.
    NoService(u16),
    /// No `Host`, or more than one.
    BadHost,
    /// `CONNECT`.
    Connect,
    /// The body broke the protocol.
    BadBody,
    /// Nothing came of the body for too long.
    SlowBody,
    /// Well-formed, and refused all the same.
    Strict(Refusal),
    /// The request goes round in a loop.
    Loop(usize),
    /// Plain HTTP where HTTPS is wanted: the location.
    Https(String),
}

/// What was tried before the proxy gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tried {
    /// Times a Machine was asked.
    pub(crate) attempts: u32,
    /// How the last of them failed.
    pub(crate) last: ErrorCode,
}

impl Reply {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Code(code, _) => {
                StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
            Self::UnknownHost(_) | Self::NoService(_) => StatusCode::NOT_FOUND,
            Self::BadHost
            | Self::BadBody
            | Self::Strict(Refusal::TransferEncoding | Refusal::ContentLength | Refusal::Target) => {
                StatusCode::BAD_REQUEST
            }
            Self::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Self::Strict(Refusal::LongTarget { .. }) => StatusCode::URI_TOO_LONG,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Loop(_) => StatusCode::LOOP_DETECTED,
            Self::Https(_) => StatusCode::MOVED_PERMANENTLY,
        }
    }

    /// The value of `skein-error`; `None` for what is no error.
    pub(crate) fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::Code(code, _) => code.as_str(),
            Self::UnknownHost(_) => "unknown-host",
            Self::NoService(_) => "no-service",
            Self::BadHost => "bad-host",
            Self::Connect => "connect-refused",
            Self::BadBody => "bad-body",
            Self::SlowBody => "slow-body",
            Self::Strict(Refusal::TransferEncoding) => "bad-transfer-encoding",
            Self::Strict(Refusal::ContentLength) => "bad-content-length",
            Self::Strict(Refusal::Target) => "bad-target",
            Self::Strict(Refusal::LongTarget { .. }) => "target-too-long",
            Self::Loop(_) => "loop",
            Self::Https(_) => return None,
        })
    }

    /// One line of help.
    pub(crate) fn help(&self) -> String {
        match self {
            Self::Code(code, None) => code.help().to_owned(),
            Self::Code(code, Some(more)) => format!("{}: {more}", code.help()),
            Self::UnknownHost(host) => format!(
                "no app answers at {host:?}; use <app>.<base domain>, or the app's own address; `skein apps list` names the apps"
            ),
            Self::NoService(port) => {
                format!(
                    "the app has no HTTP service on port {port}; see [http_service] or [[services]] in its fly.toml"
                )
            }
            Self::BadHost => "exactly one Host header with a valid name is needed".to_owned(),
            Self::Connect => "CONNECT is not proxied".to_owned(),
            Self::BadBody => "the request body is not what its head says, or malformed chunks".to_owned(),
            Self::SlowBody => "nothing came of the request body for too long".to_owned(),
            Self::Strict(refusal) => refusal.to_string(),
            Self::Loop(passes) => {
                format!("the request passed this cluster {passes} times; does an app call itself?")
            }
            Self::Https(location) => format!("moved to {location}"),
        }
    }

    /// The response; `asked` are the client's headers, for `Accept`.
    pub(crate) fn response(
        &self,
        asked: &HeaderMap,
        version: Version,
        server: &HeaderValue,
        request_id: &str,
        tried: Option<Tried>,
    ) -> Response<Bytes> {
        let status = self.status();
        let code = self.code();
        let help = self.help();
        let json = code.is_some() && wants_json(asked);
        let body = match (code, tried) {
            (None, _) => format!("{help}\n"),
            (Some(code), _) if json => {
                let mut json = serde_json::json!({
                    "error": code, "status": status.as_u16(), "message": help, "request_id": request_id,
                    "explain": format!("skein explain {request_id}"),
                });
                if let Some(Tried { attempts, last }) = tried {
                    json["tried"] = attempts.into();
                    json["last"] = last.as_str().into();
                }
                format!("{json}\n")
            }
            (Some(code), None) => {
                format!("{code}: {help} (request {request_id}; skein explain {request_id})\n")
            }
            (Some(code), Some(Tried { attempts, last })) => {
                let request = format!("request {request_id}; skein explain {request_id}");
                format!("{code}: {help} (tried={attempts}; last={last}; {request})\n")
            }
        };
        let kind = if json { "application/json" } else { "text/plain; charset=utf-8" };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let map = response.headers_mut();
        map.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some(code) = code {
            map.insert(SKEIN_ERROR, HeaderValue::from_static(code));
            map.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        if let Self::Code(code, _) = self
            && code.retry_after()
        {
            map.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        if let Self::Https(location) = self
            && let Ok(location) = HeaderValue::from_str(location)
        {
            map.insert(LOCATION, location);
        }
        // The id is ASCII.
        let id = HeaderValue::from_str(request_id).unwrap_or(HeaderValue::from_static(""));
        headers::to_client(map, version, server, &id, None);
        let unreadable = matches!(
            self,
            Self::BadHost | Self::BadBody | Self::Connect | Self::Strict(_) | Self::Code(ErrorCode::PA01, _)
        );
        if unreadable && version != Version::HTTP_2 {
            // What the client sends after such a request is not worth reading.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Whether the client asks for JSON rather than text.
fn wants_json(asked: &HeaderMap) -> bool {
    let accept = asked.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accept.flat_map(|value| value.split(',')).any(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(reply: &Reply, accept: Option<&'static str>) -> Response<Bytes> {
        let mut asked = HeaderMap::new();
        if let Some(accept) = accept {
            asked.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        let tried = matches!(reply, Reply::Code(ErrorCode::PR03, _));
        let tried = tried.then_some(Tried { attempts: 3, last: ErrorCode::PC01 });
        reply.response(&asked, Version::HTTP_11, &HeaderValue::from_static("Skein/1"), "id-iad", tried)
    }

    /// SPEC HTTP-13.
    #[test]
    fn http_13_an_error_names_its_code_the_request_and_what_to_do() {
        let answer = response(&Reply::Code(ErrorCode::PR01, None), None);
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["skein-error"], "PR01");
        assert_eq!(answer.headers()["retry-after"], "1");
        assert_eq!(answer.headers()["fly-request-id"], "id-iad");
        let text = std::str::from_utf8(answer.body()).unwrap();
        assert!(
            text.starts_with("PR01: ") && text.ends_with("(request id-iad; skein explain id-iad)\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn http_13_an_error_after_attempts_says_how_many_and_how_the_last_one_failed() {
        let reply = Reply::Code(ErrorCode::PR03, None);
        let text = response(&reply, None).into_body();
        assert!(text.ends_with(b" (tried=3; last=PC01; request id-iad; skein explain id-iad)\n"), "{text:?}");
        let json = response(&reply, Some("application/json")).into_body();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!((json["tried"].as_u64(), json["last"].as_str()), (Some(3), Some("PC01")));
        assert_eq!(json["explain"], "skein explain id-iad");
        let json = response(&Reply::BadHost, Some("application/json")).into_body();
        assert!(serde_json::from_slice::<serde_json::Value>(&json).unwrap().get("tried").is_none());
    }

    #[test]
    fn http_13_json_is_given_to_those_who_ask_for_it() {
        let answer = response(
            &Reply::Code(ErrorCode::PA01, Some("limit".into())),
            Some("text/html, application/json"),
        );
        assert_eq!(answer.headers()["content-type"], "application/json");
        let json: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!((json["error"].as_str(), json["status"].as_u64()), (Some("PA01"), Some(413)));
        assert!(response(&Reply::BadHost, Some("*/*")).body().starts_with(b"bad-host: "));
    }

    #[test]
    fn a_redirect_is_no_error() {
        let answer = response(&Reply::Https("https://a.localhost/x?y".into()), None);
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["location"]),
            (301, &HeaderValue::from_static("https://a.localhost/x?y"))
        );
        assert!(!answer.headers().contains_key("skein-error"));
    }
}
