//! Calls of a node's API.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use skein_core::api::NodeJson;

/// Calls nodes with the operator's token.
#[derive(Debug, Clone)]
pub struct NodeClient {
    http: reqwest::Client,
    token: String,
}

/// Why a call has no answer, or a refusal for one.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The node refused.
    #[error("{url} answered {status}: {error}")]
    Refused {
        /// What was called.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Its words.
        error: String,
    },
    /// The node did not answer, or not in time.
    #[error("no answer from {url}")]
    Silent {
        /// What was called.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The answer is not JSON of the expected shape.
    #[error("the answer of {url} can't be read")]
    Unreadable {
        /// What was called.
        url: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl NodeClient {
    /// A client with that token. Proxies of the environment are not used: nodes are on loopback.
    ///
    /// # Errors
    /// When the HTTP library can't be set up.
    pub fn new(token: String) -> Result<Self, CallError> {
        let http = reqwest::Client::builder().no_proxy().build();
        let http = http.map_err(|source| CallError::Silent { url: "the HTTP library".into(), source })?;
        Ok(Self { http, token })
    }

    /// All nodes, as the node behind `api` sees them.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn nodes(&self, api: &str, timeout: Duration) -> Result<Vec<NodeJson>, CallError> {
        self.get(&format!("{api}/skein/v1/nodes"), timeout).await
    }

    /// Reads.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn get<T: DeserializeOwned>(&self, url: &str, timeout: Duration) -> Result<T, CallError> {
        self.call(reqwest::Method::GET, url, None::<&()>, timeout).await
    }

    /// Makes or does something; what the answer says is read as JSON.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        url: &str,
        body: &impl Serialize,
        timeout: Duration,
    ) -> Result<T, CallError> {
        self.call(reqwest::Method::POST, url, Some(body), timeout).await
    }

    /// Replaces something; what the answer says is dropped.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn put(&self, url: &str, body: &impl Serialize, timeout: Duration) -> Result<(), CallError> {
        self.call::<serde_json::Value>(reqwest::Method::PUT, url, Some(body), timeout).await.map(drop)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: reqwest::Method,
        url: &str,
        body: Option<&impl Serialize>,
        timeout: Duration,
    ) -> Result<T, CallError> {
        let silent = |source| CallError::Silent { url: url.to_owned(), source };
        let mut request = self.http.request(method, url).bearer_auth(&self.token).timeout(timeout);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(silent)?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(silent)?;
        if !status.is_success() {
            let error = String::from_utf8_lossy(&bytes).chars().take(400).collect();
            return Err(CallError::Refused { url: url.to_owned(), status: status.as_u16(), error });
        }
        // Some calls answer nothing.
        let bytes: &[u8] = if bytes.trim_ascii().is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).map_err(|source| CallError::Unreadable { url: url.to_owned(), source })
    }
}
