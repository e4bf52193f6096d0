//! The client of the API: the only way in which the command line reaches a cluster (SPEC API-3).

use std::time::Duration;

use http::Method;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How long a call may take: longer than the longest wait that the API allows.
const CALL: Duration = Duration::from_secs(90);

/// Where an API is and what opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `http://host:port`, without a slash at its end.
    pub url: String,
    /// The token.
    pub token: String,
}

impl Target {
    /// A target; slashes at the end of the URL, and the `/v1` that some write there, are dropped.
    pub fn new(url: &str, token: &str) -> Self {
        let url = url.trim().trim_end_matches('/');
        let url = url.strip_suffix("/v1").unwrap_or(url).trim_end_matches('/');
        Self { url: url.to_owned(), token: token.trim().to_owned() }
    }
}

/// Why a call has no answer, or a refusal for one.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API refused; the text is its own.
    #[error("{error}{}", hint(*.status, .error))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        error: String,
        /// Its code for programs.
        code: Option<String>,
    },
    /// Nobody answers there.
    #[error("no answer from {url}; is the cluster running? `skein up` starts one")]
    Unreachable {
        /// The URL that was tried.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The answer is not what this version understands.
    #[error("the answer of {path} can't be read; are the program and the cluster of one version?")]
    Unreadable {
        /// What was called.
        path: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

fn hint(status: u16, error: &str) -> &'static str {
    match status {
        // A testbed knows one token and not whether another is good for something else.
        401 if error.contains("the operator's token") => "",
        401 => "; the token is wrong or was revoked: see `skein tokens create`, or SKEIN_API_TOKEN",
        _ => "",
    }
}

impl CallError {
    /// The same, with the name of the app that is not there.
    #[must_use]
    pub fn about(mut self, app: &str) -> Self {
        if let Self::Refused { status: 404, error, .. } = &mut self
            && error == "app not found"
        {
            *error = format!("there is no app {app}; `skein apps list` shows them");
        }
        self
    }

    /// The status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unreachable { .. } | Self::Unreadable { .. } => None,
        }
    }
}

/// A client of one API.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    target: Target,
}

impl Client {
    /// A client of `target`. Proxies of the environment are not used: clusters are near.
    ///
    /// # Errors
    /// When the HTTP library can't be set up.
    pub fn new(target: Target) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(CALL).build()?;
        Ok(Self { http, target })
    }

    /// Where it calls.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Reads.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// Reads; `None` when there is no such thing.
    ///
    /// # Errors
    /// [`CallError`], but for 404.
    pub async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, CallError> {
        match self.get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(CallError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes or does something.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, CallError> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Removes something; what the answer says is dropped.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn delete(&self, path: &str) -> Result<(), CallError> {
        self.send(Method::DELETE, path, None::<&()>).await.map(drop)
    }

    /// Any call with a JSON answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, CallError> {
        let bytes = self.send(method, path, body).await?;
        // Some calls answer nothing.
        let bytes: &[u8] = if bytes.trim_ascii().is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes)
            .map_err(|source| CallError::Unreadable { path: path.to_owned(), source })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<bytes::Bytes, CallError> {
        let url = format!("{}{path}", self.target.url);
        let unreachable = |source| CallError::Unreachable { url: self.target.url.clone(), source };
        let mut request = self.http.request(method, &url).bearer_auth(&self.target.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(unreachable)?;
        if status.is_success() {
            return Ok(bytes);
        }
        let refused = refused(status.as_u16(), &bytes);
        Err(match path.strip_prefix("/v1/apps/").and_then(|rest| rest.split(['/', '?']).next()) {
            Some(app) => refused.about(app),
            None => refused,
        })
    }

    /// Returns when every live node has seen all that went before.
    ///
    /// # Errors
    /// [`CallError`]; 504 when they have not in time.
    pub async fn barrier(&self) -> Result<(), CallError> {
        self.send(Method::POST, "/skein/v1/barrier", Some(&serde_json::json!({}))).await.map(drop)
    }
}

fn refused(status: u16, body: &[u8]) -> CallError {
    #[derive(Deserialize)]
    struct Body {
        error: String,
        #[serde(default)]
        status: Option<String>,
    }
    match serde_json::from_slice::<Body>(body) {
        Ok(Body { error, status: code }) => CallError::Refused { status, error, code },
        Err(_) => CallError::Refused { status, error: format!("the API answered {status}"), code: None },
    }
}

/// A text as one segment of a path.
pub fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~:".contains(&byte);
    // A segment of dots would change the path.
    let dots = text.bytes().all(|byte| byte == b'.');
    text.bytes()
        .map(|byte| if plain(byte) && !dots { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_may_end_as_people_write_it() {
        for url in ["http://a:1", "http://a:1/", "http://a:1/v1", " http://a:1/v1/ "] {
            assert_eq!(Target::new(url, " t\n"), Target { url: "http://a:1".into(), token: "t".into() });
        }
    }

    #[test]
    fn a_segment_never_leaves_its_place_in_the_path() {
        assert_eq!(segment("hello-2"), "hello-2");
        assert_eq!(segment("a/b?c#d e"), "a%2Fb%3Fc%23d%20e");
        assert_eq!(segment(".."), "%2E%2E");
        assert_eq!(segment("2001:db8::1"), "2001:db8::1");
    }

    #[test]
    fn a_refusal_is_told_in_the_words_of_the_api() {
        let error = refused(422, br#"{"error":"the name \"shop\" is taken","status":"name_taken"}"#);
        assert_eq!(error.to_string(), "the name \"shop\" is taken");
        assert_eq!(error.status(), Some(422));
        let strange = refused(500, b"<html>");
        assert_eq!(strange.to_string(), "the API answered 500");
        let token = refused(401, br#"{"error":"Authenticate: token validation error"}"#);
        assert!(token.to_string().contains("SKEIN_API_TOKEN"), "{token}");
        let operators = refused(401, br#"{"error":"this needs the operator's token: it is elsewhere"}"#);
        assert_eq!(operators.to_string(), "this needs the operator's token: it is elsewhere");
    }

    #[test]
    fn an_app_that_is_not_there_is_named() {
        let said = |body: &[u8]| refused(404, body).about("shop").to_string();
        let app = said(br#"{"error":"app not found"}"#);
        assert!(app.contains("no app shop") && app.contains("skein apps list"), "{app}");
        assert_eq!(said(br#"{"error":"machine not found"}"#), "machine not found");
    }

    #[tokio::test]
    async fn an_api_that_is_not_there_is_named_with_the_next_step() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let client = Client::new(Target::new(&url, "t")).unwrap();
        let error = client.get::<serde_json::Value>("/v1/apps").await.unwrap_err().to_string();
        assert!(error.contains(&url) && error.contains("skein up"), "{error}");
    }
}
